//! The head of an answer as RFC 9113, section 8.3.2, demands it.

use super::class::Name;
use super::head;
use super::hpack::Fields;

/// What the filter must know of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) length: Option<u64>,
}

impl Answer {
    /// Another head follows.
    pub(super) fn is_interim(self) -> bool {
        self.status < 200
    }

    /// It has no body, whatever length it declares.
    pub(super) fn is_bare(self) -> bool {
        matches!(self.status, 204 | 304)
    }
}

/// Checks the fields of an answer.
///
/// # Errors
/// Why it is malformed.
pub(super) fn answer(fields: &Fields) -> Result<Answer, &'static str> {
    let mut all = fields.iter();
    let status = all.next().filter(|field| field.name == b":status").ok_or("an answer without :status")?;
    let status = match *status.value {
        [a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
            u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
        }
        _ => return Err("an answer whose :status is none"),
    };
    // RFC 9113, section 8.6: there is no upgrade in HTTP/2.
    if status == 101 {
        return Err("an answer that switches protocols");
    }
    let mut length = None;
    for field in all {
        head::check(&field)?;
        if field.class.name == Name::ContentLength {
            let value = head::length(field.value).map_err(|_| "an answer with a bad content-length")?;
            if length.replace(value).is_some() {
                return Err("an answer with several content-length fields");
            }
        }
    }
    Ok(Answer { status, length })
}

/// Checks the trailers of an answer.
///
/// # Errors
/// Why they are malformed.
pub(super) fn trailers(fields: &Fields) -> Result<(), &'static str> {
    fields.iter().try_for_each(|field| head::check(&field))
}

/// The status with which a call of gRPC ends; `fields` are trailers, or the head of an answer that is nothing else.
pub(super) fn grpc_status(fields: &Fields) -> Option<u8> {
    let field = fields.iter().find(|field| field.name == b"grpc-status")?;
    std::str::from_utf8(field.value).ok()?.parse().ok()
}
