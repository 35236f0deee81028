//! What the app sends: answers, each matched with the request that it is for.

use super::chunked::{Chunked, Rigour, Step};
use super::client::Client;
use super::head::Framing;
use super::queue::{Entry, Forwarded};
use super::response::{self, Answer, Unreadable};
use super::scan::{Held, section_end};
use super::{Connection, Feed};
use crate::fields::{Known, known};
use crate::{Outgoing, Turn};

/// The status that is reported of an answer that can't be read.
const UNREADABLE: u16 = 0;
/// What a head ends with.
const EMPTY_LINE: &[u8] = b"\r\n";
/// Continue (RFC 9110, section 15.2.1).
const CONTINUE: u16 = 100;
/// Switching Protocols (RFC 9110, section 15.2.2).
const SWITCHING: u16 = 101;

/// What the next byte of the app belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum App {
    /// A head.
    Head,
    /// A body of so many more bytes.
    Length { left: u64, last: bool },
    /// A chunked body.
    Chunked { decoder: Chunked, last: bool },
    /// A body, or what can't be framed, up to the end.
    ToEnd,
    /// An upgraded connection.
    Tunnel,
}

impl App {
    pub(super) fn is_tunnel(self) -> bool {
        self == App::Tunnel
    }
}

/// Passes the head of an answer with `Connection: close` in the place of what the app says of the connection: clients
/// that look at the first such field only would take it for one that stays.
fn pass_as_last(feed: Feed<'_>, at: usize, length: usize, to: &mut Outgoing) {
    let head = feed.bytes.get(at..at + length).unwrap_or_default();
    let (mut from, mut end) = (at, at);
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        let start = end;
        end += line.len();
        if line == EMPTY_LINE || is_of_connection(line) {
            if from < start {
                feed.pass(from, start - from, to);
            }
            from = end;
        }
    }
    to.own(b"Connection: close\r\n\r\n");
}

/// A line of a head that says whether the connection stays.
fn is_of_connection(line: &[u8]) -> bool {
    let name = line.split(|byte| *byte == b':').next().and_then(|name| std::str::from_utf8(name).ok());
    name.is_some_and(|name| matches!(known(name), Known::Connection | Known::KeepAlive))
}

/// The limit that a head passes which can't be read; empty: none.
fn over(unreadable: Unreadable) -> &'static str {
    match unreadable {
        Unreadable::TooManyFields => "http.head_fields",
        Unreadable::Malformed => "",
    }
}

impl Connection {
    pub(super) fn feed_app(&mut self, input: &[u8], turn: &mut Turn<'_>) {
        if self.from_app.held.is_empty() {
            let taken = self.run_app(Feed { bytes: input, lent: true }, turn);
            let rest = input.get(taken..).unwrap_or_default();
            if !rest.is_empty() && self.end.is_none() {
                self.from_app.held.push(rest);
            }
            return;
        }
        let mut held = std::mem::take(&mut self.from_app.held);
        held.push(input);
        let taken = self.run_app(Feed { bytes: held.bytes(), lent: false }, turn);
        held.take(taken);
        if self.end.is_none() && self.linger.is_none() {
            self.from_app.held = held;
        }
    }

    fn run_app(&mut self, feed: Feed<'_>, turn: &mut Turn<'_>) -> usize {
        let mut at = 0;
        while self.end.is_none() && at < feed.bytes.len() {
            let rest = feed.bytes.len() - at;
            if self.linger.is_some() {
                self.discard(rest);
                return feed.bytes.len();
            }
            let taken = match self.app {
                App::Head => match self.app_head(feed, at, turn) {
                    Some(taken) => taken,
                    None => break,
                },
                App::Length { left, last } => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(rest);
                    feed.pass(at, length, &mut turn.out.to_client);
                    self.count_answer(length, turn);
                    match left - u64::try_from(length).unwrap_or(left) {
                        0 => self.answer_ended(last, turn),
                        left => self.app = App::Length { left, last },
                    }
                    length
                }
                App::Chunked { decoder, last } => self.app_chunked(feed, at, decoder, last, turn),
                App::ToEnd | App::Tunnel => {
                    feed.pass(at, rest, &mut turn.out.to_client);
                    self.count_answer(rest, turn);
                    rest
                }
            };
            at += taken;
        }
        at
    }

    fn app_chunked(
        &mut self,
        feed: Feed<'_>,
        at: usize,
        decoder: Chunked,
        last: bool,
        turn: &mut Turn<'_>,
    ) -> usize {
        let mut decoder = decoder;
        let (taken, step) = decoder.advance(feed.bytes.get(at..).unwrap_or_default());
        feed.pass(at, taken, &mut turn.out.to_client);
        self.count_answer(decoder.take_text(), turn);
        match step {
            Step::More => self.app = App::Chunked { decoder, last },
            Step::Trailers | Step::Done => self.answer_ended(last, turn),
            Step::Bad(_) => self.lose_frame(),
        }
        taken
    }

    /// The front's answer has so many more bytes of body.
    fn count_answer(&self, bytes: usize, turn: &mut Turn<'_>) {
        if let Some(Entry::Forwarded(request)) = self.queue.front() {
            turn.authorizer.answer_body(request.id, bytes);
        }
    }

    /// The end of the answer can't be told: all that follows belongs to it.
    fn lose_frame(&mut self) {
        self.last = true;
        self.app = App::ToEnd;
    }

    /// Looks for the head of an answer; `None`: it is not complete.
    fn app_head(&mut self, feed: Feed<'_>, at: usize, turn: &mut Turn<'_>) -> Option<usize> {
        let rest = feed.bytes.get(at..).unwrap_or_default();
        let Some(Entry::Forwarded(request)) = self.queue.front().filter(|_| !self.front_is_answered()) else {
            // Nobody asked. Were it forwarded, the client would take it for the answer to its next request.
            self.close(turn);
            self.discard(rest.len());
            return Some(rest.len());
        };
        let limit = self.limits.head_bytes;
        let window = rest.get(..limit).unwrap_or(rest);
        let answer = match section_end(window, self.from_app.scanned) {
            Ok(None) if rest.len() < limit => {
                self.from_app.scanned = rest.len();
                return None;
            }
            Ok(Some(end)) => {
                let head = window.get(..end).unwrap_or_default();
                response::read(head, request.is_head).map(|answer| (end, answer)).map_err(over)
            }
            Ok(None) => Err("http.head_bytes"),
            Err(_) => Err(""),
        };
        self.from_app.scanned = 0;
        let (length, answer) = match answer {
            Ok(read) => read,
            Err(limit) => {
                if !limit.is_empty() {
                    turn.authorizer.over_limit(limit);
                }
                turn.authorizer.answered(request.id, UNREADABLE);
                self.lose_frame();
                return Some(0);
            }
        };
        if self.draining && self.queue.len() == 1 && answer.status >= 200 && !answer.last {
            // A client that knows does not send its next request into the end of this connection.
            pass_as_last(feed, at, length, &mut turn.out.to_client);
        } else {
            feed.pass(at, length, &mut turn.out.to_client);
        }
        self.answer_begun(request, answer, turn);
        Some(length)
    }

    pub(super) fn front_is_answered(&self) -> bool {
        matches!(self.queue.front(), Some(Entry::Forwarded(forwarded)) if forwarded.answered)
    }

    fn answer_begun(&mut self, request: Forwarded, answer: Answer, turn: &mut Turn<'_>) {
        let interim = answer.status < 200;
        if !interim || answer.status == SWITCHING {
            turn.authorizer.answered(request.id, answer.status);
        }
        if answer.status == SWITCHING {
            if request.websocket && answer.websocket {
                self.app = App::Tunnel;
                self.client = Client::Tunnel;
            } else {
                self.lose_frame();
            }
            return;
        }
        if interim {
            if answer.status == CONTINUE {
                self.queue.set_continued();
            }
            return;
        }
        if request.websocket && self.client == Client::Upgrade {
            self.client = Client::Head { skipped: false };
        }
        // An answer before the end of the request: the body is finished, and nothing follows it. Where the client
        // waited for leave to send it and got none, apps differ on whether it will come: they get no more, and are told
        // so, because some wait for it.
        self.last |= answer.last || self.is_front_mid_body();
        if request.expects && self.is_front_mid_body() {
            self.client = Client::Discard;
            self.finish_app(turn.out);
        }
        let last = answer.last;
        match answer.framing {
            Some(Framing::Empty) => self.answer_ended(last, turn),
            Some(Framing::Length(left)) => self.app = App::Length { left, last },
            Some(Framing::Chunked) => {
                self.app = App::Chunked { decoder: Chunked::new(Rigour::Response), last };
            }
            None => self.lose_frame(),
        }
    }

    /// The request that is being answered is still being sent.
    fn is_front_mid_body(&self) -> bool {
        self.queue.len() == 1 && self.client.is_mid_body()
    }

    fn answer_ended(&mut self, last: bool, turn: &mut Turn<'_>) {
        self.app = App::Head;
        if self.is_front_mid_body() {
            self.queue.set_answered();
            return;
        }
        self.answer_finished(turn);
        if last {
            // The app reads no further: what it has of later requests it drops.
            self.close(turn);
        } else {
            // Before the rest of the app's bytes are looked at, so that it does not matter how they are cut.
            self.send_answers(turn);
            self.feed_held(turn);
        }
    }

    /// The front is done with.
    pub(super) fn answer_finished(&mut self, turn: &mut Turn<'_>) {
        if let Some(Entry::Forwarded(forwarded)) = self.queue.pop() {
            turn.authorizer.finished(forwarded.id);
        }
    }

    /// The app has ended its direction.
    pub(super) fn app_ended(&mut self, turn: &mut Turn<'_>) {
        let held = std::mem::take(&mut self.from_app.held);
        if self.linger.is_none() {
            // The beginning of a head: what it is worth, the client judges.
            turn.out.to_client.own(held.bytes());
        }
        drop::<Held>(held);
        match self.app {
            App::Tunnel => self.finish_client(turn.out),
            App::ToEnd => {
                self.answer_finished(turn);
                self.close(turn);
            }
            _ => self.close(turn),
        }
    }
}
