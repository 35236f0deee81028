//! One tunnel with its socket: TLS and `cinch/1` around a TCP connection. In go a finished handshake and the
//! bytes of an app, out come what the peer says and the bytes of its app. A TLS record holds one frame of data, and
//! what was said just before it; what has come is read 64 KiB at a time into the thread's buffer; an idle tunnel owns
//! no buffer of ours.

mod by_rustls;
mod handshake;
mod heard;
mod in_place;
mod side;
mod wire;

pub use handshake::{Bounds, HandshakeError, accept, dial};

use crate::copy::{Failure, Sink};
use crate::kept::{Kept, Share};
use crate::path_metrics::OpenGauge;
use crate::presence::{Attended, Presence};
use crate::proofs::{Proof, Proofs};
use crate::socket;
use cinch_identity::{SpiffeId, TrustBundle, Usage};
use cinch_record::RecordError;
use cinch_tunnel::{MAX_PAYLOAD, Misuse, Open, ProtocolError, RefuseCode, ResetCode, Session};
use heard::Heard;
use rustls_pki_types::CertificateDer;
use side::Held;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use wire::Wire;

/// Why a tunnel is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The peer ended it, and TLS vouches that it was the peer.
    #[error("the peer closed the tunnel")]
    Closed,
    /// The connection ended without the peer saying so.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    /// The bytes are no TLS.
    #[error("{0}")]
    Tls(RecordError),
    /// The bytes break the tunnel's protocol.
    #[error("protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// We asked for something that the tunnel's state does not permit.
    #[error("{0}")]
    Misuse(#[from] Misuse),
}

impl TunnelError {
    /// Nobody is at the other end any more, as far as the kernel can tell: its other tunnels lead to nobody either.
    #[must_use]
    pub fn is_vanished(&self) -> bool {
        use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
        let TunnelError::Broken(error) = self else { return false };
        matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable)
    }
}

impl From<RecordError> for TunnelError {
    fn from(error: RecordError) -> Self {
        match error {
            // Encrypted since the handshake: the peer itself says that it ends the tunnel, perhaps because it did
            // not accept our certificate, which TLS 1.3 tells only now.
            RecordError::Alert(_) => TunnelError::Closed,
            other => TunnelError::Tls(other),
        }
    }
}

/// A server's answer to OPEN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The app has accepted.
    Opened,
    /// There will be no stream.
    Refused(RefuseCode),
}

/// A tunnel. Boxed, because the tasks that own one hand it on through many calls, and each would keep room for it.
pub struct Tunnel(Box<State>);

struct State {
    /// Before its socket, and so dropped before it.
    attended: Option<Attended>,
    tcp: TcpStream,
    wire: Wire,
    session: Session,
    peer: SpiffeId,
    /// What the peer showed in the handshake, as what, until `proof` has it.
    shown: (Vec<CertificateDer<'static>>, Usage),
    proof: Option<Proof>,
    expires: Instant,
    certificate_ends: Instant,
    heard: Heard,
    held: Held,
    /// Where it is counted what the socket did not take.
    share: Option<Share>,
    /// The peer has closed it with its last words; the next read tells.
    closed: bool,
    /// Why the relay could not go on. Boxed, because most never have any.
    fault: Option<Box<TunnelError>>,
    _gauge: OpenGauge,
}

impl Tunnel {
    /// Who the peer proved to be.
    #[must_use]
    pub fn peer(&self) -> &SpiffeId {
        &self.0.peer
    }

    /// From now on new trust bundles are asked for the peer too. `bundle`: what the handshake was verified by.
    pub fn hold_proof(&mut self, proofs: &Arc<Proofs>, bundle: &TrustBundle) {
        let (chain, usage) = &mut self.0.shown;
        self.0.proof = proofs.hold(std::mem::take(chain), *usage, bundle);
    }

    /// From now on its peer is waited for while it has no room.
    pub fn attend(&mut self, presence: &Arc<Presence>) {
        self.0.attended = Some(presence.attend(&self.0.tcp));
    }

    /// From now on what it keeps is counted in `kept`.
    pub fn count_kept(&mut self, kept: &Arc<Kept>) {
        self.0.share = Some(kept.share());
    }

    /// The trust bundle still vouches for the peer.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        !self.0.proof.as_ref().is_some_and(Proof::is_lost)
    }

    /// Until when streams may begin on it: the end of its certificates, or its greatest age.
    #[must_use]
    pub fn expires(&self) -> Instant {
        self.0.expires
    }

    /// One of its certificates has run out.
    #[must_use]
    pub fn outlived_certificate(&self) -> bool {
        Instant::now() >= self.0.certificate_ends
    }

    /// No stream is under way and another one may begin.
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        !self.0.closed && self.0.session.is_reusable() && self.is_trusted() && Instant::now() < self.0.expires
    }

    /// The peer said DRAIN, or we did.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.session.is_draining()
    }

    /// Nothing has come that nobody has read: a tunnel that is idle in truth, and not one that has just ended.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        socket::is_quiet(&self.0.tcp)
    }

    /// Client: begins a stream, with what the app has said so far.
    ///
    /// # Errors
    /// [`TunnelError::Misuse`] when the tunnel is not reusable.
    pub fn begin(&mut self, early: &[u8]) -> Result<(), TunnelError> {
        self.0.heard = Heard::default();
        let mut frame = Vec::with_capacity(16);
        self.0.session.open(Open::default(), &mut frame)?;
        self.0.wire.keep(&frame);
        if !early.is_empty() {
            self.write_data(early, false)?;
        }
        Ok(())
    }

    /// Client: the answer to [`Tunnel::begin`].
    ///
    /// # Errors
    /// When the tunnel ends first.
    pub async fn answer(&mut self) -> Result<Answer, TunnelError> {
        poll_fn(|cx| {
            loop {
                if let Some(answer) = self.0.heard.answer {
                    return Poll::Ready(Ok(answer));
                }
                // What is not yet sent goes on while we wait.
                if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                    return Poll::Ready(self.last_words(cx).unwrap_or(Err(error)));
                }
                ready!(self.poll_receive(cx, None))?;
            }
        })
        .await
    }

    /// What the peer said before the connection took nothing more from us: an answer, or that it closed. Then
    /// it did not break.
    fn last_words(&mut self, cx: &mut Context<'_>) -> Option<Result<Answer, TunnelError>> {
        loop {
            if let Some(answer) = self.0.heard.answer {
                return Some(Ok(answer));
            }
            match self.poll_receive(cx, None) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(TunnelError::Closed)) => return Some(Err(TunnelError::Closed)),
                Poll::Ready(Err(_)) | Poll::Pending => return None,
            }
        }
    }

    /// Server: waits for the next stream. `Ok(None)`: the client closed the tunnel.
    ///
    /// # Errors
    /// When the tunnel ends otherwise.
    pub fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Open>, TunnelError>> {
        loop {
            if let Some((open, reset)) = self.0.heard.open.take() {
                self.0.heard.reset = reset;
                self.0.heard.copying = false;
                return Poll::Ready(Ok(Some(open)));
            }
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
            match ready!(self.poll_receive(cx, None)) {
                Ok(()) => {}
                Err(TunnelError::Closed) if self.0.session.is_idle() => return Poll::Ready(Ok(None)),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Server: the client has said something that nobody has taken yet.
    #[must_use]
    pub fn has_spoken(&self) -> bool {
        !self.0.heard.data.is_empty()
    }

    /// Server: accepts the stream; it is copied from now on. Where the client has spoken already, OPENED may leave
    /// with the first words of the app.
    ///
    /// # Errors
    /// [`TunnelError::Misuse`] when there is none.
    pub fn opened(&mut self) -> Result<(), TunnelError> {
        let mut frame = Vec::with_capacity(8);
        self.0.session.opened(&mut frame)?;
        // A client that fills a frame with its first words has more of them, and waits for us to say them.
        let asks = (1..MAX_PAYLOAD).contains(&self.0.heard.data.len());
        self.0.held = if asks { Held::BEGIN } else { Held::No };
        self.0.wire.keep(&frame);
        Ok(())
    }

    /// Server: refuses the stream. Call [`Tunnel::settle`] before the next one.
    ///
    /// # Errors
    /// [`TunnelError::Misuse`] when there is none.
    pub fn refuse(&mut self, why: RefuseCode) -> Result<(), TunnelError> {
        let mut frame = Vec::with_capacity(8);
        self.0.session.refused(why, &mut frame)?;
        self.0.wire.keep(&frame);
        Ok(())
    }

    /// Server: takes no further streams.
    ///
    /// # Errors
    /// [`TunnelError::Misuse`] on a client.
    pub fn drain(&mut self) -> Result<(), TunnelError> {
        let mut frame = Vec::with_capacity(8);
        self.0.session.drain(&mut frame)?;
        self.0.wire.keep(&frame);
        Ok(())
    }

    /// Ends a stream that did not end by itself: says RESET if that is still owed or `why` is given, then takes
    /// in what the peer still sends, until the tunnel is idle. The caller bounds the time.
    ///
    /// # Errors
    /// When the tunnel ends first.
    pub async fn settle(&mut self, why: Option<ResetCode>) -> Result<(), TunnelError> {
        self.0.heard.copying = false;
        let owed = why.or((!self.0.session.local_ended()).then_some(ResetCode::Answer));
        // With the next OPEN there, this stream is over, and what is owed would be said of the next one.
        if let Some(why) = owed
            && self.0.heard.open.is_none()
            && !self.0.session.is_idle()
        {
            let mut frame = Vec::with_capacity(8);
            match self.0.session.reset(why, &mut frame) {
                Ok(()) => self.0.wire.keep(&frame),
                // Said before: there is nothing more to say.
                Err(Misuse(_)) if self.0.session.local_ended() => {}
                Err(misuse) => return Err(misuse.into()),
            }
        }
        poll_fn(|cx| {
            loop {
                let sent = self.poll_send(cx)?;
                if self.0.heard.open.is_none() {
                    self.0.heard.forget_data();
                }
                if self.0.session.is_idle() || self.0.heard.open.is_some() {
                    return sent.map(Ok);
                }
                ready!(self.poll_receive(cx, None))?;
            }
        })
        .await
    }

    /// While idle: pending as long as the tunnel is of use.
    pub fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let sent = self.poll_send(cx);
            if matches!(sent, Poll::Ready(Err(_))) {
                return Poll::Ready(());
            }
            let received = ready!(self.poll_receive(cx, None));
            if received.is_err() || !self.0.session.is_reusable() {
                return Poll::Ready(());
            }
        }
    }

    /// Why the copy through it could not go on.
    #[must_use]
    pub fn take_fault(&mut self) -> TunnelError {
        self.0.fault.take().map_or(TunnelError::Closed, |fault| *fault)
    }

    fn broken(&mut self, error: TunnelError) -> Failure {
        self.0.fault = Some(Box::new(error));
        Failure::Broken
    }

    /// Says goodbye and closes. The peer then knows that it was us.
    pub async fn close(mut self, limit: Duration) {
        self.0.wire.close_notify();
        let sent = poll_fn(|cx| self.poll_send(cx));
        let _ = tokio::time::timeout(limit, sent).await;
    }

    /// Closes without a word, with a RST.
    pub fn abort(self) {
        let State { attended, tcp, .. } = *self.0;
        drop(attended);
        socket::abort(tcp);
    }

    /// Sends all that is waiting.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        let State { tcp, wire, .. } = &mut *self.0;
        let sent = wire.poll_send(tcp, cx);
        self.tell_kept();
        sent
    }

    fn tell_kept(&mut self) {
        let State { share, wire, .. } = &mut *self.0;
        if let Some(share) = share {
            share.now(wire.kept());
        }
    }

    /// Seals `bytes` as frames, each of them in one record.
    fn write_data(&mut self, bytes: &[u8], fin: bool) -> Result<(), TunnelError> {
        self.0.held = Held::No;
        let mut rest = bytes;
        loop {
            let (chunk, after) = rest.split_at_checked(self.0.wire.room()).unwrap_or((rest, &[]));
            let last = after.is_empty();
            let head = self.0.session.data(chunk.len(), fin && last)?;
            self.0.wire.send(&self.0.tcp, [&head, chunk], last)?;
            if last {
                self.tell_kept();
                return Ok(());
            }
            rest = after;
        }
    }

    /// Reads once what has come and takes it in. While the stream is copied, its data goes to the sink of `copy`, about
    /// so many bytes as it says.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        copy: Option<(usize, &mut Sink<'_>)>,
    ) -> Poll<Result<(), TunnelError>> {
        let (most, mut sink) = copy.map_or((usize::MAX, None), |(most, sink)| (most, Some(sink)));
        if std::mem::take(&mut self.0.closed) {
            return Poll::Ready(Err(TunnelError::Closed));
        }
        let State { tcp, wire, session, heard, .. } = &mut *self.0;
        let mut hear = |mut input: &[u8]| {
            while let Some(event) = session.receive(&mut input)? {
                heard.take(event, &mut sink);
            }
            Ok(())
        };
        let received = ready!(wire.poll_receive(tcp, cx, most, &mut hear));
        if let Err(TunnelError::Closed) = received {
            // A close that comes with the last words must not swallow them: the next read reports it.
            self.0.closed = true;
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(received)
    }
}
