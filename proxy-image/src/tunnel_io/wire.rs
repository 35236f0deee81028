//! The bytes of a tunnel between TLS and socket, by either of the two record layers: in go frames, out come the
//! peer's. Which layer it is was decided by the configuration of the handshake.

use super::TunnelError;
use super::by_rustls::ByRustls;
use super::in_place::InPlace;
use cinch_tunnel::MAX_PAYLOAD;
use std::task::{Context, Poll};
use tokio::net::TcpStream;

/// Takes plaintext of the peer.
pub(super) type Hear<'a> = dyn FnMut(&[u8]) -> Result<(), TunnelError> + 'a;

/// Who seals and opens.
// The large one is nearly always it, and stands in the tunnel's own box.
#[allow(clippy::large_enum_variant)]
pub(super) enum Layer {
    InPlace(InPlace),
    // Boxed: it is several times as large, and in every tunnel's task.
    Rustls(Box<ByRustls>),
}

pub(super) struct Wire {
    layer: Layer,
    /// Control frames that are not sealed yet. They go into the record of the data behind them, or into one of their
    /// own when all is sent: to seal and to open a short record costs as much as the frame in it is worth.
    owed: Vec<u8>,
}

impl Wire {
    pub(super) fn new(layer: Layer) -> Wire {
        Wire { layer, owed: Vec::new() }
    }

    /// Keeps a control frame. It leaves with the data behind it, or when all is sent.
    pub(super) fn keep(&mut self, frame: &[u8]) {
        self.owed.extend_from_slice(frame);
    }

    /// Bytes that the payload of the next data frame may have.
    pub(super) fn room(&self) -> usize {
        MAX_PAYLOAD.saturating_sub(self.owed.len())
    }

    /// Seals a data frame, behind the control frames that are kept, as one record; after the `last` of several all
    /// of them are on their way.
    pub(super) fn send(
        &mut self,
        tcp: &TcpStream,
        [head, payload]: [&[u8]; 2],
        last: bool,
    ) -> Result<(), TunnelError> {
        let owed = std::mem::take(&mut self.owed);
        self.seal(&[&owed, head, payload])?;
        if let Layer::InPlace(wire) = &mut self.layer
            && (last || wire.is_full())
        {
            wire.push(tcp);
        }
        Ok(())
    }

    fn seal(&mut self, parts: &[&[u8]]) -> Result<(), TunnelError> {
        match &mut self.layer {
            Layer::InPlace(wire) => wire.seal(parts),
            Layer::Rustls(wire) => wire.seal(parts),
        }
    }

    fn seal_owed(&mut self) -> Result<(), TunnelError> {
        if self.owed.is_empty() {
            return Ok(());
        }
        let owed = std::mem::take(&mut self.owed);
        self.seal(&[&owed])
    }

    /// What the socket did not take.
    pub(super) fn kept(&self) -> usize {
        match &self.layer {
            Layer::InPlace(wire) => wire.kept(),
            Layer::Rustls(wire) => wire.kept(),
        }
    }

    /// Seals the last record of all.
    pub(super) fn close_notify(&mut self) {
        // A connection that can't even seal is broken, and its peer will find out.
        let _ = self.seal_owed();
        match &mut self.layer {
            Layer::InPlace(wire) => wire.close_notify(),
            Layer::Rustls(wire) => wire.close_notify(),
        }
    }

    /// Sends all that is waiting.
    pub(super) fn poll_send(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), TunnelError>> {
        self.seal_owed()?;
        match &mut self.layer {
            Layer::InPlace(wire) => wire.poll_send(tcp, cx),
            Layer::Rustls(wire) => wire.poll_send(tcp, cx),
        }
    }

    /// Reads once what has come, about `most` bytes of it, and gives it to `hear`. A close is reported after what came
    /// before it.
    pub(super) fn poll_receive(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
        most: usize,
        hear: &mut Hear<'_>,
    ) -> Poll<Result<(), TunnelError>> {
        match &mut self.layer {
            Layer::InPlace(wire) => wire.poll_receive(tcp, cx, most, hear),
            Layer::Rustls(wire) => wire.poll_receive(tcp, cx, most, hear),
        }
    }
}
