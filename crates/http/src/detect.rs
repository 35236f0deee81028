//! Which protocol a connection speaks, from its first bytes. Pure; never fails: what can't be read is other.

use crate::fields::is_token_byte;

/// What HTTP/2 with prior knowledge begins with (RFC 9113, section 3.4).
pub const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// No method in use is longer.
const MAX_METHOD: usize = 32;

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detected {
    /// HTTP/1.x, as far as can be seen.
    Http1,
    /// HTTP/2: the whole preface is there.
    Http2,
    /// Neither.
    Other,
    /// It takes more bytes to tell.
    Undecided,
}

/// Tells what a connection speaks that begins with `bytes`.
#[must_use]
pub fn detect(bytes: &[u8]) -> Detected {
    if bytes.starts_with(H2_PREFACE) {
        return Detected::Http2;
    }
    if H2_PREFACE.starts_with(bytes) {
        return Detected::Undecided;
    }
    // One empty line before the first request is forgiven (RFC 9112, section 2.2).
    let line = match bytes {
        [b'\r'] => return Detected::Undecided,
        [b'\r', b'\n', rest @ ..] => rest,
        _ => bytes,
    };
    let method = line.iter().take_while(|byte| is_token_byte(**byte)).count();
    match line.get(method) {
        _ if method > MAX_METHOD => Detected::Other,
        None => Detected::Undecided,
        Some(b' ') if method > 0 => Detected::Http1,
        Some(_) => Detected::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell() {
        let cases: [(&[u8], Detected); 14] = [
            (b"", Detected::Undecided),
            (b"G", Detected::Undecided),
            (b"GET", Detected::Undecided),
            (b"GET ", Detected::Http1),
            (b"\r\nPOST /", Detected::Http1),
            (b"\r", Detected::Undecided),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", Detected::Undecided),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Detected::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Detected::Http1),
            (b"\x16\x03\x01\x02", Detected::Other),
            (b"\0\0\0\x08", Detected::Other),
            (b" GET", Detected::Other),
            (b"\nGET", Detected::Other),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Detected::Other),
        ];
        for (bytes, expected) in cases {
            assert_eq!(detect(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
