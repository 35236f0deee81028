//! What is reported beside a decision: AUDIT policies that match, and dry runs.

use super::authorize::{Subject, decide, with_subject};
use super::facts::{Connection, Facts, Request};
use super::rules::{RuleSet, Wanted};
use super::{Decision, Providers};
use crate::authorization::Action;
use crate::compile::WorkloadPolicies;
use std::sync::Arc;

/// One dry-run policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DryRun<'p> {
    /// `namespace/name`.
    pub policy: &'p Arc<str>,
    /// ALLOW or DENY.
    pub action: Action,
    /// Whether one of its rules matches: for DENY under any reading of the path, for ALLOW under each.
    pub matched: bool,
}

/// What is reported beside a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report<'p> {
    /// The AUDIT policies that match under any reading of the path, by name.
    pub audit: Vec<&'p Arc<str>>,
    /// Every dry-run policy of the workload, by name.
    pub dry_run: Vec<DryRun<'p>>,
    /// What the whole set would have decided, were the dry runs enforced.
    pub would: Decision<'p>,
}

impl WorkloadPolicies {
    /// Whether a report could say anything beyond the decision.
    #[must_use]
    pub fn reports(&self) -> bool {
        [&self.audit, &self.dry_deny, &self.dry_allow].into_iter().any(|rules| !rules.is_empty())
    }

    /// The report on a request that reached the policies (its token, if any, was verified).
    #[must_use]
    pub fn report(&self, request: &Request<'_>, providers: Providers<'_>) -> Report<'_> {
        with_subject(request, |subject| self.report_on(subject, providers))
    }

    /// The report on a connection that carries no HTTP.
    #[must_use]
    pub fn report_tcp(&self, connection: &Connection<'_>, providers: Providers<'_>) -> Report<'_> {
        self.report_on(&Subject::of_connection(connection), providers)
    }

    fn report_on(&self, subject: &Subject<'_>, providers: Providers<'_>) -> Report<'_> {
        let would = self.closed().or_else(|| self.refused_by_provider(subject, providers));
        let would = would.unwrap_or_else(|| {
            decide(subject, &[&self.deny, &self.dry_deny], &[&self.allow, &self.dry_allow])
        });
        let matched = matched_under_any(&self.audit, subject);
        let audit = self.audit.policies.iter().zip(matched).filter_map(|(policy, yes)| yes.then_some(policy));
        let mut dry_run = dry_runs(&self.dry_deny, matched_under_any(&self.dry_deny, subject), Action::Deny);
        let allowed = matched_under_each(&self.dry_allow, subject);
        dry_run.extend(dry_runs(&self.dry_allow, allowed, Action::Allow));
        dry_run.sort_by(|one, other| one.policy.cmp(other.policy));
        Report { audit: audit.collect(), dry_run, would }
    }
}

fn dry_runs(rules: &RuleSet, matched: Vec<bool>, action: Action) -> Vec<DryRun<'_>> {
    let policies = rules.policies.iter().zip(matched);
    policies.map(|(policy, matched)| DryRun { policy, action, matched }).collect()
}

/// For each policy of the set, whether it matches.
fn matched(rules: &RuleSet, facts: &Facts<'_>, wanted: Wanted) -> Vec<bool> {
    let mut matched = vec![false; rules.policies.len()];
    rules.each_policy(facts, wanted, &mut |number| {
        if let Some(yes) = matched.get_mut(number as usize) {
            *yes = true;
        }
    });
    matched
}

fn matched_under_any(rules: &RuleSet, subject: &Subject<'_>) -> Vec<bool> {
    let none = vec![false; rules.policies.len()];
    subject.each().fold(none, |all, facts| {
        all.into_iter()
            .zip(matched(rules, &facts, Wanted::Possible))
            .map(|(one, other)| one || other)
            .collect()
    })
}

fn matched_under_each(rules: &RuleSet, subject: &Subject<'_>) -> Vec<bool> {
    let every = vec![true; rules.policies.len()];
    subject.each().fold(every, |all, facts| {
        all.into_iter()
            .zip(matched(rules, &facts, Wanted::Certain))
            .map(|(one, other)| one && other)
            .collect()
    })
}
