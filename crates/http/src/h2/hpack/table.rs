//! The static table (RFC 7541, appendix A) and the dynamic table of a decoder (2.3.2).

use super::HpackError;
use super::fields::Place;
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

/// The dynamic table of a decoder. The coded forms of all fields lie in one buffer, in the order of insertion; nothing
/// is allocated before the first insertion.
#[derive(Debug)]
pub(super) struct DynamicTable {
    text: Vec<u8>,
    /// The newest last.
    entries: VecDeque<Place>,
    size: usize,
    limit: usize,
}

impl DynamicTable {
    pub(super) const fn new(limit: usize) -> DynamicTable {
        DynamicTable { text: Vec::new(), entries: VecDeque::new(), size: 0, limit }
    }

    /// Entry `index`, counted from the newest, which is 0, and its coded form.
    pub(super) fn get(&self, index: usize) -> Result<(Place, &[u8]), HpackError> {
        let place = self.entries.len().checked_sub(index + 1).ok_or(HpackError::Index)?;
        let entry = self.entries.get(place).ok_or(HpackError::Index)?;
        let coded = entry.coded(&self.text).ok_or(HpackError::Index)?;
        Ok((*entry, coded))
    }

    /// Puts a field, whose coded form is `coded`, in front and drops what no longer fits; one larger than the table
    /// empties it (4.4).
    pub(super) fn insert(&mut self, field: Place, coded: &[u8]) {
        let size = field.size();
        self.evict(self.limit.saturating_sub(size));
        if size > self.limit {
            return;
        }
        self.compact();
        // Twice the largest table, and a field: far below 4 GiB.
        let start = self.text.len() as u32;
        self.text.extend_from_slice(coded);
        self.entries.push_back(Place { start, ..field });
        self.size += size;
    }

    /// Sets the size that the table may have.
    pub(super) fn resize(&mut self, limit: usize) {
        self.limit = limit;
        self.evict(limit);
    }

    /// Bytes held.
    pub(super) fn held(&self) -> usize {
        self.text.capacity() + self.entries.capacity() * size_of::<Place>()
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    fn evict(&mut self, limit: usize) {
        while self.size > limit {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.size -= oldest.size();
        }
    }

    /// Moves the live text to the front once as much lies dead before it, so that each byte is moved about once.
    fn compact(&mut self) {
        let dead = self.entries.front().map_or(self.text.len(), |oldest| oldest.start as usize);
        if dead * 2 >= self.text.len() && dead > 0 {
            self.text.drain(..dead);
            for entry in &mut self.entries {
                entry.start -= dead as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::integer;
    use super::*;
    use crate::h2::class::{Class, Name};

    /// Inserts a literal without an index: a byte, the lengths, the texts.
    fn insert(table: &mut DynamicTable, name: &[u8], value: &[u8]) {
        let mut coded = vec![0];
        integer::encode(name.len(), 7, 0, &mut coded);
        let name_at = coded.len() as u8;
        coded.extend(name);
        integer::encode(value.len(), 7, 0, &mut coded);
        coded.extend(value);
        let place = Place {
            start: 77,
            coded: coded.len() as u32,
            name: name.len() as u32,
            value: value.len() as u32,
            name_at,
            hint: 0,
            whole: false,
            class: Class::of(Name::of(name), value),
        };
        table.insert(place, &coded);
    }

    /// Name and value of an entry.
    fn get(table: &DynamicTable, index: usize) -> Result<(Vec<u8>, Vec<u8>), HpackError> {
        let (place, coded) = table.get(index)?;
        let field = Place { start: 0, ..place }.field(coded).unwrap();
        assert_eq!(Some(field), place.field(&table.text));
        Ok((field.name.to_vec(), field.value.to_vec()))
    }

    #[test]
    fn an_entry_larger_than_the_table_empties_it() {
        let mut table = DynamicTable::new(100);
        insert(&mut table, b"a", b"1");
        assert_eq!(table.size(), 34);
        insert(&mut table, b"b", &[b'x'; 100]);
        assert_eq!(table.size(), 0);
        assert_eq!(get(&table, 0), Err(HpackError::Index));
    }

    #[test]
    fn the_text_stays_bounded_and_right_over_many_insertions() {
        let mut table = DynamicTable::new(4096);
        for round in 0..10_000u32 {
            let value = vec![b'v'; (round % 300) as usize];
            insert(&mut table, &round.to_be_bytes(), &value);
            assert!(table.text.len() <= 2 * 4096 + 400, "{}", table.text.len());
            assert_eq!(get(&table, 0), Ok((round.to_be_bytes().to_vec(), value)));
            if round > 4 {
                assert_eq!(get(&table, 3).unwrap().0, (round - 3).to_be_bytes());
            }
        }
    }

    #[test]
    fn a_smaller_limit_drops_the_oldest() {
        let mut table = DynamicTable::new(4096);
        insert(&mut table, b"old", b"");
        insert(&mut table, b"new", b"");
        table.resize(40);
        assert_eq!(get(&table, 0).unwrap().0, b"new");
        assert_eq!(get(&table, 1), Err(HpackError::Index));
        table.resize(0);
        insert(&mut table, b"", b"");
        assert_eq!(get(&table, 0), Err(HpackError::Index));
    }
}
