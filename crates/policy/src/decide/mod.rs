//! Decisions: what is known of a connection or request goes in, with the compiled policies; a decision with its
//! reason comes out. Nothing here allocates unless something is to be reported.

mod authorize;
mod claim;
mod explain;
pub(crate) mod facts;
mod header;
mod report;
pub(crate) mod rules;
pub(crate) mod test;

pub(crate) use claim::RequestPrincipals;
pub use explain::Miss;
pub use facts::{Connection, Header, Request, Token};
pub use report::{DryRun, Report};

use cinch_reason::Reason;
use std::sync::Arc;

/// Whether it passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It passes.
    Allow,
    /// It is refused.
    Deny,
}

/// What becomes of a connection or request, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'p> {
    /// Whether it passes.
    pub outcome: Outcome,
    /// The stable word.
    pub reason: Reason,
    /// The policy that decided (`namespace/name`, the lowest of those that match), where one did.
    pub policy: Option<&'p Arc<str>>,
    /// The number of that policy's first matching rule, from 0, where a rule matched.
    pub rule: Option<u32>,
}

impl<'p> Decision<'p> {
    /// Whether it passes.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.outcome == Outcome::Allow
    }

    pub(crate) fn allow(reason: Reason, found: Option<rules::Found<'p>>) -> Self {
        Self::new(Outcome::Allow, reason, found)
    }

    pub(crate) fn deny(reason: Reason, found: Option<rules::Found<'p>>) -> Self {
        Self::new(Outcome::Deny, reason, found)
    }

    fn new(outcome: Outcome, reason: Reason, found: Option<rules::Found<'p>>) -> Self {
        let policy = found.map(|found| found.policy);
        Decision { outcome, reason, policy, rule: found.map(|found| found.rule) }
    }
}

/// What can be said of a connection before any HTTP was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partial<'p> {
    /// Whatever comes over it, HTTP or not, passes.
    Allow(Decision<'p>),
    /// Whatever comes over it is refused.
    Deny(Decision<'p>),
    /// It depends on the requests.
    NeedsHttp,
}

/// What the provider of a CUSTOM policy answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It may pass, as far as the provider is concerned.
    Allow,
    /// It may not.
    Deny,
    /// No answer came; that is no permission.
    Unreachable,
}

/// Asks the provider of this name; called at most once for each provider, only when one of its policies matches.
pub type Providers<'a> = &'a dyn Fn(&str) -> Answer;

/// The providers where there are none: each is unreachable.
#[must_use]
pub fn no_providers(_name: &str) -> Answer {
    Answer::Unreachable
}
