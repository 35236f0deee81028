//! The two sides of a filtered connection, and how the filter's output gets to them.

use crate::copy::{End, Failure, Observer, Side, Which};
use cinch_http::{Outgoing, Output};
use std::cell::Cell;

/// Pieces of so many bytes are joined before they are sent: one record, one system call.
const JOIN: usize = cinch_tunnel::MAX_PAYLOAD;

thread_local! {
    static BUFFERS: Cell<Option<Box<Buffers>>> = const { Cell::new(None) };
}

/// Memory of a turn, lent to one connection after the other, so that connections own none.
#[derive(Default)]
pub(super) struct Buffers {
    pub(super) output: Output,
    /// Pieces on their way.
    pub(super) joined: Vec<u8>,
    /// For the side that is being read.
    pub(super) back: Back,
}

/// What waits until a side that is being read can be written to.
#[derive(Default)]
pub(super) struct Back {
    bytes: Vec<u8>,
    fin: bool,
}

impl Back {
    pub(super) fn keep(&mut self, bytes: &[u8], fin: bool) {
        self.bytes.extend_from_slice(bytes);
        self.fin |= fin;
    }

    /// Sends it.
    pub(super) fn send(&mut self, side: &mut impl Side) -> Result<(), Failure> {
        if self.bytes.is_empty() && !self.fin {
            return Ok(());
        }
        let sent = side.send(&self.bytes, self.fin);
        self.bytes.clear();
        self.bytes.shrink_to(JOIN);
        self.fin = false;
        sent
    }
}

/// Lends the thread's buffers.
pub(super) fn with_buffers<R>(work: impl FnOnce(&mut Buffers) -> R) -> R {
    let mut buffers = BUFFERS.take().unwrap_or_default();
    buffers.output.clear();
    let result = work(&mut buffers);
    BUFFERS.set(Some(buffers));
    result
}

/// The two sides and who watches.
pub(super) struct Io<'a, C, A, O> {
    pub(super) client: &'a mut C,
    pub(super) app: &'a mut A,
    pub(super) observer: &'a mut O,
}

/// Something of the client, and the same of the app.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Both {
    pub(super) client: bool,
    pub(super) app: bool,
}

/// Takes bytes for one side, and whether they are its last.
pub(super) type Send<'a> = dyn FnMut(&[u8], bool) -> Result<(), Failure> + 'a;

/// Hands the filter's output on, call by call; keeps the first failure.
pub(super) struct Delivery<'a, O> {
    pub(super) client: &'a mut Send<'a>,
    pub(super) app: &'a mut Send<'a>,
    pub(super) observer: &'a mut O,
    joined: &'a mut Vec<u8>,
    /// Whom we have told that our direction has ended: nothing follows that.
    told: &'a mut Both,
    failed: Option<End>,
    moved: bool,
}

impl<'a, O: Observer> Delivery<'a, O> {
    pub(super) fn new(
        client: &'a mut Send<'a>,
        app: &'a mut Send<'a>,
        observer: &'a mut O,
        joined: &'a mut Vec<u8>,
        told: &'a mut Both,
    ) -> Self {
        Delivery { client, app, observer, joined, told, failed: None, moved: false }
    }

    /// Sends what one call of the filter made of `input`.
    pub(super) fn deliver(&mut self, input: &[u8], output: &mut Output) {
        if self.failed.is_none() {
            self.failed = self.try_deliver(input, output).err();
        }
        output.clear();
    }

    fn try_deliver(&mut self, input: &[u8], output: &Output) -> Result<(), End> {
        let bytes = send(&output.to_app, input, self.app, self.joined, &mut self.told.app)
            .map_err(|failure| End::Failed(Which::Second, failure))?;
        if bytes > 0 {
            self.observer.moved(Which::First, bytes);
        }
        let back = send(&output.to_client, input, self.client, self.joined, &mut self.told.client)
            .map_err(|failure| End::Failed(Which::First, failure))?;
        self.moved |= bytes + back > 0;
        Ok(())
    }

    /// Whether bytes went, or what failed.
    pub(super) fn result(self) -> Result<bool, End> {
        match self.failed {
            None => Ok(self.moved),
            Some(end) => Err(end),
        }
    }
}

/// Sends the pieces, small ones joined; says how many bytes.
fn send(
    outgoing: &Outgoing,
    input: &[u8],
    to: &mut Send<'_>,
    joined: &mut Vec<u8>,
    told: &mut bool,
) -> Result<usize, Failure> {
    if *told || outgoing.is_empty() && !outgoing.fin() {
        return Ok(0);
    }
    *told |= outgoing.fin();
    if outgoing.is_empty() {
        return to(&[], true).map(|()| 0);
    }
    let mut left = outgoing.len();
    joined.clear();
    for slice in outgoing.slices(input) {
        left = left.saturating_sub(slice.len());
        let alone = slice.len() >= JOIN || left == 0 && joined.is_empty();
        if !joined.is_empty() && (alone || joined.len() + slice.len() > JOIN) {
            to(joined, false)?;
            joined.clear();
        }
        if alone {
            to(slice, left == 0 && outgoing.fin())?;
        } else {
            joined.extend_from_slice(slice);
        }
    }
    if !joined.is_empty() {
        to(joined, outgoing.fin())?;
        joined.clear();
    }
    Ok(outgoing.len())
}
