//! A decoded header block.

use super::table::OVERHEAD;

/// Where a field's text is.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: u32,
    name: u32,
    value: u32,
    hint: u8,
    sensitive: bool,
}

/// One field of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
    /// An entry of the static table that has the same name; 0 when none is known.
    pub(crate) hint: u8,
    /// Must never be put into a table (RFC 7541, 7.1.3).
    pub(crate) sensitive: bool,
}

/// The fields of a block, in their order, in two buffers that are used again for the next one.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    text: Vec<u8>,
    places: Vec<Place>,
}

impl Fields {
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.places.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// What the fields count: their text and 32 bytes each (RFC 9113, 6.5.2).
    pub(crate) fn size(&self) -> usize {
        self.text.len() + self.places.len() * OVERHEAD
    }

    /// What the buffers hold in memory.
    pub(crate) fn capacity(&self) -> usize {
        self.text.capacity() + self.places.capacity() * size_of::<Place>()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.places.iter().filter_map(|place| self.at(place))
    }

    #[cfg(test)]
    pub(super) fn get(&self, index: usize) -> Option<Field<'_>> {
        self.places.get(index).and_then(|place| self.at(place))
    }

    fn at(&self, place: &Place) -> Option<Field<'_>> {
        let text = self.text.get(place.start as usize..)?;
        let (name, rest) = text.split_at_checked(place.name as usize)?;
        let value = rest.get(..place.value as usize)?;
        Some(Field { name, value, hint: place.hint, sensitive: place.sensitive })
    }

    /// Appends a field.
    pub(crate) fn push(&mut self, name: &[u8], value: &[u8], hint: u8) {
        let start = self.text.len();
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        self.close(start, name.len(), hint, false);
    }

    /// The buffer that a decoder appends text to before it closes the field.
    pub(super) fn text(&mut self) -> &mut Vec<u8> {
        &mut self.text
    }

    /// Makes a field of the text from `start` on.
    pub(super) fn close(&mut self, start: usize, name: usize, hint: u8, sensitive: bool) {
        let value = self.text.len().saturating_sub(start + name);
        // Blocks are at most 64 KiB, so nothing is cut here.
        let place = Place { start: start as u32, name: name as u32, value: value as u32, hint, sensitive };
        self.places.push(place);
    }

    /// Name and value of the last field.
    pub(super) fn last(&self) -> Option<Field<'_>> {
        self.places.last().and_then(|place| self.at(place))
    }
}
