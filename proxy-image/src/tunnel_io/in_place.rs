//! Records by `cinch-record`: opened where they were read, sealed where they are written from. Both buffers are
//! the thread's; a tunnel owns one only for what has come as less than a record, and for what the socket did not
//! take.

use super::TunnelError;
use super::wire::Hear;
use crate::copy::{SEALED, with_scratch};
use cinch_record::{Records, Step};
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A tunnel whose socket is full gives the thread's buffer back if so little is left that a copy is cheaper.
const COPIED: usize = SEALED / 4;

/// A peer may pad its records beyond what is asked for at a time (RFC 8446, section 5.4); the rest of one is read in steps
/// of this, however much waits already.
const LEAST_READ: usize = 256;

thread_local! {
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A connection whose records we seal and open ourselves.
pub(super) struct InPlace {
    records: Records,
    /// What has come and is not opened: less than a record, or all that came behind the handshake.
    waiting: Vec<u8>,
    behind_handshake: bool,
    /// Sealed and not yet sent, from `sent` on.
    kept: Vec<u8>,
    sent: usize,
    end: Option<End>,
}

/// Nothing more can be opened.
#[derive(Clone, Copy)]
enum End {
    /// The peer says so.
    Closed,
    /// After a fault the next record can't be found, or not be trusted.
    Fault,
}

impl InPlace {
    /// `early`: what came behind the handshake.
    pub(super) fn new(records: Records, early: Vec<u8>) -> InPlace {
        let behind_handshake = !early.is_empty();
        InPlace { records, waiting: early, behind_handshake, kept: Vec::new(), sent: 0, end: None }
    }

    /// Seals `parts` as one record behind what is kept; [`InPlace::push`] or [`InPlace::poll_send`] sends it.
    pub(super) fn seal(&mut self, parts: &[&[u8]]) -> Result<(), TunnelError> {
        if self.kept.capacity() < SEALED {
            let mut buffer = SPARE.take();
            buffer.reserve(SEALED);
            buffer.extend_from_slice(self.kept.get(self.sent..).unwrap_or_default());
            (self.kept, self.sent) = (buffer, 0);
        }
        Ok(self.records.seal(parts, &mut self.kept)?)
    }

    /// Memory that is held for what the socket did not take.
    pub(super) fn kept(&self) -> usize {
        if self.sent == self.kept.len() { 0 } else { self.kept.capacity() }
    }

    /// Nothing more than what is sealed of one read fits before it is pushed.
    pub(super) fn is_full(&self) -> bool {
        self.kept.len() - self.sent >= SEALED
    }

    pub(super) fn close_notify(&mut self) {
        // A connection that can't even say this is broken, and its peer will find out.
        let _ = self.records.close_notify(&mut self.kept);
    }

    /// Writes what is kept, as far as it goes at once. An error is met again by [`InPlace::poll_send`]: the peer
    /// may have said more before, and that has to be heard first.
    pub(super) fn push(&mut self, tcp: &TcpStream) {
        let Some(rest) = self.kept.get(self.sent..) else { return };
        self.sent += tcp.try_write(rest).unwrap_or_default();
        if self.sent == self.kept.len() {
            self.records.sent();
            self.release();
        } else {
            self.hold();
        }
    }

    pub(super) fn poll_send(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), TunnelError>> {
        while let Some(rest) = self.kept.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut *tcp).poll_write(cx, rest) {
                Poll::Ready(written) => self.sent += written.map_err(TunnelError::Broken)?,
                Poll::Pending => {
                    self.hold();
                    return Poll::Pending;
                }
            }
        }
        if self.kept.capacity() > 0 {
            self.records.sent();
            self.release();
        }
        Poll::Ready(Ok(()))
    }

    /// All is sent: the buffer is the thread's again.
    fn release(&mut self) {
        let mut buffer = std::mem::take(&mut self.kept);
        self.sent = 0;
        if (SEALED..=2 * SEALED).contains(&buffer.capacity()) {
            buffer.clear();
            SPARE.set(buffer);
        }
    }

    /// The socket is full.
    fn hold(&mut self) {
        let rest = self.kept.get(self.sent..).unwrap_or_default();
        if rest.len() <= COPIED && self.kept.capacity() >= SEALED {
            let rest = rest.to_vec();
            self.release();
            self.kept = rest;
        }
    }

    /// `most`: bytes of sealed records, what waits of one among them.
    pub(super) fn poll_receive(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
        most: usize,
        hear: &mut Hear<'_>,
    ) -> Poll<Result<(), TunnelError>> {
        match self.end {
            None => {}
            Some(End::Closed) => return Poll::Ready(Err(TunnelError::Closed)),
            Some(End::Fault) => {
                return Poll::Ready(Err(TunnelError::Broken(io::ErrorKind::InvalidData.into())));
            }
        }
        if std::mem::take(&mut self.behind_handshake) {
            let mut early = std::mem::take(&mut self.waiting);
            if self.open(tcp, &mut early, hear)? {
                return Poll::Ready(Ok(()));
            }
        }
        with_scratch(|scratch| {
            let (front, room) = scratch.split_at_mut(self.waiting.len());
            let most = to_read(most, self.waiting.len()).min(room.len());
            let mut buffer = ReadBuf::new(room.get_mut(..most).unwrap_or_default());
            ready!(Pin::new(&mut *tcp).poll_read(cx, &mut buffer)).map_err(TunnelError::Broken)?;
            let come = buffer.filled().len();
            if come == 0 {
                return Poll::Ready(Err(TunnelError::Broken(io::ErrorKind::UnexpectedEof.into())));
            }
            front.copy_from_slice(&self.waiting);
            let come = scratch.get_mut(..self.waiting.len() + come).unwrap_or_default();
            self.open(tcp, come, hear)?;
            Poll::Ready(Ok(()))
        })
    }

    /// Opens what is there whole, and keeps the rest; says whether anything was heard.
    fn open(
        &mut self,
        tcp: &TcpStream,
        mut come: &mut [u8],
        hear: &mut Hear<'_>,
    ) -> Result<bool, TunnelError> {
        let (mut any, unsent) = (false, self.kept.len());
        loop {
            let used = match self.records.open(come, &mut self.kept) {
                Ok(Step::Incomplete) => break,
                Ok(Step::Data { bytes, used }) => {
                    any = true;
                    hear(bytes).inspect_err(|_| self.end = Some(End::Fault))?;
                    used
                }
                Ok(Step::Control { used }) => used,
                Ok(Step::Closed { .. }) => {
                    (self.end, self.waiting) = (Some(End::Closed), Vec::new());
                    return Err(TunnelError::Closed);
                }
                Err(error) => {
                    (self.end, self.waiting) = (Some(End::Fault), Vec::new());
                    self.records.abort(&error, &mut self.kept);
                    self.push(tcp);
                    let error = TunnelError::from(error);
                    if matches!(error, TunnelError::Closed) {
                        self.end = Some(End::Closed);
                    }
                    return Err(error);
                }
            };
            come = come.get_mut(used..).unwrap_or_default();
        }
        if come.is_empty() {
            self.waiting = Vec::new();
        } else {
            self.waiting.clear();
            self.waiting.extend_from_slice(come);
        }
        if self.kept.len() > unsent {
            // The answer to a key update.
            self.push(tcp);
        }
        Ok(any)
    }
}

/// Bytes to ask for when `waiting` of the `most` that may be held have come.
fn to_read(most: usize, waiting: usize) -> usize {
    most.saturating_sub(waiting).max(LEAST_READ)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_padded_record_is_not_read_byte_by_byte() {
        assert_eq!((to_read(SEALED, 0), to_read(SEALED, SEALED - 300)), (SEALED, 300));
        for waiting in [SEALED - 1, SEALED, SEALED + 200] {
            assert_eq!(to_read(SEALED, waiting), LEAST_READ, "{waiting}");
        }
    }
}
