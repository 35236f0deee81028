//! Lines of bounded length: bytes in, lines out, without ever holding more than one.

use std::io::{self, BufRead};

/// Longest line, its end not counted. A Kubernetes object has at most 1.5 MiB; a case may hold a few of them.
pub const LONGEST: usize = 4 << 20;

/// Reads line by line.
pub struct Lines<R> {
    input: R,
    line: Vec<u8>,
    /// Whether bytes of the input were left in its buffer at the last read.
    buffered: bool,
}

/// A line without its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'l> {
    /// All of it.
    Whole(&'l [u8]),
    /// It had more than [`LONGEST`] bytes, which are gone.
    TooLong,
}

impl<R: BufRead> Lines<R> {
    /// Nothing is read yet.
    pub fn new(input: R) -> Self {
        Lines { input, line: Vec::new(), buffered: false }
    }

    /// Whether the next line may not be there yet.
    pub fn must_wait(&self) -> bool {
        !self.buffered
    }

    /// The next line; `None` at the end. A last line without an end counts.
    ///
    /// # Errors
    /// When the input can't be read.
    pub fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let (mut too_long, mut any) = (false, false);
        loop {
            let available = match self.input.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                self.buffered = false;
                break;
            }
            any = true;
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = available.get(..end.unwrap_or(available.len())).unwrap_or_default();
            too_long = too_long || self.line.len() + part.len() > LONGEST;
            if too_long {
                self.line.clear();
            } else {
                self.line.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.buffered = used < available.len();
            self.input.consume(used);
            if end.is_some() {
                break;
            }
        }
        Ok(match (any, too_long) {
            (false, _) => None,
            (true, true) => Some(Line::TooLong),
            (true, false) => Some(Line::Whole(&self.line)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn lengths(text: &[u8]) -> Vec<Option<usize>> {
        let mut lines = Lines::new(BufReader::with_capacity(7, text));
        let mut all = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            all.push(match line {
                Line::Whole(bytes) => Some(bytes.len()),
                Line::TooLong => None,
            });
        }
        all
    }

    #[test]
    fn lines_are_read_whole_with_or_without_an_end() {
        assert_eq!(lengths(b""), []);
        assert_eq!(lengths(b"\n"), [Some(0)]);
        assert_eq!(lengths(b"abc\n0123456789\nlast"), [Some(3), Some(10), Some(4)]);
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_and_the_next_is_read() {
        let mut text = vec![b'x'; LONGEST];
        text.push(b'\n');
        text.extend(vec![b'x'; LONGEST + 1]);
        text.extend(b"\nab");
        assert_eq!(lengths(&text), [Some(LONGEST), None, Some(2)]);
    }
}
