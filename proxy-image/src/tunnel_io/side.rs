//! A tunnel as one side of a copy.

use super::{State, Tunnel};
use crate::copy::{Failure, Moved, Side, Sink};
use crate::socket;
use cinch_reason::Reason;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use tokio::task::yield_now;

/// So often the runtime looks for news before OPENED leaves without the app's answer to what came with OPEN. With it,
/// it leaves in one segment, which saves the other side a wake-up. A busy proxy has the answer by then mostly; an idle
/// one loses a few microseconds. Not a timer: each would cost more than it saves.
const LOOKS: u8 = 3;

/// Whether OPENED is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    No,
    /// For so many looks more.
    For(u8),
}

impl Held {
    /// Held back from now on.
    pub(super) const BEGIN: Held = Held::For(LOOKS);
}

impl Side for Tunnel {
    fn poll_forward(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        sink: &mut Sink<'_>,
    ) -> Poll<Result<Moved, Failure>> {
        self.0.heard.copying = true;
        if self.0.heard.open.is_none() && (!self.0.heard.data.is_empty() || self.0.heard.fin) {
            let moved = Moved { bytes: self.0.heard.data.len(), fin: self.0.heard.fin };
            sink(&self.0.heard.data, self.0.heard.fin);
            self.0.heard.forget_data();
            return Poll::Ready(Ok(moved));
        }
        if self.0.heard.reset.is_some() {
            return Poll::Ready(Err(Failure::Reset));
        }
        let mut moved = Moved::default();
        let mut take = |bytes: &[u8], fin| {
            moved.bytes += bytes.len();
            moved.fin |= fin;
            sink(bytes, fin);
        };
        let received = ready!(self.poll_receive(cx, Some((most, &mut take))));
        Poll::Ready(match received {
            Ok(()) => Ok(moved),
            Err(error) => Err(self.broken(error)),
        })
    }

    fn may_take(&self) -> usize {
        let State { share, tcp, .. } = &*self.0;
        share.as_ref().map_or(usize::MAX, |share| share.may_read(|| socket::room(tcp)))
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Option<Reason> {
        self.0.proof.as_ref()?.poll_lost(cx).then_some(Reason::CertificateUntrusted)
    }

    fn poll_after_fin(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        while self.0.heard.reset.is_none() {
            // Both directions have ended: whatever comes now is of the next stream, or the end of the tunnel, and
            // takes nothing back of what is still on its way to the app.
            if self.0.session.is_idle() || self.0.heard.open.is_some() {
                return Poll::Pending;
            }
            if let Err(error) = ready!(self.poll_receive(cx, None)) {
                return Poll::Ready(self.broken(error));
            }
        }
        Poll::Ready(Failure::Reset)
    }

    fn send(&mut self, bytes: &[u8], fin: bool) -> Result<(), Failure> {
        if bytes.is_empty() && !fin {
            return Ok(());
        }
        self.write_data(bytes, fin).map_err(|error| self.broken(error))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if let Held::For(1..) = self.0.held {
            return Poll::Ready(Ok(()));
        }
        self.0.held = Held::No;
        let sent = ready!(self.poll_send(cx));
        Poll::Ready(sent.map_err(|error| self.broken(error)))
    }

    fn rest(&mut self, cx: &mut Context<'_>) {
        if let Held::For(looks @ 1..) = self.0.held {
            self.0.held = Held::For(looks - 1);
            // Wakes us once the runtime has looked.
            let look = pin!(yield_now());
            if look.poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
    }
}
