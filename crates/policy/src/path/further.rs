//! What back ends could make of a path that was forwarded, beyond the readings that a mode names: they decode all
//! escapes or only some, once or twice, drop `;parameters` before or after that, and resolve dots before or after
//! they merge slashes.

use super::form::{Separators, decode_separators, has_encoded_separator, merge_slashes, resolve_dots};
use std::borrow::Cow;

/// What a back end decodes.
#[derive(Debug, Clone, Copy)]
enum Decoding {
    Nothing,
    Some(Separators),
    /// Every escape, so many times.
    All {
        times: u8,
        backslash: Backslash,
    },
}

/// What a decoded backslash is to a back end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backslash {
    Letter,
    Slash,
}

impl Decoding {
    fn of(self, path: &str) -> Cow<'_, str> {
        match self {
            Decoding::Nothing => Cow::Borrowed(path),
            Decoding::Some(which) => decode_separators(path, which),
            Decoding::All { times, backslash } => {
                let mut decoded = Cow::Borrowed(path);
                for _ in 0..times {
                    decoded = Cow::Owned(decode_all(&decoded));
                }
                match backslash {
                    Backslash::Slash if decoded.contains('\\') => Cow::Owned(decoded.replace('\\', "/")),
                    _ => decoded,
                }
            }
        }
    }
}

/// The path has too many forms for its length.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

/// Calls `each` with every form that a back end could make of `path`, which is in the form BASE; one form may come
/// more than once. With none where all together would have more than `most` bytes.
pub(super) fn each_further(path: &str, most: usize, mut each: impl FnMut(&str)) -> Result<(), TooMany> {
    if is_plain(path) {
        return Ok(());
    }
    if path.len() > most {
        return Err(TooMany);
    }
    let escaped = path.contains('%');
    let once = if escaped { Cow::Owned(decode_all(path)) } else { Cow::Borrowed(path) };
    let twice = once.contains('%');
    let mut decodings = vec![Decoding::Nothing];
    if has_encoded_separator(path, Separators::Both) {
        decodings.extend(Separators::ALL.map(Decoding::Some));
    }
    if escaped {
        let times: &[u8] = if twice { &[1, 2] } else { &[1] };
        for times in times {
            let all = |backslash| Decoding::All { times: *times, backslash };
            decodings.extend([all(Backslash::Letter), all(Backslash::Slash)]);
        }
    }
    // Parameters are dropped or not, before and after the decoding; what is decoded twice may bring new ones.
    let forms = decodings.len() * if once.contains(';') || twice { 4 } else { 1 };
    if forms * path.len() > most {
        return Err(TooMany);
    }
    let mut made: Vec<String> = Vec::new();
    for decoding in decodings {
        for first in with_and_without_parameters(path) {
            let decoded = decoding.of(&first);
            for form in with_and_without_parameters(&decoded) {
                if !made.iter().any(|known| *known == form) {
                    made.push(form.into_owned());
                }
            }
        }
    }
    for form in made {
        let resolved = resolve_dots(&form);
        each(&resolve_dots(&merge_slashes(&form)));
        each(&merge_slashes(&resolved));
        each(&resolved);
    }
    Ok(())
}

/// A way to write a value of `paths` that means the same to a back end which decodes or drops parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spelling {
    decoded: u8,
    drops_before: bool,
    drops_after: bool,
}

impl Spelling {
    /// Every way; the first leaves all as it is. For a value without escapes and parameters all are the same.
    pub(super) fn all() -> impl Iterator<Item = Spelling> {
        let drops = [(false, false), (true, false), (false, true)];
        (0..=2).flat_map(move |decoded| {
            drops.map(|(drops_before, drops_after)| Spelling { decoded, drops_before, drops_after })
        })
    }

    /// `text`, a value without its wildcards, written this way.
    pub(super) fn of(self, text: &str) -> String {
        let first = if self.drops_before { without_parameters(text) } else { text.to_owned() };
        let decoded = Decoding::All { times: self.decoded, backslash: Backslash::Letter }.of(&first);
        if self.drops_after { without_parameters(&decoded) } else { decoded.into_owned() }
    }
}

/// Whether back ends could read `text` as something else than what stands there.
pub(super) fn is_plain(text: &str) -> bool {
    !text.contains(['%', ';'])
}

fn with_and_without_parameters(path: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let without = path.contains(';').then(|| Cow::Owned(without_parameters(path)));
    std::iter::once(Cow::Borrowed(path)).chain(without)
}

/// Each segment up to its first `;` (RFC 3986, section 3.3, as servlet containers read it).
fn without_parameters(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    for (index, segment) in path.split('/').enumerate() {
        if index > 0 {
            plain.push('/');
        }
        plain.push_str(segment.split(';').next().unwrap_or(segment));
    }
    plain
}

/// Decodes every escape once. Bytes that are no text stay escapes: no rule, being text, can mean them.
fn decode_all(path: &str) -> String {
    let bytes: Cow<'_, [u8]> = percent_encoding::percent_decode_str(path).into();
    let mut decoded = String::with_capacity(path.len());
    for chunk in bytes.utf8_chunks() {
        decoded.push_str(chunk.valid());
        for byte in chunk.invalid() {
            decoded.push_str(percent_encoding::percent_encode_byte(*byte));
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::FORM_BYTES as MOST;

    fn further(path: &str) -> Vec<String> {
        let mut all = Vec::new();
        let each = |form: &str| {
            if form != path && !all.iter().any(|known| known == form) {
                all.push(form.to_owned());
            }
        };
        each_further(path, MOST, each).unwrap();
        all.sort();
        all
    }

    #[test]
    fn back_ends_decode_and_drop_what_they_like() {
        let cases: [(&str, &[&str]); 13] = [
            ("/a/b", &[]),
            ("/a//b", &[]),
            ("/users/%40me", &["/users/@me"]),
            ("/a;v=1/b", &["/a/b"]),
            ("/a%3Bv/b", &["/a/b", "/a;v/b"]),
            ("/public/..;/admin", &["/admin"]),
            ("/a%2540", &["/a%40", "/a@"]),
            ("/a%2%46b", &["/a%2Fb", "/a/b"]),
            ("/a%5Cb", &["/a/b", "/a\\b"]),
            ("/a%2Fb", &["/a/b"]),
            ("/%c3%bc", &["/ü"]),
            ("/%ff%40", &["/%FF@"]),
            ("/x%20y/..%2Fz", &["/z"]),
        ];
        for (path, expected) in cases {
            assert_eq!(further(path), expected, "{path}");
        }
    }

    #[test]
    fn what_a_path_may_cost_is_bounded_and_long_names_in_other_scripts_are_not_near_it() {
        let cases = [
            (
                "a key of 1,024 bytes of text, every one escaped",
                "/bucket/".to_owned() + &"%E4%BD%A0".repeat(341),
                true,
            ),
            ("a session in a parameter", "/shop/".to_owned() + &"x".repeat(2000) + ";jsessionid=1", true),
            ("escapes of escapes", "/".to_owned() + &"%252f".repeat(80), true),
            ("too many of them", "/".to_owned() + &"%252f".repeat(200), false),
            ("with parameters", "/".to_owned() + &"%252f;x%5c..".repeat(100), false),
            ("too long", "/%41".to_owned() + &"a".repeat(MOST), false),
        ];
        for (case, path, is_judged) in cases {
            let mut bytes = 0;
            let judged = each_further(&path, MOST, |form| bytes += form.len());
            assert_eq!(judged.is_ok(), is_judged, "{case}");
            assert!(bytes <= 3 * MOST, "{case}: {bytes}");
            assert!(each_further(&path, 100 * MOST, |_| ()).is_ok(), "{case}: it is a setting");
        }
    }

    #[test]
    fn values_are_spelled_as_back_ends_read_them() {
        let cases: [(&str, &[&str]); 5] = [
            ("/a/b", &["/a/b"]),
            ("/a%20b", &["/a b", "/a%20b"]),
            ("/a;v=", &["/a", "/a;v="]),
            ("/a%3bv", &["/a", "/a%3bv", "/a;v"]),
            ("/a%2540", &["/a%2540", "/a%40", "/a@"]),
        ];
        for (text, expected) in cases {
            let mut all: Vec<_> = Spelling::all().map(|spelling| spelling.of(text)).collect();
            all.sort();
            all.dedup();
            assert_eq!(all, expected, "{text}");
            assert_eq!(Spelling::all().next().unwrap().of(text), text);
        }
    }
}
