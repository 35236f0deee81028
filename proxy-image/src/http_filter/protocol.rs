//! The filter of one connection, chosen by the client's first bytes.

use super::held::Holding;
use cinch_http::{Detected, End, Filter, Limits, Output, Turn, detect, h1, h2};
use cinch_reason::Reason;
use std::sync::Arc;
use std::time::Instant;

/// What a connection speaks.
pub(super) enum Protocol {
    /// Too little has come to tell: this much, and until when the rest may come.
    Undecided { bytes: Vec<u8>, until: Instant },
    /// HTTP/1.x.
    Http1(Box<h1::Connection>),
    /// HTTP/2 with prior knowledge.
    Http2(Box<h2::Connection>),
    /// It is over before it was known, or it is no HTTP.
    Over(End),
}

/// What has happened, as the filter hears it.
#[derive(Clone, Copy)]
pub(super) enum Event<'a> {
    Client(&'a [u8]),
    ClientEnded,
    App(&'a [u8]),
    AppEnded,
    Reevaluate,
    ReevaluateOn,
    Drain,
    Wake,
}

/// What one read says: bytes, an end, or both.
pub(super) fn events<'a>(
    bytes: &'a [u8],
    fin: bool,
    data: impl FnOnce(&'a [u8]) -> Event<'a>,
    end: Event<'a>,
) -> impl Iterator<Item = Event<'a>> {
    let data = (!bytes.is_empty()).then(|| data(bytes));
    data.into_iter().chain(fin.then_some(end))
}

/// Takes what one call on the filter gave; the bytes are those that the call was given.
pub(super) type Deliver<'a> = dyn FnMut(&[u8], &mut Output) + 'a;

impl Protocol {
    /// Waits for the first bytes until `until`.
    pub(super) fn new(until: Instant) -> Self {
        Protocol::Undecided { bytes: Vec::new(), until }
    }

    fn filter(&mut self) -> Option<&mut dyn Filter> {
        match self {
            Protocol::Http1(connection) => Some(&mut **connection),
            Protocol::Http2(connection) => Some(&mut **connection),
            Protocol::Undecided { .. } | Protocol::Over(_) => None,
        }
    }

    fn known(&self) -> Option<&dyn Filter> {
        match self {
            Protocol::Http1(connection) => Some(&**connection),
            Protocol::Http2(connection) => Some(&**connection),
            Protocol::Undecided { .. } | Protocol::Over(_) => None,
        }
    }

    /// Calls the filter, if there is one by now, and delivers what comes of it.
    fn call(
        &mut self,
        input: &[u8],
        mut turn: Turn<'_>,
        deliver: &mut Deliver<'_>,
        work: impl FnOnce(&mut dyn Filter, &mut Turn<'_>),
    ) {
        if let Some(filter) = self.filter() {
            work(filter, &mut turn);
            deliver(input, turn.out);
        }
    }

    /// Tells the filter of an event, and delivers what comes of it.
    pub(super) fn hear(
        &mut self,
        event: Event<'_>,
        limits: &Arc<Limits>,
        turn: Turn<'_>,
        deliver: &mut Deliver<'_>,
    ) {
        match event {
            Event::Client(bytes) => self.client_data(bytes, limits, turn, deliver),
            Event::ClientEnded => self.client_eof(turn, deliver),
            Event::App(bytes) => {
                self.call(bytes, turn, deliver, |filter, turn| filter.app_data(bytes, turn));
            }
            Event::AppEnded => self.call(&[], turn, deliver, |filter, turn| filter.app_eof(turn)),
            Event::Reevaluate => self.call(&[], turn, deliver, |filter, turn| filter.reevaluate(turn)),
            Event::ReevaluateOn => {
                self.call(&[], turn, deliver, |filter, turn| filter.go_on_reevaluating(turn));
            }
            Event::Drain => self.drain(turn, deliver),
            Event::Wake => self.wake(turn, deliver),
        }
    }

    /// Takes bytes of the client.
    fn client_data(&mut self, input: &[u8], limits: &Arc<Limits>, turn: Turn<'_>, deliver: &mut Deliver<'_>) {
        let Protocol::Undecided { bytes, .. } = self else {
            return self.call(input, turn, deliver, |filter, turn| filter.client_data(input, turn));
        };
        let begun = std::mem::take(bytes);
        let joined;
        let all = if begun.is_empty() {
            input
        } else {
            joined = [&begun, input].concat();
            &joined
        };
        match detect(all) {
            Detected::Undecided => {
                *bytes = all.to_vec();
                return;
            }
            Detected::Http1 => {
                *self = Protocol::Http1(Box::new(h1::Connection::new(limits.clone(), turn.now)));
            }
            Detected::Http2 => {
                *self = Protocol::Http2(Box::new(h2::Connection::new(limits.clone(), turn.now)));
            }
            Detected::Other => *self = Protocol::Over(End::Cut(Reason::HttpNeeded)),
        }
        self.call(all, turn, deliver, |filter, turn| filter.client_data(all, turn));
    }

    /// The client has ended its direction.
    fn client_eof(&mut self, turn: Turn<'_>, deliver: &mut Deliver<'_>) {
        if let Protocol::Undecided { bytes, .. } = self {
            // Without a word it was a scan, or a client that changed its mind.
            let end = if bytes.is_empty() { End::Finished } else { End::Cut(Reason::HttpNeeded) };
            *self = Protocol::Over(end);
            return;
        }
        self.call(&[], turn, deliver, |filter, turn| filter.client_eof(turn));
    }

    /// Requests in flight are still to be asked for again; until then neither side is to be read.
    pub(super) fn is_reevaluating(&self) -> bool {
        self.known().is_some_and(Filter::is_reevaluating)
    }

    /// The proxy wants to end.
    fn drain(&mut self, mut turn: Turn<'_>, deliver: &mut Deliver<'_>) {
        match self {
            Protocol::Http1(connection) => connection.drain(&mut turn),
            Protocol::Http2(connection) => connection.drain(&mut turn),
            Protocol::Undecided { .. } | Protocol::Over(_) => {}
        }
        deliver(&[], turn.out);
    }

    /// The deadline may have come.
    fn wake(&mut self, turn: Turn<'_>, deliver: &mut Deliver<'_>) {
        if let Protocol::Undecided { bytes, until } = self
            && *until <= turn.now
        {
            // A slow first byte closes; it never makes the connection one that is not read.
            let end = if bytes.is_empty() { End::Finished } else { End::Cut(Reason::HttpNeeded) };
            *self = Protocol::Over(end);
            return;
        }
        self.call(&[], turn, deliver, |filter, turn| filter.wake(turn));
    }

    /// Nothing has come yet, and nothing need come after `until`. Says whether it is so.
    pub(super) fn hurry(&mut self, until: Instant) -> bool {
        match self {
            Protocol::Undecided { bytes, until: before } if bytes.is_empty() => {
                *before = until.min(*before);
                true
            }
            _ => false,
        }
    }

    /// When to call [`Protocol::wake`] at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Protocol::Undecided { until, .. } => Some(*until),
            _ => self.known()?.deadline(),
        }
    }

    /// The client may be read.
    pub(super) fn wants_client(&self) -> bool {
        matches!(self, Protocol::Undecided { .. }) || self.known().is_some_and(Filter::wants_client)
    }

    /// The app may be read. Before the first bytes of the client it is not: what it says first is no answer.
    pub(super) fn wants_app(&self) -> bool {
        self.known().is_some_and(Filter::wants_app)
    }

    /// Work waits for the output to be sent.
    pub(super) fn wants_turn(&self) -> bool {
        self.known().is_some_and(Filter::wants_turn)
    }

    /// Bytes held of either side.
    pub(super) fn holding(&self) -> Holding {
        match self {
            Protocol::Undecided { bytes, .. } => Holding::unfinished(bytes.capacity()),
            _ => self.known().map_or(Holding::default(), |filter| Holding {
                bytes: filter.held(),
                unfinished: filter.held_unfinished(),
            }),
        }
    }

    /// Gives memory back.
    pub(super) fn shrink(&mut self) {
        if let Some(filter) = self.filter() {
            filter.shrink();
        }
    }

    /// How the connection ended, once it has.
    pub(super) fn end(&self) -> Option<End> {
        match self {
            Protocol::Over(end) => Some(*end),
            _ => self.known()?.end(),
        }
    }

    /// A head of HTTP/1, or what may become one, has begun to come. (In HTTP/2 the drain leaves what is on its way.)
    pub(super) fn is_in_head(&self) -> bool {
        match self {
            Protocol::Undecided { bytes, .. } => !bytes.is_empty(),
            Protocol::Http1(connection) => connection.is_in_head(),
            Protocol::Http2(_) | Protocol::Over(_) => false,
        }
    }

    /// The client has said what it connected for, when its first request `was_decided` or was none.
    pub(super) fn has_begun(&self, was_decided: bool) -> bool {
        match self {
            Protocol::Undecided { .. } => false,
            Protocol::Http1(_) => was_decided,
            Protocol::Http2(_) | Protocol::Over(_) => true,
        }
    }

    /// The word for metrics.
    pub(super) fn word(&self) -> &'static str {
        if matches!(self, Protocol::Http2(_)) { "http2" } else { "http" }
    }
}
