//! Control messages: a code of 8 bits, then its fields, then TLVs (u16 type, u16 length, value; big-endian).
//! Codes from 0x80 and TLV types from 0x8000 may be ignored by who doesn't know them; others must be known.

use crate::ProtocolError;
use crate::frame::{Kind, MAX_PAYLOAD, head, take_u8, take_u16};
use bytes::{Buf, BufMut};

/// The registry of control codes.
pub mod code {
    /// Client: begins a stream. TLVs.
    pub const OPEN: u8 = 0x01;
    /// Server: the stream is authorised and the app has accepted. TLVs.
    pub const OPENED: u8 = 0x02;
    /// Server, in place of OPENED: u8 [`crate::RefuseCode`], TLVs. Ends the server's direction.
    pub const REFUSED: u8 = 0x03;
    /// Either: u8 [`crate::ResetCode`], TLVs. Ends the sender's direction at once, like a TCP reset.
    pub const RESET: u8 = 0x04;
    /// Server: takes no further OPEN on this tunnel; the stream under way goes on. TLVs.
    pub const DRAIN: u8 = 0x05;
    /// Codes from here on may be ignored.
    pub const IGNORABLE: u8 = 0x80;
}

/// The registry of TLV types.
pub mod tlv {
    /// Types from here on may be ignored.
    pub const IGNORABLE: u16 = 0x8000;
    /// In OPEN: the sender's version, as text; for logs only.
    pub const VERSION: u16 = 0x8001;
    /// In OPEN: a bit set of what the sender can do, u64.
    pub const FEATURES: u16 = 0x8002;
}

/// Why a server refused a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefuseCode {
    /// The server ends soon; another tunnel may succeed.
    Draining,
    /// A limit was reached; another tunnel may succeed.
    Limit,
    /// Policy denies it.
    Denied,
    /// The app does not listen on the port.
    NoListener,
    /// The app could not be reached for another reason.
    Unreachable,
    /// The client gave up before the answer.
    Cancelled,
    /// A code that this version doesn't know: a refusal all the same.
    Other(u8),
}

impl RefuseCode {
    /// Nothing was given to an app and another tunnel may do: the caller may try one.
    #[must_use]
    pub const fn may_retry(self) -> bool {
        matches!(self, RefuseCode::Draining | RefuseCode::Limit)
    }

    const fn to_byte(self) -> u8 {
        match self {
            RefuseCode::Draining => 1,
            RefuseCode::Limit => 2,
            RefuseCode::Denied => 3,
            RefuseCode::NoListener => 4,
            RefuseCode::Unreachable => 5,
            RefuseCode::Cancelled => 6,
            RefuseCode::Other(byte) => byte,
        }
    }

    const fn from_byte(byte: u8) -> RefuseCode {
        match byte {
            1 => RefuseCode::Draining,
            2 => RefuseCode::Limit,
            3 => RefuseCode::Denied,
            4 => RefuseCode::NoListener,
            5 => RefuseCode::Unreachable,
            6 => RefuseCode::Cancelled,
            other => RefuseCode::Other(other),
        }
    }
}

/// Why a direction was reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResetCode {
    /// The app reset its connection.
    App,
    /// The answer to a RESET or REFUSED of the other side.
    Answer,
    /// Mode or policy no longer allow the connection.
    Cut,
    /// A code that this version doesn't know: a reset all the same.
    Other(u8),
}

impl ResetCode {
    const fn to_byte(self) -> u8 {
        match self {
            ResetCode::App => 1,
            ResetCode::Answer => 2,
            ResetCode::Cut => 3,
            ResetCode::Other(byte) => byte,
        }
    }

    const fn from_byte(byte: u8) -> ResetCode {
        match byte {
            1 => ResetCode::App,
            2 => ResetCode::Answer,
            3 => ResetCode::Cut,
            other => ResetCode::Other(other),
        }
    }
}

/// What an OPEN says beside itself. The destination is the tunnel's own address and port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Open {
    /// What the sender can do; 0 when it doesn't say.
    pub features: u64,
}

/// A control message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Begins a stream.
    Open(Open),
    /// The stream is there.
    Opened,
    /// The stream is refused.
    Refused(RefuseCode),
    /// The sender's direction ends at once.
    Reset(ResetCode),
    /// No further streams.
    Drain,
    /// A code from 0x80 on that this version doesn't know.
    Ignorable(u8),
}

impl Control {
    /// Appends the message as a frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(16);
        match self {
            Control::Open(open) => {
                body.put_u8(code::OPEN);
                if open.features != 0 {
                    body.put_u16(tlv::FEATURES);
                    body.put_u16(8);
                    body.put_u64(open.features);
                }
            }
            Control::Opened => body.put_u8(code::OPENED),
            Control::Refused(why) => body.put_slice(&[code::REFUSED, why.to_byte()]),
            Control::Reset(why) => body.put_slice(&[code::RESET, why.to_byte()]),
            Control::Drain => body.put_u8(code::DRAIN),
            Control::Ignorable(code) => body.put_u8(*code),
        }
        debug_assert!(body.len() <= MAX_PAYLOAD);
        if let Some(head) = head(Kind::Control, body.len()) {
            out.extend_from_slice(&head);
            out.append(&mut body);
        }
    }

    /// Reads the payload of a CONTROL frame.
    ///
    /// # Errors
    /// When it is malformed, or holds what must be known and is not.
    pub fn decode(mut payload: &[u8]) -> Result<Control, ProtocolError> {
        let code = take_u8(&mut payload).ok_or(ProtocolError::Empty)?;
        if code >= code::IGNORABLE {
            return Ok(Control::Ignorable(code));
        }
        let malformed = ProtocolError::Malformed(code);
        let mut open = Open::default();
        let message = match code {
            code::OPEN => None,
            code::OPENED => Some(Control::Opened),
            code::DRAIN => Some(Control::Drain),
            code::REFUSED => {
                Some(Control::Refused(RefuseCode::from_byte(take_u8(&mut payload).ok_or(malformed)?)))
            }
            code::RESET => {
                Some(Control::Reset(ResetCode::from_byte(take_u8(&mut payload).ok_or(malformed)?)))
            }
            unknown => return Err(ProtocolError::UnknownCode(unknown)),
        };
        while payload.has_remaining() {
            let (kind, value) = take_tlv(&mut payload).ok_or(malformed)?;
            match kind {
                tlv::FEATURES => {
                    open.features = u64::from_be_bytes(value.try_into().map_err(|_| malformed)?);
                }
                kind if kind >= tlv::IGNORABLE => {}
                kind => return Err(ProtocolError::UnknownField(kind)),
            }
        }
        Ok(message.unwrap_or(Control::Open(open)))
    }
}

fn take_tlv<'a>(input: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let kind = take_u16(input)?;
    let length = usize::from(take_u16(input)?);
    let (value, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some((kind, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Decoder, Frame};

    fn round_trip(message: &Control) -> Control {
        let mut out = Vec::new();
        message.encode(&mut out);
        let mut input = out.as_slice();
        let Ok(Some(Frame::Control(payload))) = Decoder::default().next(&mut input) else {
            panic!("{message:?} is no control frame")
        };
        assert!(input.is_empty());
        Control::decode(&payload).unwrap()
    }

    #[test]
    fn every_message_comes_back() {
        for message in [
            Control::Open(Open::default()),
            Control::Open(Open { features: 0x0102_0304_0506_0708 }),
            Control::Opened,
            Control::Drain,
            Control::Ignorable(0xff),
        ] {
            assert_eq!(round_trip(&message), message);
        }
        for byte in 0..=255 {
            let refused = Control::Refused(RefuseCode::from_byte(byte));
            assert_eq!(round_trip(&refused), refused);
            let reset = Control::Reset(ResetCode::from_byte(byte));
            assert_eq!(round_trip(&reset), reset);
        }
    }

    #[test]
    fn what_must_be_known_and_is_not_is_an_error() {
        let cases: [(&str, &[u8], ProtocolError); 7] = [
            ("nothing", &[], ProtocolError::Empty),
            ("code 0", &[0], ProtocolError::UnknownCode(0)),
            ("code 0x7f", &[0x7f], ProtocolError::UnknownCode(0x7f)),
            ("REFUSED without code", &[3], ProtocolError::Malformed(3)),
            ("a TLV cut short", &[1, 0x80, 9, 0, 2, 7], ProtocolError::Malformed(1)),
            ("FEATURES of 4 bytes", &[1, 0x80, 2, 0, 4, 0, 0, 0, 1], ProtocolError::Malformed(1)),
            ("a TLV that must be known", &[2, 0, 9, 0, 0], ProtocolError::UnknownField(9)),
        ];
        for (name, payload, error) in cases {
            assert_eq!(Control::decode(payload), Err(error), "{name}");
        }
    }

    #[test]
    fn ignorable_tlvs_are_skipped_in_every_message() {
        let skipped: &[u8] = &[0x80, 0x01, 0, 3, b'0', b'.', b'1', 0xff, 0xff, 0, 0];
        for head in [&[1u8][..], &[2], &[3, 4], &[4, 1], &[5]] {
            let payload = [head, skipped].concat();
            assert_eq!(Control::decode(&payload), Control::decode(head), "{head:?}");
        }
    }

    #[test]
    fn only_draining_and_limit_may_be_retried() {
        let retried: Vec<u8> = (0..=255).filter(|byte| RefuseCode::from_byte(*byte).may_retry()).collect();
        assert_eq!(retried, [1, 2]);
    }
}
