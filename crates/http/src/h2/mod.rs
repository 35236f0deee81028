//! The filter for HTTP/2 with prior knowledge (RFC 9113), and so for gRPC.
//!
//! The frames of both sides go through a [`reader`] each; [`client`] and [`app`] hear what they say and write what
//! the other side gets; [`core`] is what they share. Header blocks of both directions are decoded from the first
//! byte and written anew without a table ([`hpack`]), so that blocks can be dropped, changed and made up. Windows,
//! PING and ACKs belong to the two ends; DATA that the filter drops is given back to its sender, so that the windows
//! of both ends stay as they would be without it.
//!
//! A request that is refused never becomes a stream of the app. A client that breaks the protocol in a way that
//! would make the app reset streams is sent away at once, so that nobody can make an app work for answers that it
//! does not want.

mod answer;
mod app;
mod budget;
mod class;
mod client;
mod core;
mod frame;
mod head;
mod hpack;
mod reader;
mod response;
mod settings;
mod streams;

use self::core::{Core, LAST, id, refusal};
use crate::{End, Filter, Limits, Output, Refusal, RequestId, Status, Turn, Verdict};
use app::FromApp;
use cinch_reason::Reason;
use client::FromClient;
use frame::{Fault, code};
use reader::Reader;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between the two steps of our goodbye: what a client sends before it has read the first one still counts.
const GOODBYE: Duration = Duration::from_secs(1);

/// Our own goodbye.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goodbye {
    None,
    /// Announced; streams that come until then are still served.
    Announced(Instant),
    /// The last stream is named.
    Said,
}

/// One connection of HTTP/2.
#[derive(Debug)]
pub struct Connection {
    core: Core,
    client: Reader,
    app: Reader,
    client_eof: bool,
    app_eof: bool,
    goodbye: Goodbye,
    begun: Instant,
    quiet_since: Instant,
    /// Since when our own answers wait to be sent.
    stalled_since: Option<Instant>,
    /// The policy has changed, and the streams from this one on are still to be asked for.
    asks_from: Option<u32>,
    end: Option<End>,
}

impl Connection {
    /// A connection that was accepted at `now`.
    #[must_use]
    pub fn new(limits: Arc<Limits>, now: Instant) -> Connection {
        Connection {
            client: Reader::of_client(&limits),
            app: Reader::of_app(&limits),
            core: Core::new(limits, now),
            client_eof: false,
            app_eof: false,
            goodbye: Goodbye::None,
            begun: now,
            quiet_since: now,
            stalled_since: None,
            asks_from: None,
            end: None,
        }
    }

    /// Asks the client to take further requests elsewhere: streams that are live, and those on their way, are still
    /// served; the connection ends after the last one.
    pub fn drain(&mut self, turn: &mut Turn<'_>) {
        if self.end.is_none() && self.goodbye == Goodbye::None {
            self.core.goaway(&mut turn.out.to_client, LAST, code::NO_ERROR, &[]);
            self.goodbye = Goodbye::Announced(turn.now + GOODBYE);
        }
    }

    /// Reads both sides: `client` and `app`, after what is held of them.
    fn read(&mut self, client: Option<&[u8]>, app: Option<&[u8]>, turn: &mut Turn<'_>) {
        if self.end.is_some() {
            return;
        }
        if self.core.greeted && turn.out.to_client.is_empty() {
            self.core.answers = 0;
        }
        // The app first: its answers make room in the table of streams.
        if app.is_some() || self.app.is_held() {
            let mut sink = FromApp { core: &mut self.core, turn };
            if let Err(fault) = self.app.read(app.unwrap_or_default(), sink.turn.now, &mut sink) {
                return self.app_failed(fault, turn);
            }
            if let Some(fault) = self.core.blame {
                return self.client_failed(fault, turn);
            }
        }
        if client.is_some() || self.client.is_held() {
            let mut sink = FromClient { core: &mut self.core, turn };
            if let Err(fault) = self.client.read(client.unwrap_or_default(), sink.turn.now, &mut sink) {
                return self.client_failed(fault, turn);
            }
        }
        self.core.refund(turn.out);
        self.settle(turn);
    }

    /// What follows from a read, an end or a deadline.
    fn settle(&mut self, turn: &mut Turn<'_>) {
        let stalled = self.client.is_held() && self.core.is_stalled();
        self.stalled_since = stalled.then(|| self.stalled_since.unwrap_or(turn.now));
        if self.app_eof && !self.app.is_held() {
            // Whoever waits for an answer sees that none will come.
            turn.out.to_client.finish();
            self.finish();
        } else if self.client_eof && !self.client.is_held() {
            turn.out.to_app.finish();
            if self.core.streams.is_empty() {
                self.finish();
            }
        } else if self.goodbye == Goodbye::Said && self.core.streams.is_empty() && !self.client.is_held() {
            self.finish();
        }
    }

    fn finish(&mut self) {
        self.end = Some(End::Finished);
    }

    /// The client broke the protocol, or a bound.
    fn client_failed(&mut self, fault: Fault, turn: &mut Turn<'_>) {
        let refusal = refusal(fault);
        turn.authorizer.refused(self.newest(), &refusal);
        self.leave(fault.code, refusal.reason, turn.out);
    }

    /// The app did. Its requests are lost with the connection; a bound is told here.
    fn app_failed(&mut self, fault: Fault, turn: &mut Turn<'_>) {
        if !fault.limit.is_empty() {
            turn.authorizer.over_limit(fault.limit);
        }
        turn.out.to_app.build(|out| frame::goaway(0, fault.code, &[], out));
        self.leave(code::INTERNAL_ERROR, Reason::BadAnswer, turn.out);
    }

    /// Ends the connection at once. A client that has heard nothing yet can't be told why.
    fn leave(&mut self, code: u32, reason: Reason, out: &mut Output) {
        self.core.refund(out);
        if !self.core.greeted {
            self.end = Some(End::Cut(reason));
            return;
        }
        let last = self.core.streams.highest;
        self.core.goaway(&mut out.to_client, last, code, &[]);
        out.to_client.finish();
        out.to_app.finish();
        self.finish();
    }

    /// The newest request, which a fault of the connection is reported with.
    fn newest(&self) -> RequestId {
        id(self.core.streams.highest)
    }

    /// The first deadline of those that run, and what it is.
    fn next_deadline(&self) -> (Instant, Due) {
        let limits = &self.core.limits;
        let head = limits.head_timeout;
        let greetings = !(self.client.is_greeted() && self.app.is_greeted());
        let candidates = [
            greetings.then(|| (self.begun + head, Due::Greeting)),
            self.client.block_since().map(|since| (since + head, Due::ClientBlock)),
            self.app.block_since().map(|since| (since + head, Due::AppBlock)),
            self.stalled_since.map(|since| (since + head, Due::Stalled)),
            match self.goodbye {
                Goodbye::Announced(at) => Some((at, Due::Goodbye)),
                _ => None,
            },
        ];
        // Streams may be quiet as long as they like.
        let idle = (self.quiet_since + limits.idle_timeout, Due::Idle);
        candidates.into_iter().flatten().fold(idle, |first, next| if next.0 < first.0 { next } else { first })
    }

    fn due(&mut self, due: Due, turn: &mut Turn<'_>) {
        match due {
            Due::Greeting if self.client.is_greeted() => {
                turn.authorizer.over_limit("http.head_timeout");
                self.end = Some(End::Cut(Reason::BadAnswer));
            }
            Due::Greeting => {
                self.client_failed(Fault::calm("http.head_timeout", "the preface did not come in time"), turn)
            }
            Due::ClientBlock => {
                self.client_failed(Fault::calm("http.head_timeout", "a head did not come in time"), turn)
            }
            Due::AppBlock => {
                self.app_failed(Fault::calm("http.head_timeout", "a head did not come in time"), turn)
            }
            Due::Stalled => {
                let fault = "the client does not read our answers";
                let refusal = Refusal::over(Status::RequestTimeout, "http.answer_bytes", fault);
                turn.authorizer.refused(self.newest(), &refusal);
                self.end = Some(End::Cut(refusal.reason));
            }
            Due::Goodbye => {
                let last = self.core.streams.highest;
                self.core.goaway(&mut turn.out.to_client, last, code::NO_ERROR, &[]);
                self.goodbye = Goodbye::Said;
                self.settle(turn);
            }
            Due::Idle if self.core.streams.is_empty() => {
                self.leave(code::NO_ERROR, Reason::Overloaded, turn.out)
            }
            Due::Idle => self.quiet_since = turn.now,
        }
    }
}

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Greeting,
    ClientBlock,
    AppBlock,
    Stalled,
    Goodbye,
    Idle,
}

impl Filter for Connection {
    fn client_data(&mut self, input: &[u8], turn: &mut Turn<'_>) {
        if !input.is_empty() {
            self.quiet_since = turn.now;
        }
        self.read(Some(input), None, turn);
    }

    fn client_eof(&mut self, turn: &mut Turn<'_>) {
        if !self.client_eof {
            self.client_eof = true;
            self.read(None, None, turn);
        }
    }

    fn app_data(&mut self, input: &[u8], turn: &mut Turn<'_>) {
        self.quiet_since = turn.now;
        self.read(None, Some(input), turn);
    }

    fn app_eof(&mut self, turn: &mut Turn<'_>) {
        if !self.app_eof {
            self.app_eof = true;
            self.read(None, None, turn);
        }
    }

    fn reevaluate(&mut self, turn: &mut Turn<'_>) {
        self.asks_from = Some(0);
        self.go_on_reevaluating(turn);
    }

    fn is_reevaluating(&self) -> bool {
        self.end.is_none() && self.asks_from.is_some()
    }

    fn go_on_reevaluating(&mut self, turn: &mut Turn<'_>) {
        let from = self.asks_from.take();
        let Some(from) = from.filter(|_| self.end.is_none()) else { return };
        let mut refused: Vec<(u32, Refusal)> = Vec::new();
        let Core { streams, cookies, .. } = &mut self.core;
        for stream in streams.iter().filter(|stream| stream.id >= from) {
            if turn.authorizer.is_spent() {
                self.asks_from = Some(stream.id);
                break;
            }
            let authorizer = &mut *turn.authorizer;
            let verdict = match head::request(&stream.fields, &*authorizer) {
                Ok(request) => {
                    request.show(&stream.fields, cookies, |head| authorizer.decide_again(id(stream.id), head))
                }
                // What was well-formed before now holds a name that could be taken for one that matters.
                Err(head::Bad::Refused(refusal)) => Verdict::Refuse(refusal),
                Err(head::Bad::Malformed(fault)) => Verdict::Refuse(Refusal::bad_request(fault)),
            };
            if let Verdict::Refuse(refusal) = verdict {
                refused.push((stream.id, refusal));
            }
        }
        for (stream, refusal) in refused {
            turn.authorizer.refused(id(stream), &refusal);
            self.core.cut(stream, code::CANCEL, code::CANCEL, turn);
        }
        self.settle(turn);
    }

    fn wake(&mut self, turn: &mut Turn<'_>) {
        while self.end.is_none() {
            let (at, due) = self.next_deadline();
            if at > turn.now {
                return;
            }
            self.due(due, turn);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.end.is_none().then(|| self.next_deadline().0)
    }

    fn wants_client(&self) -> bool {
        let is_ready = !self.client_eof && !self.client.is_held() && !self.is_unheard();
        self.end.is_none() && is_ready && !self.is_reevaluating()
    }

    fn wants_app(&self) -> bool {
        self.end.is_none() && !self.app_eof && !self.app.is_held() && !self.is_reevaluating()
    }

    fn wants_turn(&self) -> bool {
        let is_held = self.app.is_held() || self.client.is_held() && !self.is_unheard();
        self.end.is_none() && is_held && !self.is_reevaluating()
    }

    fn held(&self) -> usize {
        let core = self.core.streams.held() + self.core.waiting.capacity() + self.core.cookies.capacity();
        core + self.core.from_client.held() + self.core.from_app.held() + self.client.held() + self.app.held()
    }

    fn held_unfinished(&self) -> usize {
        self.client.unfinished()
    }

    fn shrink(&mut self) {
        self.core.streams.shrink();
        self.core.waiting.shrink_to_fit();
        self.core.cookies = Vec::new();
        self.client.shrink();
        self.app.shrink();
    }

    fn end(&self) -> Option<End> {
        self.end
    }
}

impl Connection {
    /// The client is told nothing yet, and there is too much to tell.
    fn is_unheard(&self) -> bool {
        !self.core.greeted && self.core.is_stalled()
    }
}
