//! One accepted connection: handshake, the first message, then either one first certificate or a bound
//! stream. Everything before the binding has a time limit and small bounds.

use super::Control;
use super::bound::Bound;
use super::frames::{FrameReader, frame};
use super::session::{Close, Introduction, bind};
use crate::issuing::Refusal;
use crate::issuing::claims::Source;
use crate::metrics::ConnectionEnd;
use bytes::BytesMut;
use cinch_control::v1;
use cinch_control::v1::operator_message::Kind;
use cinch_control::v1::proxy_message::Kind as Request;
use cinch_control::{ALPN, MAX_FIRST_MESSAGE, MAX_MESSAGE};
use cinch_identity::{SpiffeId, handshake_reason, peer_id, peer_not_after, require_alpn};
use cinch_places::Place;
use cinch_reason::Reason;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// For the TLS handshake, and again for the first message.
pub(super) const FIRST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a stream waits until the watch has told of its pod.
const BIND_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves a connection from the handshake to its end. `unbound` is its place among those that have not yet
/// shown who they are.
pub(super) async fn serve(
    control: &Control,
    stream: TcpStream,
    peer: SocketAddr,
    unbound: Place,
    shutdown: &CancellationToken,
) {
    let lost = unbound.lost();
    let ended = tokio::select! {
        ended = run(control, stream, peer, unbound, shutdown) => ended,
        () = lost => close(ConnectionEnd::Limit, "its place went to a source with fewer").into(),
        () = late(shutdown) => close(ConnectionEnd::Shutdown, "the operator ends").into(),
    };
    count(control, peer, &ended);
}

/// Counts a connection that does not get as far as a handshake.
pub(super) fn turned_away(control: &Control, peer: SocketAddr) {
    count(control, peer, &close(ConnectionEnd::Limit, "too many of its source, or too often").into());
}

/// How a connection ended.
struct Ended {
    close: Close,
    /// What the peer did, for the log.
    detail: String,
}

impl From<Close> for Ended {
    fn from(close: Close) -> Self {
        Self { close, detail: String::new() }
    }
}

fn close(end: ConnectionEnd, why: &'static str) -> Close {
    Close { end, refusal: None, why }
}

/// The log has a line about what no proxy does, as long as there are few: anybody may connect here.
fn count(control: &Control, peer: SocketAddr, Ended { close, detail }: &Ended) {
    let Close { end, why, .. } = close;
    control.metrics.connection(*end);
    let foreign =
        [ConnectionEnd::Garbage, ConnectionEnd::Handshake, ConnectionEnd::Certificate, ConnectionEnd::Limit];
    if !foreign.contains(end) {
        debug!(%peer, end = end.as_str(), why, "a control connection ended");
        return;
    }
    if let Some(unsaid) = control.lines.lock().say(end, std::time::Instant::now()) {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        warn!(%peer, end = end.as_str(), why, detail, unsaid, "closed a control connection");
    }
}

/// Bound streams end by themselves on shutdown, so that their last words go out; nothing may take longer.
async fn late(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
}

async fn run(
    control: &Control,
    stream: TcpStream,
    peer: SocketAddr,
    unbound: Place,
    shutdown: &CancellationToken,
) -> Ended {
    let _ = stream.set_nodelay(true);
    let acceptor = TlsAcceptor::from(control.tls.borrow().clone());
    let stream = match timeout(FIRST_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return unshaken(control, &error),
        Err(_) => return close(ConnectionEnd::Timeout, "no handshake in time").into(),
    };
    let (_, connection) = stream.get_ref();
    if require_alpn(connection, ALPN).is_err() {
        return close(ConnectionEnd::Handshake, "the peer does not speak cinch-control/1").into();
    }
    let shown = connection.peer_certificates().is_some();
    let identity = peer_id(connection.peer_certificates());
    let not_after = peer_not_after(connection.peer_certificates());
    let ended = match (shown, identity, not_after) {
        (false, ..) => first_certificate(control, stream, peer).await,
        (true, Ok(id), Ok(not_after)) => {
            let bound = Caller { control, peer, id, not_after, shutdown };
            bound.serve(stream, unbound).await
        }
        (true, ..) => close(ConnectionEnd::Certificate, "its certificate has no single identity"),
    };
    ended.into()
}

/// A handshake that failed, by the peer's certificate or before.
fn unshaken(control: &Control, error: &std::io::Error) -> Ended {
    let Some(reason) = handshake_reason(error) else {
        let close = close(ConnectionEnd::Handshake, "the TLS handshake failed");
        return Ended { close, detail: error.to_string() };
    };
    control.metrics.refused(reason);
    let close = close(ConnectionEnd::Certificate, "its certificate was refused");
    Ended { close, detail: format!("{reason}: {error}") }
}

/// The one exchange of a connection without a certificate.
async fn first_certificate(control: &Control, stream: TlsStream<TcpStream>, peer: SocketAddr) -> Close {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = FrameReader::new(reader, MAX_FIRST_MESSAGE);
    let request = match timeout(FIRST_TIMEOUT, reader.next()).await {
        Ok(Ok(Some(v1::ProxyMessage { kind: Some(Request::FirstCertificate(request)) }))) => request,
        Ok(Ok(Some(_))) => {
            return close(ConnectionEnd::Garbage, "only a first certificate comes without one");
        }
        Ok(Ok(None)) => return close(ConnectionEnd::Closed, "the peer asked for nothing"),
        Ok(Err(error)) => return close(error.end(), "the first message could not be read"),
        Err(_) => return close(ConnectionEnd::Timeout, "no first message in time"),
    };
    let ip = peer.ip().to_canonical();
    let pod_uid = control.view.pod_by_ip(ip).map(|pod| pod.uid.to_string());
    let pods = |uid: &str| control.view.pod(uid);
    let (kind, end) = match control.issuing.first(&request, &Source { ip, pod_uid }, &pods).await {
        Ok(certificate) => (Kind::Certificate(certificate), ConnectionEnd::Answered),
        Err(refusal) => (Kind::Refused(refusal.message()), ConnectionEnd::Refused),
    };
    say(&mut writer, kind).await;
    close(end, "the one exchange of the connection is done")
}

/// Sends one message and closes; a peer that does not read it is not waited for.
async fn say<W: AsyncWrite + Unpin>(writer: &mut W, kind: Kind) {
    let mut out = BytesMut::new();
    if frame(kind, &mut out).is_err() {
        return;
    }
    let write = async {
        writer.write_all(&out).await?;
        writer.shutdown().await
    };
    let _ = timeout(FIRST_TIMEOUT, write).await;
}

/// A peer that has shown a certificate.
struct Caller<'a> {
    control: &'a Control,
    peer: SocketAddr,
    id: SpiffeId,
    not_after: u64,
    shutdown: &'a CancellationToken,
}

impl Caller<'_> {
    async fn serve(self, stream: TlsStream<TcpStream>, unbound: Place) -> Close {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut reader = FrameReader::new(reader, MAX_FIRST_MESSAGE);
        let hello = match self.introduction(&mut reader).await {
            Ok(hello) => hello,
            Err(close) => return close,
        };
        if let Err(close) = self.bind(&hello).await {
            if let Some(refusal) = &close.refusal {
                self.control.metrics.refused(refusal.reason);
                warn!(peer = %self.peer, id = %self.id, pod_uid = hello.pod_uid, reason = %refusal.reason, detail = refusal.detail, "refused a control stream");
                say(&mut writer, Kind::Refused(refusal.message())).await;
            }
            return close;
        }
        drop(unbound);
        let Ok(_place) = self.control.streams.try_acquire() else {
            let refusal = Refusal {
                retry_after: Duration::from_secs(5),
                ..Refusal::new(Reason::Overloaded, "too many streams")
            };
            say(&mut writer, Kind::Refused(refusal.message())).await;
            return close(ConnectionEnd::Limit, "too many streams");
        };
        reader.set_limit(MAX_MESSAGE);
        let entry = self.control.sessions.open(&hello.pod_uid, hello.policy_version);
        self.control.metrics.sessions.inc();
        info!(id = %self.id, pod_uid = hello.pod_uid, "a control stream is bound");
        let expires = Instant::now() + self.left();
        let bound = Bound { control: self.control, entry, id: &self.id, expires, shutdown: self.shutdown };
        let close = bound.run(reader, writer, &hello, vec![self.control.welcome()]).await;
        self.control.metrics.sessions.dec();
        info!(id = %self.id, pod_uid = hello.pod_uid, end = close.end.as_str(), why = close.why, "a control stream ended");
        close
    }

    fn left(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Duration::from_secs(self.not_after.saturating_sub(now))
    }

    async fn introduction<R: tokio::io::AsyncRead + Unpin>(
        &self,
        reader: &mut FrameReader<R>,
    ) -> Result<Introduction, Close> {
        match timeout(FIRST_TIMEOUT, reader.next()).await {
            Ok(Ok(Some(v1::ProxyMessage { kind: Some(Request::Hello(hello)) }))) => Introduction::of(&hello),
            Ok(Ok(Some(_))) => Err(close(ConnectionEnd::Garbage, "a stream begins with a Hello")),
            Ok(Ok(None)) => Err(close(ConnectionEnd::Closed, "the peer said nothing")),
            Ok(Err(error)) => Err(close(error.end(), "the first message could not be read")),
            Err(_) => Err(close(ConnectionEnd::Timeout, "no first message in time")),
        }
    }

    /// Waits a little for a pod that the watch has not told of yet.
    async fn bind(&self, hello: &Introduction) -> Result<(), Close> {
        let mut changes = self.control.view.changes();
        let deadline = Instant::now() + BIND_TIMEOUT;
        loop {
            let source = self.peer.ip();
            let view = self.control.view.as_ref();
            if bind(hello, &self.id, &self.control.trust_domain, source, view)?.is_some() {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                let refusal = Refusal {
                    retry_after: Duration::from_secs(1),
                    ..Refusal::new(Reason::PodMismatch, "the operator does not know the pod")
                };
                let why = "the pod is not known";
                return Err(Close { end: ConnectionEnd::Refused, refusal: Some(refusal), why });
            }
        }
    }
}
