//! What leaves the filter: ranges of the buffer that came in, and bytes of our own.

use crate::{Authorizer, Patch};
use std::ops::Range;
use std::time::Instant;

/// What one call works with.
pub struct Turn<'a> {
    /// The present; may be as old as the beginning of the event loop's turn.
    pub now: Instant,
    /// Decides about requests.
    pub authorizer: &'a mut dyn Authorizer,
    /// Takes what is to be sent.
    pub out: &'a mut Output,
}

/// What is to be sent to both sides. One for many connections: it keeps its memory when cleared.
#[derive(Debug, Default)]
pub struct Output {
    /// To the app.
    pub to_app: Outgoing,
    /// To the client.
    pub to_client: Outgoing,
    pub(crate) patch: Patch,
}

impl Output {
    /// Forgets what was sent.
    pub fn clear(&mut self) {
        self.to_app.clear();
        self.to_client.clear();
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Input(Range<usize>),
    Own(Range<usize>),
}

/// Bytes for one side, in order.
#[derive(Debug, Default)]
pub struct Outgoing {
    pieces: Vec<Piece>,
    own: Vec<u8>,
    length: usize,
    fin: bool,
}

impl Outgoing {
    /// The bytes, in as few slices as there are; `input` is what the call was given. No slice is empty.
    pub fn slices<'a>(&'a self, input: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.pieces.iter().map(move |piece| match piece {
            Piece::Input(range) => input.get(range.clone()).unwrap_or_default(),
            Piece::Own(range) => self.own.get(range.clone()).unwrap_or_default(),
        })
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// No bytes (there may still be an end: [`Outgoing::fin`]).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// This direction ends after the bytes: shut down writing.
    #[must_use]
    pub fn fin(&self) -> bool {
        self.fin
    }

    /// How many of them are not of the input.
    #[must_use]
    pub fn own_len(&self) -> usize {
        self.own.len()
    }

    /// Forgets everything, but keeps the memory up to what a turn needs.
    pub fn clear(&mut self) {
        const KEPT: usize = 64 * 1024;
        self.pieces.clear();
        self.own.clear();
        self.own.shrink_to(KEPT);
        self.length = 0;
        self.fin = false;
    }

    /// Adds a range of the input.
    pub(crate) fn input(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        self.length += range.len();
        match self.pieces.last_mut() {
            Some(Piece::Input(last)) if last.end == range.start => last.end = range.end,
            _ => self.pieces.push(Piece::Input(range)),
        }
    }

    /// Adds bytes of our own.
    pub(crate) fn own(&mut self, bytes: &[u8]) {
        self.build(|own| own.extend_from_slice(bytes));
    }

    /// Adds what `write` appends to the buffer; it must not shorten it.
    pub(crate) fn build(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.own.len();
        write(&mut self.own);
        let end = self.own.len();
        if start >= end {
            return;
        }
        self.length += end - start;
        match self.pieces.last_mut() {
            Some(Piece::Own(last)) if last.end == start => last.end = end,
            _ => self.pieces.push(Piece::Own(start..end)),
        }
    }

    /// This direction ends here.
    pub(crate) fn finish(&mut self) {
        self.fin = true;
    }
}
