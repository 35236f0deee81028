//! Frames: a head of 16 bits, big-endian (2 bits type, 14 bits length), then the payload. Head and payload
//! together fit into one TLS record, and no frame is spread over two; short ones may share a record.

use crate::ProtocolError;
use bytes::{Buf, BytesMut};

/// Bytes of a frame's head.
pub const HEAD: usize = 2;
/// Bytes of the longest frame, head included: the plaintext of one TLS record (RFC 8446, 5.1).
pub const MAX_FRAME: usize = 16_384;
/// Bytes of the longest payload.
pub const MAX_PAYLOAD: usize = MAX_FRAME - HEAD;

const LENGTH_BITS: u16 = 14;
const LENGTH_MASK: u16 = (1 << LENGTH_BITS) - 1;

/// The type of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of the app.
    Data,
    /// Bytes of the app (perhaps none), the last ones of this direction.
    DataFin,
    /// A control message.
    Control,
}

impl Kind {
    const fn bits(self) -> u16 {
        match self {
            Kind::Data => 0,
            Kind::DataFin => 1,
            Kind::Control => 2,
        }
    }

    const fn from_bits(bits: u16) -> Option<Kind> {
        match bits {
            0 => Some(Kind::Data),
            1 => Some(Kind::DataFin),
            2 => Some(Kind::Control),
            _ => None,
        }
    }
}

/// The head of a frame with a payload of `length` bytes; `None` when that is more than [`MAX_PAYLOAD`].
#[must_use]
pub fn head(kind: Kind, length: usize) -> Option<[u8; HEAD]> {
    let length = u16::try_from(length).ok().filter(|length| usize::from(*length) <= MAX_PAYLOAD)?;
    Some(((kind.bits() << LENGTH_BITS) | length).to_be_bytes())
}

/// A part of a frame, as far as it has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Bytes of the app; `fin`: the direction ends after them.
    Data {
        /// Not empty, unless `fin`.
        bytes: &'a [u8],
        /// These are the last bytes of a DATA+FIN frame.
        fin: bool,
    },
    /// A whole control message: code and body.
    Control(BytesMut),
}

#[derive(Debug)]
enum Expect {
    Head(Option<u8>),
    Data { left: usize, fin: bool },
    Control { left: usize, have: BytesMut },
}

/// Takes frames out of bytes that come in pieces. DATA is passed on as it comes; only a control message that
/// comes in pieces is held, at most [`MAX_PAYLOAD`] bytes.
#[derive(Debug)]
pub struct Decoder {
    expect: Expect,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder { expect: Expect::Head(None) }
    }
}

impl Decoder {
    /// Takes the next frame, or part of one, from the front of `input`, which advances past what was taken.
    /// `None`: all of `input` is taken and more is needed.
    ///
    /// # Errors
    /// When the bytes are no frame. The decoder is of no use after that.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Frame<'a>>, ProtocolError> {
        loop {
            match &mut self.expect {
                Expect::Head(first) => {
                    let Some((byte, rest)) = input.split_first() else { return Ok(None) };
                    *input = rest;
                    let Some(high) = first.take() else {
                        *first = Some(*byte);
                        continue;
                    };
                    self.expect = expect(u16::from_be_bytes([high, *byte]))?;
                    if let Expect::Data { left: 0, fin: true } = self.expect {
                        self.expect = Expect::Head(None);
                        return Ok(Some(Frame::Data { bytes: &[], fin: true }));
                    }
                }
                Expect::Data { left, fin } => {
                    let Some((bytes, rest)) = input.split_at_checked((*left).min(input.len())) else {
                        return Ok(None);
                    };
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                    *input = rest;
                    *left -= bytes.len();
                    let fin = *fin && *left == 0;
                    if *left == 0 {
                        self.expect = Expect::Head(None);
                    }
                    return Ok(Some(Frame::Data { bytes, fin }));
                }
                Expect::Control { left, have } => {
                    let taken = (*left).min(input.len());
                    let Some((bytes, rest)) = input.split_at_checked(taken) else { return Ok(None) };
                    have.extend_from_slice(bytes);
                    *input = rest;
                    *left -= taken;
                    if *left > 0 {
                        return Ok(None);
                    }
                    let message = have.split();
                    self.expect = Expect::Head(None);
                    return Ok(Some(Frame::Control(message)));
                }
            }
        }
    }

    /// Whether the next byte begins a frame.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        matches!(self.expect, Expect::Head(None))
    }
}

fn expect(head: u16) -> Result<Expect, ProtocolError> {
    let length = usize::from(head & LENGTH_MASK);
    let kind = Kind::from_bits(head >> LENGTH_BITS).ok_or(ProtocolError::ReservedType)?;
    if length > MAX_PAYLOAD {
        return Err(ProtocolError::TooLong(length + HEAD));
    }
    match kind {
        Kind::Data | Kind::Control if length == 0 => Err(ProtocolError::Empty),
        Kind::Data => Ok(Expect::Data { left: length, fin: false }),
        Kind::DataFin => Ok(Expect::Data { left: length, fin: true }),
        Kind::Control => Ok(Expect::Control { left: length, have: BytesMut::new() }),
    }
}

/// Takes one byte from the front of `input`.
pub(crate) fn take_u8(input: &mut impl Buf) -> Option<u8> {
    input.try_get_u8().ok()
}

/// Takes a big-endian u16 from the front of `input`.
pub(crate) fn take_u16(input: &mut impl Buf) -> Option<u16> {
    input.try_get_u16().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut input: &[u8]) -> Result<Vec<(Vec<u8>, bool)>, ProtocolError> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next(&mut input)? {
            frames.push(match frame {
                Frame::Data { bytes, fin } => (bytes.to_vec(), fin),
                Frame::Control(bytes) => (bytes.to_vec(), false),
            });
        }
        assert!(input.is_empty());
        Ok(frames)
    }

    #[test]
    fn heads_hold_type_and_length() {
        assert_eq!(head(Kind::Data, 1), Some([0x00, 0x01]));
        assert_eq!(head(Kind::DataFin, 0), Some([0x40, 0x00]));
        assert_eq!(head(Kind::Control, 0x123), Some([0x81, 0x23]));
        assert_eq!(head(Kind::Data, MAX_PAYLOAD), Some([0x3f, 0xfe]));
        assert_eq!(head(Kind::Data, MAX_PAYLOAD + 1), None);
        assert_eq!(head(Kind::Data, 1 << 20), None);
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        let input = [0x00, 2, b'a', b'b', 0x40, 1, b'c', 0x80, 1, 9, 0x40, 0];
        let frames = all(&input).unwrap();
        assert_eq!(
            frames,
            vec![(b"ab".to_vec(), false), (b"c".to_vec(), true), (vec![9], false), (vec![], true)]
        );
    }

    #[test]
    fn fin_comes_with_the_last_piece_only() {
        let mut decoder = Decoder::default();
        let mut first: &[u8] = &[0x40, 3, 1, 2];
        assert_eq!(decoder.next(&mut first), Ok(Some(Frame::Data { bytes: &[1, 2], fin: false })));
        assert_eq!(decoder.next(&mut first), Ok(None));
        assert!(!decoder.at_boundary());
        let mut second: &[u8] = &[3];
        assert_eq!(decoder.next(&mut second), Ok(Some(Frame::Data { bytes: &[3], fin: true })));
        assert!(decoder.at_boundary());
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let cases: [(&str, &[u8], ProtocolError); 5] = [
            ("reserved type", &[0xc0, 1, 0], ProtocolError::ReservedType),
            ("empty DATA", &[0, 0], ProtocolError::Empty),
            ("empty CONTROL", &[0x80, 0], ProtocolError::Empty),
            ("DATA of 16383", &[0x3f, 0xff], ProtocolError::TooLong(16_385)),
            ("CONTROL of 16383", &[0xbf, 0xff], ProtocolError::TooLong(16_385)),
        ];
        for (name, input, error) in cases {
            assert_eq!(all(input), Err(error), "{name}");
        }
    }
}
