//! Bytes of a tunnel's peer: whole or in pieces, they mean the same to the decoder, and no side panics on them.
#![no_main]

use cinch_tunnel::{Decoder, Event, Frame, Open, Session, Side};
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

fuzz_target!(|data: &[u8]| {
    let Some((split, wire)) = data.split_first() else { return };
    let size = usize::from(*split).max(1);
    assert_eq!(seen(&mut std::iter::once(wire)), seen(&mut wire.chunks(size)));
    for side in [Side::Client, Side::Server] {
        let (mut session, mut out) = (Session::new(side), Vec::new());
        if matches!(side, Side::Client) {
            let _ = session.open(Open::default(), &mut out);
        }
        'wire: for mut piece in wire.chunks(size) {
            loop {
                match session.receive(&mut piece) {
                    Ok(None) => break,
                    Ok(Some(Event::Open(_))) => {
                        let _ = session.opened(&mut out);
                    }
                    Ok(Some(_)) => {}
                    Err(_) => break 'wire,
                }
            }
        }
    }
});
