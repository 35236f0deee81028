//! Our own answers.

use crate::{Refusal, Status};

/// What follows an answer on its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// The next answer.
    KeepAlive,
    /// Nothing.
    Close,
}

/// Appends the answer to a refused request; `is_head`: without its body. The caller learns the status alone.
pub(super) fn write(refusal: &Refusal, after: After, is_head: bool, out: &mut Vec<u8>) {
    let (line, body) = text(refusal.status);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(line.as_bytes());
    out.extend_from_slice(b"\r\ncontent-length: ");
    let length = body.len();
    // No body has a hundred bytes.
    for digit in [length / 10 % 10, length % 10] {
        out.push(b'0' + u8::try_from(digit).unwrap_or_default());
    }
    out.extend_from_slice(b"\r\ncontent-type: text/plain\r\n");
    match refusal.status {
        Status::Unauthorized => {
            out.extend_from_slice(b"www-authenticate: Bearer error=\"invalid_token\"\r\n")
        }
        Status::MethodNotAllowed => {
            out.extend_from_slice(b"allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n");
        }
        _ => {}
    }
    if after == After::Close {
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    if !is_head {
        out.extend_from_slice(body.as_bytes());
    }
}

fn text(status: Status) -> (&'static str, &'static str) {
    match status {
        Status::BadRequest => ("400 Bad Request", "Bad Request"),
        Status::Unauthorized => ("401 Unauthorized", "Jwt verification fails"),
        Status::Forbidden => ("403 Forbidden", "RBAC: access denied"),
        Status::MethodNotAllowed => ("405 Method Not Allowed", "Method Not Allowed"),
        Status::RequestTimeout => ("408 Request Timeout", "Request Timeout"),
        Status::FieldsTooLarge => ("431 Request Header Fields Too Large", "Request Header Fields Too Large"),
        Status::Unavailable => ("503 Service Unavailable", "Service Unavailable"),
        Status::VersionNotSupported => ("505 HTTP Version Not Supported", "HTTP Version Not Supported"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_one_that_an_independent_reader_understands() {
        use Status::*;
        let all = [
            BadRequest,
            Unauthorized,
            Forbidden,
            MethodNotAllowed,
            RequestTimeout,
            FieldsTooLarge,
            Unavailable,
            VersionNotSupported,
        ];
        for status in all {
            let refusal = Refusal { status, ..Refusal::bad_request("") };
            for (after, is_head) in [(After::KeepAlive, false), (After::Close, true)] {
                let mut bytes = Vec::new();
                write(&refusal, after, is_head, &mut bytes);
                let mut fields = [httparse::EMPTY_HEADER; 8];
                let mut read = httparse::Response::new(&mut fields);
                let length = read.parse(&bytes).unwrap().unwrap();
                assert_eq!(read.code, Some(status.code()));
                let of = |name: &str| {
                    read.headers.iter().find(|field| field.name == name).map(|field| field.value)
                };
                let body: usize =
                    std::str::from_utf8(of("content-length").unwrap()).unwrap().parse().unwrap();
                assert_eq!(bytes.len() - length, if is_head { 0 } else { body });
                assert_eq!(of("connection"), (after == After::Close).then_some(&b"close"[..]));
                assert_eq!(of("www-authenticate").is_some(), status == Unauthorized);
                assert_eq!(of("allow").is_some(), status == MethodNotAllowed);
            }
        }
    }
}
