//! Bytes of a tunnel's peer: whole or in pieces, they mean the same to the decoder and to both sides of the protocol,
//! and nobody panics on them.
#![no_main]

use cinch_tunnel::{Decoder, Event, Frame, Open, ResetCode, Session, Side};
use libfuzzer_sys::fuzz_target;

/// What comes out: bytes of the app, ends of directions (as `None`), control messages.
#[derive(PartialEq, Eq, Debug, Default)]
struct Seen {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    control: Vec<Vec<u8>>,
    failed: bool,
}

fn seen(pieces: &mut dyn Iterator<Item = &[u8]>) -> Seen {
    let (mut decoder, mut seen) = (Decoder::default(), Seen::default());
    for mut piece in pieces {
        loop {
            match decoder.next(&mut piece) {
                Ok(None) => break,
                Ok(Some(Frame::Data { bytes, fin })) => {
                    seen.bytes.extend_from_slice(bytes);
                    seen.ends.extend(fin.then_some(seen.bytes.len()));
                }
                Ok(Some(Frame::Control(payload))) => seen.control.push(payload.to_vec()),
                Err(_) => {
                    seen.failed = true;
                    return seen;
                }
            }
        }
    }
    seen
}

/// What a side of the protocol hears, says and becomes.
#[derive(PartialEq, Eq, Debug, Default)]
struct Heard {
    bytes: Vec<u8>,
    /// Everything but bytes, with the number of bytes before it.
    events: Vec<(usize, String)>,
    said: Vec<u8>,
    state: [bool; 5],
    failed: bool,
}

/// Plays one side, which begins or takes each stream and ends its direction of it when the peer does.
fn heard(side: Side, pieces: &mut dyn Iterator<Item = &[u8]>) -> Heard {
    let (mut session, mut heard) = (Session::new(side), Heard::default());
    let begin = |session: &mut Session, said: &mut Vec<u8>| {
        if side == Side::Client && session.is_reusable() {
            session.open(Open::default(), said).expect("it is idle");
        }
    };
    begin(&mut session, &mut heard.said);
    for mut piece in pieces {
        loop {
            let event = match session.receive(&mut piece) {
                Ok(None) => break,
                Ok(Some(event)) => event,
                // It must be closed, so that what it has become is nobody's.
                Err(_) => return Heard { failed: true, ..heard },
            };
            let ended = matches!(event, Event::Data { fin: true, .. });
            let opened = matches!(event, Event::Open(_));
            let reset = matches!(event, Event::Reset(_) | Event::Refused(_));
            match event {
                Event::Data { bytes, fin } => {
                    heard.bytes.extend_from_slice(bytes);
                    if fin {
                        heard.events.push((heard.bytes.len(), "end".to_owned()));
                    }
                }
                other => heard.events.push((heard.bytes.len(), format!("{other:?}"))),
            }
            if opened {
                session.opened(&mut heard.said).expect("it was asked for");
            }
            if (ended || reset) && !session.local_ended() {
                session.reset(ResetCode::App, &mut heard.said).expect("a stream is under way");
            }
            begin(&mut session, &mut heard.said);
        }
    }
    heard.state = [
        session.is_idle(),
        session.is_reusable(),
        session.is_draining(),
        session.local_ended(),
        session.remote_ended(),
    ];
    heard
}

fuzz_target!(|data: &[u8]| {
    let Some((split, wire)) = data.split_first() else { return };
    let size = usize::from(*split).max(1);
    assert_eq!(seen(&mut std::iter::once(wire)), seen(&mut wire.chunks(size)));
    for side in [Side::Client, Side::Server] {
        assert_eq!(heard(side, &mut std::iter::once(wire)), heard(side, &mut wire.chunks(size)));
    }
});
