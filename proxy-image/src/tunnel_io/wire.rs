//! The bytes of a tunnel between TLS and socket, by either of the two record layers: in go frames, out come the
//! peer's. Which layer it is was decided by the configuration of the handshake.

use super::TunnelError;
use super::by_rustls::ByRustls;
use super::in_place::InPlace;
use std::task::{Context, Poll};
use tokio::net::TcpStream;

/// Takes plaintext of the peer.
pub(super) type Hear<'a> = dyn FnMut(&[u8]) -> Result<(), TunnelError> + 'a;

pub(super) enum Wire {
    InPlace(InPlace),
    // Boxed: it is several times as large, and in every tunnel's task.
    Rustls(Box<ByRustls>),
}

impl Wire {
    /// Seals a control frame. It leaves with the data behind it, or when all is sent.
    pub(super) fn keep(&mut self, frame: &[u8]) -> Result<(), TunnelError> {
        match self {
            Wire::InPlace(wire) => wire.seal([frame, &[]]),
            Wire::Rustls(wire) => wire.seal([frame, &[]]),
        }
    }

    /// Seals `parts` as one record; after the `last` of several all of them are on their way.
    pub(super) fn send(&mut self, tcp: &TcpStream, parts: [&[u8]; 2], last: bool) -> Result<(), TunnelError> {
        match self {
            Wire::InPlace(wire) => {
                wire.seal(parts)?;
                if last || wire.is_full() {
                    wire.push(tcp);
                }
                Ok(())
            }
            Wire::Rustls(wire) => wire.seal(parts),
        }
    }

    /// What is kept will be for a while.
    pub(super) fn rest(&mut self) {
        match self {
            Wire::InPlace(wire) => wire.hold(),
            Wire::Rustls(_) => {}
        }
    }

    /// Seals the last record of all.
    pub(super) fn close_notify(&mut self) {
        match self {
            Wire::InPlace(wire) => wire.close_notify(),
            Wire::Rustls(wire) => wire.close_notify(),
        }
    }

    /// Sends all that is waiting.
    pub(super) fn poll_send(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), TunnelError>> {
        match self {
            Wire::InPlace(wire) => wire.poll_send(tcp, cx),
            Wire::Rustls(wire) => wire.poll_send(tcp, cx),
        }
    }

    /// Reads once what has come and gives it to `hear`. A close is reported after what came before it.
    pub(super) fn poll_receive(
        &mut self,
        tcp: &mut TcpStream,
        cx: &mut Context<'_>,
        hear: &mut Hear<'_>,
    ) -> Poll<Result<(), TunnelError>> {
        match self {
            Wire::InPlace(wire) => wire.poll_receive(tcp, cx, hear),
            Wire::Rustls(wire) => wire.poll_receive(tcp, cx, hear),
        }
    }
}
