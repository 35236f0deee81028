//! A filter between a client and an app that are both played by the test.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

pub mod rows;

use cinch_http::h1::Connection;
use cinch_http::{
    Authorizer, End, Filter, Limits, Output, Patch, Refusal, RequestHead, RequestId, Turn, Verdict,
};
use cinch_reason::Reason;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A request as the authorizer saw it, and whether it allowed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub id: u64,
    pub method: String,
    pub target: String,
    pub authority: Option<String>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub upgrade: bool,
    pub allowed: bool,
}

/// Allows all but targets that begin with `/denied` (403) and `/token` (401); patches those that begin with
/// `/patched`; guards `x-role`.
#[derive(Debug, Default)]
pub struct Judge {
    pub seen: Vec<Seen>,
    pub refused: Vec<(u64, u16, &'static str)>,
    /// Bounds that were passed, whoever passed them.
    pub limits: Vec<&'static str>,
    pub answered: Vec<(u64, u16)>,
    pub finished: Vec<u64>,
    /// A target that is refused from now on.
    pub revoked: Option<&'static str>,
    pub asked_again: Vec<u64>,
    /// So many decisions may be made in one call of the filter, and so many were.
    pub patience: Option<usize>,
    pub decided: usize,
}

impl Judge {
    fn verdict(&self, target: &str) -> Verdict {
        if target.starts_with("/denied") || self.revoked.is_some_and(|revoked| target.starts_with(revoked)) {
            Verdict::Refuse(Refusal::forbidden(Reason::DeniedByPolicy))
        } else if target.starts_with("/token") {
            Verdict::Refuse(Refusal::unauthorized(Reason::TokenInvalid))
        } else {
            Verdict::Forward
        }
    }
}

impl Authorizer for Judge {
    fn decide(&mut self, id: RequestId, head: &RequestHead<'_>, patch: &mut Patch) -> Verdict {
        self.decided += 1;
        let verdict = self.verdict(head.target);
        let headers = head.headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
        self.seen.push(Seen {
            id: id.0,
            method: head.method.to_owned(),
            target: head.target.to_owned(),
            authority: head.authority.map(str::to_owned),
            headers,
            upgrade: head.upgrade,
            allowed: verdict == Verdict::Forward,
        });
        if head.target.starts_with("/patched") {
            patch.set_target("/new?q").unwrap();
            patch.remove("authorization").unwrap();
            patch.set("x-user", b"ann").unwrap();
        }
        verdict
    }

    fn decide_again(&mut self, id: RequestId, head: &RequestHead<'_>) -> Verdict {
        self.asked_again.push(id.0);
        self.verdict(head.target)
    }

    fn is_spent(&self) -> bool {
        self.patience.is_some_and(|patience| self.decided >= patience)
    }

    fn is_guarded(&self, name: &str) -> bool {
        name == "x-role"
    }

    fn refused(&mut self, id: RequestId, refusal: &Refusal) {
        self.refused.push((id.0, refusal.status.code(), refusal.fault));
        if !refusal.limit.is_empty() {
            self.limits.push(refusal.limit);
        }
    }

    fn over_limit(&mut self, limit: &'static str) {
        self.limits.push(limit);
    }

    fn answered(&mut self, id: RequestId, status: u16) {
        self.answered.push((id.0, status));
    }

    fn finished(&mut self, id: RequestId) {
        self.finished.push(id.0);
    }
}

/// The filter with its two sides.
pub struct Rig {
    pub filter: Connection,
    pub judge: Judge,
    pub out: Output,
    /// What the app and the client have got.
    pub app: Vec<u8>,
    pub client: Vec<u8>,
    pub app_fin: bool,
    pub client_fin: bool,
    pub start: Instant,
    pub now: Instant,
}

impl Default for Rig {
    fn default() -> Self {
        Rig::with(Limits::default())
    }
}

impl Rig {
    pub fn with(limits: Limits) -> Rig {
        let now = Instant::now();
        Rig {
            filter: Connection::new(Arc::new(limits), now),
            judge: Judge::default(),
            out: Output::default(),
            app: Vec::new(),
            client: Vec::new(),
            app_fin: false,
            client_fin: false,
            start: now,
            now,
        }
    }

    fn call(&mut self, input: &[u8], event: impl FnOnce(&mut Connection, &[u8], &mut Turn<'_>)) {
        self.judge.decided = 0;
        let mut turn = Turn { now: self.now, authorizer: &mut self.judge, out: &mut self.out };
        event(&mut self.filter, input, &mut turn);
        self.collect(input);
        while self.filter.wants_turn() {
            self.judge.decided = 0;
            let mut turn = Turn { now: self.now, authorizer: &mut self.judge, out: &mut self.out };
            self.filter.client_data(&[], &mut turn);
            self.collect(&[]);
        }
    }

    fn collect(&mut self, input: &[u8]) {
        for (outgoing, to, fin) in [
            (&self.out.to_app, &mut self.app, &mut self.app_fin),
            (&self.out.to_client, &mut self.client, &mut self.client_fin),
        ] {
            assert!(!*fin || (outgoing.is_empty() && !outgoing.fin()), "bytes or a second end after the end");
            let before = to.len();
            for slice in outgoing.slices(input) {
                assert!(!slice.is_empty());
                to.extend_from_slice(slice);
            }
            assert_eq!(to.len() - before, outgoing.len());
            *fin |= outgoing.fin();
        }
        self.out.clear();
    }

    pub fn client(&mut self, bytes: impl AsRef<[u8]>) -> &mut Rig {
        self.call(bytes.as_ref(), |filter, input, turn| filter.client_data(input, turn));
        self
    }

    pub fn app(&mut self, bytes: impl AsRef<[u8]>) -> &mut Rig {
        self.call(bytes.as_ref(), |filter, input, turn| filter.app_data(input, turn));
        self
    }

    pub fn client_eof(&mut self) -> &mut Rig {
        self.call(&[], |filter, _, turn| filter.client_eof(turn));
        self
    }

    pub fn app_eof(&mut self) -> &mut Rig {
        self.call(&[], |filter, _, turn| filter.app_eof(turn));
        self
    }

    pub fn reevaluate(&mut self) -> &mut Rig {
        self.call(&[], |filter, _, turn| filter.reevaluate(turn));
        self
    }

    /// Lets the time pass, and wakes the filter where it asked for it.
    pub fn after(&mut self, time: Duration) -> &mut Rig {
        self.now += time;
        if self.filter.deadline().is_some_and(|at| at <= self.now) {
            self.call(&[], |filter, _, turn| filter.wake(turn));
        }
        self
    }

    /// What the app got since this was last asked.
    pub fn app_got(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.app)).unwrap()
    }

    /// What the client got since this was last asked.
    pub fn client_got(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.client)).unwrap()
    }

    pub fn end(&self) -> Option<End> {
        self.filter.end()
    }

    /// The statuses of the answers that the client got so far.
    pub fn statuses(&self) -> Vec<u16> {
        let text = String::from_utf8_lossy(&self.client);
        text.match_indices("HTTP/1.1 ")
            .filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok())
            .collect()
    }
}

/// A request without a body.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n")
}

/// An answer with a body.
pub fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

pub const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\n\r\n";
pub const DENIED: &str =
    "HTTP/1.1 403 Forbidden\r\ncontent-length: 19\r\ncontent-type: text/plain\r\n\r\nRBAC: access denied";
pub const DENIED_CLOSE: &str = "HTTP/1.1 403 Forbidden\r\ncontent-length: 19\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nRBAC: access denied";
pub const WEBSOCKET: &str = "GET /chat HTTP/1.1\r\nHost: app\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n";
