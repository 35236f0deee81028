//! The decoder of one direction.

use super::encode::whole;
use super::fields::Place;
use super::table::{DynamicTable, STATIC};
use super::{Fields, HpackError, huffman, integer};
use crate::h2::class::{Class, Name};

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

/// The name of a literal, written.
struct Written {
    hint: u8,
    /// Where it begins in the field's coded form, if it stands there.
    at: usize,
    length: usize,
    name: Name,
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
            if out.len() > self.max_fields {
                return Err(HpackError::TooMany);
            }
            if out.size() > self.max_size {
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
        match index {
            0 => return Err(HpackError::Index),
            1..=STATIC_LENGTH => out.push_static(index as u8),
            _ => {
                let (place, coded) = self.table.get(index - STATIC_LENGTH - 1)?;
                out.push(place, coded);
            }
        }
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
        let (index, rest) = integer::decode(input, prefix)?;
        let room = self.max_size.saturating_sub(out.size());
        let text = out.text();
        let start = text.len();
        let (name, rest) = self.name(index, rest, sensitive, (&mut *text, room))?;
        let (value, rest) = string(rest, text, room.saturating_sub(name.length))?;
        let end = text.len();
        let bytes = text.get(end.saturating_sub(value)..).unwrap_or_default();
        match whole(name.hint, bytes).filter(|_| !sensitive) {
            Some(entry) => out.replace_by_static(start, entry),
            None => {
                let class = Class::of(name.name, bytes);
                out.close(Place {
                    // Blocks are at most 64 KiB, so nothing is cut here.
                    start: start as u32,
                    coded: (end - start) as u32,
                    name: name.length as u32,
                    value: value as u32,
                    name_at: name.at as u8,
                    hint: name.hint,
                    whole: false,
                    class,
                });
            }
        }
        if prefix == 6
            && let Some((place, coded)) = out.last()
        {
            self.table.insert(place, coded);
        }
        Ok(rest)
    }

    /// Writes the beginning of a literal, its name included, which is the entry `index` or what `input` begins with.
    /// Returns what it wrote, and what follows in the input.
    fn name<'i>(
        &self,
        index: usize,
        input: &'i [u8],
        sensitive: bool,
        (text, room): (&mut Vec<u8>, usize),
    ) -> Result<(Written, &'i [u8]), HpackError> {
        let flags = if sensitive { 0x10 } else { 0 };
        let start = text.len();
        if index == 0 {
            text.push(flags);
            let (length, rest) = string(input, text, room)?;
            let at = text.len().saturating_sub(length);
            let name = Name::of(text.get(at..).unwrap_or_default());
            return Ok((Written { hint: 0, at: at - start, length, name }, rest));
        }
        let mut hint = index as u8;
        if index > STATIC_LENGTH {
            let (place, coded) = self.table.get(index - STATIC_LENGTH - 1)?;
            hint = place.hint;
            if hint == 0 {
                let field = Place { start: 0, ..place }.field(coded).ok_or(HpackError::Index)?;
                text.push(flags);
                integer::encode(field.name.len(), 7, 0, text);
                let at = text.len() - start;
                text.extend_from_slice(field.name);
                return Ok((Written { hint, at, length: field.name.len(), name: place.class.name }, input));
            }
        }
        let (name, _) = STATIC.get(usize::from(hint) - 1).ok_or(HpackError::Index)?;
        integer::encode(usize::from(hint), 4, flags, text);
        Ok((Written { hint, at: 0, length: name.len(), name: Name::of_static(hint) }, input))
    }
}

const STATIC_LENGTH: usize = STATIC.len();

/// Appends the string literal that `input` begins with to `out`, as our encoder writes it; its text may have `room`
/// bytes. Returns how many it has, and what follows.
fn string<'i>(input: &'i [u8], out: &mut Vec<u8>, room: usize) -> Result<(usize, &'i [u8]), HpackError> {
    let coded = input.first().is_some_and(|first| first & 0x80 != 0);
    let (length, rest) = integer::decode(input, 7)?;
    let (text, rest) = rest.split_at_checked(length).ok_or(HpackError::Truncated)?;
    if !coded {
        if text.len() > room {
            return Err(HpackError::TooLarge);
        }
        integer::encode(text.len(), 7, 0, out);
        out.extend_from_slice(text);
        return Ok((text.len(), rest));
    }
    let start = out.len();
    // Room for the length, which is known at the end, and mostly fits into a byte.
    out.push(0);
    huffman::decode(text, out, room.saturating_add(start + 1))?;
    let length = out.len() - start - 1;
    if let (0..127, Some(head)) = (length, out.get_mut(start)) {
        *head = length as u8;
        return Ok((length, rest));
    }
    let end = out.len();
    integer::encode(length, 7, 0, out);
    let head = out.len() - end;
    if let Some(all) = out.get_mut(start..) {
        all.rotate_right(head);
    }
    out.remove(start + head);
    Ok((length, rest))
}
