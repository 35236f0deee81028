//! The static table (RFC 7541, appendix A) and the dynamic table of a decoder (2.3.2).

use super::HpackError;
use std::collections::VecDeque;

/// What an entry counts beyond its text (RFC 7541, 4.1).
pub(super) const OVERHEAD: usize = 32;

/// The entries from index 1 on.
#[rustfmt::skip]
pub(super) const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""),
    ("cache-control", ""), ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""),
    ("content-length", ""), ("content-location", ""), ("content-range", ""), ("content-type", ""),
    ("cookie", ""), ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""),
    ("if-match", ""), ("if-modified-since", ""), ("if-none-match", ""), ("if-range", ""),
    ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""),
    ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""),
    ("via", ""), ("www-authenticate", ""),
];

/// An entry of the dynamic table: where its text is.
#[derive(Debug, Clone, Copy)]
struct Entry {
    start: usize,
    name: usize,
    value: usize,
    /// The static entry that has the same name, or 0.
    hint: u8,
}

/// The dynamic table of a decoder. All text lies in one buffer, in the order of insertion; nothing is allocated
/// before the first insertion.
#[derive(Debug)]
pub(super) struct DynamicTable {
    text: Vec<u8>,
    /// The newest last.
    entries: VecDeque<Entry>,
    size: usize,
    limit: usize,
}

impl DynamicTable {
    pub(super) const fn new(limit: usize) -> DynamicTable {
        DynamicTable { text: Vec::new(), entries: VecDeque::new(), size: 0, limit }
    }

    /// Entry `index`, counted from the newest, which is 0: name, value, and the static index of the name.
    pub(super) fn get(&self, index: usize) -> Result<(&[u8], &[u8], u8), HpackError> {
        let place = self.entries.len().checked_sub(index + 1).ok_or(HpackError::Index)?;
        let entry = self.entries.get(place).ok_or(HpackError::Index)?;
        let end = entry.start + entry.name + entry.value;
        let text = self.text.get(entry.start..end).ok_or(HpackError::Index)?;
        let (name, value) = text.split_at_checked(entry.name).ok_or(HpackError::Index)?;
        Ok((name, value, entry.hint))
    }

    /// Puts an entry in front and drops what no longer fits; one larger than the table empties it (4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8], hint: u8) {
        let size = name.len() + value.len() + OVERHEAD;
        self.evict(self.limit.saturating_sub(size));
        if size > self.limit {
            return;
        }
        self.compact();
        let entry = Entry { start: self.text.len(), name: name.len(), value: value.len(), hint };
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        self.entries.push_back(entry);
        self.size += size;
    }

    /// Sets the size that the table may have.
    pub(super) fn resize(&mut self, limit: usize) {
        self.limit = limit;
        self.evict(limit);
    }

    /// Bytes held.
    pub(super) fn held(&self) -> usize {
        self.text.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    fn evict(&mut self, limit: usize) {
        while self.size > limit {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.size -= oldest.name + oldest.value + OVERHEAD;
        }
    }

    /// Moves the live text to the front once as much lies dead before it, so that each byte is moved about once.
    fn compact(&mut self) {
        let dead = self.entries.front().map_or(self.text.len(), |oldest| oldest.start);
        if dead * 2 >= self.text.len() && dead > 0 {
            self.text.drain(..dead);
            for entry in &mut self.entries {
                entry.start -= dead;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_larger_than_the_table_empties_it() {
        let mut table = DynamicTable::new(100);
        table.insert(b"a", b"1", 0);
        assert_eq!(table.size(), 34);
        table.insert(b"b", &[b'x'; 100], 0);
        assert_eq!(table.size(), 0);
        assert_eq!(table.get(0), Err(HpackError::Index));
    }

    #[test]
    fn the_text_stays_bounded_and_right_over_many_insertions() {
        let mut table = DynamicTable::new(4096);
        for round in 0..10_000u32 {
            let value = vec![b'v'; (round % 300) as usize];
            table.insert(&round.to_be_bytes(), &value, 7);
            assert!(table.text.len() <= 2 * 4096 + 400, "{}", table.text.len());
            assert_eq!(table.get(0), Ok((&round.to_be_bytes()[..], &value[..], 7)));
            if round > 4 {
                assert_eq!(table.get(3).unwrap().0, (round - 3).to_be_bytes());
            }
        }
    }

    #[test]
    fn a_smaller_limit_drops_the_oldest() {
        let mut table = DynamicTable::new(4096);
        table.insert(b"old", b"", 0);
        table.insert(b"new", b"", 0);
        table.resize(40);
        assert_eq!(table.get(0).unwrap().0, b"new");
        assert_eq!(table.get(1), Err(HpackError::Index));
        table.resize(0);
        table.insert(b"", b"", 0);
        assert_eq!(table.get(0), Err(HpackError::Index));
    }
}
