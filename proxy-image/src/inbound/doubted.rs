//! A client that has said nothing when the app has, though its host has a proxy: its first words may yet be a tunnel's
//! ClientHello, which came too late. They are looked at before anybody gets them.

use crate::copy::{Failure, Moved, Side, Sink, TcpSide};
use crate::sniff::{self, First};
use std::task::{Context, Poll, ready};

/// The client as a side.
pub(super) struct Doubted {
    side: TcpSide,
    /// The first words, until it is known what they are; `None` when that is so.
    first: Option<Vec<u8>>,
    /// Bytes that a tunnel's ClientHello may have.
    most: usize,
    is_tunnel: bool,
}

impl Doubted {
    /// `silent`: its first words are still to come, and to be looked at, `most` bytes of a ClientHello.
    pub(super) fn new(side: TcpSide, silent: bool, most: usize) -> Doubted {
        Doubted { side, first: silent.then(Vec::new), most, is_tunnel: false }
    }

    /// A tunnel's ClientHello came; the copy then failed by this side.
    pub(super) fn is_tunnel(&self) -> bool {
        self.is_tunnel
    }

    /// The connection.
    pub(super) fn into_inner(self) -> TcpSide {
        self.side
    }

    /// Takes in first words; gives them all once it is known that they are no tunnel's.
    fn look(&mut self, bytes: &[u8], fin: bool) -> Option<Vec<u8>> {
        let first = self.first.as_mut()?;
        first.extend_from_slice(bytes);
        match sniff::classify(first, self.most) {
            First::Tunnel => self.is_tunnel = true,
            First::Undecided if !fin => {}
            First::Undecided | First::Other | First::TooLong => return self.first.take(),
        }
        None
    }
}

impl Side for Doubted {
    fn poll_forward(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        sink: &mut Sink<'_>,
    ) -> Poll<Result<Moved, Failure>> {
        if self.first.is_none() {
            return self.side.poll_forward(cx, most, sink);
        }
        let mut heard = Vec::new();
        let read = ready!(self.side.poll_forward(cx, most, &mut |bytes, _| heard.extend_from_slice(bytes)));
        let fin = match read {
            Ok(moved) => moved.fin,
            Err(failure) => return Poll::Ready(Err(failure)),
        };
        let words = self.look(&heard, fin);
        if self.is_tunnel {
            return Poll::Ready(Err(Failure::Reset));
        }
        let words = words.unwrap_or_default();
        if fin || !words.is_empty() {
            sink(&words, fin);
        }
        Poll::Ready(Ok(Moved { bytes: words.len(), fin }))
    }

    fn may_take(&self) -> usize {
        self.side.may_take()
    }

    fn send(&mut self, bytes: &[u8], fin: bool) -> Result<(), Failure> {
        self.side.send(bytes, fin)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.side.poll_flush(cx)
    }

    fn rest(&mut self, cx: &mut Context<'_>) {
        self.side.rest(cx);
    }
}
