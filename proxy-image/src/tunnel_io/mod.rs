//! One tunnel with its socket: TLS and `cinch/1` around a TCP connection. In go a finished handshake and the
//! bytes of an app, out come what the peer says and the bytes of its app. One frame is one TLS record; what has
//! come is read 64 KiB at a time into the thread's buffer; an idle tunnel owns no buffer of ours.

mod handshake;
mod heard;
mod side;

pub use handshake::{Bounds, HandshakeError, accept, dial};

use crate::copy::{Failure, Sink, with_scratch};
use crate::path_metrics::OpenGauge;
use crate::socket;
use cinch_identity::SpiffeId;
use cinch_tunnel::{MAX_PAYLOAD, Misuse, Open, ProtocolError, RefuseCode, ResetCode, Session};
use heard::Heard;
use rustls::Connection;
use std::future::poll_fn;
use std::io::{self, BufRead, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

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
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    /// The bytes break the tunnel's protocol.
    #[error("protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// We asked for something that the tunnel's state does not permit.
    #[error("{0}")]
    Misuse(#[from] Misuse),
}

/// A server's answer to OPEN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The app has accepted.
    Opened,
    /// There will be no stream.
    Refused(RefuseCode),
}

/// A tunnel.
pub struct Tunnel {
    tcp: TcpStream,
    tls: Connection,
    session: Session,
    peer: SpiffeId,
    expires: Instant,
    certificate_ends: Instant,
    heard: Heard,
    /// Found with the last words of the peer; told by the next read.
    failed: Option<TunnelError>,
    /// Why the relay could not go on.
    fault: Option<TunnelError>,
    _gauge: OpenGauge,
}

impl Tunnel {
    /// Who the peer proved to be.
    #[must_use]
    pub fn peer(&self) -> &SpiffeId {
        &self.peer
    }

    /// Until when streams may begin on it: the end of its certificates, or its greatest age.
    #[must_use]
    pub fn expires(&self) -> Instant {
        self.expires
    }

    /// One of its certificates has run out.
    #[must_use]
    pub fn outlived_certificate(&self) -> bool {
        Instant::now() >= self.certificate_ends
    }

    /// No stream is under way and another one may begin.
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        self.failed.is_none() && self.session.is_reusable() && Instant::now() < self.expires
    }

    /// The peer said DRAIN, or we did.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.session.is_draining()
    }

    /// Nothing has come that nobody has read: a tunnel that is idle in truth, and not one that has just ended.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        socket::is_quiet(&self.tcp)
    }

    /// Client: begins a stream, with what the app has said so far.
    ///
    /// # Errors
    /// [`TunnelError::Misuse`] when the tunnel is not reusable.
    pub fn begin(&mut self, early: &[u8]) -> Result<(), TunnelError> {
        self.heard = Heard::default();
        let mut frame = Vec::with_capacity(16);
        self.session.open(Open::default(), &mut frame)?;
        // OPEN is a record of its own, but leaves in the same segment as the data behind it.
        self.write(&frame)?;
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
                if let Some(answer) = self.heard.answer {
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
            if let Some(answer) = self.heard.answer {
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
            if let Some((open, reset)) = self.heard.open.take() {
                self.heard.reset = reset;
                self.heard.copying = false;
                return Poll::Ready(Ok(Some(open)));
            }
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
            match ready!(self.poll_receive(cx, None)) {
                Ok(()) => {}
                Err(TunnelError::Closed) if self.session.is_idle() => return Poll::Ready(Ok(None)),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Server: accepts the stream; it is copied from now on.
    ///
    /// # Errors
    /// [`TunnelError::Misuse`] when there is none.
    pub fn opened(&mut self) -> Result<(), TunnelError> {
        let mut frame = Vec::with_capacity(8);
        self.session.opened(&mut frame)?;
        self.write(&frame)
    }

    /// Server: refuses the stream. Call [`Tunnel::settle`] before the next one.
    ///
    /// # Errors
    /// [`TunnelError::Misuse`] when there is none.
    pub fn refuse(&mut self, why: RefuseCode) -> Result<(), TunnelError> {
        let mut frame = Vec::with_capacity(8);
        self.session.refused(why, &mut frame)?;
        self.write(&frame)
    }

    /// Server: takes no further streams.
    ///
    /// # Errors
    /// [`TunnelError::Misuse`] on a client.
    pub fn drain(&mut self) -> Result<(), TunnelError> {
        let mut frame = Vec::with_capacity(8);
        self.session.drain(&mut frame)?;
        self.write(&frame)
    }

    /// Ends a stream that did not end by itself: says RESET if that is still owed or `why` is given, then takes
    /// in what the peer still sends, until the tunnel is idle. The caller bounds the time.
    ///
    /// # Errors
    /// When the tunnel ends first.
    pub async fn settle(&mut self, why: Option<ResetCode>) -> Result<(), TunnelError> {
        self.heard.copying = false;
        let owed = why.or((!self.session.local_ended()).then_some(ResetCode::Answer));
        if let Some(why) = owed
            && !self.session.is_idle()
        {
            let mut frame = Vec::with_capacity(8);
            match self.session.reset(why, &mut frame) {
                Ok(()) => self.write(&frame)?,
                // Said before: there is nothing more to say.
                Err(Misuse(_)) if self.session.local_ended() => {}
                Err(misuse) => return Err(misuse.into()),
            }
        }
        poll_fn(|cx| {
            loop {
                let sent = self.poll_send(cx)?;
                if self.heard.open.is_none() {
                    self.heard.forget_data();
                }
                if self.session.is_idle() || self.heard.open.is_some() {
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
            if received.is_err() || !self.session.is_reusable() {
                return Poll::Ready(());
            }
        }
    }

    /// Why the copy through it could not go on.
    #[must_use]
    pub fn take_fault(&mut self) -> TunnelError {
        self.fault.take().unwrap_or(TunnelError::Closed)
    }

    fn broken(&mut self, error: TunnelError) -> Failure {
        self.fault = Some(error);
        Failure::Broken
    }

    /// Says goodbye and closes. The peer then knows that it was us.
    pub async fn close(mut self, limit: Duration) {
        self.tls.send_close_notify();
        let sent = poll_fn(|cx| self.poll_send(cx));
        let _ = tokio::time::timeout(limit, sent).await;
    }

    /// Closes without a word, with a RST.
    pub fn abort(self) {
        socket::abort(self.tcp);
    }

    /// Sends all that is waiting.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Socket(&self.tcp)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.tcp.poll_write_ready(cx)).map_err(TunnelError::Broken)?;
                }
                Err(error) => return Poll::Ready(Err(TunnelError::Broken(error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn write(&mut self, frame: &[u8]) -> Result<(), TunnelError> {
        self.tls.writer().write_all(frame).map_err(TunnelError::Broken)
    }

    /// Seals `bytes` as frames, each one record.
    fn write_data(&mut self, bytes: &[u8], fin: bool) -> Result<(), TunnelError> {
        let mut rest = bytes;
        loop {
            let (chunk, after) = rest.split_at_checked(MAX_PAYLOAD).unwrap_or((rest, &[]));
            let last = after.is_empty();
            let head = self.session.data(chunk.len(), fin && last)?;
            let slices = [IoSlice::new(&head), IoSlice::new(chunk)];
            let written = self.tls.writer().write_vectored(&slices).map_err(TunnelError::Broken)?;
            if written != head.len() + chunk.len() {
                return Err(TunnelError::Broken(io::ErrorKind::WriteZero.into()));
            }
            if last {
                return Ok(());
            }
            rest = after;
        }
    }

    /// Reads once what has come and takes it in. While the stream is copied, its data goes to `sink`.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        mut sink: Option<&mut Sink<'_>>,
    ) -> Poll<Result<(), TunnelError>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        // The handshake may have read past its own end.
        match self.take_in(&mut sink) {
            Ok(false) => {}
            Ok(true) => return Poll::Ready(Ok(())),
            Err(error) => return Poll::Ready(self.later(error)),
        }
        with_scratch(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut buffer)).map_err(TunnelError::Broken)?;
            let mut input = buffer.filled();
            if input.is_empty() {
                return Poll::Ready(Err(TunnelError::Broken(io::ErrorKind::UnexpectedEof.into())));
            }
            while !input.is_empty() {
                let before = input.len();
                self.tls.read_tls(&mut input).map_err(TunnelError::Broken)?;
                let processed = self.tls.process_new_packets();
                // What came before the fault counts: deliver it, then report the fault.
                let taken = self.take_in(&mut sink);
                if let Err(error) = processed {
                    return Poll::Ready(self.later(tls_error(error)));
                }
                if let Err(error) = taken {
                    return Poll::Ready(self.later(error));
                }
                if input.len() == before {
                    break;
                }
            }
            Poll::Ready(Ok(()))
        })
    }

    /// A close that comes with the last words must not swallow them: it is reported by the next read.
    fn later(&mut self, error: TunnelError) -> Result<(), TunnelError> {
        if matches!(error, TunnelError::Closed) {
            self.failed = Some(error);
            return Ok(());
        }
        Err(error)
    }

    /// Takes in all plaintext that TLS holds; says whether there was any.
    fn take_in(&mut self, sink: &mut Option<&mut Sink<'_>>) -> Result<bool, TunnelError> {
        let mut any = false;
        loop {
            let length = match self.tls.reader().into_first_chunk() {
                Ok([]) => return Err(TunnelError::Closed),
                Ok(chunk) => {
                    let mut input = chunk;
                    while let Some(event) = self.session.receive(&mut input)? {
                        self.heard.take(event, sink);
                    }
                    chunk.len()
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) => return Err(TunnelError::Broken(error)),
            };
            self.tls.reader().consume(length);
            any = true;
        }
    }
}

fn tls_error(error: rustls::Error) -> TunnelError {
    match error {
        // Encrypted since the handshake: the peer itself says that it ends the tunnel, perhaps because it did
        // not accept our certificate, which TLS 1.3 tells only now.
        rustls::Error::AlertReceived(_) => TunnelError::Closed,
        other => TunnelError::Tls(other),
    }
}

/// The socket as TLS writes to it.
struct Socket<'a>(&'a TcpStream);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
