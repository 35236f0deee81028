//! What the client sends: requests, their bodies, and what must be held, refused or discarded.

use super::answer::After;
use super::app::App;
use super::chunked::{Chunked, Rigour, Step};
use super::head::{self, Facts, Framing};
use super::queue::{Entry, Refused};
use super::scan::section_end;
use super::{Connection, Feed, rewrite};
use crate::{Output, Refusal, RequestId, Status, Turn, Verdict};

/// What the next byte of the client belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// A head. `skipped`: an empty line before it was.
    Head { skipped: bool },
    /// A body of so many more bytes.
    Length(u64),
    /// A chunked body.
    Chunked(Chunked),
    /// The trailers of a chunked body.
    Trailers,
    /// A protocol that the app has not yet agreed to, or the next request.
    Upgrade,
    /// An upgraded connection.
    Tunnel,
    /// Nothing that anybody may see.
    Discard,
}

impl Client {
    /// A request has begun to leave and has not ended.
    pub(super) fn is_mid_body(self) -> bool {
        matches!(self, Client::Length(_) | Client::Chunked(_) | Client::Trailers)
    }

    /// Bytes are held until a section is complete.
    pub(super) fn awaits_section(self) -> bool {
        matches!(self, Client::Head { .. } | Client::Trailers)
    }
}

/// What became of a request.
enum Outcome {
    Forwarded(Facts),
    Refused(Refusal, Facts),
}

/// How a piece of work on the client's bytes went on.
enum Progress {
    /// So many bytes are done with; there may be more to do.
    Taken(usize),
    /// More bytes, or another event, are needed.
    Wait,
}

impl Connection {
    /// Works on what is held and `input`, and holds what is left.
    pub(super) fn feed_client(&mut self, input: &[u8], turn: &mut Turn<'_>) {
        self.stalled = false;
        if self.from_client.held.is_empty() {
            let taken = self.run_client(Feed { bytes: input, lent: true }, turn);
            self.hold_client(input.get(taken..).unwrap_or_default());
            return;
        }
        let mut held = std::mem::take(&mut self.from_client.held);
        held.push(input);
        let taken = self.run_client(Feed { bytes: held.bytes(), lent: false }, turn);
        held.take(taken);
        if self.end.is_none() && self.linger.is_none() {
            self.from_client.held = held;
        }
    }

    /// Goes on with what is held.
    pub(super) fn feed_held(&mut self, turn: &mut Turn<'_>) {
        if self.end.is_none() && !self.from_client.held.is_empty() {
            self.feed_client(&[], turn);
        }
    }

    fn hold_client(&mut self, rest: &[u8]) {
        if !rest.is_empty() && self.end.is_none() {
            self.from_client.held.push(rest);
        }
    }

    fn run_client(&mut self, feed: Feed<'_>, turn: &mut Turn<'_>) -> usize {
        let mut at = 0;
        while self.end.is_none() {
            let rest = feed.bytes.get(at..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            let progress = match self.client {
                Client::Head { skipped } => self.client_head(feed, at, skipped, turn),
                Client::Length(left) => self.client_length(feed, at, left, turn),
                Client::Chunked(decoder) => self.client_chunked(feed, at, decoder, turn),
                Client::Trailers => self.client_trailers(feed, at, turn),
                Client::Upgrade => Progress::Wait,
                Client::Tunnel => {
                    feed.pass(at, rest.len(), &mut turn.out.to_app);
                    turn.authorizer.request_body(self.newest(), rest.len());
                    Progress::Taken(rest.len())
                }
                Client::Discard => {
                    self.discard(rest.len());
                    Progress::Taken(rest.len())
                }
            };
            match progress {
                Progress::Taken(count) => at += count,
                Progress::Wait => break,
            }
        }
        at
    }

    fn client_head(&mut self, feed: Feed<'_>, at: usize, skipped: bool, turn: &mut Turn<'_>) -> Progress {
        if self.last {
            self.client = Client::Discard;
            return Progress::Taken(0);
        }
        if self.is_full() {
            return Progress::Wait;
        }
        if turn.out.to_client.own_len() >= self.limits.answer_bytes || turn.authorizer.is_spent() {
            self.stalled = true;
            return Progress::Wait;
        }
        let rest = feed.bytes.get(at..).unwrap_or_default();
        if !skipped && rest.starts_with(b"\r\n") {
            // Some clients send one after a body (RFC 9112, section 2.2).
            self.client = Client::Head { skipped: true };
            // Of what was looked at nothing is left.
            self.from_client.scanned = 0;
            return Progress::Taken(2);
        }
        let limit = self.limits.head_bytes;
        let window = rest.get(..limit).unwrap_or(rest);
        match section_end(window, self.from_client.scanned) {
            Ok(Some(end)) => {
                self.from_client.scanned = 0;
                self.head_since = None;
                self.client = Client::Head { skipped: false };
                self.request(feed, at, end, turn);
                Progress::Taken(end)
            }
            Ok(None) if rest.len() < limit => {
                self.from_client.scanned = rest.len();
                Progress::Wait
            }
            Ok(None) => self.refuse_head(
                Refusal::over(Status::FieldsTooLarge, "http.head_bytes", "the head is too long"),
                turn,
            ),
            Err(_) => self.refuse_head(Refusal::bad_request("a line ends without CR"), turn),
        }
    }

    fn refuse_head(&mut self, refusal: Refusal, turn: &mut Turn<'_>) -> Progress {
        self.from_client.scanned = 0;
        let id = self.take_id();
        self.refuse(id, refusal, After::Close, false, turn);
        Progress::Taken(0)
    }

    /// Deals with a whole head.
    fn request(&mut self, feed: Feed<'_>, at: usize, length: usize, turn: &mut Turn<'_>) {
        let id = self.take_id();
        let bytes = feed.bytes.get(at..at + length).unwrap_or_default();
        let Output { to_app, patch, .. } = &mut *turn.out;
        let outcome = head::read(bytes, &self.limits, turn.authorizer, |request, authorizer| {
            patch.clear();
            match authorizer.decide(id, &request.head, patch) {
                Verdict::Refuse(refusal) => return Outcome::Refused(refusal, request.facts),
                Verdict::Forward if patch.is_empty() && !request.edits.any() => feed.pass(at, length, to_app),
                Verdict::Forward => to_app.build(|out| rewrite::write(request, patch, out)),
            }
            Outcome::Forwarded(request.facts)
        });
        match outcome {
            Ok(Outcome::Forwarded(facts)) => self.forwarded(id, facts, bytes),
            Ok(Outcome::Refused(refusal, facts)) => {
                let complete = facts.framing == Framing::Empty && !facts.expects && !facts.last;
                let after = if complete { After::KeepAlive } else { After::Close };
                self.answer(Refused { id, refusal, after, is_head: facts.is_head }, turn);
            }
            Err(refusal) => self.refuse(id, refusal, After::Close, bytes.starts_with(b"HEAD "), turn),
        }
    }

    fn forwarded(&mut self, id: RequestId, facts: Facts, bytes: &[u8]) {
        // While the connection drains, the answer to this one says that it is the last.
        self.last |= facts.last || self.draining;
        self.parting = None;
        self.queue.push_forwarded(id, facts, bytes);
        self.client = match facts.framing {
            Framing::Length(length) => Client::Length(length),
            Framing::Chunked => Client::Chunked(Chunked::new(Rigour::Request)),
            Framing::Empty if facts.websocket => Client::Upgrade,
            Framing::Empty => Client::Head { skipped: false },
        };
    }

    /// Refuses a request of which nothing has left.
    pub(super) fn refuse(
        &mut self,
        id: RequestId,
        refusal: Refusal,
        after: After,
        is_head: bool,
        turn: &mut Turn<'_>,
    ) {
        turn.authorizer.refused(id, &refusal);
        self.answer(Refused { id, refusal, after, is_head }, turn);
    }

    fn answer(&mut self, refused: Refused, turn: &mut Turn<'_>) {
        if refused.after == After::Close {
            self.last = true;
            self.client = Client::Discard;
        }
        self.queue.push_refused(refused);
        self.send_answers(turn);
    }

    /// A request that is on its way turned out bad: the app gets no more of it, and the client is told if it can be.
    pub(super) fn spoil(&mut self, refusal: Refusal, turn: &mut Turn<'_>) {
        self.last = true;
        self.client = Client::Discard;
        self.finish_app(turn.out);
        let begun = self.app != App::Head || self.front_is_answered();
        if self.queue.len() == 1 && begun {
            if let Some(Entry::Forwarded(forwarded)) = self.queue.front() {
                turn.authorizer.refused(forwarded.id, &refusal);
            }
            self.cut(refusal.reason);
        } else if let Some(id) = self.queue.refuse_last(refusal) {
            turn.authorizer.refused(id, &refusal);
            if self.queue.len() == 1 {
                self.from_app.forget();
            }
            self.send_answers(turn);
        }
    }

    fn client_length(&mut self, feed: Feed<'_>, at: usize, left: u64, turn: &mut Turn<'_>) -> Progress {
        let rest = feed.bytes.len() - at;
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(rest);
        feed.pass(at, length, &mut turn.out.to_app);
        turn.authorizer.request_body(self.newest(), length);
        match left - u64::try_from(length).unwrap_or(left) {
            0 => self.body_ended(turn),
            left => self.client = Client::Length(left),
        }
        Progress::Taken(length)
    }

    fn client_chunked(
        &mut self,
        feed: Feed<'_>,
        at: usize,
        mut decoder: Chunked,
        turn: &mut Turn<'_>,
    ) -> Progress {
        let (taken, step) = decoder.advance(feed.bytes.get(at..).unwrap_or_default());
        feed.pass(at, taken, &mut turn.out.to_app);
        turn.authorizer.request_body(self.newest(), decoder.take_text());
        match step {
            Step::More => self.client = Client::Chunked(decoder),
            Step::Trailers | Step::Done => self.client = Client::Trailers,
            Step::Bad(fault) => self.spoil(Refusal::bad_request(fault), turn),
        }
        Progress::Taken(taken)
    }

    fn client_trailers(&mut self, feed: Feed<'_>, at: usize, turn: &mut Turn<'_>) -> Progress {
        let rest = feed.bytes.get(at..).unwrap_or_default();
        let limit = self.limits.trailer_bytes;
        let window = rest.get(..limit).unwrap_or(rest);
        let found = match section_end(window, self.from_client.scanned) {
            Ok(None) if rest.len() < limit => {
                self.from_client.scanned = rest.len();
                return Progress::Wait;
            }
            Ok(Some(end)) => {
                let bytes = window.get(..end).unwrap_or_default();
                head::check_trailers(bytes, &self.limits, turn.authorizer).map(|()| end)
            }
            Ok(None) => {
                Err(Refusal::over(Status::FieldsTooLarge, "http.trailer_bytes", "the trailers are too long"))
            }
            Err(_) => Err(Refusal::bad_request("a line ends without CR")),
        };
        self.from_client.scanned = 0;
        self.head_since = None;
        match found {
            Ok(end) => {
                feed.pass(at, end, &mut turn.out.to_app);
                self.body_ended(turn);
                Progress::Taken(end)
            }
            Err(refusal) => {
                self.spoil(refusal, turn);
                Progress::Taken(0)
            }
        }
    }

    fn body_ended(&mut self, turn: &mut Turn<'_>) {
        self.client = Client::Head { skipped: false };
        self.forget_answered(turn);
    }

    /// The front had its answer before its end; now that has come too.
    fn forget_answered(&mut self, turn: &mut Turn<'_>) {
        if self.front_is_answered() {
            self.answer_finished(turn);
        }
    }

    /// The client has ended its direction, and all that it sent has been looked at.
    pub(super) fn client_ended(&mut self, turn: &mut Turn<'_>) {
        self.from_client.forget();
        self.finish_app(turn.out);
        if self.client != Client::Tunnel {
            self.last = true;
            self.client = Client::Discard;
            self.forget_answered(turn);
        }
    }
}
