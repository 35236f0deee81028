//! The server side of tunnels: the handshake, then one stream after the other, until the client leaves, the
//! tunnel is too old, its certificates or bundle are replaced, or the proxy ends.

use super::{Arrival, Inbound, Watch};
use crate::context::Credentials;
use crate::copy::{End, Failure, TcpSide, Which, relay};
use crate::http_filter::{self, Job};
use crate::limits::note_connect;
use crate::live::{Peer, Registered};
use crate::path_metrics::{Direction, Outcome, Transport};
use crate::refusal;
use crate::socket::{self, First};
use crate::telemetry::ConnectionRecord;
use crate::tunnel_io::{self, Bounds, HandshakeError, Tunnel, TunnelError};
use cinch_places::Place;
use cinch_reason::Reason;
use cinch_tunnel::{RefuseCode, ResetCode};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Between which addresses a tunnel goes.
#[derive(Clone, Copy)]
struct Ends {
    from: SocketAddr,
    to: SocketAddr,
    /// The tunnel began when the proxy was already told to end, so it is for one stream: the app still serves.
    late: bool,
}

impl Ends {
    fn both(&self) -> (SocketAddr, SocketAddr) {
        (self.from, self.to)
    }
}

/// What comes next on an idle tunnel.
enum Next {
    Stream,
    Closed,
    /// We want no further streams on it.
    Leave,
    Failed(TunnelError),
}

impl Inbound {
    /// A connection that began with a tunnel's ClientHello.
    pub(super) async fn tunnel(&self, arrival: Box<Arrival>) {
        let Arrival { stream, from, to, prefix, opening, .. } = *arrival;
        socket::reset_on_drop(&stream, false);
        let credentials = self.ctx.credentials.borrow().clone();
        let Some(credentials) = credentials else {
            return self.refuse(stream, from, to, Reason::ControlUnreachable, "no certificate has come yet");
        };
        let limits = &self.ctx.limits;
        let Some(pass) = Box::pin(self.handshakes.enter(from.ip(), limits.handshake_timeout)).await else {
            self.ctx.metrics.count_limit("handshakes_inbound");
            return self.refuse(stream, from, to, Reason::Overloaded, "handshakes");
        };
        socket::prepare_tunnel(&stream, limits.peer_timeout);
        let gauge = self.ctx.metrics.tunnel_open(Direction::Inbound);
        let bounds = Bounds { handshake: limits.handshake_timeout, age: limits.tunnel_age };
        // Boxed, so that what only the handshake needs is gone with it.
        let shaken = Box::pin(async {
            tokio::select! {
                biased;
                shaken = tunnel_io::accept(stream, prefix, &credentials, bounds, gauge) => shaken,
                () = pass.lost() => Err(HandshakeError::Displaced),
            }
        })
        .await;
        drop((pass, opening));
        match shaken {
            Ok(mut tunnel) => {
                self.ctx.metrics.count_handshake(Direction::Inbound, Outcome::Ok);
                tunnel.attend(&self.presence);
                self.peers.note(from.ip());
                tunnel.hold_proof(&self.ctx.proofs, &credentials.bundle);
                tunnel.count_kept(&self.ctx.kept);
                let late = self.ctx.drain.is_cancelled();
                self.streams(tunnel, Ends { from, to, late }, credentials).await;
            }
            Err(error) => {
                let metrics = &self.ctx.metrics;
                metrics.count_handshake(Direction::Inbound, Outcome::Failed);
                match error {
                    HandshakeError::Timeout => metrics.count_limit("handshake_timeout"),
                    HandshakeError::Displaced => metrics.count_limit("handshakes_inbound"),
                    HandshakeError::Failed(_) | HandshakeError::Refused(..) => {}
                }
                refusal::refused(metrics, Direction::Inbound, error.reason(), (from, to), &error.to_string());
            }
        }
    }

    async fn streams(&self, mut tunnel: Tunnel, ends: Ends, credentials: Arc<Credentials>) {
        let mut current = self.ctx.credentials.clone();
        // A new tunnel takes no place among the idle ones: its first OPEN is due, and who keeps many tunnels idle
        // must not keep others out.
        let (mut wait, mut place) = (self.ctx.limits.handshake_timeout, None);
        loop {
            let said = (credentials.bundle_version, ends.late);
            let next = self.next((&mut tunnel, place.as_ref()), wait, &mut current, said).await;
            drop(place.take());
            match next {
                Next::Stream => {
                    if let Err(error) = self.stream(&mut tunnel, &ends).await {
                        return self.failed(tunnel, &ends, &error);
                    }
                    if tunnel.outlived_certificate() {
                        self.ctx.metrics.outlived_certificate.inc();
                    }
                    if ends.late {
                        return self.leave(tunnel).await;
                    }
                }
                Next::Closed => return tunnel.close(self.ctx.limits.settle).await,
                Next::Leave => return self.leave(tunnel).await,
                Next::Failed(error) => return self.failed(tunnel, &ends, &error),
            }
            wait = self.ctx.limits.server_idle;
            // Where there is none left, it comes from the host that has most of them: its longest idle tunnel goes.
            place = self.idle.take(ends.from.ip());
            if place.is_none() {
                self.ctx.metrics.count_limit("idle_tunnels");
                return self.leave(tunnel).await;
            }
        }
    }

    async fn next(
        &self,
        (tunnel, place): (&mut Tunnel, Option<&Place>),
        wait: Duration,
        credentials: &mut watch::Receiver<Option<Arc<Credentials>>>,
        (bundle_version, late): (u64, bool),
    ) -> Next {
        let left = tunnel.expires().saturating_duration_since(Instant::now());
        let lost = async {
            match place {
                Some(place) => place.lost().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            opened = poll_fn(|cx| tunnel.poll_open(cx)) => match opened {
                Ok(Some(_)) => Next::Stream,
                Ok(None) => Next::Closed,
                Err(error) => Next::Failed(error),
            },
            () = tokio::time::sleep(wait.min(left)) => Next::Leave,
            () = lost => {
                self.ctx.metrics.count_limit("idle_tunnels");
                Next::Leave
            }
            () = self.ctx.drain.cancelled(), if !late => Next::Leave,
            () = another_bundle(credentials, bundle_version) => Next::Leave,
        }
    }

    /// Takes no further stream, and lets the client close first, so that no OPEN of it is lost.
    async fn leave(&self, mut tunnel: Tunnel) {
        let leaving = async {
            tunnel.drain()?;
            while poll_fn(|cx| tunnel.poll_open(cx)).await?.is_some() {
                tunnel.refuse(RefuseCode::Draining)?;
                tunnel.settle(None).await?;
            }
            Ok::<_, TunnelError>(())
        };
        let _ = tokio::time::timeout(self.ctx.limits.settle, leaving).await;
        tunnel.close(self.ctx.limits.settle).await;
    }

    /// One app connection. An error means that the tunnel is of no further use.
    async fn stream(&self, tunnel: &mut Tunnel, ends: &Ends) -> Result<(), TunnelError> {
        let is_over = self.ctx.drain.is_cancelled() && !ends.late || Instant::now() >= tunnel.expires();
        if is_over || !tunnel.is_trusted() {
            // The client tries another tunnel: nothing is lost, so nothing is counted as refused.
            tunnel.refuse(RefuseCode::Draining)?;
            return self.settle(tunnel, None, self.ctx.limits.settle).await;
        }
        let registered = match self.admit(Peer::Proved(tunnel.peer().clone()), ends.from, ends.to) {
            Ok(registered) => registered,
            Err(denial) => {
                refusal::denied(&self.ctx.metrics, &denial, ends.both(), Some(tunnel.peer().as_str()));
                tunnel.refuse(RefuseCode::Denied)?;
                return self.settle(tunnel, None, self.ctx.limits.settle).await;
            }
        };
        let opening = self.ctx.metrics.opening();
        let first = if tunnel.has_spoken() { First::Us } else { First::Anybody };
        let connected = socket::connect_app(ends.to, first, self.ctx.limits.connect_timeout).await;
        drop(opening);
        match connected {
            Ok(app) => {
                let app = TcpSide::new(app, self.ctx.kept.share_of_records());
                self.copy_stream(tunnel, ends, app, &registered).await
            }
            Err(error) => {
                let code = match error.kind() {
                    io::ErrorKind::ConnectionRefused => RefuseCode::NoListener,
                    _ => RefuseCode::Unreachable,
                };
                let (metrics, detail) = (&self.ctx.metrics, error.to_string());
                note_connect(metrics, &error);
                refusal::refused(metrics, Direction::Inbound, Reason::NoListener, ends.both(), &detail);
                tunnel.refuse(code)?;
                self.settle(tunnel, None, self.ctx.limits.settle).await
            }
        }
    }

    async fn copy_stream(
        &self,
        tunnel: &mut Tunnel,
        ends: &Ends,
        mut app: TcpSide,
        registered: &Registered,
    ) -> Result<(), TunnelError> {
        tunnel.opened()?;
        let record = ConnectionRecord::inbound(&self.ctx.metrics.telemetry, registered, ends.from);
        let metrics = self.ctx.metrics.connection(Direction::Inbound, Transport::Tunnel).with_record(record);
        let mut watch = Watch::new(&metrics).judged(registered);
        let end = if registered.is_http() {
            let job = Job { ctx: &self.ctx, registered, from: ends.from, early: Vec::new() };
            // Boxed, so that streams that are not read are no larger for it.
            Box::pin(http_filter::relay(tunnel, &mut app, job, &mut watch)).await.end
        } else {
            relay(tunnel, &mut app, &mut watch).await
        };
        let why = match end {
            End::Finished if registered.is_http() => {
                // The client may still read our last words, or send what nobody wants.
                app.leave();
                return self.settle(tunnel, None, self.ctx.limits.http_flush).await;
            }
            End::Finished => return Ok(()),
            End::Cut(reason) => {
                refusal::cut(&self.ctx.metrics, reason, registered.denial(), ends.from, ends.to);
                Some(ResetCode::Cut)
            }
            End::Failed(Which::First, Failure::Broken) => {
                app.abort();
                return Err(tunnel.take_fault());
            }
            End::Failed(Which::First, Failure::Reset) => None,
            End::Failed(Which::Second, _) => Some(ResetCode::App),
        };
        app.abort();
        self.settle(tunnel, why, self.ctx.limits.settle).await
    }

    async fn settle(
        &self,
        tunnel: &mut Tunnel,
        why: Option<ResetCode>,
        limit: Duration,
    ) -> Result<(), TunnelError> {
        // Boxed, so that streams are no larger for it while they are copied.
        Box::pin(tokio::time::timeout(limit, tunnel.settle(why)))
            .await
            .map_err(|_| TunnelError::Broken(io::ErrorKind::TimedOut.into()))?
    }

    fn failed(&self, tunnel: Tunnel, ends: &Ends, error: &TunnelError) {
        if let TunnelError::Protocol(_) | TunnelError::Tls(_) = error {
            self.ctx.metrics.count_protocol_error(Direction::Inbound);
            let detail = error.to_string();
            refusal::refused(
                &self.ctx.metrics,
                Direction::Inbound,
                Reason::TunnelBroken,
                ends.both(),
                &detail,
            );
        }
        tunnel.abort();
    }
}

/// Waits until the trust bundle is another than that of `version`: peers must then be verified anew.
async fn another_bundle(credentials: &mut watch::Receiver<Option<Arc<Credentials>>>, version: u64) {
    let other =
        |held: &Option<Arc<Credentials>>| held.as_ref().is_some_and(|held| held.bundle_version != version);
    if credentials.wait_for(other).await.is_err() {
        std::future::pending::<()>().await;
    }
}
