//! How a tunnel comes about: the TLS handshake of either side, from a TCP connection and credentials to a
//! [`Tunnel`] whose peer is verified.

use super::by_rustls::ByRustls;
use super::heard::Heard;
use super::in_place::InPlace;
use super::side::Held;
use super::wire::{Layer, Wire};
use super::{State, Tunnel};
use crate::context::Credentials;
use crate::copy::with_scratch;
use crate::path_metrics::OpenGauge;
use cinch_identity::{
    IdentityError, SpiffeId, Usage, handshake_reason, peer_id, peer_not_after, require_alpn, server_name,
};
use cinch_reason::Reason;
use cinch_record::{Handshake, RecordError};
use cinch_tunnel::{ALPN, Session, Side};
use rustls::{ClientConfig, CommonState, Connection};
use rustls_pki_types::CertificateDer;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It took too long.
    #[error("the handshake took too long")]
    Timeout,
    /// The peer kept us waiting, and others need the place.
    #[error("the peer kept the handshake waiting while too many others were under way")]
    Displaced,
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
            HandshakeError::Displaced => Reason::Overloaded,
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

impl From<RecordError> for HandshakeError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Tls(error) => io::Error::new(io::ErrorKind::InvalidData, error).into(),
            other => HandshakeError::Failed(io::Error::new(io::ErrorKind::InvalidData, other)),
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
    let config = credentials.tunnel_server.clone();
    let (tcp, proved) = if config.enable_secret_extraction {
        within(bounds, shake(stream, Handshake::server(config)?, prefix)).await?
    } else {
        let shaking = TlsAcceptor::from(config).accept(Prefixed { stream, prefix, taken: 0 });
        let (prefixed, tls) = within(bounds, shaking).await?.into_inner();
        if !prefixed.is_drained() {
            return Err(HandshakeError::Failed(io::ErrorKind::InvalidData.into()));
        }
        (prefixed.stream, by_rustls(Connection::Server(tls))?)
    };
    Ok(finish(tcp, proved, Side::Server, credentials, bounds, gauge))
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
    let (tcp, proved) = if config.enable_secret_extraction {
        let handshake = Handshake::client(config, server_name())?;
        within(bounds, shake(stream, handshake, Vec::new())).await?
    } else {
        let shaking = TlsConnector::from(config).connect(server_name(), stream);
        let (stream, tls) = within(bounds, shaking).await?.into_inner();
        (stream, by_rustls(Connection::Client(tls))?)
    };
    Ok(finish(tcp, proved, Side::Client, credentials, bounds, gauge))
}

async fn within<T, E>(
    bounds: Bounds,
    shaking: impl Future<Output = Result<T, E>>,
) -> Result<T, HandshakeError>
where
    HandshakeError: From<E>,
{
    Ok(tokio::time::timeout(bounds.handshake, shaking).await.map_err(|_| HandshakeError::Timeout)??)
}

/// What a handshake has come to.
struct Proved {
    wire: Wire,
    peer: Peer,
}

/// Who the peer proved to be.
struct Peer {
    id: SpiffeId,
    /// End of its certificate, in seconds since 1970.
    until: u64,
    /// All that it showed.
    chain: Vec<CertificateDer<'static>>,
}

/// Who the peer proved to be, and that it speaks our protocol.
fn verified(tls: &CommonState) -> Result<Peer, IdentityError> {
    require_alpn(tls, ALPN)?;
    let shown = tls.peer_certificates();
    Ok(Peer {
        id: peer_id(shown)?,
        until: peer_not_after(shown).unwrap_or(0),
        chain: shown.unwrap_or_default().to_vec(),
    })
}

fn by_rustls(tls: Connection) -> Result<Proved, HandshakeError> {
    let peer = verified(&tls)?;
    Ok(Proved { wire: Wire::new(Layer::Rustls(Box::new(ByRustls::new(tls)))), peer })
}

/// A handshake after which the records are ours. `input`: what was already read.
async fn shake(
    mut stream: TcpStream,
    mut handshake: Handshake,
    mut input: Vec<u8>,
) -> Result<(TcpStream, Proved), HandshakeError> {
    let mut out = Vec::new();
    loop {
        let advanced = handshake.advance(&mut input, &mut out);
        // Also after a fault, which the peer should hear of; the fault says more than that it did not.
        let sent = stream.write_all(&out).await;
        let progress = advanced?;
        sent?;
        out.clear();
        input.drain(..progress.used);
        if progress.done {
            break;
        }
        if poll_fn(|cx| poll_more(&mut stream, cx, &mut input)).await? == 0 {
            return Err(HandshakeError::Failed(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    let peer = verified(handshake.state())?;
    // What may have come behind the handshake, and no more room than it needs.
    input.shrink_to_fit();
    let wire = Wire::new(Layer::InPlace(InPlace::new(handshake.into_records()?, input)));
    Ok((stream, Proved { wire, peer }))
}

/// Appends what has come to `input`.
fn poll_more(stream: &mut TcpStream, cx: &mut Context<'_>, input: &mut Vec<u8>) -> Poll<io::Result<usize>> {
    with_scratch(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
        input.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    })
}

fn finish(
    tcp: TcpStream,
    Proved { wire, peer }: Proved,
    side: Side,
    credentials: &Credentials,
    bounds: Bounds,
    gauge: OpenGauge,
) -> Tunnel {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let valid = Duration::from_secs(peer.until.min(credentials.svid.not_after())).saturating_sub(now);
    Tunnel(Box::new(State {
        attended: None,
        tcp,
        wire,
        session: Session::new(side),
        shown: (peer.chain, if side == Side::Server { Usage::Client } else { Usage::Server }),
        proof: None,
        peer: peer.id,
        expires: Instant::now() + valid.min(bounds.age),
        certificate_ends: Instant::now() + valid,
        heard: Heard::default(),
        held: Held::No,
        share: None,
        closed: false,
        fault: None,
        _gauge: gauge,
    }))
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
