//! The decoder of one direction.

use super::table::{DynamicTable, OVERHEAD, STATIC};
use super::{Fields, HpackError, huffman, integer};

/// The table size that peers may use: what RFC 9113 begins with. We never offer another.
const TABLE_SIZE: usize = 4096;

/// The size updates that may begin a block: the smallest and the last of those between two blocks
/// (RFC 7541, 4.2).
const MAX_SIZE_UPDATES: u32 = 2;

/// Decodes the blocks of one direction; every block of it must come by here, also those that are dropped.
#[derive(Debug)]
pub(crate) struct Decoder {
    table: DynamicTable,
    max_size: usize,
    max_fields: usize,
}

impl Decoder {
    /// A decoder of blocks whose fields count at most `max_size` bytes ([`Fields::size`]) and are at most
    /// `max_fields`.
    pub(crate) const fn new(max_size: usize, max_fields: usize) -> Decoder {
        Decoder { table: DynamicTable::new(TABLE_SIZE), max_size, max_fields }
    }

    /// Decodes a whole block into `out`, whose former content goes.
    pub(crate) fn decode(&mut self, block: &[u8], out: &mut Fields) -> Result<(), HpackError> {
        out.clear();
        let mut rest = block;
        let mut updates = 0;
        while let Some(first) = rest.first() {
            rest = match first {
                0x80.. => self.indexed(rest, out)?,
                0x40..0x80 => self.literal(rest, 6, out)?,
                0x20..0x40 => {
                    updates += 1;
                    if out.len() > 0 || updates > MAX_SIZE_UPDATES {
                        return Err(HpackError::TableSize);
                    }
                    self.size_update(rest)?
                }
                _ => self.literal(rest, 4, out)?,
            };
            if out.len() > self.max_fields || out.size() > self.max_size {
                return Err(HpackError::TooLarge);
            }
        }
        Ok(())
    }

    /// Bytes held.
    pub(crate) fn held(&self) -> usize {
        self.table.held()
    }

    #[cfg(test)]
    pub(super) fn table_size(&self) -> usize {
        self.table.size()
    }

    fn size_update<'i>(&mut self, input: &'i [u8]) -> Result<&'i [u8], HpackError> {
        let (size, rest) = integer::decode(input, 5)?;
        if size > TABLE_SIZE {
            return Err(HpackError::TableSize);
        }
        self.table.resize(size);
        Ok(rest)
    }

    fn indexed<'i>(&mut self, input: &'i [u8], out: &mut Fields) -> Result<&'i [u8], HpackError> {
        let (index, rest) = integer::decode(input, 7)?;
        let (name, value, hint) = entry(&self.table, index)?;
        out.push(name, value, hint);
        Ok(rest)
    }

    /// A literal, whose first byte holds `prefix` bits of the name's index: 6 where it goes into the table.
    fn literal<'i>(
        &mut self,
        input: &'i [u8],
        prefix: u32,
        out: &mut Fields,
    ) -> Result<&'i [u8], HpackError> {
        let sensitive = prefix == 4 && input.first().is_some_and(|first| first & 0x10 != 0);
        let (index, mut rest) = integer::decode(input, prefix)?;
        let room = self.max_size.saturating_sub(out.len() * OVERHEAD);
        let start = out.text().len();
        let hint = if index == 0 {
            rest = string(rest, out.text(), room)?;
            0
        } else {
            let (name, _, hint) = entry(&self.table, index)?;
            out.text().extend_from_slice(name);
            hint
        };
        let name = out.text().len() - start;
        rest = string(rest, out.text(), room)?;
        out.close(start, name, hint, sensitive);
        if prefix == 6
            && let Some(field) = out.last()
        {
            self.table.insert(field.name, field.value, hint);
        }
        Ok(rest)
    }
}

/// The entry at `index` of both tables.
fn entry(table: &DynamicTable, index: usize) -> Result<(&[u8], &[u8], u8), HpackError> {
    let place = index.checked_sub(1).ok_or(HpackError::Index)?;
    match STATIC.get(place) {
        Some((name, value)) => Ok((name.as_bytes(), value.as_bytes(), index as u8)),
        None => table.get(place - STATIC.len()),
    }
}

/// Appends a string literal to `out`, which may grow to `room` bytes; returns what follows it.
fn string<'i>(input: &'i [u8], out: &mut Vec<u8>, room: usize) -> Result<&'i [u8], HpackError> {
    let coded = input.first().is_some_and(|first| first & 0x80 != 0);
    let (length, rest) = integer::decode(input, 7)?;
    let (text, rest) = rest.split_at_checked(length).ok_or(HpackError::Truncated)?;
    if coded {
        huffman::decode(text, out, room)?;
    } else if out.len() + text.len() > room {
        return Err(HpackError::TooLarge);
    } else {
        out.extend_from_slice(text);
    }
    Ok(rest)
}
