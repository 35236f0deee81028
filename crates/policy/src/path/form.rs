//! The steps that modes are made of. A path goes in, without query and fragment; its changed form comes out,
//! borrowed where nothing changes.

use super::BadPath;
use std::borrow::Cow;

/// Which encoded separators become `/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Separators {
    Both,
    /// `%2F`
    Slash,
    /// `%5C`
    Backslash,
}

impl Separators {
    pub(super) const ALL: [Separators; 3] = [Separators::Both, Separators::Slash, Separators::Backslash];

    fn holds(self, byte: u8) -> bool {
        match self {
            Separators::Both => byte == b'/' || byte == b'\\',
            Separators::Slash => byte == b'/',
            Separators::Backslash => byte == b'\\',
        }
    }
}

/// The form BASE: `\` is `/`, escapes of unreserved characters (RFC 3986, section 2.3) are decoded once, dot
/// segments are resolved (section 5.2.4).
pub(super) fn base(path: &str) -> Result<Cow<'_, str>, BadPath> {
    match path {
        "*" => return Ok(Cow::Borrowed(path)),
        "" => return Ok(Cow::Borrowed("/")),
        _ => {}
    }
    let plain = decode_unreserved(path)?;
    if !plain.starts_with('/') {
        return Err(BadPath::NotAbsolute);
    }
    if !has_dot_segment(&plain) {
        return Ok(plain);
    }
    Ok(Cow::Owned(resolve_dots(&plain)))
}

fn decode_unreserved(path: &str) -> Result<Cow<'_, str>, BadPath> {
    let mut changed: Option<String> = None;
    let mut done = 0;
    while let Some(at) = path.get(done..).and_then(|rest| rest.find(['%', '\\', '\0'])) {
        let (before, tail) = path.split_at_checked(done + at).unwrap_or((path, ""));
        if let Some(plain) = &mut changed {
            plain.push_str(before.get(done..).unwrap_or_default());
        }
        let escaped = escape(tail);
        if tail.starts_with('\0') || escaped == Some(0) {
            return Err(BadPath::Nul);
        }
        let so_far = changed.as_deref().unwrap_or(before);
        let decoded = match escaped {
            _ if tail.starts_with('\\') => Some('/'),
            // `%2%65` must not become `%2e`: what is decoded once would then be decoded again.
            Some(byte) if is_unreserved(byte) && !completes_escape(so_far, byte) => Some(char::from(byte)),
            _ => None,
        };
        let length = if escaped.is_some() { 3 } else { 1 };
        match (decoded, &mut changed) {
            (Some(char), Some(plain)) => plain.push(char),
            (Some(char), None) => changed.insert(before.to_owned()).push(char),
            (None, Some(plain)) => plain.push_str(tail.get(..length).unwrap_or(tail)),
            (None, None) => {}
        }
        done = before.len() + length;
    }
    match changed {
        None => Ok(Cow::Borrowed(path)),
        Some(mut plain) => {
            plain.push_str(path.get(done..).unwrap_or_default());
            Ok(Cow::Owned(plain))
        }
    }
}

/// The byte of an escape that `text` begins with; `None` for a `%` without two hexadecimal digits.
fn escape(text: &str) -> Option<u8> {
    match text.as_bytes() {
        [b'%', high, low, ..] => {
            let high = char::from(*high).to_digit(16)?;
            let low = char::from(*low).to_digit(16)?;
            u8::try_from(high * 16 + low).ok()
        }
        _ => None,
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Whether `next` would make an escape, or its first digit, of a `%` that was none.
fn completes_escape(so_far: &str, next: u8) -> bool {
    next.is_ascii_hexdigit()
        && match so_far.as_bytes() {
            [.., b'%'] => true,
            [.., b'%', digit] => digit.is_ascii_hexdigit(),
            _ => false,
        }
}

pub(super) fn has_dot_segment(path: &str) -> bool {
    path.contains("/.") && path.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// Resolves `.` and `..` in a path that begins with a slash; empty segments count as segments.
pub(super) fn resolve_dots(path: &str) -> String {
    let mut resolved = String::with_capacity(path.len());
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." => {}
            ".." => resolved.truncate(resolved.rfind('/').unwrap_or(0)),
            _ => {
                resolved.push('/');
                resolved.push_str(segment);
                continue;
            }
        }
        if last {
            resolved.push('/');
        }
    }
    resolved
}

/// Each run of slashes becomes one.
pub(super) fn merge_slashes(path: &str) -> Cow<'_, str> {
    if !path.contains("//") {
        return Cow::Borrowed(path);
    }
    let mut merged = String::with_capacity(path.len());
    for char in path.chars() {
        if !(char == '/' && merged.ends_with('/')) {
            merged.push(char);
        }
    }
    Cow::Owned(merged)
}

/// Decodes encoded separators, once: `%252F` stays.
pub(super) fn decode_separators(path: &str, which: Separators) -> Cow<'_, str> {
    if !has_encoded_separator(path, which) {
        return Cow::Borrowed(path);
    }
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (head, tail) = rest.split_at(at);
        decoded.push_str(head);
        let (taken, after) = match escape(tail) {
            Some(byte) if which.holds(byte) => ("/", tail.get(3..).unwrap_or_default()),
            _ => tail.split_at_checked(1).unwrap_or((tail, "")),
        };
        decoded.push_str(taken);
        rest = after;
    }
    decoded.push_str(rest);
    Cow::Owned(decoded)
}

pub(super) fn has_encoded_separator(path: &str, which: Separators) -> bool {
    path.match_indices('%')
        .any(|(at, _)| path.get(at..).and_then(escape).is_some_and(|byte| which.holds(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_segments_are_resolved_as_rfc_3986_says() {
        let cases = [
            ("/a/b/c/./../../g", "/a/g"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/a//../b", "/a/b"),
            ("//..", "/"),
            ("/a/...", "/a/..."),
            ("/.a/..b/c..", "/.a/..b/c.."),
        ];
        for (path, expected) in cases {
            assert_eq!(resolve_dots(path), expected, "{path}");
        }
    }

    #[test]
    fn an_escape_is_decoded_once_however_it_is_wrapped() {
        let cases = [
            ("/%2%65", "/%2%65"),
            ("/%%32%65", "/%%32e"),
            ("/%%32e", "/%%32e"),
            ("/%252e", "/%252e"),
            ("/%zz%41", "/%zzA"),
            ("/%", "/%"),
            ("/%4", "/%4"),
        ];
        for (path, expected) in cases {
            assert_eq!(base(path).unwrap(), expected, "{path}");
            assert_eq!(base(expected).unwrap(), expected, "{path}, again");
        }
    }

    #[test]
    fn chosen_separators_are_decoded() {
        let path = "/a%2fb%2Fc%5cd%5Ce%252f";
        assert_eq!(decode_separators(path, Separators::Both), "/a/b/c/d/e%252f");
        assert_eq!(decode_separators(path, Separators::Slash), "/a/b/c%5cd%5Ce%252f");
        assert_eq!(decode_separators(path, Separators::Backslash), "/a%2fb%2Fc/d/e%252f");
        assert!(matches!(decode_separators("/a%20b", Separators::Both), Cow::Borrowed(_)));
    }
}
