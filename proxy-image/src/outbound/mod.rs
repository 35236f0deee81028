//! Connections of the pod's apps. In go those that the redirect brings to port 15001; out they go as they are
//! where the mesh ends, and through a tunnel with a pinned identity where it doesn't: then there is a tunnel or
//! nothing, never plaintext.

mod choice;
mod dial;

use crate::accept::{Accepted, OriginalDestination, accept, redirected};
use crate::capacity::Capacity;
use crate::context::{Context, Destination, Endpoint, HEALTH_PORT, METRICS_PORT};
use crate::copy::{End, Failure, TcpSide, Which, relay};
use crate::inbound::{Watch, serve_local};
use crate::limits;
use crate::path_metrics::{Direction, OpenGauge, Transport};
use crate::refusal;
use crate::socket;
use crate::telemetry::ConnectionRecord;
use crate::tunnel_io::{Tunnel, TunnelError};
use choice::{Affinity, Loads, Tried, choose};
use cinch_policy::Mode;
use cinch_reason::Reason;
use cinch_redirect::{AGENT_TEST_ADDRESS, AGENT_TEST_ADDRESS_V6};
use cinch_tunnel::ResetCode;
use dial::{Dialler, Opened, Patience, Trouble};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::yield_now;
use tokio_util::task::TaskTracker;

/// So often the runtime looks for news before OPEN leaves without the app's first words. With them, it leaves in one
/// record and one segment, which saves both sides system calls and the other one a wake-up. Most apps speak right after
/// they have connected, but we are woken by the connection. Not a timer: that would cost more than it saves.
const LOOKS: usize = 3;

/// The outbound side.
struct Outbound {
    ctx: Arc<Context>,
    loads: Arc<Loads>,
    affinity: Affinity,
    dialler: Dialler,
    /// Where we listen; 0 where that is not known.
    port: u16,
    tasks: TaskTracker,
}

/// A connection of an app, on its way. Boxed, because every call that hands it on would keep room for it in the task.
struct Departure {
    app: TcpSide,
    from: SocketAddr,
    to: SocketAddr,
    /// What the app said before a tunnel answered.
    early: Vec<u8>,
    /// Counts it as on its way.
    opening: OpenGauge,
    /// What it may still wait for a tunnel.
    patience: Patience,
}

/// What became of the attempt to reach one of the endpoints.
enum Routed {
    /// It is over, one way or the other.
    Done,
    /// The peer at this endpoint proved another identity than the record says.
    Mismatch(Box<Departure>, Box<Endpoint>),
}

/// Serves `listener` until the drain has begun and every connection has ended, or the drain has. What is open
/// then is reset when its task is dropped, with the runtime.
pub async fn serve(listener: TcpListener, ctx: Arc<Context>) {
    let original = redirected(&listener);
    serve_with(listener, ctx, original).await;
}

/// As [`serve`], with another source of original destinations.
pub async fn serve_with(listener: TcpListener, ctx: Arc<Context>, original: OriginalDestination) {
    socket::prepare_app_listener(&listener);
    let outbound = Arc::new(Outbound {
        loads: Arc::default(),
        affinity: Affinity::new(ctx.limits.destinations),
        dialler: Dialler::new(&ctx),
        port: listener.local_addr().map_or(0, |local| local.port()),
        tasks: TaskTracker::new(),
        ctx: ctx.clone(),
    });
    let sweeping = tokio::spawn(outbound.dialler.keep_swept());
    // The apps of the pod have one address.
    let capacity = Capacity::new(ctx.limits.connections, ctx.limits.connections);
    accept(listener, capacity, original, &ctx, |accepted| {
        let outbound = outbound.clone();
        outbound.tasks.clone().spawn(async move { outbound.take(accepted).await });
    })
    .await;
    outbound.tasks.close();
    outbound.dialler.pool().close();
    tokio::select! {
        () = outbound.tasks.wait() => {}
        () = ctx.end.cancelled() => {}
    }
    sweeping.abort();
}

/// What `app` says right after it has connected; nothing where it waits for the other side's first word.
async fn first_words(app: &mut TcpSide) -> Result<Vec<u8>, Failure> {
    let mut words = app.read_now()?;
    for _ in 0..LOOKS {
        if !words.is_empty() {
            break;
        }
        yield_now().await;
        words = app.read_heard()?;
    }
    Ok(words)
}

/// Whether no tunnel is to be had there: the peer is not meshed, its port takes none, or it is one of the proxy's
/// own ports, which answers scrapes and probes in the clear and leads to no app.
fn is_plain(endpoint: &Endpoint) -> bool {
    let own_port = matches!(endpoint.address.port(), METRICS_PORT | HEALTH_PORT);
    !endpoint.meshed || endpoint.mode == Mode::Disable || own_port
}

/// The node agent proves from inside our namespace that its dials are captured.
fn is_agents_dial(to: SocketAddr) -> bool {
    to.ip() == IpAddr::V4(AGENT_TEST_ADDRESS) || to.ip() == IpAddr::V6(AGENT_TEST_ADDRESS_V6)
}

impl Outbound {
    /// The number of our question, so that the agent knows who it has reached. It is no secret from the pod: who
    /// can answer with it must have the outbound port.
    async fn answer_agent(&self, mut stream: TcpStream) {
        let _ = stream.write_all(&self.ctx.evidence.boot_id().to_be_bytes()).await;
        let _ = stream.shutdown().await;
    }

    async fn take(&self, Accepted { stream, from, to, place, opening }: Accepted) {
        let Some(to) = to else {
            self.ctx.metrics.count_refused(Direction::Outbound, Reason::RedirectMissing);
            return socket::abort(stream);
        };
        if to.ip() == IpAddr::V4(cinch_redirect::SELF_TEST_ADDRESS) {
            self.ctx.evidence.note_outbound_proof();
            return;
        }
        if is_agents_dial(to) {
            return self.answer_agent(stream).await;
        }
        // Who dials the listener himself is told that he meant the listener.
        let local = to.port() == self.port && stream.local_addr().is_ok_and(|local| local == to);
        let app = TcpSide::new(stream, self.ctx.kept.share_of_records());
        let patience = Patience::new(self.ctx.limits.open_timeout);
        let departure = Box::new(Departure { app, from, to, early: Vec::new(), opening, patience });
        if local || to.ip().is_unspecified() || to.ip().is_multicast() {
            return self.refuse(*departure, Reason::DestinationRefused, "not a redirected connection");
        }
        self.route(departure).await;
        drop(place);
    }

    async fn route(&self, mut departure: Box<Departure>) {
        let mut tried = Tried::default();
        // Wherever somebody else stood nobody goes again, so there may be healthy ones among those that are left.
        while tried.count_wrong() < self.ctx.limits.endpoint_tries {
            let to = departure.to;
            let (endpoints, within) = match self.ctx.discovery.resolve(to).await {
                Destination::PassThrough => return Box::pin(self.plain(departure, to)).await,
                Destination::Refuse(reason) => return self.refuse(*departure, reason, ""),
                Destination::Endpoints(endpoints) => (endpoints, None),
                Destination::Sticky(endpoints, within) => (endpoints, Some(within)),
            };
            match self.reach(departure, &endpoints, within, &mut tried).await {
                Routed::Done => return,
                Routed::Mismatch(back, endpoint) => {
                    tried.add_wrong(&endpoint);
                    self.ctx.discovery.forget(to, &endpoint);
                    departure = back;
                }
            }
        }
        self.refuse(*departure, Reason::PeerIdentityMismatch, "");
    }

    /// `within`: how long connections keep to the endpoint that took the last one.
    async fn reach(
        &self,
        mut departure: Box<Departure>,
        endpoints: &[Endpoint],
        within: Option<Duration>,
        tried: &mut Tried,
    ) -> Routed {
        if !endpoints.is_empty() && endpoints.iter().all(|endpoint| !endpoint.meshed) {
            // As the app meant it: what balances this address outside of the mesh goes on doing so.
            let to = departure.to;
            Box::pin(self.plain(departure, to)).await;
            return Routed::Done;
        }
        let to = departure.to;
        let preferred = within.and_then(|_| self.affinity.of(to, Instant::now()));
        let mut retried = false;
        let mut reason =
            if tried.count_wrong() > 0 { Reason::PeerIdentityMismatch } else { Reason::NoListener };
        while let Some(endpoint) = choose(endpoints, to, preferred, tried, &self.loads) {
            if tried.count() >= self.ctx.limits.endpoint_tries {
                self.ctx.metrics.count_limit("endpoint_tries");
                break;
            }
            if self.ctx.is_own(endpoint.address.ip()) {
                self.keep_to(endpoint, to, within);
                let Departure { app, from, early, opening, .. } = *departure;
                Box::pin(serve_local(&self.ctx, (app, early, opening), from, endpoint.address)).await;
                return Routed::Done;
            }
            tried.add(endpoint.address);
            let _load = self.loads.enter(endpoint.address);
            if is_plain(endpoint) {
                match Box::pin(self.connect(endpoint.address)).await {
                    Ok(network) => {
                        self.keep_to(endpoint, to, within);
                        Box::pin(self.copy_plain(departure, network, endpoint.address)).await;
                        return Routed::Done;
                    }
                    Err(error) => {
                        limits::note_connect(&self.ctx.metrics, &error);
                        self.ctx.metrics.retries.inc();
                        continue;
                    }
                }
            }
            // Boxed, so that what only the opening needs is gone with it.
            match Box::pin(self.open(&mut departure, endpoint, retried)).await {
                Ok(opened) => {
                    self.keep_to(endpoint, to, within);
                    self.copy_tunnel(departure, opened).await;
                    return Routed::Done;
                }
                Err(Trouble::Mismatch) => return Routed::Mismatch(departure, Box::new(endpoint.clone())),
                Err(Trouble::Unreachable(why)) => reason = why,
                Err(Trouble::Retry(why)) if !retried => {
                    retried = true;
                    reason = why;
                    tried.again_if_alone(endpoint.address, endpoints);
                }
                Err(Trouble::Retry(why) | Trouble::Refused(why)) => {
                    self.refuse(*departure, why, "");
                    return Routed::Done;
                }
                Err(Trouble::AppGone) => {
                    departure.app.abort();
                    return Routed::Done;
                }
            }
            self.ctx.metrics.retries.inc();
        }
        self.refuse(*departure, reason, "no endpoint could be reached");
        Routed::Done
    }

    /// The next connection to `to` goes to `endpoint` too, where the Service wants that.
    fn keep_to(&self, endpoint: &Endpoint, to: SocketAddr, within: Option<Duration>) {
        if let Some(within) = within {
            self.affinity.note(to, endpoint.address, within, Instant::now());
        }
    }

    /// A tunnel to `endpoint` that has said OPENED. `fresh`: not one from the pool.
    async fn open(
        &self,
        departure: &mut Departure,
        endpoint: &Endpoint,
        fresh: bool,
    ) -> Result<Opened, Trouble> {
        let Some(identity) = &endpoint.identity else {
            return Err(Trouble::Refused(Reason::PeerIdentityMismatch));
        };
        // What the app has said by now goes with OPEN. It is kept until the answer, for a retry.
        if departure.early.is_empty() {
            departure.early = first_words(&mut departure.app).await.map_err(|_| Trouble::AppGone)?;
        }
        let (key, mut tunnel) =
            self.dialler.tunnel(endpoint.address, identity, fresh, &mut departure.patience).await?;
        if departure.early.is_empty() {
            // A handshake took its time.
            departure.early = departure.app.read_heard().map_err(|_| Trouble::AppGone)?;
        }
        tunnel.begin(&departure.early).map_err(|_| Trouble::Retry(Reason::TunnelBroken))?;
        self.dialler.answered(key, tunnel).await
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let limits = &self.ctx.limits;
        socket::connect(to, limits.connect_timeout, limits.peer_timeout).await
    }

    /// In plaintext, as the app asked for it.
    async fn plain(&self, departure: Box<Departure>, to: SocketAddr) {
        match self.connect(to).await {
            Ok(network) => self.copy_plain(departure, network, to).await,
            Err(error) => {
                limits::note_connect(&self.ctx.metrics, &error);
                self.refuse(*departure, Reason::NoListener, &error.to_string());
            }
        }
    }

    /// `upstream`: to where `network` goes.
    async fn copy_plain(&self, departure: Box<Departure>, network: TcpStream, upstream: SocketAddr) {
        let Departure { mut app, from, to, early, opening, .. } = *departure;
        let ends = (from, to);
        let record = ConnectionRecord::outbound(&self.ctx.metrics.telemetry, ends, upstream, None);
        let metrics = self.ctx.metrics.connection(Direction::Outbound, Transport::Plaintext);
        let metrics = metrics.with_record(Some(record));
        drop(opening);
        let mut network = TcpSide::new(network, self.ctx.kept.share());
        // Early words were read for a tunnel that did not come about; they were given to nobody.
        if !early.is_empty() {
            metrics.count_sent(early.len());
            if crate::copy::Side::send(&mut network, &early, false).is_err() {
                return app.abort();
            }
        }
        drop(early);
        if relay(&mut network, &mut app, &mut Watch::new(&metrics)).await != End::Finished {
            network.abort();
            app.abort();
        }
    }

    async fn copy_tunnel(&self, departure: Box<Departure>, mut opened: Opened) {
        let Departure { mut app, from, to, early, opening, .. } = *departure;
        let telemetry = &self.ctx.metrics.telemetry;
        let record =
            ConnectionRecord::outbound(telemetry, (from, to), opened.key.address, Some(&opened.key.peer));
        let metrics = self.ctx.metrics.connection(Direction::Outbound, Transport::Tunnel);
        let metrics = metrics.with_record(Some(record));
        metrics.count_sent(early.len());
        drop((early, opening));
        let end = relay(&mut opened.tunnel, &mut app, &mut Watch::new(&metrics)).await;
        let Opened { key, mut tunnel } = opened;
        if tunnel.outlived_certificate() {
            self.ctx.metrics.outlived_certificate.inc();
        }
        let owed = match end {
            End::Finished => return self.dialler.pool().put(key, tunnel),
            End::Failed(Which::First, Failure::Broken) => {
                app.abort();
                if self.broken(&mut tunnel, from, to).is_vanished() {
                    self.dialler.pool().forget(&key);
                }
                return tunnel.abort();
            }
            End::Failed(Which::First, Failure::Reset) => None,
            End::Cut(reason) => {
                refusal::cut_outbound(&self.ctx.metrics, reason, from, to);
                Some(ResetCode::App)
            }
            End::Failed(Which::Second, _) => Some(ResetCode::App),
        };
        app.abort();
        Box::pin(self.dialler.settle(key, tunnel, owed)).await;
    }

    fn broken(&self, tunnel: &mut Tunnel, from: SocketAddr, to: SocketAddr) -> TunnelError {
        let fault = tunnel.take_fault();
        if let TunnelError::Protocol(_) | TunnelError::Tls(_) = fault {
            self.ctx.metrics.count_protocol_error(Direction::Outbound);
        }
        if fault.is_vanished() {
            self.ctx.metrics.count_limit("peer_timeout");
        }
        refusal::cut_outbound(&self.ctx.metrics, Reason::TunnelBroken, from, to);
        fault
    }

    fn refuse(&self, departure: Departure, reason: Reason, detail: &str) {
        let ends = (departure.from, departure.to);
        refusal::refused(&self.ctx.metrics, Direction::Outbound, reason, ends, detail);
        departure.app.abort();
    }
}
