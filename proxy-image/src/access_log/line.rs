//! One line of JSON: keys and values go in, bytes come out. Values are whatever a peer has sent, so each is bounded
//! and escaped down to visible ASCII: no line breaks another, and no terminal obeys one.

use super::clock;
use std::io::Write;
use std::time::SystemTime;

/// A line under work; [`Line::end`] closes it.
pub(super) struct Line<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Line<'a> {
    /// Begins a line with the instant that it speaks of.
    pub(super) fn begin(out: &'a mut Vec<u8>, at: SystemTime) -> Self {
        out.extend_from_slice(b"{\"start_time\":\"");
        clock::write(at, out);
        out.push(b'"');
        Line { out }
    }

    fn key(&mut self, key: &'static str) {
        self.out.extend_from_slice(b",\"");
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// A number.
    pub(super) fn number(&mut self, key: &'static str, value: u64) {
        self.key(key);
        let _ = write!(self.out, "{value}");
    }

    /// A text, of which `limit` bytes are written; without one there is no key either.
    pub(super) fn text(&mut self, key: &'static str, value: &[u8], limit: usize) {
        if value.is_empty() {
            return;
        }
        self.key(key);
        self.out.push(b'"');
        escape(value.get(..limit).unwrap_or(value), self.out);
        self.out.push(b'"');
    }

    /// A text of our own making.
    pub(super) fn word(&mut self, key: &'static str, value: &str) {
        self.text(key, value.as_bytes(), usize::MAX);
    }

    /// What displays without anything to escape: addresses and the like.
    pub(super) fn plain(&mut self, key: &'static str, value: impl std::fmt::Display) {
        self.key(key);
        let _ = write!(self.out, "\"{value}\"");
    }

    /// Closes the line.
    pub(super) fn end(self) {
        self.out.extend_from_slice(b"}\n");
    }
}

/// Appends `value` as the inside of a JSON string. What is no UTF-8 (or was cut within a character) becomes U+FFFD.
fn escape(value: &[u8], out: &mut Vec<u8>) {
    for chunk in value.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                ' '..='~' => out.push(character as u8),
                other => {
                    for unit in other.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::time::UNIX_EPOCH;

    fn line(value: &[u8], limit: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut line = Line::begin(&mut out, UNIX_EPOCH);
        line.text("value", value, limit);
        line.number("number", u64::MAX);
        line.end();
        out
    }

    #[test]
    fn whatever_a_peer_sends_is_one_line_of_ascii_that_says_the_same() {
        for value in [
            "plain",
            "a\"b\\c",
            "\r\n{\"forged\":true}\n",
            "\u{1b}[2J\u{9b}2J\u{7f}",
            "ü€\u{1f512}",
            "\u{2028}\0",
        ] {
            let bytes = line(value.as_bytes(), 256);
            let inside = &bytes[..bytes.len() - 1];
            assert!(inside.iter().all(|byte| (b' '..=b'~').contains(byte)), "{value:?}");
            let read: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(read["value"], value);
            assert_eq!(read["number"], u64::MAX);
            assert_eq!(read["start_time"], "1970-01-01T00:00:00.000Z");
        }
    }

    #[test]
    fn a_value_is_cut_at_its_bound_and_odd_bytes_are_marked() {
        let read: Value = serde_json::from_slice(&line(&[b'a'; 1000], 256)).unwrap();
        assert_eq!(read["value"].as_str().unwrap().len(), 256);
        let read: Value = serde_json::from_slice(&line(b"a\xff\xfeb", 256)).unwrap();
        assert_eq!(read["value"], "a\u{fffd}\u{fffd}b");
        let read: Value = serde_json::from_slice(&line("aü".as_bytes(), 2)).unwrap();
        assert_eq!(read["value"], "a\u{fffd}");
    }

    #[test]
    fn what_is_not_known_has_no_key() {
        let read: Value = serde_json::from_slice(&line(b"", 256)).unwrap();
        assert_eq!(read.as_object().unwrap().len(), 2);
    }
}
