//! Properties of the protocol: pieces of any size give the same events, hostile bytes never panic, and two
//! honest sides always agree and come back to idle.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use cinch_tunnel::{Control, Event, Open, ProtocolError, RefuseCode, ResetCode, Session, Side};
use proptest::prelude::*;
use std::collections::VecDeque;

/// Events as text; the bytes of neighbouring DATA are joined, because pieces split them.
fn receive(session: &mut Session, pieces: &[&[u8]]) -> Result<Vec<String>, ProtocolError> {
    let mut events: Vec<String> = Vec::new();
    let mut joined: Option<Vec<u8>> = None;
    for piece in pieces {
        let mut input = *piece;
        while let Some(event) = session.receive(&mut input)? {
            if let Event::Data { bytes, fin } = event {
                joined.get_or_insert_with(Vec::new).extend_from_slice(bytes);
                if fin {
                    events.push(format!("{:?} fin", joined.take()));
                }
                continue;
            }
            events.extend(joined.take().map(|bytes| format!("{bytes:?}")));
            events.push(format!("{event:?}"));
        }
    }
    events.extend(joined.take().map(|bytes| format!("{bytes:?}")));
    Ok(events)
}

fn control() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        any::<u64>().prop_map(|features| Control::Open(Open { features })),
        Just(Control::Opened),
        Just(Control::Refused(RefuseCode::Denied)),
        Just(Control::Reset(ResetCode::App)),
        Just(Control::Drain),
        (0x80u8..).prop_map(Control::Ignorable),
    ]
    .prop_map(|message| {
        let mut out = Vec::new();
        message.encode(&mut out);
        out
    })
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    (any::<bool>(), proptest::collection::vec(any::<u8>(), 1..40)).prop_map(|(fin, bytes)| {
        let kind = if fin { cinch_tunnel::Kind::DataFin } else { cinch_tunnel::Kind::Data };
        [cinch_tunnel::head(kind, bytes.len()).unwrap().to_vec(), bytes].concat()
    })
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![3 => control(), 2 => data()], 0..12).prop_map(|f| f.concat())
}

fn mostly_frames() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        frames(),
        proptest::collection::vec(any::<u8>(), 0..200),
        (frames(), proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(f, g)| [f, g].concat()),
    ]
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Client), Just(Side::Server)]
}

/// A session that is idle, or on the client's side waits for the answer to its OPEN.
fn begun(side: Side, opening: bool) -> Session {
    let mut session = Session::new(side);
    if opening && side == Side::Client {
        session.open(Open::default(), &mut Vec::new()).unwrap();
    }
    session
}

proptest! {
    #[test]
    fn pieces_of_any_size_give_the_same_events(
        bytes in mostly_frames(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        side in side(), opening: bool,
    ) {
        let whole = receive(&mut begun(side, opening), &[&bytes]);
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        at.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for to in at.into_iter().chain([bytes.len()]) {
            pieces.push(&bytes[from..to]);
            from = to;
        }
        prop_assert_eq!(receive(&mut begun(side, opening), &pieces), whole);
    }

    #[test]
    fn hostile_bytes_end_in_events_or_an_error(bytes in mostly_frames(), side in side(), opening: bool) {
        let mut session = begun(side, opening);
        let mut input = bytes.as_slice();
        let mut out = Vec::new();
        loop {
            match session.receive(&mut input) {
                Ok(Some(Event::Open(_))) => {
                    prop_assert!(session.opened(&mut out).is_ok());
                }
                Ok(Some(Event::Reset(_) | Event::Refused(_))) if !session.local_ended() => {
                    let answer = session.reset(ResetCode::Answer, &mut out);
                    prop_assert!(answer.is_ok() || session.refused(RefuseCode::Cancelled, &mut out).is_ok());
                }
                Ok(Some(_)) => {}
                Ok(None) => { prop_assert!(input.is_empty()); break; }
                Err(_) => break,
            }
        }
    }
}

/// One end with its app: what it sent and received in the stream under way.
struct End {
    session: Session,
    wire: VecDeque<Vec<u8>>,
    sent: Vec<u8>,
    received: Vec<u8>,
    clean: bool,
    must_answer: bool,
}

impl End {
    fn new(side: Side) -> End {
        End {
            session: Session::new(side),
            wire: VecDeque::new(),
            sent: Vec::new(),
            received: Vec::new(),
            clean: true,
            must_answer: false,
        }
    }

    fn is_done(&self) -> bool {
        self.session.is_idle() && self.wire.is_empty()
    }

    fn send(&mut self, bytes: &[u8], fin: bool) {
        if let Ok(head) = self.session.data(bytes.len(), fin) {
            self.wire.push_back([&head, bytes].concat());
            self.sent.extend_from_slice(bytes);
        }
    }

    fn reset(&mut self, why: ResetCode) {
        let mut out = Vec::new();
        if self.session.reset(why, &mut out).is_ok() {
            self.clean = false;
            self.wire.push_back(out);
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        let mut input = bytes;
        while let Some(event) = self.session.receive(&mut input)? {
            match event {
                Event::Open(_) => {
                    self.sent.clear();
                    self.received.clear();
                    (self.clean, self.must_answer) = (true, true);
                }
                Event::Data { bytes, .. } => self.received.extend_from_slice(bytes),
                Event::Reset(_) | Event::Refused(_) => {
                    self.clean = false;
                    if !self.must_answer && !self.session.local_ended() {
                        let mut out = Vec::new();
                        self.session.reset(ResetCode::Answer, &mut out).unwrap();
                        self.wire.push_back(out);
                    }
                }
                Event::Opened | Event::Drain => {}
            }
        }
        Ok(())
    }

    /// A server answers its OPEN.
    fn answer(&mut self, accept: bool) {
        if !std::mem::take(&mut self.must_answer) {
            return;
        }
        let mut out = Vec::new();
        if accept && !self.session.remote_ended() {
            self.session.opened(&mut out).unwrap();
        } else {
            self.clean = false;
            self.session.refused(RefuseCode::Denied, &mut out).unwrap();
        }
        self.wire.push_back(out);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn two_honest_sides_never_break_the_protocol_and_come_back_to_idle(
        steps in proptest::collection::vec((0u8..9, any::<bool>(), 1usize..30), 0..120),
    ) {
        let (mut client, mut server) = (End::new(Side::Client), End::new(Side::Server));
        for (step, flag, length) in steps {
            match step {
                0 => {
                    let mut out = Vec::new();
                    if client.session.open(Open::default(), &mut out).is_ok() {
                        client.sent.clear();
                        client.received.clear();
                        client.clean = true;
                        client.wire.push_back(out);
                    }
                }
                1 => client.send(&vec![1; length], flag),
                2 => server.send(&vec![2; length], flag),
                3 if flag => client.reset(ResetCode::App),
                4 if flag => server.reset(ResetCode::App),
                5 => server.answer(flag || length > 5),
                6 | 7 => if let Some(bytes) = client.wire.pop_front() { server.take(&bytes).unwrap(); },
                _ => if let Some(bytes) = server.wire.pop_front() { client.take(&bytes).unwrap(); },
            }
        }
        // Everything under way arrives, and both say that they are done.
        while !(client.is_done() && server.is_done()) {
            client.send(b"", true);
            server.answer(true);
            server.send(b"", true);
            while let Some(bytes) = client.wire.pop_front() { server.take(&bytes).unwrap(); }
            server.answer(true);
            while let Some(bytes) = server.wire.pop_front() { client.take(&bytes).unwrap(); }
        }
        prop_assert!(client.session.is_reusable() && server.session.is_reusable());
        if client.clean && server.clean {
            prop_assert_eq!(&client.sent, &server.received);
            prop_assert_eq!(&server.sent, &client.received);
        }
    }
}
