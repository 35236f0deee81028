//! Conditions on headers.

use super::facts::{Header, Http};
use crate::lookup::{Scattered, TextSet};

/// Whether a header of this name (in lower case) is there and has one of `texts`. Repeated headers are one value,
/// joined with commas.
pub(super) fn header_matches(http: &Http<'_>, name: &str, texts: &TextSet) -> bool {
    let mut values = http.headers.iter().filter(|(of, _)| of.eq_ignore_ascii_case(name));
    let Some((_, first)) = values.next() else {
        // HTTP/2 has no Host of its own.
        return name == "host"
            && http.authority.is_some_and(|authority| texts.matches_present(authority.as_bytes()));
    };
    if values.next().is_none() {
        return texts.matches_present(first);
    }
    let repeated = Repeated { headers: http.headers, name };
    let mut room = [0; Repeated::INLINE];
    match repeated.joined(&mut room) {
        Some(value) => texts.matches_present(value),
        None => texts.matches_scattered(&repeated),
    }
}

/// The values of all headers of one name.
struct Repeated<'a> {
    headers: &'a [Header<'a>],
    name: &'a str,
}

impl Repeated<'_> {
    /// Long enough for what people repeat.
    const INLINE: usize = 512;

    fn values(&self) -> impl Iterator<Item = &[u8]> {
        self.headers.iter().filter(|(of, _)| of.eq_ignore_ascii_case(self.name)).map(|(_, value)| *value)
    }

    /// The values and the commas between them, one after the other.
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.values().enumerate().flat_map(|(index, value)| [if index == 0 { &b""[..] } else { b"," }, value])
    }

    fn bytes(&self) -> impl Iterator<Item = u8> {
        self.pieces().flatten().copied()
    }

    fn len(&self) -> usize {
        self.pieces().map(<[u8]>::len).sum()
    }

    /// The joined value, if there is room for it.
    fn joined<'r>(&self, room: &'r mut [u8]) -> Option<&'r [u8]> {
        let mut length = 0;
        for piece in self.pieces() {
            room.get_mut(length..length + piece.len())?.copy_from_slice(piece);
            length += piece.len();
        }
        room.get(..length)
    }
}

impl Scattered for Repeated<'_> {
    fn is(&self, text: &[u8]) -> bool {
        self.bytes().eq(text.iter().copied())
    }

    fn begins_with(&self, text: &[u8]) -> bool {
        self.len() >= text.len() && self.bytes().zip(text).all(|(one, other)| one == *other)
    }

    fn ends_with(&self, text: &[u8]) -> bool {
        self.len()
            .checked_sub(text.len())
            .is_some_and(|skip| self.bytes().skip(skip).eq(text.iter().copied()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Text;

    #[test]
    fn repeated_headers_are_one_value_however_long() {
        for length in [0, 3, 255, 600] {
            let (first, second) = ("a".repeat(length), "b".repeat(length));
            let headers: [Header<'_>; 4] =
                [("X-A", first.as_bytes()), ("y", b"no"), ("x-a", second.as_bytes()), ("X-a", b"end")];
            let repeated = Repeated { headers: &headers, name: "x-a" };
            let whole = format!("{first},{second},end");
            let mut room = [0; Repeated::INLINE];
            let joined = repeated.joined(&mut room);
            assert_eq!(joined, (whole.len() <= Repeated::INLINE).then_some(whole.as_bytes()), "{length}");
            let http = Http { headers: &headers, ..Http::of_method("GET") };
            let cases = [
                (whole.clone(), true),
                (format!("{first},*"), true),
                ("*b,end".replace('b', if length == 0 { "" } else { "b" }), true),
                ("*,end".to_owned(), true),
                ("*".to_owned(), true),
                (format!("{whole}x"), false),
                (format!("{first},{second}"), false),
                (format!("{whole}x*"), false),
                (format!("*x{whole}"), false),
            ];
            for (rule, expected) in cases {
                let texts = TextSet::new([Text::parse(&rule)]);
                assert_eq!(header_matches(&http, "x-a", &texts), expected, "{length} {rule}");
                assert_eq!(texts.matches_scattered(&repeated), expected, "{length} {rule}");
            }
        }
    }
}
