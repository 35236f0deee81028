//! Requests against policies: the head of a request goes in, with what is known of its connection; whether it passes,
//! as what, and why not comes out. Every decision is that of `cinch_policy`; here it only meets the filter.

use super::judgement::{Failed, Passed, authorize, of_token, patched, readings};
use super::metrics::{Answers, Kind};
use super::passes::Passes;
use super::price::{self, Forged};
use super::requests::{Refused, Requests, Whose, is_grpc};
use super::tell;
use super::tokens::Tokens;
use crate::access_log::Reporter;
use crate::context::Context;
use crate::copy::End;
use crate::inbound_policy::InboundPolicy;
use crate::live::{Denial, Peer, Subject};
use crate::refusal;
use crate::telemetry::flags;
use cinch_http::{Authorizer, Patch, Peer as Side, Refusal, RequestHead, RequestId, Verdict};
use cinch_policy::jwt::{Authenticated, HttpView, TokenFault, TokenRefusal};
use cinch_policy::{BadPath, Connection, Readings, Report, Request, no_providers};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Decides about the requests of one connection.
pub(super) struct RequestAuthorizer<'a> {
    ctx: &'a Context,
    subject: &'a Subject,
    from: SocketAddr,
    policy: Arc<InboundPolicy>,
    answers: Answers,
    /// Told by the relay once it is known.
    pub(super) protocol: &'static str,
    /// When the filter is called; said by the relay, so that no clock is read for it.
    pub(super) now: Instant,
    requests: Requests,
    /// Those that passed by `policy` and need not be judged again.
    passes: Passes,
    /// A request was decided on, or a head was none.
    pub(super) has_decided: bool,
    /// What decisions have cost since the turn began, as in [`price`].
    spent: Cell<usize>,
    forged: Cell<Forged>,
    /// Why a request in flight is refused now. Boxed, because that is rare.
    again: Option<Box<(RequestId, Denial)>>,
}

impl<'a> RequestAuthorizer<'a> {
    pub(super) fn new(
        ctx: &'a Context,
        subject: &'a Subject,
        from: SocketAddr,
        policy: Arc<InboundPolicy>,
        now: Instant,
    ) -> Self {
        RequestAuthorizer {
            ctx,
            subject,
            from,
            passes: Passes::by(&policy),
            policy,
            answers: Answers::default(),
            protocol: "http",
            now,
            requests: Requests::default(),
            has_decided: false,
            spent: Cell::new(0),
            forged: Cell::default(),
            again: None,
        }
    }

    /// From now on decides by `policy`.
    pub(super) fn set_policy(&mut self, policy: Arc<InboundPolicy>) {
        self.passes = Passes::by(&policy);
        self.policy = policy;
    }

    /// The relay was called: decisions may cost something again.
    pub(super) fn begin_turn(&self) {
        self.spent.set(0);
    }

    /// More forged tokens have come than anybody sends in good faith.
    pub(super) fn is_distrusted(&self) -> bool {
        self.forged.get().are_too_many(self.ctx.limits.http_forged_tokens)
    }

    /// From where to where the connection goes.
    fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.from, self.subject.destination)
    }

    fn spend(&self, cost: usize) {
        self.spent.set(self.spent.get().saturating_add(cost));
    }

    fn peer(&self) -> Option<&'a str> {
        match &self.subject.peer {
            Peer::Unknown => None,
            Peer::Proved(id) => Some(id.as_str()),
        }
    }

    fn kind(&self) -> Kind {
        Kind { protocol: self.protocol, is_mutual: self.peer().is_some() }
    }

    /// What policies say of a request at `now`, in seconds since 1970; `report` hears what is only reported.
    fn judge<'p, 'h>(
        &self,
        policy: &'p InboundPolicy,
        head: &RequestHead<'h>,
        now: u64,
        report: impl FnOnce(&Report<'_>),
    ) -> Result<Passed<'p, 'h>, Failed> {
        let Some(policies) = policy.policies.as_deref() else {
            return Ok(Passed { readings: None, authenticated: None, decision: None });
        };
        let most = self.ctx.limits.http_path_bytes;
        let readings = readings(policies, (policy.path_normalization, most), head);
        self.spend(readings.as_ref().map_or(head.target.len(), Readings::cost));
        let readings = match readings {
            // Nothing is refused for what is only tried.
            Err(_) if policy.only_reports => {
                return Ok(Passed { readings: None, authenticated: None, decision: None });
            }
            readings => readings.map_err(Failed::Path)?,
        };
        let request = Request {
            connection: Connection::new(self.peer(), self.subject.source, self.subject.destination),
            method: head.method,
            paths: &readings,
            host: head.authority,
            headers: head.headers,
            token: None,
        };
        if let Some(decision) = policies.custom(&request, &no_providers) {
            return Err(Failed::Policy(policy.denial(&decision)));
        }
        let authenticated = match &policy.tokens {
            None => None,
            Some(tokens) => {
                let view = HttpView { method: head.method, query: readings.query(), headers: head.headers };
                Some(self.authenticate(tokens, &view, now).map_err(Failed::Token)?)
            }
        };
        let decision = authorize(policies, &request, authenticated.as_ref(), report);
        if !decision.is_allowed() {
            return Err(Failed::Policy(policy.denial(&decision)));
        }
        // Nor is anything changed for it.
        let readings = (!policy.only_reports).then_some(readings);
        Ok(Passed { readings, authenticated, decision: Some(decision) })
    }

    fn authenticate<'p>(
        &self,
        tokens: &'p Tokens,
        view: &HttpView<'_>,
        now: u64,
    ) -> Result<Authenticated<'p>, TokenRefusal> {
        let judged = tokens.authenticate(&self.ctx.http.tokens, view, (self.now, now));
        let (signatures, parsed) = match &judged {
            Ok(passed) => (passed.signatures, passed.parsed),
            Err(refusal) => (refusal.signatures, refusal.parsed),
        };
        self.spend(price::of_tokens(signatures, parsed));
        // However many keys were tried, it is one token.
        if judged.as_ref().is_err_and(|refusal| refusal.is_forged) {
            self.forged.set(self.forged.get().and_one(self.now));
        }
        judged
    }

    /// When tokens are judged; the clock is read only where there are any to judge.
    fn now(policy: &InboundPolicy) -> u64 {
        if policy.tokens.is_none() {
            return 0;
        }
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |since| since.as_secs())
    }

    /// Counts and tells a refusal, and makes it the filter's.
    fn refuse(&mut self, id: RequestId, head: &RequestHead<'_>, failed: Failed) -> Verdict {
        let (refusal, denial, detail) = match failed {
            Failed::Path(fault) => {
                if fault == BadPath::TooLong {
                    self.ctx.metrics.count_limit("http_path_bytes");
                }
                let refusal = Refusal::bad_request("the path can not be normalised");
                (refusal, Denial::of(fault.reason()), fault.to_string())
            }
            Failed::Policy(denial) => (Refusal::forbidden(denial.reason), denial, String::new()),
            Failed::Token(refusal) => {
                if refusal.fault == TokenFault::TooMany {
                    self.ctx.metrics.count_limit("http_tokens_per_request");
                }
                if refusal.is_untried {
                    self.ctx.metrics.count_limit("http_token_tries");
                }
                if let Some(source) = &refusal.refetch {
                    let kid = refusal.key_id.as_deref().unwrap_or_default();
                    self.ctx.http.unknown_keys.ask(source, kid);
                }
                of_token(&refusal)
            }
        };
        self.tell_refusal(id, Some(head), &refusal, &denial, &detail);
        Verdict::Refuse(refusal)
    }

    /// Counts and tells a refusal: in the log of the proxy, in that of the requests, and in metrics.
    fn tell_refusal(
        &mut self,
        id: RequestId,
        head: Option<&RequestHead<'_>>,
        refusal: &Refusal,
        denial: &Denial,
        detail: &str,
    ) {
        let target = head.map(|head| head.target).unwrap_or_default();
        let request = tell::Told {
            ends: self.ends(),
            peer: self.peer(),
            method: head.map(|head| head.method).unwrap_or_default(),
            path: target.split(['?', '#']).next().unwrap_or_default(),
        };
        let status = refusal.status.code();
        tell::denied(&self.ctx.metrics, self.kind(), status, denial, &request, detail);
        // As a call of gRPC it is answered only where it was understood as one.
        let grpc = head.is_some_and(is_grpc).then(|| refusal.status.grpc());
        let status = if grpc.is_some() { 200 } else { status };
        let refused = Refused { denial, status, grpc, detail };
        let protocol = if self.protocol == "http2" { "HTTP/2" } else { "HTTP/1.1" };
        let whose = self.whose();
        self.requests.refuse(whose, (id, self.now), (head, protocol), &refused);
    }

    fn whose(&self) -> Whose<'a> {
        let (from, to) = self.ends();
        Whose { telemetry: &self.ctx.metrics.telemetry, from, to, peer: self.peer() }
    }

    /// The connection is over: what was under way is lost. `app_ended`: it is the app that left first; `denial`: who
    /// has cut it.
    pub(super) fn over(&mut self, end: End, app_ended: bool, denial: Option<&Denial>) {
        let (whose, now) = (self.whose(), self.now);
        let End::Cut(reason) = end else {
            let flags = match end {
                End::Finished if app_ended => flags::UPSTREAM,
                End::Finished => flags::DOWNSTREAM,
                end => flags::of_end(Some(end), Reporter::Destination),
            };
            self.requests.lose(whose, now, flags, None);
            return;
        };
        let cut = denial.cloned().unwrap_or_else(|| Denial::of(reason));
        let flags = flags::of_refusal(reason);
        if !self.requests.lose(whose, now, flags, Some(&cut)) {
            refusal::tell_cut(whose.telemetry, self.ends(), self.peer(), &cut);
        }
    }

    /// Bytes that are held of requests.
    pub(super) fn held(&self) -> usize {
        self.requests.held() + self.passes.held()
    }

    /// Gives memory back that only saves time.
    pub(super) fn shrink(&mut self) {
        self.requests.shrink();
        self.passes.forget();
    }
}

impl Drop for RequestAuthorizer<'_> {
    /// Where the relay itself was dropped, what was under way is lost by our end.
    fn drop(&mut self) {
        let (whose, now) = (self.whose(), self.now);
        self.requests.lose(whose, now, flags::LOCAL, None);
    }
}

impl Authorizer for RequestAuthorizer<'_> {
    fn decide(&mut self, id: RequestId, head: &RequestHead<'_>, patch: &mut Patch) -> Verdict {
        let telemetry = &self.ctx.metrics.telemetry;
        self.spend(price::of_head(head));
        if let Some(before) = self.passes.find(head) {
            self.spend(before.cost());
            self.requests.begin(telemetry, (id, self.now), head, || before.pass());
            return Verdict::Forward;
        }
        // Most connections of HTTP/1 carry few requests, and many only one: it is not worth remembering.
        let is_first = !std::mem::replace(&mut self.has_decided, true);
        let policy = self.policy.clone();
        let now = Self::now(&policy);
        let spent = self.spent.get();
        let (metrics, ends) = (&self.ctx.metrics, self.ends());
        let passed = match self.judge(&policy, head, now, |report| tell::reported(metrics, report, ends)) {
            Ok(passed) => passed,
            Err(failed) => return self.refuse(id, head, failed),
        };
        if let Err(fault) = patched(head, &passed, patch) {
            let refusal = Refusal::bad_request(fault);
            self.tell_refusal(id, Some(head), &refusal, &Denial::of(refusal.reason), fault);
            return Verdict::Refuse(refusal);
        }
        if !is_first && patch.is_empty() {
            self.passes.keep(head, self.spent.get().saturating_sub(spent), || passed.pass());
        }
        let begun = self.requests.begin(telemetry, (id, self.now), head, || passed.pass());
        if let Some(request) = begun.filter(|_| passed.has_token()) {
            request.judged_at = Some(now);
        }
        Verdict::Forward
    }

    fn decide_again(&mut self, id: RequestId, head: &RequestHead<'_>) -> Verdict {
        self.spend(price::of_head(head));
        let policy = self.policy.clone();
        let judged_at = self.requests.get(id).and_then(|request| request.judged_at);
        let now = judged_at.unwrap_or_else(|| Self::now(&policy));
        let failed = match self.judge(&policy, head, now, |_| ()) {
            Ok(_) => return Verdict::Forward,
            Err(failed) => failed,
        };
        let (refusal, denial, _) = match failed {
            Failed::Path(fault) => {
                let refusal = Refusal::bad_request("the path can not be normalised");
                (refusal, Denial::of(fault.reason()), String::new())
            }
            Failed::Policy(denial) => (Refusal::forbidden(denial.reason), denial, String::new()),
            Failed::Token(refusal) => of_token(&refusal),
        };
        self.again = Some(Box::new((id, denial)));
        Verdict::Refuse(refusal)
    }

    fn is_spent(&self) -> bool {
        self.spent.get() >= price::TURN
    }

    fn is_guarded(&self, name: &str) -> bool {
        let asked = self.policy.policies.as_ref().is_some_and(|policies| policies.asks_header(name));
        asked || self.policy.tokens.as_ref().is_some_and(|tokens| tokens.minds_header(name))
    }

    fn refused(&mut self, id: RequestId, refusal: &Refusal) {
        self.has_decided = true;
        if self.requests.is_refused(id) {
            return;
        }
        self.spend(price::UNREADABLE);
        let denial = match self.again.take().map(|again| *again) {
            Some((of, denial)) if of == id => denial,
            _ => Denial::of(refusal.reason),
        };
        self.tell_refusal(id, None, refusal, &denial, refusal.fault);
        if !refusal.limit.is_empty() {
            self.ctx.metrics.count_limit(refusal.limit);
        }
    }

    fn over_limit(&mut self, limit: &'static str) {
        self.ctx.metrics.count_limit(limit);
    }

    fn answered(&mut self, id: RequestId, status: u16) {
        match self.requests.find(id) {
            Some(request) if request.is_refused() => return,
            Some(request) => request.status = status,
            None => {}
        }
        let kind = self.kind();
        self.answers.count(&self.ctx.metrics.http, kind, status);
    }

    fn request_body(&mut self, id: RequestId, bytes: usize) {
        if let Some(request) = self.requests.get(id) {
            request.received += bytes as u64;
        }
    }

    fn answer_body(&mut self, id: RequestId, bytes: usize) {
        if let Some(request) = self.requests.get(id) {
            request.sent += bytes as u64;
        }
    }

    fn grpc_status(&mut self, id: RequestId, status: u8) {
        if let Some(request) = self.requests.get(id) {
            request.grpc = Some(status);
        }
    }

    fn reset(&mut self, id: RequestId, by: Side) {
        if let Some(request) = self.requests.get(id) {
            request.reset = Some(by);
        }
    }

    fn finished(&mut self, id: RequestId) {
        let whose = self.whose();
        self.requests.finish(whose, id, self.now);
    }
}
