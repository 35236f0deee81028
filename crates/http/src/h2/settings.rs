//! SETTINGS on their way to the other side: what both sides agree on, and what is ours alone.

use super::frame::{Fault, FrameHead, HEAD, code, kind};

const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;
const ENABLE_CONNECT_PROTOCOL: u16 = 8;

/// The largest window (RFC 9113, section 6.9.1).
pub(super) const MAX_WINDOW: u32 = 0x7fff_ffff;

/// Who is to read the SETTINGS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    App,
    Client,
}

/// What we permit, whatever the peer offers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) streams: u32,
    pub(super) header_list: u32,
    /// The first SETTINGS of this side: what it leaves out has the RFC's default, which is more than we permit.
    pub(super) first: bool,
}

/// Appends the frame for `reader`. Returns the initial window, when it is set: the last one counts.
pub(super) fn rewrite(
    payload: &[u8],
    reader: Reader,
    bounds: Bounds,
    out: &mut Vec<u8>,
) -> Result<Option<u32>, Fault> {
    // Before a byte of the frame is written: half of one would be another frame.
    entries(payload).try_for_each(|(id, value)| check(id, value, reader))?;
    let start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    let (mut window, mut streams, mut list) = (None, false, false);
    for (id, value) in entries(payload) {
        match id {
            INITIAL_WINDOW_SIZE => {
                window = Some(value);
                put(id, value, out);
            }
            MAX_CONCURRENT_STREAMS if reader == Reader::Client => {
                streams = true;
                put(id, value.min(bounds.streams), out);
            }
            // Of pushed streams, which there are none of.
            MAX_CONCURRENT_STREAMS => put(id, value, out),
            MAX_HEADER_LIST_SIZE => {
                list = true;
                put(id, value.min(bounds.header_list), out);
            }
            // The table and the frame size belong to each hop; push and extended CONNECT are not offered; what we
            // don't know could change the meaning of frames.
            _ => {}
        }
    }
    if bounds.first {
        if reader == Reader::App {
            put(ENABLE_PUSH, 0, out);
        } else if !streams {
            put(MAX_CONCURRENT_STREAMS, bounds.streams, out);
        }
        if !list {
            put(MAX_HEADER_LIST_SIZE, bounds.header_list, out);
        }
    }
    let length = out.len().saturating_sub(start + HEAD);
    let head = FrameHead { length, kind: kind::SETTINGS, flags: 0, stream: 0 };
    if let Some(room) = out.get_mut(start..start + HEAD) {
        room.copy_from_slice(&head.bytes());
    }
    Ok(window)
}

/// What each setting says.
fn entries(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    payload.chunks_exact(6).filter_map(|entry| {
        let [a, b, c, d, e, f] = *entry else { return None };
        Some((u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f])))
    })
}

/// The values that RFC 9113, section 6.5.2, and RFC 8441, section 3, forbid.
fn check(id: u16, value: u32, reader: Reader) -> Result<(), Fault> {
    match id {
        // A server must not offer to be pushed to.
        ENABLE_PUSH if value > u32::from(reader == Reader::App) => Err(Fault::protocol("bad ENABLE_PUSH")),
        INITIAL_WINDOW_SIZE if value > MAX_WINDOW => {
            Err(Fault::new(code::FLOW_CONTROL_ERROR, "bad INITIAL_WINDOW_SIZE"))
        }
        MAX_FRAME_SIZE if !(16_384..=16_777_215).contains(&value) => {
            Err(Fault::protocol("bad MAX_FRAME_SIZE"))
        }
        ENABLE_CONNECT_PROTOCOL if value > 1 => Err(Fault::protocol("bad ENABLE_CONNECT_PROTOCOL")),
        _ => Ok(()),
    }
}

fn put(id: u16, value: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(settings: &[(u16, u32)], reader: Reader, first: bool) -> Result<Vec<(u16, u32)>, Fault> {
        let mut payload = Vec::new();
        for (id, value) in settings {
            put(*id, *value, &mut payload);
        }
        let mut out = vec![0xaa];
        rewrite(&payload, reader, Bounds { streams: 1000, header_list: 65_536, first }, &mut out)?;
        let head = FrameHead::parse(&out[1..]).unwrap();
        assert_eq!((head.kind, head.flags, head.stream, head.length), (kind::SETTINGS, 0, 0, out.len() - 10));
        let entry = |six: &[u8]| {
            (u16::from_be_bytes([six[0], six[1]]), u32::from_be_bytes([six[2], six[3], six[4], six[5]]))
        };
        Ok(out[10..].chunks(6).map(entry).collect())
    }

    #[test]
    fn rule_03_settings_to_the_app_switch_push_off() {
        let all = [(1, 65_536), (2, 1), (3, 7), (4, 99), (5, 1 << 20), (6, 1 << 20), (8, 1), (9, 1), (77, 7)];
        assert_eq!(rewritten(&all, Reader::App, true), Ok(vec![(3, 7), (4, 99), (6, 65_536), (2, 0)]));
        assert_eq!(rewritten(&[], Reader::App, true), Ok(vec![(2, 0), (6, 65_536)]));
        assert_eq!(rewritten(&[(2, 1), (4, 5)], Reader::App, false), Ok(vec![(4, 5)]));
    }

    #[test]
    fn rule_03_settings_to_the_client_bound_streams_and_heads() {
        let all = [(1, 0), (2, 0), (3, 5000), (4, 99), (5, 1 << 20), (6, 100), (8, 1), (9, 1)];
        assert_eq!(rewritten(&all, Reader::Client, true), Ok(vec![(3, 1000), (4, 99), (6, 100)]));
        assert_eq!(rewritten(&[(3, 100)], Reader::Client, true), Ok(vec![(3, 100), (6, 65_536)]));
        assert_eq!(rewritten(&[], Reader::Client, true), Ok(vec![(3, 1000), (6, 65_536)]));
        // Later ones leave what they don't name as it is.
        assert_eq!(rewritten(&[], Reader::Client, false), Ok(vec![]));
        assert_eq!(rewritten(&[(3, 0)], Reader::Client, false), Ok(vec![(3, 0)]));
    }

    #[test]
    fn rule_03_settings_with_forbidden_values_are_refused() {
        let refused = |settings, reader| rewritten(&[settings], reader, true).unwrap_err().code;
        assert_eq!(refused((2, 2), Reader::App), code::PROTOCOL_ERROR);
        assert_eq!(refused((2, 1), Reader::Client), code::PROTOCOL_ERROR);
        assert_eq!(refused((4, 1 << 31), Reader::App), code::FLOW_CONTROL_ERROR);
        assert_eq!(refused((5, 16_383), Reader::App), code::PROTOCOL_ERROR);
        assert_eq!(refused((5, 1 << 24), Reader::Client), code::PROTOCOL_ERROR);
        assert_eq!(refused((8, 2), Reader::Client), code::PROTOCOL_ERROR);
    }
}
