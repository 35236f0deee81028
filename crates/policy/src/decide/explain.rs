//! Why nothing allowed a request: off the fast path, for logs and the CLI.

use super::authorize::{Subject, with_subject};
use super::facts::{Connection, Facts, Request};
use super::rules::{AllOf, Rule, Truth};
use crate::compile::WorkloadPolicies;
use std::sync::Arc;

/// A rule of an ALLOW policy that did not match, and where it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss<'p> {
    /// `namespace/name` of the policy.
    pub policy: &'p Arc<str>,
    /// The rule's number.
    pub rule: u32,
    /// The fields that failed, such as `spec.rules[0].to[0].operation.methods`: of each alternative the first.
    pub fields: Vec<&'p str>,
}

impl WorkloadPolicies {
    /// For a request that no ALLOW policy matched: where each of their rules failed, by name and number.
    #[must_use]
    pub fn misses(&self, request: &Request<'_>) -> Vec<Miss<'_>> {
        with_subject(request, |subject| self.misses_of(subject))
    }

    /// As [`Self::misses`], for a connection that carries no HTTP.
    #[must_use]
    pub fn misses_tcp(&self, connection: &Connection<'_>) -> Vec<Miss<'_>> {
        self.misses_of(&Subject::of_connection(connection))
    }

    fn misses_of(&self, subject: &Subject<'_>) -> Vec<Miss<'_>> {
        let mut misses = Vec::new();
        for rule in &self.allow.rules {
            let Some(policy) = self.allow.policies.get(rule.policy as usize) else { continue };
            let fields = subject.each().map(|facts| failed(rule, &facts)).find(|fields| !fields.is_empty());
            misses.extend(fields.map(|fields| Miss { policy, rule: rule.number, fields }));
        }
        misses
    }
}

fn failed<'r>(rule: &'r Rule, facts: &Facts<'_>) -> Vec<&'r str> {
    let when = std::slice::from_ref(&rule.when);
    [when, &rule.to, &rule.from].into_iter().flat_map(|part| failed_part(part, facts)).collect()
}

/// The first failing field of each alternative; none when an alternative holds.
fn failed_part<'r>(part: &'r [AllOf], facts: &Facts<'_>) -> Vec<&'r str> {
    let first_failed = |clauses: &'r AllOf| {
        clauses.iter().find(|clause| clause.truth(facts) != Truth::Yes).map(|clause| &*clause.field)
    };
    part.iter().map(first_failed).collect::<Option<Vec<_>>>().unwrap_or_default()
}
