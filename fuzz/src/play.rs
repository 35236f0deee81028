//! The filter between a client and an app that are both made of the input.

use cinch_http::{Authorizer, End, Filter, Output, Patch, Refusal, RequestHead, RequestId, Turn, Verdict};
use cinch_reason::Reason;
use std::time::Instant;

/// What happens to a connection.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    Client(&'a [u8]),
    App(&'a [u8]),
    ClientEnd,
    AppEnd,
    /// From now on, targets that begin with `/c` are refused, also those in flight.
    Tighten,
}

/// Reads events: each a byte that says what, and for bytes their number in one more. A side that has ended says nothing.
pub fn events(mut data: &[u8]) -> Vec<Event<'_>> {
    let (mut events, mut ended) = (Vec::new(), [false; 2]);
    while let [kind, rest @ ..] = data {
        data = rest;
        let event = match kind % 8 {
            5 => Event::ClientEnd,
            6 => Event::AppEnd,
            7 => Event::Tighten,
            kind => {
                let side = usize::from(kind >= 3);
                let [length, rest @ ..] = data else { break };
                let (bytes, rest) = rest.split_at(usize::from(*length).min(rest.len()));
                data = rest;
                if ended[side] {
                    continue;
                }
                if side == 0 { Event::Client(bytes) } else { Event::App(bytes) }
            }
        };
        ended[0] |= matches!(event, Event::ClientEnd);
        ended[1] |= matches!(event, Event::AppEnd);
        events.push(event);
    }
    events
}

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

impl Seen {
    /// It was changed on its way.
    pub fn is_patched(&self) -> bool {
        self.target.starts_with("/p")
    }

    /// The target that the app must get.
    pub fn forwarded(&self) -> &str {
        if self.is_patched() { "/new?q" } else { &self.target }
    }
}

/// Refuses `/d` with 403 and `/t` with 401, patches `/p`, guards `x-role`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Judge {
    pub seen: Vec<Seen>,
    pub refused: Vec<(u64, u16)>,
    pub answered: Vec<(u64, u16)>,
    pub finished: Vec<u64>,
    tightened: bool,
}

impl Judge {
    fn verdict(&self, target: &str) -> Verdict {
        match target.as_bytes() {
            [_, b'd', ..] => Verdict::Refuse(Refusal::forbidden(Reason::DeniedByPolicy)),
            [_, b'c', ..] if self.tightened => Verdict::Refuse(Refusal::forbidden(Reason::DeniedByPolicy)),
            [_, b't', ..] => Verdict::Refuse(Refusal::unauthorized(Reason::TokenInvalid)),
            _ => Verdict::Forward,
        }
    }
}

impl Authorizer for Judge {
    fn decide(&mut self, id: RequestId, head: &RequestHead<'_>, patch: &mut Patch) -> Verdict {
        let verdict = self.verdict(head.target);
        let seen = Seen {
            id: id.0,
            method: head.method.to_owned(),
            target: head.target.to_owned(),
            authority: head.authority.map(str::to_owned),
            headers: head.headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect(),
            upgrade: head.upgrade,
            allowed: verdict == Verdict::Forward,
        };
        if seen.is_patched() {
            patch.set_target("/new?q").unwrap();
            patch.remove("authorization").unwrap();
            patch.set("x-user", b"ann").unwrap();
        }
        self.seen.push(seen);
        verdict
    }

    fn decide_again(&mut self, _: RequestId, head: &RequestHead<'_>) -> Verdict {
        self.verdict(head.target)
    }

    fn is_guarded(&self, name: &str) -> bool {
        name == "x-role"
    }

    fn refused(&mut self, id: RequestId, refusal: &Refusal) {
        self.refused.push((id.0, refusal.status.code()));
    }

    fn answered(&mut self, id: RequestId, status: u16) {
        self.answered.push((id.0, status));
    }

    fn finished(&mut self, id: RequestId) {
        self.finished.push(id.0);
    }
}

/// What can be seen of a connection from outside.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Played {
    pub judge: Judge,
    pub to_app: Vec<u8>,
    pub to_client: Vec<u8>,
    pub fins: (bool, bool),
    pub end: Option<End>,
}

/// Plays events at one instant, bytes in pieces of `size`, and everything that is sent is read at once.
pub fn play<F: Filter>(filter: F, events: &[Event<'_>], size: usize, now: Instant) -> Played {
    let mut stage = Stage { filter, played: Played::default(), out: Output::default(), now };
    for event in events {
        match event {
            Event::Client(bytes) => bytes.chunks(size).for_each(|piece| stage.call(piece, F::client_data)),
            Event::App(bytes) => bytes.chunks(size).for_each(|piece| stage.call(piece, F::app_data)),
            Event::ClientEnd => stage.call(&[], |filter, _, turn| filter.client_eof(turn)),
            Event::AppEnd => stage.call(&[], |filter, _, turn| filter.app_eof(turn)),
            Event::Tighten => {
                stage.played.judge.tightened = true;
                stage.call(&[], |filter, _, turn| filter.reevaluate(turn));
            }
        }
        assert!(stage.filter.held() < 1 << 20, "{} bytes are held", stage.filter.held());
    }
    Played { end: stage.filter.end(), ..stage.played }
}

struct Stage<F> {
    filter: F,
    played: Played,
    out: Output,
    now: Instant,
}

impl<F: Filter> Stage<F> {
    fn call(&mut self, input: &[u8], call: impl Fn(&mut F, &[u8], &mut Turn<'_>)) {
        let Stage { filter, played, out, now } = self;
        call(filter, input, &mut Turn { now: *now, authorizer: &mut played.judge, out });
        take(out, input, played);
        while filter.wants_turn() {
            filter.client_data(&[], &mut Turn { now: *now, authorizer: &mut played.judge, out });
            take(out, &[], played);
        }
    }
}

/// Reads what was sent.
fn take(out: &mut Output, input: &[u8], played: &mut Played) {
    let Played { to_app, to_client, fins, .. } = played;
    for (outgoing, to, fin) in [(&out.to_app, to_app, &mut fins.0), (&out.to_client, to_client, &mut fins.1)]
    {
        // Who has been told the end hears no more: that is the proxy's to see to.
        if *fin {
            continue;
        }
        let before = to.len();
        outgoing.slices(input).for_each(|slice| to.extend_from_slice(slice));
        assert_eq!(to.len() - before, outgoing.len());
        *fin |= outgoing.fin();
    }
    out.clear();
}
