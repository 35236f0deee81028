//! The encoder of one direction: literals and entries of the static table only.

use super::table::STATIC;
use super::{Field, integer};

/// Writes the blocks of one direction.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    /// Whether the peer knows that our table is empty.
    announced: bool,
}

impl Encoder {
    /// Begins a block in `out`. The first one sets the table's size to 0: without it, a peer whose decoder allows
    /// less than the default, and waits for us to say that we heed it, refuses the connection.
    pub(crate) fn begin(&mut self, out: &mut Vec<u8>) {
        if !self.announced {
            out.push(0x20);
            self.announced = true;
        }
    }

    /// Appends a field.
    pub(crate) fn field(&self, field: Field<'_>, out: &mut Vec<u8>) {
        if let Some(index) = whole(field) {
            out.push(0x80 | index);
            return;
        }
        let flags = if field.sensitive { 0x10 } else { 0 };
        integer::encode(usize::from(field.hint), 4, flags, out);
        if field.hint == 0 {
            text(field.name, out);
        }
        text(field.value, out);
    }
}

/// The static entry that is the whole field. `hint` is one of the same name, perhaps not the first of them.
fn whole(field: Field<'_>) -> Option<u8> {
    let candidates = match field.hint {
        2 | 3 => 2..=3,
        4 | 5 => 4..=5,
        6 | 7 => 6..=7,
        8..=14 => 8..=14,
        16 => 16..=16,
        _ => return None,
    };
    let is_whole = |index: &u8| {
        STATIC.get(usize::from(*index) - 1).is_some_and(|(_, value)| value.as_bytes() == field.value)
    };
    if field.sensitive { None } else { candidates.into_iter().find(is_whole) }
}

fn text(text: &[u8], out: &mut Vec<u8>) {
    integer::encode(text.len(), 7, 0, out);
    out.extend_from_slice(text);
}
