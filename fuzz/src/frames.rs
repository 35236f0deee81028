//! What a side of an HTTP/2 connection hears, however it was framed.

use std::collections::BTreeMap;

const DATA: u8 = 0;
const WINDOW_UPDATE: u8 = 8;
const PADDED: u8 = 8;
const END_STREAM: u8 = 1;
/// Length, type, flags, stream.
const HEAD: usize = 9;

/// What a client begins with, with SETTINGS that say nothing.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// What an app begins with.
pub const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

/// Bodies joined by stream, refunds added up, other frames in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heard {
    frames: Vec<Vec<u8>>,
    bodies: BTreeMap<u32, (Vec<u8>, bool)>,
    refunds: u64,
    rest: Vec<u8>,
}

/// Reads what was sent to an app or a client.
pub fn heard(bytes: &[u8]) -> Heard {
    let mut heard = Heard::default();
    let mut bytes = bytes.strip_prefix(&PREFACE[..24]).unwrap_or(bytes);
    while bytes.len() >= HEAD {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        if bytes.len() < HEAD + length {
            break;
        }
        let stream = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
        let (frame, rest) = bytes.split_at(HEAD + length);
        match (frame[3], frame[4]) {
            (DATA, flags) if flags & PADDED == 0 => {
                let (body, end) = heard.bodies.entry(stream).or_default();
                assert!(!*end, "DATA after the end of a stream");
                body.extend_from_slice(&frame[HEAD..]);
                *end = flags & END_STREAM != 0;
            }
            (WINDOW_UPDATE, _) if stream == 0 => {
                heard.refunds += u64::from(u32::from_be_bytes([frame[9], frame[10], frame[11], frame[12]]));
            }
            _ => heard.frames.push(frame.to_vec()),
        }
        bytes = rest;
    }
    heard.rest = bytes.to_vec();
    heard
}
