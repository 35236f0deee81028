//! The filter of one connection, chosen by the client's first bytes.

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

    /// Takes bytes of the client.
    pub(super) fn client_data(
        &mut self,
        input: &[u8],
        limits: &Arc<Limits>,
        turn: Turn<'_>,
        deliver: &mut Deliver<'_>,
    ) {
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
    pub(super) fn client_eof(&mut self, turn: Turn<'_>, deliver: &mut Deliver<'_>) {
        if let Protocol::Undecided { bytes, .. } = self {
            // Without a word it was a scan, or a client that changed its mind.
            let end = if bytes.is_empty() { End::Finished } else { End::Cut(Reason::HttpNeeded) };
            *self = Protocol::Over(end);
            return;
        }
        self.call(&[], turn, deliver, |filter, turn| filter.client_eof(turn));
    }

    /// Takes bytes of the app.
    pub(super) fn app_data(&mut self, input: &[u8], turn: Turn<'_>, deliver: &mut Deliver<'_>) {
        self.call(input, turn, deliver, |filter, turn| filter.app_data(input, turn));
    }

    /// The app has ended its direction.
    pub(super) fn app_eof(&mut self, turn: Turn<'_>, deliver: &mut Deliver<'_>) {
        self.call(&[], turn, deliver, |filter, turn| filter.app_eof(turn));
    }

    /// The policy has changed.
    pub(super) fn reevaluate(&mut self, turn: Turn<'_>, deliver: &mut Deliver<'_>) {
        self.call(&[], turn, deliver, |filter, turn| filter.reevaluate(turn));
    }

    /// Requests in flight are still to be asked for again; until then neither side is to be read.
    pub(super) fn is_reevaluating(&self) -> bool {
        self.known().is_some_and(Filter::is_reevaluating)
    }

    /// Goes on with [`Protocol::reevaluate`].
    pub(super) fn go_on_reevaluating(&mut self, turn: Turn<'_>, deliver: &mut Deliver<'_>) {
        self.call(&[], turn, deliver, |filter, turn| filter.go_on_reevaluating(turn));
    }

    /// The proxy wants to end.
    pub(super) fn drain(&mut self, mut turn: Turn<'_>, deliver: &mut Deliver<'_>) {
        match self {
            Protocol::Undecided { bytes, .. } if bytes.is_empty() => *self = Protocol::Over(End::Finished),
            Protocol::Http1(connection) => connection.drain(&mut turn),
            Protocol::Http2(connection) => connection.drain(&mut turn),
            Protocol::Undecided { .. } | Protocol::Over(_) => {}
        }
        deliver(&[], turn.out);
    }

    /// The deadline may have come.
    pub(super) fn wake(&mut self, turn: Turn<'_>, deliver: &mut Deliver<'_>) {
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
    pub(super) fn held(&self) -> usize {
        match self {
            Protocol::Undecided { bytes, .. } => bytes.capacity(),
            _ => self.known().map_or(0, Filter::held),
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
