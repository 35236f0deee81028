//! What becomes of a judged request: in go the judgements on its path, its token and itself, out comes what is told of
//! it and what is changed of it. Pure functions; who asks them is [`super::authorizer`].

use super::requests::Pass;
use crate::live::Denial;
use cinch_http::{Header, Patch, Refusal, RequestHead};
use cinch_policy::jwt::{Authenticated, TokenRefusal};
use cinch_policy::{
    BadPath, Decision, PathNormalization, Readings, Report, Request, WorkloadPolicies, no_providers,
    normalize_within,
};
use cinch_reason::Reason;

/// A request that passes.
pub(super) struct Passed<'p, 'h> {
    pub(super) readings: Option<Readings<'h>>,
    pub(super) authenticated: Option<Authenticated<'p>>,
    /// `None`: there are no policies.
    pub(super) decision: Option<Decision<'p>>,
}

impl Passed<'_, '_> {
    /// By which policy.
    pub(super) fn pass(&self) -> Pass {
        let Some(decision) = &self.decision else {
            return Pass { reason: Reason::AllowedByDefault, policy: None, rule: None };
        };
        Pass { reason: decision.reason, policy: decision.policy.cloned(), rule: decision.rule }
    }

    /// It shows a token that holds.
    pub(super) fn has_token(&self) -> bool {
        self.authenticated.as_ref().is_some_and(|authenticated| authenticated.token.is_some())
    }
}

/// Why a request does not pass.
pub(super) enum Failed {
    Path(BadPath),
    Token(TokenRefusal),
    Policy(Denial),
}

/// A refusal for its token: as the client gets it, as it is counted, and in words.
pub(super) fn of_token(refusal: &TokenRefusal) -> (Refusal, Denial, String) {
    let reason = refusal.reason();
    let answer = match refusal.status() {
        403 => Refusal::forbidden(reason),
        _ => Refusal::unauthorized(reason),
    };
    let rule = u32::try_from(refusal.rule).ok();
    (answer, Denial { reason, policy: Some(refusal.policy.clone()), rule }, refusal.fault.to_string())
}

/// The path as policies read it, whose forms may have `most` bytes. `*` (for OPTIONS) is none to normalise.
pub(super) fn readings<'h>(
    policies: &WorkloadPolicies,
    (mode, most): (PathNormalization, usize),
    head: &RequestHead<'h>,
) -> Result<Readings<'h>, BadPath> {
    let mode = match mode {
        // What is forwarded is the same, and no rule asks for what else it could be.
        PathNormalization::Safe if !policies.asks_path() => PathNormalization::Base,
        mode => mode,
    };
    normalize_within(mode, head.target, most)
}

/// DENY and ALLOW, on the headers that the app will get.
pub(super) fn authorize<'p>(
    policies: &'p WorkloadPolicies,
    request: &Request<'_>,
    authenticated: Option<&Authenticated<'_>>,
    report: impl FnOnce(&Report<'_>),
) -> Decision<'p> {
    let judge = |request: &Request<'_>| {
        if policies.reports() {
            report(&policies.report(request, &no_providers));
        }
        policies.authorize(request)
    };
    let Some(authenticated) = authenticated else { return judge(request) };
    let token = authenticated.token.as_ref().map(|token| token.token());
    if changes_headers(authenticated, request.headers) {
        let headers = authenticated.forwarding.headers(request.headers);
        return judge(&Request { headers: &headers, token, ..*request });
    }
    judge(&Request { token, ..*request })
}

fn changes_headers(authenticated: &Authenticated<'_>, headers: &[Header<'_>]) -> bool {
    let forwarding = &authenticated.forwarding;
    forwarding.added().next().is_some() || headers.iter().any(|(name, _)| !forwarding.keeps(name))
}

/// What is changed of a request that passes.
///
/// # Errors
/// The refusal, when it can't be forwarded as it must be.
pub(super) fn patched(
    head: &RequestHead<'_>,
    passed: &Passed<'_, '_>,
    patch: &mut Patch,
) -> Result<(), &'static str> {
    let Some(readings) = &passed.readings else { return Ok(()) };
    let forwarding = passed.authenticated.as_ref().map(|authenticated| &authenticated.forwarding);
    let sent = readings.query();
    let query = match forwarding {
        Some(forwarding) => forwarding.query(sent),
        None => sent.map(Into::into),
    };
    if !is_target(head.target, readings.forward(), query.as_deref()) {
        let target = match &query {
            None => readings.forward().to_owned(),
            Some(query) => format!("{}?{query}", readings.forward()),
        };
        patch.set_target(&target).map_err(|_| "the normalised path can not be forwarded")?;
    }
    let Some(forwarding) = forwarding else { return Ok(()) };
    for (name, _) in head.headers.iter().filter(|(name, _)| !forwarding.keeps(name)) {
        patch.remove(name).map_err(|_| "a field that carries a token can not be removed")?;
    }
    for (name, value) in forwarding.added() {
        patch.set(name, value.as_bytes()).map_err(|_| "a claim of the token can not stand in a field")?;
    }
    Ok(())
}

/// Whether `target` is this path with this query, to the letter.
fn is_target(target: &str, path: &str, query: Option<&str>) -> bool {
    match (target.strip_prefix(path), query) {
        (Some(rest), None) => rest.is_empty(),
        (Some(rest), Some(query)) => rest.strip_prefix('?') == Some(query),
        (None, _) => false,
    }
}
