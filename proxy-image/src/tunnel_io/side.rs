//! A tunnel as one side of a copy.

use super::Tunnel;
use crate::copy::{Failure, Moved, Side, Sink};
use std::task::{Context, Poll, ready};

impl Side for Tunnel {
    fn poll_forward(&mut self, cx: &mut Context<'_>, sink: &mut Sink<'_>) -> Poll<Result<Moved, Failure>> {
        self.heard.copying = true;
        if self.heard.open.is_none() && (!self.heard.data.is_empty() || self.heard.fin) {
            let moved = Moved { bytes: self.heard.data.len(), fin: self.heard.fin };
            sink(&self.heard.data, self.heard.fin);
            self.heard.forget_data();
            return Poll::Ready(Ok(moved));
        }
        if self.heard.reset.is_some() {
            return Poll::Ready(Err(Failure::Reset));
        }
        let mut moved = Moved::default();
        let received = ready!(self.poll_receive(
            cx,
            Some(&mut |bytes, fin| {
                moved.bytes += bytes.len();
                moved.fin |= fin;
                sink(bytes, fin);
            })
        ));
        Poll::Ready(match received {
            Ok(()) => Ok(moved),
            Err(error) => Err(self.broken(error)),
        })
    }

    fn poll_after_fin(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        while self.heard.reset.is_none() {
            // Both directions have ended: whatever comes now is of the next stream, or the end of the tunnel, and
            // takes nothing back of what is still on its way to the app.
            if self.session.is_idle() || self.heard.open.is_some() {
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
        let sent = ready!(self.poll_send(cx));
        Poll::Ready(sent.map_err(|error| self.broken(error)))
    }
}
