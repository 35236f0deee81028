//! Names and values of fields: which the filter itself minds, and which could be taken for another.

/// Fields that tell an app who the caller is: only we may set them. Those that begin with one of [`OURS`] too.
const IDENTITY: [&str; 1] = ["x-forwarded-client-cert"];
const OURS: [&str; 2] = ["x-cinch-", "cinch-"];

/// The longest name that is compared after folding; longer ones are nobody's.
const LONGEST: usize = 256;

/// The fields that the filter itself minds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Connection,
    ContentLength,
    Expect,
    Host,
    Http2Settings,
    Identity,
    KeepAlive,
    ProxyConnection,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    Other,
}

/// Which of them `name`, in any case, is.
pub(crate) fn known(name: &str) -> Known {
    let is = |of: &str| name.eq_ignore_ascii_case(of);
    match name.len() {
        2 if is("te") => Known::Te,
        4 if is("host") => Known::Host,
        6 if is("expect") => Known::Expect,
        7 if is("upgrade") => Known::Upgrade,
        7 if is("trailer") => Known::Trailer,
        10 if is("connection") => Known::Connection,
        10 if is("keep-alive") => Known::KeepAlive,
        14 if is("content-length") => Known::ContentLength,
        14 if is("http2-settings") => Known::Http2Settings,
        16 if is("proxy-connection") => Known::ProxyConnection,
        17 if is("transfer-encoding") => Known::TransferEncoding,
        _ if is_identity(name) => Known::Identity,
        _ => Known::Other,
    }
}

/// Whether only we may set a field, in any case.
#[must_use]
pub fn is_identity(name: &str) -> bool {
    // Most names are told by their first letter.
    matches!(name.as_bytes().first(), Some(b'x' | b'X' | b'c' | b'C'))
        && (IDENTITY.iter().any(|of| name.eq_ignore_ascii_case(of)) || OURS.iter().any(|of| begins(name, of)))
}

fn begins(name: &str, prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// Whether a field says where a message ends, whom it is for, or belongs to one hop; in any case.
#[must_use]
pub fn is_framing(name: &str) -> bool {
    !matches!(known(name), Known::Other | Known::Identity)
        || ["proxy-authenticate", "proxy-authorization"].iter().any(|of| name.eq_ignore_ascii_case(of))
}

/// Whether a name holds more than letters, digits and `-`: servers that make variables of names could take it for
/// another one.
pub(crate) fn is_odd(name: &str) -> bool {
    !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Whether `test` holds of the name that an odd one could be taken for: in lower case, with `-` for all that is
/// neither letter nor digit.
pub(crate) fn folded(name: &str, test: impl FnOnce(&str) -> bool) -> bool {
    let mut buffer = [0_u8; LONGEST];
    let Some(folded) = buffer.get_mut(..name.len()) else { return false };
    for (to, from) in folded.iter_mut().zip(name.bytes()) {
        *to = if from.is_ascii_alphanumeric() { from.to_ascii_lowercase() } else { b'-' };
    }
    std::str::from_utf8(folded).is_ok_and(test)
}

/// Whether a name could be taken for a field that only we may set.
#[must_use]
pub fn folds_to_identity(name: &str) -> bool {
    folded(name, is_identity)
}

/// Whether `name` is a token (RFC 9110, section 5.1).
#[must_use]
pub fn is_field_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(is_token_byte)
}

/// Whether `value` may stand in a field: no controls but tabs, no white space at its ends (RFC 9110, section 5.5).
#[must_use]
pub fn is_field_value(value: &[u8]) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !blank(value.first())
        && !blank(value.last())
        // Without branches, so that several bytes are looked at at a time.
        && !value.iter().fold(false, |found, byte| found | ((*byte < 32) & (*byte != b'\t')) | (*byte == 127))
}

pub(crate) fn is_token_byte(byte: u8) -> bool {
    const TOKEN: [bool; 256] = letters_and_digits_and(b"!#$%&'*+-.^_`|~");
    TOKEN.get(usize::from(byte)).copied().unwrap_or_default()
}

/// A byte of a host's name (RFC 3986, section 3.2.2: reg-name), but for the comma: lists are none.
fn is_host_byte(byte: u8) -> bool {
    const HOST: [bool; 256] = letters_and_digits_and(b"-._~%!$&'()*+;=");
    HOST.get(usize::from(byte)).copied().unwrap_or_default()
}

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler, which would refuse a wrong index")]
const fn letters_and_digits_and(marks: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < marks.len() {
        table[marks[at] as usize] = true;
        at += 1;
    }
    table
}

/// A host with an optional port (RFC 3986, section 3.2), without user information; may be empty. Lists are none.
pub(crate) fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) => {
                let plain = address.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte));
                match rest.strip_prefix(':') {
                    _ if !plain || address.is_empty() => return false,
                    None if !rest.is_empty() => return false,
                    port => return port.unwrap_or_default().bytes().all(|byte| byte.is_ascii_digit()),
                }
            }
            None => return false,
        },
        None => text.split_once(':').unwrap_or((text, "")),
    };
    !text.starts_with(':') && host.bytes().all(is_host_byte) && port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_a_host_and_a_port() {
        for good in ["", "a", "a.b:80", "10.0.0.1:1", "[::1]", "[fe80::1]:8080", "a_b.c", "a%20b"] {
            assert!(is_authority(good), "{good}");
        }
        for bad in [
            ":80", "a b", "u@a", "a/b", "a,b", "a:b", "a:80:80", "[::1", "[::1]x", "[]", "[g]", "a?", "a#",
            "\u{fc}", "a\\b",
        ] {
            assert!(!is_authority(bad), "{bad}");
        }
    }

    #[test]
    fn bytes_are_told_by_their_tables_as_by_the_rfcs() {
        for byte in 0..=255_u8 {
            let plain = byte.is_ascii_alphanumeric();
            assert_eq!(is_token_byte(byte), plain || b"!#$%&'*+-.^_`|~".contains(&byte), "{byte}");
            assert_eq!(is_host_byte(byte), plain || b"-._~%!$&'()*+;=".contains(&byte), "{byte}");
            let value = [b'a', byte, b'a'].repeat(20);
            assert_eq!(is_field_value(&value), !matches!(byte, 0..=8 | 10..=31 | 127), "{byte}");
            let blank = matches!(byte, b' ' | b'\t');
            for ends in [&[byte, b'a'][..], &[b'a', byte], &[byte]] {
                assert_eq!(is_field_value(ends), !blank && is_field_value(&value), "{byte}");
            }
        }
    }

    #[test]
    fn names_that_could_be_taken_for_identity_are_known() {
        for name in ["x_forwarded_client_cert", "X.Forwarded-Client_Cert", "x_cinch_peer", "CINCH_x"] {
            assert!(is_odd(name) && folds_to_identity(name), "{name}");
            assert!(!is_identity(name), "{name}");
        }
        assert!(is_identity("X-Forwarded-Client-Cert") && is_identity("X-Cinch-Peer"));
        assert!(!folds_to_identity("x_forwarded_for") && !folds_to_identity(&"x".repeat(300)));
    }
}
