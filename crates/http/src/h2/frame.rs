//! Frames (RFC 9113, section 4): their heads in and out, and the frames that we make ourselves.

/// The length of a frame's head.
pub(super) const HEAD: usize = 9;

/// The payload that both sides may send: what RFC 9113 begins with. We never offer more, nor pass an offer on.
pub(super) const MAX_PAYLOAD: usize = 16_384;

/// Types of frames.
pub(super) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub(super) mod flag {
    pub(crate) const ACK: u8 = 0x1;
    pub(crate) const END_STREAM: u8 = 0x1;
    pub(crate) const END_HEADERS: u8 = 0x4;
    pub(crate) const PADDED: u8 = 0x8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// Error codes (RFC 9113, section 7).
pub(super) mod code {
    pub(crate) const NO_ERROR: u32 = 0;
    pub(crate) const PROTOCOL_ERROR: u32 = 1;
    pub(crate) const INTERNAL_ERROR: u32 = 2;
    pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
    pub(crate) const STREAM_CLOSED: u32 = 5;
    pub(crate) const FRAME_SIZE_ERROR: u32 = 6;
    pub(crate) const REFUSED_STREAM: u32 = 7;
    pub(crate) const CANCEL: u32 = 8;
    pub(crate) const COMPRESSION_ERROR: u32 = 9;
    pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;
}

/// Why a connection can't go on: the code for the peer at fault, and a clause for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) code: u32,
    pub(super) text: &'static str,
    /// The bound that was passed, as [`Refusal::limit`](crate::Refusal) has it.
    pub(super) limit: &'static str,
}

impl Fault {
    pub(super) const fn new(code: u32, text: &'static str) -> Fault {
        Fault { code, text, limit: "" }
    }

    pub(super) const fn protocol(text: &'static str) -> Fault {
        Fault::new(code::PROTOCOL_ERROR, text)
    }

    /// Against our bounds rather than the RFC.
    pub(super) const fn calm(limit: &'static str, text: &'static str) -> Fault {
        Fault { limit, ..Fault::new(code::ENHANCE_YOUR_CALM, text) }
    }
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// Without the reserved bit.
    pub(super) stream: u32,
}

impl FrameHead {
    /// Reads a head; `None` when the bytes are too few.
    pub(super) fn parse(bytes: &[u8]) -> Option<FrameHead> {
        let [a, b, c, kind, flags, stream @ ..] = bytes.first_chunk::<HEAD>()?;
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        Some(FrameHead {
            length,
            kind: *kind,
            flags: *flags,
            stream: u32::from_be_bytes(*stream) & 0x7fff_ffff,
        })
    }

    pub(super) fn bytes(self) -> [u8; HEAD] {
        let [_, a, b, c] = (self.length as u32).to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The 31 bits that a payload begins with; 0 when it is too short, which its check has refused before.
pub(super) fn word(payload: &[u8]) -> u32 {
    payload.first_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes) & 0x7fff_ffff)
}

/// Appends a whole frame.
pub(super) fn write(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&FrameHead { length: payload.len(), kind, flags, stream }.bytes());
    out.extend_from_slice(payload);
}

/// Appends RST_STREAM.
pub(super) fn reset(stream: u32, code: u32, out: &mut Vec<u8>) {
    write(kind::RST_STREAM, 0, stream, &code.to_be_bytes(), out);
}

/// Appends WINDOW_UPDATE.
pub(super) fn window_update(stream: u32, increment: u32, out: &mut Vec<u8>) {
    write(kind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes(), out);
}

/// Appends GOAWAY; `debug` is what may follow the code.
pub(super) fn goaway(last: u32, code: u32, debug: &[u8], out: &mut Vec<u8>) {
    let length = 8 + debug.len();
    out.extend_from_slice(&FrameHead { length, kind: kind::GOAWAY, flags: 0, stream: 0 }.bytes());
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(debug);
}

/// Appends a header block that `write` makes: HEADERS, and CONTINUATION where it is larger than a frame.
pub(super) fn block(stream: u32, end_stream: EndStream, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    write(out);
    let length = out.len().saturating_sub(start + HEAD);
    let rest = if length > MAX_PAYLOAD { out.split_off(start + HEAD + MAX_PAYLOAD) } else { Vec::new() };
    let end_headers = if rest.is_empty() { flag::END_HEADERS } else { 0 };
    let flags = end_headers | if end_stream == EndStream::Yes { flag::END_STREAM } else { 0 };
    let head = FrameHead { length: length.min(MAX_PAYLOAD), kind: kind::HEADERS, flags, stream };
    if let Some(room) = out.get_mut(start..start + HEAD) {
        room.copy_from_slice(&head.bytes());
    }
    let mut pieces = rest.chunks(MAX_PAYLOAD).peekable();
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { flag::END_HEADERS } else { 0 };
        self::write(kind::CONTINUATION, flags, stream, piece, out);
    }
}

/// Whether a frame ends its direction of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndStream {
    Yes,
    No,
}

impl EndStream {
    pub(super) fn of(yes: bool) -> EndStream {
        if yes { EndStream::Yes } else { EndStream::No }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_survives_without_its_reserved_bit() {
        let head = FrameHead { length: 0x01_0203, kind: 9, flags: 5, stream: 0x7fff_fffe };
        assert_eq!(FrameHead::parse(&head.bytes()), Some(head));
        let mut bytes = head.bytes();
        bytes[5] |= 0x80;
        assert_eq!(FrameHead::parse(&bytes), Some(head));
        assert_eq!(FrameHead::parse(&bytes[..8]), None);
    }

    #[test]
    fn large_blocks_are_split_at_16384() {
        for (size, frames) in [(0, 1), (16_384, 1), (16_385, 2), (32_768, 2), (40_000, 3)] {
            let mut out = Vec::new();
            block(5, EndStream::Yes, &mut out, |out| out.extend(vec![b'x'; size]));
            let (mut rest, mut seen, mut total) = (&out[..], 0, 0);
            while let Some(head) = FrameHead::parse(rest) {
                assert_eq!(head.stream, 5);
                assert_eq!(head.kind, if seen == 0 { kind::HEADERS } else { kind::CONTINUATION });
                assert_eq!(head.has(flag::END_STREAM), seen == 0);
                assert!(head.length <= MAX_PAYLOAD);
                seen += 1;
                total += head.length;
                rest = &rest[HEAD + head.length..];
                assert_eq!(head.has(flag::END_HEADERS), rest.is_empty());
            }
            assert_eq!((seen, total), (frames, size));
        }
    }
}
