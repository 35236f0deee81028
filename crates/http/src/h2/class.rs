//! What a field says by itself, whatever stands beside it: name and value go in, out comes what RFC 9113, section 8.2,
//! and the filter make of them. It is worked out once, when the bytes come; the table of their sender keeps it, so
//! that a field which is later only named by its index costs no further look at its bytes.

use crate::fields::{Known, is_odd, known};
use crate::is_field_value;

/// What is known of a field from its bytes alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Class {
    pub(crate) name: Name,
    /// The value may stand in a field. Those of pseudo-fields have rules of their own, and are not looked at.
    pub(crate) is_value: bool,
}

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name {
    /// Empty, or with a byte that no name has in HTTP/2.
    Malformed,
    /// Begins with `:`.
    Pseudo,
    /// Belongs to a connection of HTTP/1.
    OfConnection,
    ContentLength,
    ContentType,
    Cookie,
    Host,
    Http2Settings,
    /// Only we may set it.
    Identity,
    Te,
    /// Holds more than letters, digits and `-`: apps could take it for another one.
    Odd,
    Other,
}

impl Class {
    /// The class of a value under a name that is known.
    pub(crate) fn of(name: Name, value: &[u8]) -> Class {
        Class { name, is_value: name != Name::Pseudo && is_field_value(value) }
    }

    /// The class of a whole entry of the static table: all their values may stand in fields.
    pub(crate) fn of_static(index: u8) -> Class {
        let name = Name::of_static(index);
        Class { name, is_value: name != Name::Pseudo }
    }
}

impl Name {
    /// What `name` is.
    pub(crate) fn of(name: &[u8]) -> Name {
        if name.first() == Some(&b':') {
            return Name::Pseudo;
        }
        let text = std::str::from_utf8(name).unwrap_or_default();
        if text.is_empty() || !name.iter().all(|byte| is_name_byte(*byte)) {
            return Name::Malformed;
        }
        match known(text) {
            Known::Connection
            | Known::KeepAlive
            | Known::ProxyConnection
            | Known::TransferEncoding
            | Known::Upgrade => Name::OfConnection,
            Known::ContentLength => Name::ContentLength,
            Known::Host => Name::Host,
            Known::Http2Settings => Name::Http2Settings,
            Known::Identity => Name::Identity,
            Known::Te => Name::Te,
            Known::Other if is_odd(text) => Name::Odd,
            Known::Other if text == "cookie" => Name::Cookie,
            Known::Other if text == "content-type" => Name::ContentType,
            Known::Expect | Known::Trailer | Known::Other => Name::Other,
        }
    }

    /// What the name of an entry of the static table is.
    pub(crate) fn of_static(index: u8) -> Name {
        match index {
            1..=14 => Name::Pseudo,
            28 => Name::ContentLength,
            31 => Name::ContentType,
            32 => Name::Cookie,
            38 => Name::Host,
            57 => Name::OfConnection,
            _ => Name::Other,
        }
    }
}

/// A token without capitals.
fn is_name_byte(byte: u8) -> bool {
    const NAME: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0_u8;
        while byte < 128 {
            let mark = matches!(
                byte,
                b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~'
            );
            #[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
            {
                table[byte as usize] = byte.is_ascii_lowercase() || byte.is_ascii_digit() || mark;
            }
            byte += 1;
        }
        table
    };
    NAME.get(usize::from(byte)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_10_names_are_told_apart_by_their_bytes() {
        for (name, wanted) in [
            ("", Name::Malformed),
            ("Accept", Name::Malformed),
            ("a b", Name::Malformed),
            ("a\r\n", Name::Malformed),
            ("\u{fc}", Name::Malformed),
            (":path", Name::Pseudo),
            (":", Name::Pseudo),
            ("connection", Name::OfConnection),
            ("keep-alive", Name::OfConnection),
            ("proxy-connection", Name::OfConnection),
            ("transfer-encoding", Name::OfConnection),
            ("upgrade", Name::OfConnection),
            ("content-length", Name::ContentLength),
            ("content-type", Name::ContentType),
            ("cookie", Name::Cookie),
            ("host", Name::Host),
            ("http2-settings", Name::Http2Settings),
            ("x-forwarded-client-cert", Name::Identity),
            ("x-cinch-peer_id", Name::Identity),
            ("te", Name::Te),
            ("x_forwarded_client_cert", Name::Odd),
            ("content_length", Name::Odd),
            ("expect", Name::Other),
            ("trailer", Name::Other),
            ("x-request-id", Name::Other),
        ] {
            assert_eq!(Name::of(name.as_bytes()), wanted, "{name:?}");
        }
        assert_eq!(Name::of(b"\xff"), Name::Malformed);
    }

    #[test]
    fn rule_10_values_with_controls_or_blanks_at_their_ends_are_none() {
        for (value, wanted) in [("", true), ("a\tb", true), ("\u{fc}", true), (" a", false), ("a\n", false)] {
            assert_eq!(Class::of(Name::Other, value.as_bytes()).is_value, wanted, "{value:?}");
        }
    }
}
