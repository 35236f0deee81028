//! How a tunnel comes about: the TLS handshake of either side, from a TCP connection and credentials to a
//! [`Tunnel`] whose peer is verified.

use super::Tunnel;
use super::heard::Heard;
use crate::context::Credentials;
use crate::path_metrics::OpenGauge;
use crate::socket;
use cinch_identity::{IdentityError, handshake_reason, peer_id, peer_not_after, require_alpn, server_name};
use cinch_reason::Reason;
use cinch_tunnel::{ALPN, Session, Side};
use rustls::{ClientConfig, Connection};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It took too long.
    #[error("the handshake took too long")]
    Timeout,
    /// The connection broke, or the peer refused us.
    #[error("the handshake failed: {0}")]
    Failed(io::Error),
    /// The peer's certificate was refused.
    #[error("{0}: {1}")]
    Refused(Reason, String),
}

impl HandshakeError {
    /// The word for it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            HandshakeError::Timeout | HandshakeError::Failed(_) => Reason::TunnelBroken,
            HandshakeError::Refused(reason, _) => *reason,
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        match handshake_reason(&error) {
            Some(reason) => HandshakeError::Refused(reason, error.to_string()),
            None => HandshakeError::Failed(error),
        }
    }
}

impl From<IdentityError> for HandshakeError {
    fn from(error: IdentityError) -> Self {
        HandshakeError::Refused(error.reason(), error.to_string())
    }
}

/// The bounds of a handshake and of the tunnel that comes of it.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// For the handshake.
    pub handshake: Duration,
    /// The greatest age of the tunnel.
    pub age: Duration,
}

/// The server side. `prefix`: what was already read from the connection.
///
/// # Errors
/// When the handshake fails or the peer is not one of the trust domain.
pub async fn accept(
    stream: TcpStream,
    prefix: Vec<u8>,
    credentials: &Credentials,
    bounds: Bounds,
    gauge: OpenGauge,
) -> Result<Tunnel, HandshakeError> {
    socket::prepare_tunnel(&stream);
    let acceptor = TlsAcceptor::from(credentials.tunnel_server.clone());
    let shaking = acceptor.accept(Prefixed { stream, prefix, taken: 0 });
    let tls =
        tokio::time::timeout(bounds.handshake, shaking).await.map_err(|_| HandshakeError::Timeout)??;
    let (prefixed, connection) = tls.into_inner();
    if !prefixed.is_drained() {
        return Err(HandshakeError::Failed(io::ErrorKind::InvalidData.into()));
    }
    finish(prefixed.stream, Connection::Server(connection), Side::Server, credentials, bounds, gauge)
}

/// The client side. `config` says whom it accepts.
///
/// # Errors
/// When the handshake fails or the peer is another.
pub async fn dial(
    stream: TcpStream,
    config: Arc<ClientConfig>,
    credentials: &Credentials,
    bounds: Bounds,
    gauge: OpenGauge,
) -> Result<Tunnel, HandshakeError> {
    socket::prepare_tunnel(&stream);
    let shaking = TlsConnector::from(config).connect(server_name(), stream);
    let tls =
        tokio::time::timeout(bounds.handshake, shaking).await.map_err(|_| HandshakeError::Timeout)??;
    let (stream, connection) = tls.into_inner();
    finish(stream, Connection::Client(connection), Side::Client, credentials, bounds, gauge)
}

fn finish(
    tcp: TcpStream,
    mut tls: Connection,
    side: Side,
    credentials: &Credentials,
    bounds: Bounds,
    gauge: OpenGauge,
) -> Result<Tunnel, HandshakeError> {
    require_alpn(&tls, ALPN)?;
    let peer = peer_id(tls.peer_certificates())?;
    // We write only what a single read gave us, so the bound is that of the read.
    tls.set_buffer_limit(None);
    let until = peer_not_after(tls.peer_certificates()).unwrap_or(0).min(credentials.svid.not_after());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let valid = Duration::from_secs(until).saturating_sub(now);
    Ok(Tunnel {
        tcp,
        tls,
        session: Session::new(side),
        peer,
        expires: Instant::now() + valid.min(bounds.age),
        certificate_ends: Instant::now() + valid,
        heard: Heard::default(),
        failed: None,
        fault: None,
        _gauge: gauge,
    })
}

/// A connection some of whose bytes were read already.
struct Prefixed {
    stream: TcpStream,
    prefix: Vec<u8>,
    taken: usize,
}

impl Prefixed {
    fn is_drained(&self) -> bool {
        self.taken >= self.prefix.len()
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(rest) = self.prefix.get(self.taken..).filter(|rest| !rest.is_empty()) {
            let count = rest.len().min(buffer.remaining());
            buffer.put_slice(rest.get(..count).unwrap_or_default());
            self.taken += count;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
