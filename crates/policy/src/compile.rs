//! All policies of one workload, and the decision on a TCP connection.

use crate::authorization::Action;
use crate::error::PolicyError;
use crate::object::{AuthorizationPolicy, Enforcement, ObjectName, WorkloadRef};
use crate::rule::CompiledPolicy;
use cinch_reason::Reason;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// What is known of a connection when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection<'a> {
    /// The verified SPIFFE ID of the peer, with or without `spiffe://`; `None` for plaintext.
    pub peer: Option<&'a str>,
    /// The address of the direct connection.
    pub source: IpAddr,
    /// The workload's address and port.
    pub destination: SocketAddr,
}

impl<'a> Connection<'a> {
    /// The peer as policies write it: without the scheme.
    pub(crate) fn principal(&self) -> Option<&'a str> {
        let peer = self.peer?;
        Some(peer.strip_prefix("spiffe://").unwrap_or(peer)).filter(|id| !id.is_empty())
    }
}

/// What becomes of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Let it through: [`Reason::Allowed`] or [`Reason::AllowedByDefault`].
    Allow(Reason),
    /// Refuse it, with the name (`namespace/name`) of the policy that did, where one did.
    Deny(Reason, Option<Arc<str>>),
}

impl Decision {
    /// Whether it lets the connection through.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Decision::Allow(_))
    }
}

/// The policies that apply to one workload, ready for decisions on TCP connections.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CompiledPolicies {
    invalid: Vec<(Arc<str>, PolicyError)>,
    deny: Vec<CompiledPolicy>,
    allow: Vec<CompiledPolicy>,
    audit: Vec<CompiledPolicy>,
}

impl CompiledPolicies {
    /// Picks and compiles what applies to `workload`. Dry-run policies take no part. The order of `policies`
    /// doesn't matter.
    #[must_use]
    pub fn compile<'a>(
        policies: impl IntoIterator<Item = &'a AuthorizationPolicy>,
        workload: &WorkloadRef,
    ) -> Self {
        let mut chosen: Vec<_> = policies
            .into_iter()
            .filter(|policy| policy.enforcement() == Enforcement::Enforced && policy.applies_to(workload))
            .collect();
        chosen.sort_by_key(|policy| policy.name());
        let mut all = CompiledPolicies::default();
        for policy in chosen {
            let compiled = policy
                .spec()
                .map_err(Clone::clone)
                .and_then(|spec| CompiledPolicy::compile(policy.name(), spec, &workload.trust_domain));
            match compiled {
                Ok(compiled) => all.list(compiled.action).push(compiled),
                Err(fault) => all.close(policy.name(), fault),
            }
        }
        all
    }

    /// Refuses everything on account of `name`: for policies that could not even be received whole.
    pub fn close(&mut self, name: &ObjectName, fault: PolicyError) {
        self.invalid.push((name.to_string().into(), fault));
    }

    fn list(&mut self, action: Action) -> &mut Vec<CompiledPolicy> {
        match action {
            Action::Allow => &mut self.allow,
            // CUSTOM never compiles; were it to, refusing what it matches is the safe reading.
            Action::Deny | Action::Custom => &mut self.deny,
            Action::Audit => &mut self.audit,
        }
    }

    /// Whether there is nothing to decide: every connection is allowed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.invalid.is_empty() && self.deny.is_empty() && self.allow.is_empty()
    }

    /// The policies that could not be used and therefore close the workload, with their faults.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &PolicyError)> {
        self.invalid.iter().map(|(name, fault)| (&**name, fault))
    }

    /// Decides on a connection of which no HTTP is known: an unusable policy closes, then any DENY refuses, then
    /// without ALLOW policies it passes, else one of them must match.
    #[must_use]
    pub fn decide(&self, connection: &Connection<'_>) -> Decision {
        if let Some((name, _)) = self.invalid.first() {
            return Decision::Deny(Reason::PolicyInvalid, Some(name.clone()));
        }
        if let Some(policy) = self.deny.iter().find(|policy| policy.matches(connection)) {
            return Decision::Deny(Reason::DeniedByPolicy, Some(policy.name.clone()));
        }
        if self.allow.is_empty() {
            return Decision::Allow(Reason::AllowedByDefault);
        }
        if self.allow.iter().any(|policy| policy.matches(connection)) {
            return Decision::Allow(Reason::Allowed);
        }
        Decision::Deny(Reason::NoAllowMatched, None)
    }

    /// The names of the AUDIT policies that match.
    pub fn audited<'a>(&'a self, connection: &'a Connection<'_>) -> impl Iterator<Item = &'a str> {
        self.audit.iter().filter(|policy| policy.matches(connection)).map(|policy| &*policy.name)
    }
}
