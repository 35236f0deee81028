//! The head of an answer: whole bytes go in, and how it is framed comes out.

use super::head::{Framing, number, tokens};
use crate::Limits;
use crate::fields::{Known, known};
use std::mem::MaybeUninit;

const FEW: usize = 32;

/// What the filter must know of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// `None`: to the end of the connection.
    pub(super) framing: Option<Framing>,
    /// The app closes after it.
    pub(super) last: bool,
    /// It has `Upgrade: websocket`.
    pub(super) websocket: bool,
}

/// Why a head can't be framed with certainty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It means nothing, or several things.
    Malformed,
    /// It has more fields than any setting permits.
    TooManyFields,
}

/// Reads a whole head, empty line included. `is_head`: the request's method was HEAD.
///
/// # Errors
/// When it can't be framed with certainty.
pub(super) fn read(bytes: &[u8], is_head: bool) -> Result<Answer, Unreadable> {
    let config = httparse::ParserConfig::default();
    let mut few = [const { MaybeUninit::uninit() }; FEW];
    let mut response = httparse::Response::new(&mut []);
    match config.parse_response_with_uninit_headers(&mut response, bytes, &mut few) {
        Err(httparse::Error::TooManyHeaders) => read_many(bytes, is_head),
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {
            examine(&response, is_head).ok_or(Unreadable::Malformed)
        }
        _ => Err(Unreadable::Malformed),
    }
}

#[inline(never)]
fn read_many(bytes: &[u8], is_head: bool) -> Result<Answer, Unreadable> {
    let config = httparse::ParserConfig::default();
    let mut many = [const { MaybeUninit::uninit() }; Limits::MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    match config.parse_response_with_uninit_headers(&mut response, bytes, &mut many) {
        Err(httparse::Error::TooManyHeaders) => Err(Unreadable::TooManyFields),
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {
            examine(&response, is_head).ok_or(Unreadable::Malformed)
        }
        _ => Err(Unreadable::Malformed),
    }
}

fn examine(response: &httparse::Response<'_, '_>, is_head: bool) -> Option<Answer> {
    let status = response.code.filter(|code| (100..600).contains(code))?;
    let old = response.version == Some(0);
    let (mut lengths, mut codings, mut upgrades) = (0, 0, 0);
    let mut length = None;
    let (mut chunked, mut close, mut keep_alive, mut websocket) = (false, false, false, false);
    for field in response.headers.iter() {
        match known(field.name) {
            Known::ContentLength => (length, lengths) = (Some(field.value), lengths + 1),
            Known::TransferEncoding => {
                codings += 1;
                chunked = field.value.eq_ignore_ascii_case(b"chunked");
            }
            Known::Connection => {
                for token in tokens(field.value).flatten() {
                    close |= token.eq_ignore_ascii_case("close");
                    keep_alive |= known(token) == Known::KeepAlive;
                }
            }
            Known::Upgrade => {
                upgrades += 1;
                websocket = field.value.eq_ignore_ascii_case(b"websocket");
            }
            _ => {}
        }
    }
    let framing = match (codings, lengths) {
        _ if is_head || status < 200 || status == 204 || status == 304 => Some(Framing::Empty),
        (0, 0) => None,
        (0, 1) => match number(length.unwrap_or_default())? {
            0 => Some(Framing::Empty),
            // Larger ones don't end before the connection does.
            length => Some(Framing::Length(length)),
        },
        (1, 0) if chunked && !old => Some(Framing::Chunked),
        _ => return None,
    };
    let last = close || (old && !keep_alive);
    Some(Answer { status, framing, last, websocket: websocket && upgrades == 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_framed_as_rfc_9112_section_6_3_says() {
        let cases: [(&str, bool, Option<Option<Framing>>); 19] = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false, Some(Some(Framing::Length(5)))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, Some(Some(Framing::Empty))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false, Some(Some(Framing::Empty))),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", false, Some(Some(Framing::Chunked))),
            ("HTTP/1.1 200 OK\r\n\r\n", false, Some(None)),
            ("HTTP/1.1 204 No Content\r\n\r\n", false, Some(Some(Framing::Empty))),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, Some(Some(Framing::Empty))),
            ("HTTP/1.1 100 Continue\r\n\r\n", false, Some(Some(Framing::Empty))),
            ("HTTP/1.1 200\r\nContent-Length: 1\r\n\r\n", false, Some(Some(Framing::Length(1)))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", false, None),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n", false, None),
            ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", false, None),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", false, None),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", false, None),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                false,
                None,
            ),
            ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, None),
            ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", false, None),
            ("HTTP/2.0 200 OK\r\n\r\n", false, None),
            ("HTTP/1.1 099 No\r\n\r\n", false, None),
        ];
        for (text, is_head, expected) in cases {
            assert_eq!(read(text.as_bytes(), is_head).ok().map(|answer| answer.framing), expected, "{text}");
        }
    }

    #[test]
    fn an_answer_says_whether_it_is_the_last() {
        let cases = [
            ("HTTP/1.1 204 x\r\n\r\n", false),
            ("HTTP/1.1 204 x\r\nConnection: Close\r\n\r\n", true),
            ("HTTP/1.1 204 x\r\nConnection: foo, close\r\n\r\n", true),
            ("HTTP/1.0 204 x\r\n\r\n", true),
            ("HTTP/1.0 204 x\r\nConnection: keep-alive\r\n\r\n", false),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text.as_bytes(), false).unwrap().last, expected, "{text}");
        }
    }
}
