//! The server side of tunnels: the handshake, then one stream after the other, until the client leaves, the
//! tunnel is too old, its certificates or bundle are replaced, or the proxy ends.

use super::{Arrival, Inbound, Watch};
use crate::capacity;
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
use tokio::net::TcpStream;
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

/// A tunnel whose handshake is over. Boxed, because the task that owns it hands it on.
pub(super) struct Begun {
    tunnel: Tunnel,
    ends: Ends,
    credentials: Arc<Credentials>,
    /// Its place among all connections.
    _place: capacity::Place,
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
    /// The handshake of a connection that began with a tunnel's ClientHello.
    pub(super) async fn begin(&self, arrival: Box<Arrival>, place: capacity::Place) -> Option<Box<Begun>> {
        let Arrival { stream, from, to, prefix, opening, .. } = *arrival;
        socket::reset_on_drop(&stream, false);
        let credentials = self.ctx.credentials.borrow().clone();
        let Some(credentials) = credentials else {
            self.refuse(stream, from, to, Reason::ControlUnreachable, "no certificate has come yet");
            return None;
        };
        let limits = &self.ctx.limits;
        let entered = Box::pin(self.handshakes.enter(from.ip(), limits.handshake_timeout)).await;
        let pass = match entered {
            Ok(pass) => pass,
            Err(limit) => {
                self.ctx.metrics.count_limit(limit);
                self.refuse(stream, from, to, Reason::Overloaded, "handshakes");
                return None;
            }
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
                Some(Box::new(Begun { tunnel, ends: Ends { from, to, late }, credentials, _place: place }))
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
                None
            }
        }
    }

    /// The streams of a tunnel, until it is over.
    pub(super) async fn streams(&self, mut begun: Box<Begun>) {
        let mut current = self.ctx.credentials.clone();
        // A new tunnel takes no place among the idle ones: its first OPEN is due, and who keeps many tunnels idle
        // must not keep others out.
        let (mut wait, mut place) = (self.ctx.limits.handshake_timeout, None);
        loop {
            let said = (begun.credentials.bundle_version, begun.ends.late);
            let next = self.next((&mut begun.tunnel, place.as_ref()), wait, &mut current, said).await;
            drop(place.take());
            match next {
                Next::Stream => {
                    if let Err(error) = self.stream(&mut begun.tunnel, &begun.ends).await {
                        return self.failed(begun.tunnel, &begun.ends, &error);
                    }
                    if begun.tunnel.outlived_certificate() {
                        self.ctx.metrics.outlived_certificate.inc();
                    }
                    if begun.ends.late {
                        return self.leave(begun.tunnel).await;
                    }
                }
                Next::Closed => return begun.tunnel.close(self.ctx.limits.settle).await,
                Next::Leave => return self.leave(begun.tunnel).await,
                Next::Failed(error) => return self.failed(begun.tunnel, &begun.ends, &error),
            }
            wait = self.ctx.limits.server_idle;
            // Where there is none left, it comes from the host that has most of them: its longest idle tunnel goes.
            place = self.idle.take(begun.ends.from.ip());
            if place.is_none() {
                self.ctx.metrics.count_limit("idle_tunnels");
                return self.leave(begun.tunnel).await;
            }
        }
    }

    // No `async fn`: it would keep room for its arguments twice.
    fn next<'s>(
        &'s self,
        (tunnel, place): (&'s mut Tunnel, Option<&'s Place>),
        wait: Duration,
        credentials: &'s mut watch::Receiver<Option<Arc<Credentials>>>,
        (bundle_version, late): (u64, bool),
    ) -> impl Future<Output = Next> {
        let left = tunnel.expires().saturating_duration_since(Instant::now());
        async move {
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
                () = tokio::time::sleep(wait.min(left)) => {
                    // One that has served a stream may be idle as long as it may; a new one keeps us waiting.
                    if place.is_none() && wait <= left {
                        self.ctx.metrics.count_limit("handshake_timeout");
                    }
                    Next::Leave
                }
                () = lost => {
                    self.ctx.metrics.count_limit("idle_tunnels");
                    Next::Leave
                }
                () = self.ctx.drain.cancelled(), if !late => Next::Leave,
                () = another_bundle(credentials, bundle_version) => Next::Leave,
            }
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
        if tokio::time::timeout(self.ctx.limits.settle, leaving).await.is_err() {
            self.ctx.metrics.count_limit("settle");
        }
        tunnel.close(self.ctx.limits.settle).await;
    }

    /// One app connection. An error means that the tunnel is of no further use.
    async fn stream(&self, tunnel: &mut Tunnel, ends: &Ends) -> Result<(), TunnelError> {
        let is_over = self.ctx.drain.is_cancelled() && !ends.late || Instant::now() >= tunnel.expires();
        if is_over || !tunnel.is_trusted() {
            // The client tries another tunnel: nothing is lost, so nothing is counted as refused.
            tunnel.refuse(RefuseCode::Draining)?;
            return self.settle(tunnel, None).await;
        }
        let registered = match self.admit(Peer::Proved(tunnel.peer().clone()), ends.from, ends.to) {
            Ok(registered) => registered,
            Err(denial) => {
                refusal::denied(&self.ctx.metrics, &denial, ends.both(), Some(tunnel.peer().as_str()));
                tunnel.refuse(RefuseCode::Denied)?;
                return self.settle(tunnel, None).await;
            }
        };
        let opening = self.ctx.metrics.opening();
        let first = if tunnel.has_spoken() { First::Us } else { First::Anybody };
        let connected = socket::connect_app(ends.to, first, self.ctx.limits.connect_timeout).await;
        drop(opening);
        match connected {
            Ok(app) => self.copy_stream(tunnel, ends, app, &registered).await,
            Err(error) => {
                let code = match error.kind() {
                    io::ErrorKind::ConnectionRefused => RefuseCode::NoListener,
                    _ => RefuseCode::Unreachable,
                };
                let (metrics, detail) = (&self.ctx.metrics, error.to_string());
                note_connect(metrics, &error);
                refusal::refused(metrics, Direction::Inbound, Reason::NoListener, ends.both(), &detail);
                tunnel.refuse(code)?;
                self.settle(tunnel, None).await
            }
        }
    }

    // No `async fn`: it would keep room for `app` twice.
    fn copy_stream<'s>(
        &'s self,
        tunnel: &'s mut Tunnel,
        ends: &'s Ends,
        app: TcpStream,
        registered: &'s Registered,
    ) -> impl Future<Output = Result<(), TunnelError>> {
        let mut app = TcpSide::new(app, self.ctx.kept.share_of_records());
        async move {
            tunnel.opened()?;
            let record = ConnectionRecord::inbound(&self.ctx.metrics.telemetry, registered, ends.from);
            let metrics =
                self.ctx.metrics.connection(Direction::Inbound, Transport::Tunnel).with_record(record);
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
                    return self
                        .settle_within(tunnel, None, (self.ctx.limits.http_flush, "http_flush"))
                        .await;
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
            self.settle(tunnel, why).await
        }
    }

    async fn settle(&self, tunnel: &mut Tunnel, why: Option<ResetCode>) -> Result<(), TunnelError> {
        self.settle_within(tunnel, why, (self.ctx.limits.settle, "settle")).await
    }

    /// `name`: of the limit whose time it is.
    async fn settle_within(
        &self,
        tunnel: &mut Tunnel,
        why: Option<ResetCode>,
        (limit, name): (Duration, &'static str),
    ) -> Result<(), TunnelError> {
        // Boxed, so that streams are no larger for it while they are copied.
        let settled = Box::pin(tokio::time::timeout(limit, tunnel.settle(why))).await;
        settled.unwrap_or_else(|_| {
            self.ctx.metrics.count_limit(name);
            // It is we who break it: a peer that has vanished is another matter.
            Err(TunnelError::Broken(io::ErrorKind::ConnectionAborted.into()))
        })
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
        if error.is_vanished() {
            self.ctx.metrics.count_limit("peer_timeout");
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How much room the future takes that `of` makes.
    fn room<A, F>(_of: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    /// Many connections are idle: what each of them takes is bounded here, where it is seen at once what makes it more.
    #[test]
    fn the_task_of_a_tunnel_and_the_filter_in_it_take_little_room() {
        let tunnel = room(|(inbound, begun): (&'static Inbound, Box<Begun>)| inbound.streams(begun));
        assert!(tunnel <= 800, "{tunnel}: with what the runtime needs it is more than a kibibyte");
        type Sides = (&'static mut Tunnel, &'static mut TcpSide);
        let filtered =
            room(|((client, app), job, watch): (Sides, Job<'static>, &'static mut Watch<'static>)| {
                http_filter::relay(client, app, job, watch)
            });
        assert!(filtered <= 640, "{filtered}: it takes the allocator's next larger piece");
    }
}
