//! What stands in records that carry no data: handshake messages after the handshake, and alerts.

use crate::RecordError;

/// Content types (RFC 8446 §5.1).
pub(crate) const ALERT: u8 = 21;
pub(crate) const HANDSHAKE: u8 = 22;
pub(crate) const APPLICATION_DATA: u8 = 23;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// A KeyUpdate that asks for none in return (§4.6.3).
pub(crate) const KEY_UPDATE_NOT_REQUESTED: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];
/// The alert close_notify, of level warning.
pub(crate) const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// What an alert means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alert {
    /// The peer sends nothing more.
    CloseNotify,
    /// It announces a close_notify (user_canceled).
    Ignored,
}

pub(crate) fn alert(content: &[u8]) -> Result<Alert, RecordError> {
    match content {
        [_, 0] => Ok(Alert::CloseNotify),
        [_, 90] => Ok(Alert::Ignored),
        // Of every other alert TLS 1.3 says that it is fatal, whatever level it claims (§6.2).
        [_, other] => Err(RecordError::Alert(*other)),
        _ => Err(RecordError::UnexpectedContent("an alert has two bytes")),
    }
}

/// What a record of handshake messages asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PostHandshake {
    /// Tickets, which nobody here uses.
    Nothing,
    /// The peer's next records are under its next key; it wants ours changed too if `requested`.
    KeyUpdate { requested: bool },
}

/// Reads a record of handshake messages. Messages in pieces are refused: no peer of ours sends them, and a piece
/// that waits would be a buffer.
pub(crate) fn post_handshake(content: &[u8]) -> Result<PostHandshake, RecordError> {
    // A key update stands at the end of its record, because the next one is under another key (§5.1); alone is
    // the only form in which it is sent.
    match content {
        [KEY_UPDATE, 0, 0, 1, request @ (0 | 1)] => {
            return Ok(PostHandshake::KeyUpdate { requested: *request == 1 });
        }
        [KEY_UPDATE, ..] => return Err(RecordError::UnexpectedContent("a key update that is none")),
        _ => {}
    }
    let mut rest = content;
    while let [kind, high, middle, low, body @ ..] = rest {
        let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
        if *kind != NEW_SESSION_TICKET {
            return Err(RecordError::UnexpectedContent("a handshake message after the handshake"));
        }
        rest = body.get(length..).ok_or(RecordError::UnexpectedContent("a handshake message in pieces"))?;
    }
    if !rest.is_empty() || content.is_empty() {
        return Err(RecordError::UnexpectedContent("a handshake message in pieces"));
    }
    Ok(PostHandshake::Nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_end_the_connection_but_for_the_two_that_do_not() {
        assert_eq!(alert(&[1, 0]), Ok(Alert::CloseNotify));
        assert_eq!(alert(&[2, 0]), Ok(Alert::CloseNotify));
        assert_eq!(alert(&[1, 90]), Ok(Alert::Ignored));
        assert_eq!(alert(&[1, 42]), Err(RecordError::Alert(42)), "the level says nothing");
        for bad in [&[][..], &[1], &[1, 0, 0]] {
            assert!(matches!(alert(bad), Err(RecordError::UnexpectedContent(_))), "{bad:?}");
        }
    }

    #[test]
    fn key_updates_stand_alone_and_say_zero_or_one() {
        assert_eq!(post_handshake(&[24, 0, 0, 1, 0]), Ok(PostHandshake::KeyUpdate { requested: false }));
        assert_eq!(post_handshake(&[24, 0, 0, 1, 1]), Ok(PostHandshake::KeyUpdate { requested: true }));
        let ticket = [4, 0, 0, 2, 7, 7];
        assert_eq!(post_handshake(&[ticket, ticket].concat()), Ok(PostHandshake::Nothing));
        for bad in [
            &[][..],
            &[24, 0, 0, 1, 2],
            &[24, 0, 0, 1],
            &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0],
            &[4, 0, 0, 9, 1],
            &[4, 0, 0],
            &[4, 0, 0, 0, 24, 0, 0, 1, 0],
            &[1, 0, 0, 0],
        ] {
            assert!(matches!(post_handshake(bad), Err(RecordError::UnexpectedContent(_))), "{bad:?}");
        }
    }
}
