//! The requests of one connection that are under way: what is remembered of each until it is over, so that it can be
//! counted and told then. Memory is bounded by the head's own bounds, given back when a connection is quiet, and
//! otherwise used again.

use crate::access_log::{Decision, Ends, Entry, FIELD, Head, PATH, Ruling, WORD};
use crate::live::Denial;
use crate::telemetry::{Handles, Telemetry, Told, flags};
use cinch_http::{Peer, RequestHead, RequestId, Version};
use cinch_reason::Reason;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// Requests of one connection that are remembered for a moment: more than any connection has in flight.
const REMEMBERED: usize = 1024;
/// Buffers for heads that a busy connection keeps, and how large they may be.
const SPARE: usize = 16;
const SPARE_BYTES: usize = 512;

/// On whose connection.
#[derive(Clone, Copy)]
pub(super) struct Whose<'a> {
    pub(super) telemetry: &'a Telemetry,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) peer: Option<&'a str>,
}

impl<'a> Whose<'a> {
    fn ends(self) -> Ends<'a> {
        Ends { upstream: Some(self.to), ..self.telemetry.inbound(self.from, self.to, self.peer) }
    }
}

/// By which policy a request passed.
#[derive(Debug, Clone)]
pub(super) struct Pass {
    pub(super) reason: Reason,
    pub(super) policy: Option<Arc<str>>,
    pub(super) rule: Option<u32>,
}

/// The head of a request, as far as the log tells it.
#[derive(Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    /// Where method, path, host, user agent and id end.
    ends: [u16; 5],
}

impl Text {
    fn keep(&mut self, head: &Head<'_>) {
        self.bytes.clear();
        let parts = [
            (head.method, WORD),
            (head.path, PATH),
            (head.authority, FIELD),
            (head.user_agent, FIELD),
            (head.request_id, WORD),
        ];
        let parts = parts.map(|(part, limit)| part.get(..limit).unwrap_or(part));
        self.bytes.reserve(parts.iter().map(|part| part.len()).sum());
        for (end, part) in self.ends.iter_mut().zip(parts) {
            self.bytes.extend_from_slice(part);
            *end = u16::try_from(self.bytes.len()).unwrap_or(u16::MAX);
        }
    }

    fn head(&self, protocol: &'static str) -> Head<'_> {
        let mut start = 0;
        let [method, path, authority, user_agent, request_id] = self.ends.map(|end| {
            let part = self.bytes.get(start..usize::from(end)).unwrap_or_default();
            start = usize::from(end);
            part
        });
        Head { method, path, protocol, authority, user_agent, request_id }
    }
}

/// One of them.
#[derive(Debug)]
pub(super) struct InFlight {
    id: RequestId,
    begun: Instant,
    protocol: &'static str,
    is_grpc: bool,
    is_sampled: bool,
    /// We refused it: it is counted and told.
    refused: bool,
    /// When its token was judged: that it runs out later ends nothing.
    pub(super) judged_at: Option<u64>,
    pub(super) status: u16,
    pub(super) grpc: Option<u8>,
    pub(super) reset: Option<Peer>,
    pub(super) received: u64,
    pub(super) sent: u64,
    pass: Option<Pass>,
    text: Text,
}

impl InFlight {
    fn new(id: RequestId, begun: Instant, protocol: &'static str) -> InFlight {
        InFlight {
            id,
            begun,
            protocol,
            is_grpc: false,
            is_sampled: false,
            refused: false,
            judged_at: None,
            status: 0,
            grpc: None,
            reset: None,
            received: 0,
            sent: 0,
            pass: None,
            text: Text::default(),
        }
    }

    /// We refused it.
    pub(super) fn is_refused(&self) -> bool {
        self.refused
    }

    /// How it failed, when it is over in order.
    fn flags(&self) -> &'static str {
        match self.reset {
            Some(Peer::Client) => flags::DOWNSTREAM_RESET,
            Some(Peer::App) => flags::UPSTREAM_RESET,
            None if self.status == 0 => flags::UPSTREAM_PROTOCOL,
            None => flags::NONE,
        }
    }

    fn told<'a>(&'a self, whose: Whose<'a>, now: Instant, flags: &'static str) -> Told<'a> {
        let ruling = self.pass.as_ref().map(|pass| Ruling {
            decision: Decision::Allowed,
            reason: pass.reason,
            policy: pass.policy.as_ref(),
            rule: pass.rule,
            detail: "",
        });
        let entry = Entry {
            ends: whose.ends(),
            head: Some(self.text.head(self.protocol)),
            code: self.status,
            grpc: self.grpc,
            flags,
            ruling,
            received: self.received,
            sent: self.sent,
            duration: now.saturating_duration_since(self.begun),
        };
        Told { entry, is_grpc: self.is_grpc, is_sampled: self.is_sampled }
    }
}

/// A refusal, as it is told.
pub(super) struct Refused<'a> {
    pub(super) denial: &'a Denial,
    /// The status of our answer; 0: the request or its connection is reset.
    pub(super) status: u16,
    /// The same as a call of gRPC gets it, where it is answered as one.
    pub(super) grpc: Option<u8>,
    pub(super) detail: &'a str,
}

/// Those of one connection, in the order of their ids.
#[derive(Debug, Default)]
pub(super) struct Requests {
    live: VecDeque<InFlight>,
    /// Where one was last found: what comes next is mostly of the same one, or of that which took its place.
    found: usize,
    spare: Vec<Vec<u8>>,
    held: usize,
    handles: Handles,
}

impl Requests {
    /// Remembers a request that passes, which came at `now`; `pass` is asked for if the request is sampled.
    pub(super) fn begin(
        &mut self,
        telemetry: &Telemetry,
        (id, now): (RequestId, Instant),
        head: &RequestHead<'_>,
        pass: impl FnOnce() -> Pass,
    ) -> Option<&mut InFlight> {
        let mut request = InFlight::new(id, now, protocol(head.version));
        request.is_grpc = is_grpc(head);
        let log = telemetry.log();
        if log.is_on() {
            request.is_sampled = log.samples();
            request.pass = request.is_sampled.then(pass);
            request.text.bytes = self.spare.pop().unwrap_or_default();
            request.text.keep(&head_of(head));
        }
        self.held += request.text.bytes.capacity();
        self.insert(request)
    }

    fn insert(&mut self, request: InFlight) -> Option<&mut InFlight> {
        if self.live.len() >= REMEMBERED {
            self.held -= self.live.pop_front().map_or(0, |oldest| oldest.text.bytes.capacity());
        }
        if self.live.capacity() == 0 {
            // In HTTP/1 there is mostly one; room for more is made when they come.
            self.live.reserve_exact(1);
        }
        if self.live.back().is_none_or(|newest| newest.id < request.id) {
            self.live.push_back(request);
            return self.live.back_mut();
        }
        let place = self.live.partition_point(|of| of.id < request.id);
        self.live.insert(place, request);
        self.live.get_mut(place)
    }

    fn place(&self, id: RequestId) -> Option<usize> {
        let is_at = |place: usize| self.live.get(place).is_some_and(|request| request.id == id);
        let newest = self.live.len().checked_sub(1)?;
        match self.found {
            found if is_at(found) => Some(found),
            _ if is_at(newest) => Some(newest),
            _ => self.live.binary_search_by_key(&id, |request| request.id).ok(),
        }
    }

    /// The request of this id, if it is under way.
    pub(super) fn find(&mut self, id: RequestId) -> Option<&mut InFlight> {
        self.found = self.place(id)?;
        self.live.get_mut(self.found)
    }

    /// The request of this id, if it is under way and was not refused.
    pub(super) fn get(&mut self, id: RequestId) -> Option<&mut InFlight> {
        self.find(id).filter(|request| !request.refused)
    }

    /// Whether we have refused it.
    pub(super) fn is_refused(&self, id: RequestId) -> bool {
        self.place(id).and_then(|place| self.live.get(place)).is_some_and(|request| request.refused)
    }

    /// Counts and tells a refusal, at once: nothing that comes later may lose it. `head`: where it is not yet known.
    pub(super) fn refuse(
        &mut self,
        whose: Whose<'_>,
        (id, now): (RequestId, Instant),
        (head, protocol): (Option<&RequestHead<'_>>, &'static str),
        refused: &Refused<'_>,
    ) {
        if self.place(id).is_none() {
            self.insert(InFlight::new(id, now, protocol));
        }
        let Some(place) = self.place(id) else { return };
        let Some(request) = self.live.get_mut(place) else { return };
        request.refused = true;
        if let Some(head) = head {
            request.is_grpc = is_grpc(head);
        }
        let request = &*request;
        let mut told = request.told(whose, now, flags::of_refusal(refused.denial.reason));
        if let Some(head) = head {
            told.entry.head = Some(head_of(head));
        }
        told.entry.code = if refused.status == 0 { request.status } else { refused.status };
        told.entry.grpc = refused.grpc;
        told.entry.ruling = Some(of_denial(refused.denial, refused.detail));
        self.handles.record(whose.telemetry, &told);
    }

    /// A request is over.
    pub(super) fn finish(&mut self, whose: Whose<'_>, id: RequestId, now: Instant) {
        let Some(place) = self.place(id) else { return };
        let Some(request) = self.live.remove(place) else { return };
        self.found = place;
        if !request.refused {
            self.handles.record(whose.telemetry, &request.told(whose, now, request.flags()));
        }
        self.forget(request);
    }

    /// The connection is over: whatever was under way is lost, by `flags`, or because it was cut by `denial`. Says
    /// whether there was any.
    pub(super) fn lose(
        &mut self,
        whose: Whose<'_>,
        now: Instant,
        flags: &'static str,
        denial: Option<&Denial>,
    ) -> bool {
        let any = !self.live.is_empty();
        while let Some(request) = self.live.pop_front() {
            if !request.refused {
                let mut told = request.told(whose, now, flags);
                if let Some(denial) = denial {
                    told.entry.ruling = Some(of_denial(denial, ""));
                }
                self.handles.record(whose.telemetry, &told);
            }
            self.forget(request);
        }
        any
    }

    fn forget(&mut self, request: InFlight) {
        let bytes = request.text.bytes;
        self.held -= bytes.capacity();
        if self.spare.len() < SPARE && (1..=SPARE_BYTES).contains(&bytes.capacity()) {
            self.spare.reserve_exact(1);
            self.spare.push(bytes);
        }
    }

    /// Bytes of heads that are held.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Gives memory back that only saves time.
    pub(super) fn shrink(&mut self) {
        self.spare = Vec::new();
        self.live.shrink_to_fit();
    }
}

/// A denial or failure as the log has it.
pub(super) fn of_denial<'a>(denial: &'a Denial, detail: &'a str) -> Ruling<'a> {
    let Denial { reason, policy, rule } = denial;
    let decision = flags::decision(*reason);
    Ruling { decision, reason: *reason, policy: policy.as_ref(), rule: *rule, detail }
}

/// Whether a request is a call of gRPC, as the filter sees it too.
pub(super) fn is_grpc(head: &RequestHead<'_>) -> bool {
    head.version == Version::Http2 && field(head, "content-type").starts_with(b"application/grpc")
}

pub(super) fn protocol(version: Version) -> &'static str {
    match version {
        Version::Http10 => "HTTP/1.0",
        Version::Http11 => "HTTP/1.1",
        Version::Http2 => "HTTP/2",
    }
}

fn head_of<'h>(head: &RequestHead<'h>) -> Head<'h> {
    Head {
        method: head.method.as_bytes(),
        path: head.target.split(['?', '#']).next().unwrap_or_default().as_bytes(),
        protocol: protocol(head.version),
        authority: head.authority.unwrap_or_default().as_bytes(),
        user_agent: field(head, "user-agent"),
        request_id: field(head, "x-request-id"),
    }
}

fn field<'h>(head: &RequestHead<'h>, name: &str) -> &'h [u8] {
    let found = head.headers.iter().find(|(of, _)| of.len() == name.len() && of.eq_ignore_ascii_case(name));
    found.map(|(_, value)| *value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_log::{AccessLog, AccessLogSettings};

    fn telemetry(settings: &AccessLogSettings) -> Telemetry {
        Telemetry::with_log(AccessLog::start_to(settings, std::io::sink()).unwrap())
    }

    fn whose(telemetry: &Telemetry) -> Whose<'_> {
        let address = SocketAddr::from(([10, 0, 0, 1], 80));
        Whose { telemetry, from: address, to: address, peer: None }
    }

    fn begin(requests: &mut Requests, telemetry: &Telemetry, id: u64, target: &str) {
        let head = RequestHead {
            version: Version::Http11,
            method: "GET",
            target,
            authority: Some("shop"),
            headers: &[("User-Agent", b"test"), ("X-Request-ID", b"4711")],
            upgrade: false,
        };
        let pass = || Pass { reason: Reason::Allowed, policy: None, rule: None };
        requests.begin(telemetry, (RequestId(id), Instant::now()), &head, pass);
    }

    #[test]
    fn a_head_is_kept_as_it_is_told_and_its_memory_used_again() {
        let telemetry = telemetry(&AccessLogSettings::default());
        let mut requests = Requests::default();
        begin(&mut requests, &telemetry, 0, "/a?secret");
        let first = requests.get(RequestId(0)).unwrap();
        let head = first.text.head(first.protocol);
        let told = [head.method, head.path, head.authority, head.user_agent, head.request_id];
        assert_eq!(told, [&b"GET"[..], b"/a", b"shop", b"test", b"4711"]);
        let memory = first.text.bytes.as_ptr();
        assert!(requests.held() > 0);
        requests.finish(whose(&telemetry), RequestId(0), Instant::now());
        assert_eq!(requests.held(), 0);
        begin(&mut requests, &telemetry, 1, "/b");
        assert_eq!(requests.get(RequestId(1)).unwrap().text.bytes.as_ptr(), memory);
    }

    #[test]
    fn what_is_kept_is_bounded_and_given_back() {
        let telemetry = telemetry(&AccessLogSettings::default());
        let mut requests = Requests::default();
        let long = format!("/{}", "a".repeat(1 << 12));
        for id in 0..2 * REMEMBERED as u64 {
            begin(&mut requests, &telemetry, id, &long);
        }
        assert_eq!(requests.live.len(), REMEMBERED);
        assert!(requests.held() < REMEMBERED * 3 * PATH, "{}", requests.held());
        assert!(requests.lose(whose(&telemetry), Instant::now(), flags::DOWNSTREAM, None));
        begin(&mut requests, &telemetry, 0, "/short");
        requests.finish(whose(&telemetry), RequestId(0), Instant::now());
        assert_eq!(requests.spare.len(), 1);
        requests.shrink();
        assert_eq!((requests.held(), requests.live.capacity(), requests.spare.capacity()), (0, 0, 0));
    }

    #[test]
    fn without_a_log_nothing_is_kept_of_a_head() {
        let off = AccessLogSettings { enabled: false, ..AccessLogSettings::default() };
        let telemetry = telemetry(&off);
        let mut requests = Requests::default();
        begin(&mut requests, &telemetry, 0, "/a");
        assert_eq!(requests.held(), 0);
    }

    #[test]
    fn requests_that_end_out_of_order_are_each_found() {
        let telemetry = telemetry(&AccessLogSettings::default());
        let mut requests = Requests::default();
        for id in [1, 3, 5, 7] {
            begin(&mut requests, &telemetry, id, "/a");
        }
        requests.finish(whose(&telemetry), RequestId(3), Instant::now());
        let found = [1, 3, 5, 7].map(|id| requests.get(RequestId(id)).is_some());
        assert_eq!(found, [true, false, true, true]);
        let denial = Denial::of(Reason::BadRequest);
        let refused = Refused { denial: &denial, status: 400, grpc: None, detail: "" };
        let (id, now) = (RequestId(5), Instant::now());
        requests.refuse(whose(&telemetry), (id, now), (None, "HTTP/2"), &refused);
        assert!(requests.is_refused(id) && requests.get(id).is_none());
    }
}
