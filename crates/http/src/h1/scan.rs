//! Where a head ends, and bytes that wait for the rest of theirs.

/// A line that ends with LF alone. Servers differ on whether it ends there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BareLineFeed;

/// The length of the section that `bytes` begin with, up to and with its empty line; `None` as long as it is not
/// there. `from`: so many bytes were looked at before. An empty section is the empty line alone.
pub(super) fn section_end(bytes: &[u8], from: usize) -> Result<Option<usize>, BareLineFeed> {
    let unseen = bytes.get(from..).unwrap_or_default();
    for offset in memchr::memchr_iter(b'\n', unseen) {
        let end = from + offset + 1;
        match bytes.get(..end) {
            Some([b'\r', b'\n'] | [.., b'\n', b'\r', b'\n']) => return Ok(Some(end)),
            Some([.., b'\r', b'\n']) => {}
            _ => return Err(BareLineFeed),
        }
    }
    Ok(None)
}

/// Bytes that wait. Taking from the front costs nothing but now and then a move of what is left.
#[derive(Debug, Default)]
pub(super) struct Held {
    bytes: Vec<u8>,
    start: usize,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() == self.start
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Drops `count` bytes of the front; without any left, the memory goes too.
    pub(super) fn take(&mut self, count: usize) {
        self.start = (self.start + count).min(self.bytes.len());
        if self.is_empty() {
            *self = Held::default();
        } else if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_ends_at_its_empty_line_however_it_comes() {
        let bytes = b"GET / HTTP/1.1\r\nhost: a\r\n\r\nmore\n";
        for seen in 0..27 {
            assert_eq!(section_end(&bytes[..seen], 0), Ok(None), "{seen} bytes");
            assert_eq!(section_end(bytes, seen), Ok(Some(27)), "{seen} bytes seen before");
        }
        assert_eq!(section_end(b"\r\n", 0), Ok(Some(2)));
        assert_eq!(section_end(b"a\n\r\n", 0), Err(BareLineFeed));
        assert_eq!(section_end(b"\n", 0), Err(BareLineFeed));
        assert_eq!(section_end(b"a\r\n\n", 0), Err(BareLineFeed));
    }

    #[test]
    fn what_is_held_comes_out_in_order() {
        let mut held = Held::default();
        held.push(b"abcdef");
        held.take(4);
        held.push(b"gh");
        assert_eq!((held.bytes(), held.len()), (&b"efgh"[..], 4));
        held.take(4);
        assert!(held.is_empty() && held.bytes.capacity() == 0);
    }
}
