//! The order of decisions: what can't be used closes; CUSTOM; (tokens, verified elsewhere;) DENY; ALLOW.

use super::facts::{Connection, Facts, Host, Http, Request};
use super::rules::{Found, RuleSet, Wanted};
use super::{Answer, Decision, Partial, Providers};
use crate::compile::WorkloadPolicies;
use crate::path::{Reading, Readings};
use cinch_reason::Reason;

impl WorkloadPolicies {
    /// Decides on a request whose token, if it has one, was verified: CUSTOM, then DENY, then ALLOW. Where a
    /// token must still be verified, ask [`Self::custom`] before and [`Self::authorize`] after that.
    #[must_use]
    pub fn request(&self, request: &Request<'_>, providers: Providers<'_>) -> Decision<'_> {
        self.custom(request, providers).unwrap_or_else(|| self.authorize(request))
    }

    /// What is decided before tokens are looked at: a policy that can't be used refuses, and so does a CUSTOM
    /// policy that matches and whose provider doesn't allow.
    pub fn custom(&self, request: &Request<'_>, providers: Providers<'_>) -> Option<Decision<'_>> {
        if let Some(closed) = self.closed() {
            return Some(closed);
        }
        if self.custom.is_empty() {
            return None;
        }
        with_subject(request, |subject| self.refused_by_provider(subject, providers))
    }

    /// DENY, then ALLOW. Every reading of the path must pass.
    #[must_use]
    pub fn authorize(&self, request: &Request<'_>) -> Decision<'_> {
        if let Some(closed) = self.closed() {
            return closed;
        }
        with_subject(request, |subject| decide(subject, &[&self.deny], &[&self.allow]))
    }

    /// Decides on a connection that carries no HTTP. An ALLOW rule that asks for HTTP never matches; in other
    /// actions such a rule matches without that field.
    #[must_use]
    pub fn tcp(&self, connection: &Connection<'_>, providers: Providers<'_>) -> Decision<'_> {
        if let Some(closed) = self.closed() {
            return closed;
        }
        let subject = Subject::of_connection(connection);
        self.refused_by_provider(&subject, providers)
            .unwrap_or_else(|| decide(&subject, &[&self.deny], &[&self.allow]))
    }

    /// What can be said when the connection is opened: the decision where nothing that may come over it, HTTP or
    /// not, could change it.
    #[must_use]
    pub fn connection(&self, connection: &Connection<'_>) -> Partial<'_> {
        if let Some(closed) = self.closed() {
            return Partial::Deny(closed);
        }
        let facts = Facts::of_connection(connection);
        if let Some(found) = self.deny.first(&facts, Wanted::Certain) {
            return Partial::Deny(Decision::deny(Reason::DeniedByPolicy, Some(found)));
        }
        let allows = !self.allow.is_empty();
        if allows && self.allow.first(&facts, Wanted::Possible).is_none() {
            return Partial::Deny(Decision::deny(Reason::NoAllowMatched, None));
        }
        let checks_tokens = self.checks_tokens && !self.other.contains(&connection.destination.port());
        let may_refuse = checks_tokens
            || self.custom.iter().any(|(_, rules)| rules.first(&facts, Wanted::Possible).is_some())
            || self.deny.first(&facts, Wanted::Possible).is_some();
        if may_refuse {
            return Partial::NeedsHttp;
        }
        if !allows {
            return Partial::Allow(Decision::allow(Reason::AllowedByDefault, None));
        }
        match self.allow.first(&facts, Wanted::Certain) {
            Some(found) => Partial::Allow(Decision::allow(Reason::Allowed, Some(found))),
            None => Partial::NeedsHttp,
        }
    }

    pub(super) fn closed(&self) -> Option<Decision<'_>> {
        let policy = self.invalid.first()?;
        Some(Decision { policy: Some(policy), ..Decision::deny(Reason::PolicyInvalid, None) })
    }

    pub(super) fn refused_by_provider(
        &self,
        subject: &Subject<'_>,
        providers: Providers<'_>,
    ) -> Option<Decision<'_>> {
        let mut lowest = None;
        for (provider, rules) in &self.custom {
            if let Some(found) = subject.lowest(&[rules])
                && providers(provider) != Answer::Allow
            {
                lowest = Some(found.lower(lowest));
            }
        }
        lowest.map(|found| Decision::deny(Reason::DeniedByProvider, Some(found)))
    }
}

/// One request under each reading of its path, or a connection.
pub(super) struct Subject<'a> {
    facts: Facts<'a>,
    paths: Option<&'a Readings<'a>>,
}

impl<'a> Subject<'a> {
    /// No request is known, and none will come.
    pub(super) fn of_connection(connection: &Connection<'a>) -> Self {
        Subject { facts: Facts::of_connection(connection), paths: None }
    }

    /// The facts under each reading; once where there is no path.
    pub(super) fn each(&self) -> impl Iterator<Item = Facts<'a>> {
        self.named().chain(self.further())
    }

    /// The facts under each reading that the mode names.
    fn named(&self) -> impl Iterator<Item = Facts<'a>> {
        let once = self.paths.is_none().then_some(self.facts);
        let named = self.paths.into_iter().flat_map(Readings::named);
        let facts = self.facts;
        once.into_iter().chain(named.map(move |path| reading(facts, path, Reading::Named)))
    }

    /// The facts under each further reading.
    fn further(&self) -> impl Iterator<Item = Facts<'a>> {
        let facts = self.facts;
        let further = self.paths.into_iter().flat_map(Readings::further);
        further.map(move |path| reading(facts, path, Reading::Further))
    }

    /// The lowest rule that matches under any reading: under those that the mode names, else under the further.
    pub(super) fn lowest<'p>(&self, sets: &[&'p RuleSet]) -> Option<Found<'p>> {
        let lowest = |each: &mut dyn Iterator<Item = Facts<'a>>| {
            each.fold(None, |lowest, facts| lowest_of(sets, &facts, Wanted::Possible, lowest))
        };
        if sets.iter().all(|rules| rules.is_empty()) {
            return None;
        }
        if !sets.iter().any(|rules| rules.asks_path()) {
            return lowest(&mut self.named().take(1));
        }
        lowest(&mut self.named()).or_else(|| lowest(&mut self.further()))
    }
}

fn reading<'a>(mut facts: Facts<'a>, path: &'a str, from: Reading) -> Facts<'a> {
    if let Some(http) = &mut facts.http {
        http.path = Some((path, from));
    }
    facts
}

/// Takes the request apart and hands it to `judge`.
pub(super) fn with_subject<T>(request: &Request<'_>, judge: impl FnOnce(&Subject<'_>) -> T) -> T {
    let mut room = None;
    let http = Http {
        method: request.method,
        path: None,
        authority: request.host,
        host: request.host.map(|host| Host::new(host, &mut room)),
        headers: request.headers,
        token: request.token,
    };
    let facts = Facts { http: Some(http), ..Facts::of_connection(&request.connection) };
    judge(&Subject { facts, paths: Some(request.paths) })
}

/// DENY fires under any reading; ALLOW must hold under each.
pub(super) fn decide<'p>(subject: &Subject<'_>, deny: &[&'p RuleSet], allow: &[&'p RuleSet]) -> Decision<'p> {
    if let Some(found) = subject.lowest(deny) {
        return Decision::deny(Reason::DeniedByPolicy, Some(found));
    }
    if allow.iter().all(|rules| rules.is_empty()) {
        return Decision::allow(Reason::AllowedByDefault, None);
    }
    // Where nothing asks for the path, one look is enough.
    let asks_path = allow.iter().any(|rules| rules.asks_path());
    let mut lowest = None;
    for facts in subject.named().take(if asks_path { usize::MAX } else { 1 }) {
        match lowest_of(allow, &facts, Wanted::Certain, None) {
            Some(found) => lowest = Some(found.lower(lowest)),
            None => return Decision::deny(Reason::NoAllowMatched, None),
        }
    }
    let allowed = |facts: Facts<'_>| lowest_of(allow, &facts, Wanted::Certain, None).is_some();
    if asks_path && !subject.further().all(allowed) {
        return Decision::deny(Reason::NoAllowMatched, None);
    }
    Decision::allow(Reason::Allowed, lowest)
}

fn lowest_of<'p>(
    sets: &[&'p RuleSet],
    facts: &Facts<'_>,
    wanted: Wanted,
    mut lowest: Option<Found<'p>>,
) -> Option<Found<'p>> {
    for rules in sets {
        if let Some(found) = rules.first(facts, wanted) {
            lowest = Some(found.lower(lowest));
        }
    }
    lowest
}
