//! Our own answers: a head and nothing else, so that no window of the client is ever overdrawn.

use super::frame::{EndStream, block};
use super::hpack::Encoder;
use crate::{Refusal, Status};

/// Static entries of the names that we write ourselves.
mod hint {
    pub(super) const STATUS: u8 = 8;
    pub(super) const ALLOW: u8 = 22;
    pub(super) const CONTENT_LENGTH: u8 = 28;
    pub(super) const CONTENT_TYPE: u8 = 31;
    pub(super) const WWW_AUTHENTICATE: u8 = 61;
}

/// Appends the answer to a refused request, which ends its stream. A call of gRPC gets its status in the form that
/// its libraries read: 200 and trailers only. Returns the HTTP status that it carries.
pub(super) fn write(
    stream: u32,
    refusal: &Refusal,
    grpc: Form,
    encoder: &mut Encoder,
    out: &mut Vec<u8>,
) -> u16 {
    let status = if grpc == Form::Grpc { 200 } else { refusal.status.code() };
    block(stream, EndStream::Yes, out, |out| {
        encoder.begin(out);
        let mut field = |name: &str, value: &[u8], hint| encoder.field(name, value, hint, out);
        let digits = [status / 100 % 10, status / 10 % 10, status % 10].map(|digit| b'0' + digit as u8);
        field(":status", &digits, hint::STATUS);
        if grpc == Form::Grpc {
            field("content-type", b"application/grpc", hint::CONTENT_TYPE);
            field("grpc-status", refusal.status.grpc().to_string().as_bytes(), 0);
            field("grpc-message", grpc_message(refusal.status).as_bytes(), 0);
            return;
        }
        field("content-length", b"0", hint::CONTENT_LENGTH);
        match refusal.status {
            Status::Unauthorized => {
                field("www-authenticate", b"Bearer error=\"invalid_token\"", hint::WWW_AUTHENTICATE);
            }
            Status::MethodNotAllowed => {
                field("allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS", hint::ALLOW);
            }
            _ => {}
        }
    });
    status
}

/// What the client expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Http,
    Grpc,
}

/// What a caller by gRPC is told; of a form that needs no encoding.
fn grpc_message(status: Status) -> &'static str {
    match status {
        Status::Forbidden => "RBAC: access denied",
        Status::Unauthorized => "Jwt verification fails",
        Status::Unavailable => "Service Unavailable",
        Status::RequestTimeout => "Request Timeout",
        Status::FieldsTooLarge => "Request Header Fields Too Large",
        Status::MethodNotAllowed => "Method Not Allowed",
        Status::BadRequest | Status::VersionNotSupported => "Bad Request",
    }
}
