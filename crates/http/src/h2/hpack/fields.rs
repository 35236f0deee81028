//! A decoded header block. Its fields are kept in the form in which our encoder writes them, so that a block which
//! passes unchanged is copied in one piece.

use super::table::{OVERHEAD, STATIC};
use crate::h2::class::{Class, Name};

/// Where a field is, in a text that holds its coded form. What a static entry says is not in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Where its coded form begins, and how long that is.
    pub(super) start: u32,
    pub(super) coded: u32,
    /// The lengths of name and value.
    pub(super) name: u32,
    pub(super) value: u32,
    /// Where the name begins in the coded form, if it stands there.
    pub(super) name_at: u8,
    pub(super) hint: u8,
    /// The static entry `hint` is the whole field.
    pub(super) whole: bool,
    pub(super) class: Class,
}

/// One field of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
    /// An entry of the static table that has the same name; 0 when none is known.
    pub(crate) hint: u8,
    /// What its bytes say.
    pub(crate) class: Class,
}

impl<'a> Field<'a> {
    /// The name as text; of a malformed one perhaps nothing.
    pub(crate) fn text(&self) -> &'a str {
        match name_of(self.hint) {
            Some(name) => name,
            None => std::str::from_utf8(self.name).unwrap_or_default(),
        }
    }
}

impl Place {
    /// A whole entry of the static table, coded at `start`.
    fn of_static(index: u8, start: u32) -> Place {
        let (name, value) = entry(index).unwrap_or_default();
        Place {
            start,
            coded: 1,
            name: name.len() as u32,
            value: value.len() as u32,
            name_at: 0,
            hint: index,
            whole: true,
            class: Class::of_static(index),
        }
    }

    /// What it counts: text and 32 bytes (RFC 7541, 4.1; RFC 9113, 6.5.2).
    pub(super) fn size(&self) -> usize {
        self.name as usize + self.value as usize + OVERHEAD
    }

    /// Its coded form in `text`.
    pub(super) fn coded<'t>(&self, text: &'t [u8]) -> Option<&'t [u8]> {
        text.get(self.start as usize..)?.get(..self.coded as usize)
    }

    /// The field whose coded form lies in `text`.
    pub(super) fn field<'t>(&self, text: &'t [u8]) -> Option<Field<'t>> {
        let (name, value) = if self.whole {
            let (name, value) = entry(self.hint)?;
            (name.as_bytes(), value.as_bytes())
        } else {
            let coded = self.coded(text)?;
            let value = coded.get(coded.len().checked_sub(self.value as usize)?..)?;
            let name = match name_of(self.hint) {
                Some(name) => name.as_bytes(),
                None => coded.get(usize::from(self.name_at)..)?.get(..self.name as usize)?,
            };
            (name, value)
        };
        Some(Field { name, value, hint: self.hint, class: self.class })
    }
}

/// The entry of the static table at `index`.
fn entry(index: u8) -> Option<(&'static str, &'static str)> {
    STATIC.get(usize::from(index).checked_sub(1)?).copied()
}

fn name_of(hint: u8) -> Option<&'static str> {
    entry(hint).map(|(name, _)| name)
}

/// The fields of a block, in their order, in two buffers that are used again for the next one.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    /// Their coded forms, one behind the other.
    text: Vec<u8>,
    places: Vec<Place>,
    size: usize,
}

impl Fields {
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.places.clear();
        self.size = 0;
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// What the fields count: their text and 32 bytes each (RFC 9113, 6.5.2).
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// What the buffers hold in memory.
    pub(crate) fn capacity(&self) -> usize {
        self.text.capacity() + self.places.capacity() * size_of::<Place>()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.places.iter().filter_map(|place| place.field(&self.text))
    }

    /// The fields behind the pseudo-fields.
    pub(crate) fn regular(&self) -> impl Iterator<Item = Field<'_>> {
        let places = self.places.iter().filter(|place| place.class.name != Name::Pseudo);
        places.filter_map(|place| place.field(&self.text))
    }

    /// All fields as our encoder writes them.
    pub(crate) fn coded(&self) -> &[u8] {
        &self.text
    }

    /// Appends those that `stay`, as our encoder writes them: neighbours in one piece. `stays` is told what the name
    /// is, and can ask for it.
    pub(crate) fn write<'f>(&'f self, stays: impl Fn(Name, &dyn Fn() -> &'f str) -> bool, out: &mut Vec<u8>) {
        let mut piece = 0..0;
        for place in &self.places {
            let name = || place.field(&self.text).map_or("", |field| field.text());
            if !stays(place.class.name, &name) {
                continue;
            }
            let here = place.start as usize..place.start as usize + place.coded as usize;
            if piece.end != here.start {
                out.extend_from_slice(self.text.get(piece).unwrap_or_default());
                piece = here.start..here.start;
            }
            piece.end = here.end;
        }
        out.extend_from_slice(self.text.get(piece).unwrap_or_default());
    }

    /// The buffer that a decoder appends a coded form to before it closes the field.
    pub(super) fn text(&mut self) -> &mut Vec<u8> {
        &mut self.text
    }

    /// Makes a field of the coded form that the text ends with.
    pub(super) fn close(&mut self, place: Place) {
        self.size += place.size();
        self.places.push(place);
    }

    /// Appends a whole entry of the static table.
    pub(super) fn push_static(&mut self, index: u8) {
        let start = self.text.len() as u32;
        self.text.push(0x80 | index);
        self.close(Place::of_static(index, start));
    }

    /// Makes the coded form that the text has from `start` on one that names a whole entry of the static table.
    pub(super) fn replace_by_static(&mut self, start: usize, index: u8) {
        self.text.truncate(start);
        self.push_static(index);
    }

    /// Appends a field whose coded form is `coded`.
    pub(super) fn push(&mut self, place: Place, coded: &[u8]) {
        let start = self.text.len() as u32;
        self.text.extend_from_slice(coded);
        self.close(Place { start, ..place });
    }

    /// The last field, and its coded form.
    pub(super) fn last(&self) -> Option<(Place, &[u8])> {
        let place = *self.places.last()?;
        Some((place, place.coded(&self.text)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_static_entry_is_classed_as_its_bytes_are() {
        for index in 1..=61 {
            let (name, value) = entry(index).unwrap();
            assert_eq!(Name::of_static(index), Name::of(name.as_bytes()), "{name}");
            assert_eq!(Class::of_static(index), Class::of(Name::of(name.as_bytes()), value.as_bytes()));
        }
        assert_eq!((entry(0), entry(62), entry(255)), (None, None, None));
    }

    #[test]
    fn what_stays_is_written_as_it_was_coded_whatever_lies_between() {
        let mut fields = Fields::default();
        for index in [2, 6, 4, 16, 8, 60] {
            fields.push_static(index);
        }
        let written = |kept: &[&str]| {
            let mut out = vec![0xff];
            fields.write(|_, name| kept.contains(&name()), &mut out);
            out
        };
        assert_eq!(written(&[":method", ":scheme", ":path", "via"]), [0xff, 0x82, 0x86, 0x84, 0xbc]);
        assert_eq!(written(&[":scheme", "accept-encoding", ":status"]), [0xff, 0x86, 0x90, 0x88]);
        assert_eq!(written(&[]), [0xff]);
        assert_eq!(fields.coded(), [0x82, 0x86, 0x84, 0x90, 0x88, 0xbc]);
    }
}
