//! The encoder of one direction: literals and entries of the static table only.

use super::integer;
use super::table::STATIC;

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

    /// Appends a field of our own; `hint` is an entry of the static table that has the same name, or 0. What a peer
    /// sent is there already as it would be written here ([`Fields::coded`](super::Fields::coded)).
    pub(crate) fn field(&self, name: &str, value: &[u8], hint: u8, out: &mut Vec<u8>) {
        if let Some(index) = whole(hint, value) {
            out.push(0x80 | index);
            return;
        }
        integer::encode(usize::from(hint), 4, 0, out);
        if hint == 0 {
            text(name.as_bytes(), out);
        }
        text(value, out);
    }
}

/// The static entry that is the whole field. `hint` is one of the same name, perhaps not the first of them.
pub(super) fn whole(hint: u8, value: &[u8]) -> Option<u8> {
    let candidates = match hint {
        2 | 3 => 2..=3,
        4 | 5 => 4..=5,
        6 | 7 => 6..=7,
        8..=14 => 8..=14,
        16 => 16..=16,
        _ => return None,
    };
    let is_whole =
        |index: &u8| STATIC.get(usize::from(*index) - 1).is_some_and(|(_, of)| of.as_bytes() == value);
    candidates.into_iter().find(is_whole)
}

fn text(text: &[u8], out: &mut Vec<u8>) {
    integer::encode(text.len(), 7, 0, out);
    out.extend_from_slice(text);
}
