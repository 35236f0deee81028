//! Connections to the pod. In go those that the redirect brings to port 15006; out they go to the app on its own
//! address and port, from tunnels or in plaintext as the port's mode has it, or they are reset, counted and named.

mod doubted;
mod handshakes;
mod local;
mod opening;
mod peers;
mod plaintext;
mod streams;
mod watch;

pub use local::serve_local;
pub use watch::Watch;

use crate::accept::{Accepted, OriginalDestination, accept, redirected};
use crate::capacity::Capacity;
use crate::context::{Context, HEALTH_PORT, InboundPolicy, METRICS_PORT};
use crate::evidence::Outcome;
use crate::live::{Denial, Pass, Peer, Registered, Subject, judge_new, policies_may_admit, report};
use crate::path_metrics::{Direction, OpenGauge};
use crate::presence::Presence;
use crate::refusal;
use crate::socket;
use cinch_places::{AtLimit, Places};
use cinch_policy::Mode;
use cinch_reason::Reason;
use handshakes::Handshakes;
use peers::Peers;
use std::net::SocketAddr;
use std::sync::Arc;
use streams::Begun;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

/// Ports of ours that nobody may reach from outside: admin, outbound, inbound.
const OWN_PORTS: [u16; 3] = [15000, 15001, 15006];

/// The inbound side.
pub struct Inbound {
    ctx: Arc<Context>,
    handshakes: Arc<Handshakes>,
    presence: Arc<Presence>,
    tasks: TaskTracker,
    /// Those of idle tunnels, by their hosts.
    idle: Places,
    peers: Peers,
}

/// A connection on its way to an app of the pod; a RST to its client unless it gets there. Boxed, because every call
/// that hands it on would keep room for it in the task.
struct Arrival {
    stream: TcpStream,
    from: SocketAddr,
    to: SocketAddr,
    /// What was already read from it.
    prefix: Vec<u8>,
    /// It is silent, and tunnels have come from its address lately.
    doubted: bool,
    /// Counts it as on its way.
    opening: OpenGauge,
}

/// Serves `listener` until the drain has begun and every connection has ended, or the drain has. What is open
/// then is reset when its task is dropped, with the runtime.
pub async fn serve(listener: TcpListener, ctx: Arc<Context>) {
    let original = redirected(&listener);
    serve_with(listener, ctx, original).await;
}

/// As [`serve`], with another source of original destinations.
pub async fn serve_with(listener: TcpListener, ctx: Arc<Context>, original: OriginalDestination) {
    let limits = &ctx.limits;
    socket::prepare_listener(&listener, limits.peer_timeout);
    let inbound = Arc::new(Inbound {
        handshakes: Handshakes::new(limits.handshakes_inbound, limits.handshakes_waiting),
        presence: Presence::new(limits.peer_timeout),
        tasks: TaskTracker::new(),
        // One host may have all as long as nobody else wants any.
        idle: Places::new(cinch_places::Limits {
            most: limits.idle_tunnels,
            of_one_source: limits.idle_tunnels,
            at_limit: AtLimit::Refuse,
        }),
        peers: Peers::new(limits.tunnel_age),
        ctx: ctx.clone(),
    });
    let watching = tokio::spawn(inbound.presence.clone().keep_watch());
    // Were there no place for a probe while others hold theirs, the kubelet would kill the app.
    let capacity = Capacity::new(limits.connections, limits.connections_per_source)
        .sparing(&[METRICS_PORT, HEALTH_PORT]);
    let accepting = accept(listener, capacity, original, &ctx, |accepted| {
        // Boxed, so that what a tunnel needs only to begin is gone with it.
        let begun = Box::pin(inbound.clone().take(accepted));
        let inbound = inbound.clone();
        inbound.tasks.clone().spawn(async move {
            let Some(begun) = begun.await else { return };
            inbound.streams(begun).await;
        });
    });
    let told = async {
        ctx.drain.cancelled().await;
        ctx.live.drain();
    };
    tokio::join!(accepting, told);
    inbound.tasks.close();
    tokio::select! {
        () = inbound.tasks.wait() => {}
        () = ctx.end.cancelled() => {}
    }
    watching.abort();
}

impl Inbound {
    /// Serves a connection, or says what tunnel it is, once its handshake is over.
    async fn take(self: Arc<Self>, accepted: Accepted) -> Option<Box<Begun>> {
        let Accepted { stream, from, to, place, opening } = accepted;
        let Some(to) = to else {
            self.ctx.metrics.count_refused(Direction::Inbound, Reason::RedirectMissing);
            socket::abort(stream);
            return None;
        };
        if let Err(why) = self.check_destination(from, to) {
            self.refuse(stream, from, to, Reason::DestinationRefused, why);
            return None;
        }
        if to.port() == METRICS_PORT || to.port() == HEALTH_PORT {
            // Nobody listens on these ports, so only a working redirect can have brought this here.
            self.ctx.evidence.note_inbound_proof();
            self.ctx.probes.serve(to.port(), stream, from).await;
            return None;
        }
        socket::reset_on_drop(&stream, true);
        let arrival = Arrival { stream, from, to, prefix: Vec::new(), doubted: false, opening };
        let tunnel = self.dispatch(Box::new(arrival)).await?;
        self.begin(tunnel, place).await
    }

    fn check_destination(&self, from: SocketAddr, to: SocketAddr) -> Result<(), &'static str> {
        if OWN_PORTS.contains(&to.port()) {
            return Err("a port of the proxy itself");
        }
        if from == to {
            return Err("a connection to itself");
        }
        // Loopback is none of them, so what apps bind there stays private.
        if !self.ctx.is_own(to.ip()) {
            return Err("not an address of the pod");
        }
        Ok(())
    }

    /// Serves what is no tunnel; says what is one.
    async fn dispatch(&self, arrival: Box<Arrival>) -> Option<Box<Arrival>> {
        let mode = self.policy().map(|policy| policy.modes.mode(arrival.to.port()));
        let Some(mode) = mode else {
            let Arrival { stream, from, to, .. } = *arrival;
            self.refuse(stream, from, to, Reason::ControlUnreachable, "no policy has come yet");
            return None;
        };
        match mode {
            Mode::Strict => self.strict(arrival).await,
            // Boxed, so that handshakes on STRICT ports take no more memory for what may become of others.
            Mode::Permissive => Box::pin(self.permissive(arrival)).await,
            Mode::Disable => {
                Box::pin(self.plaintext(arrival)).await;
                None
            }
        }
    }

    fn policy(&self) -> Option<Arc<InboundPolicy>> {
        self.ctx.policy.borrow().clone()
    }

    /// Registers the connection, then judges it by the policy of now.
    fn admit(&self, peer: Peer, from: SocketAddr, to: SocketAddr) -> Result<Registered, Denial> {
        admit(&self.ctx, Subject { peer, source: from.ip(), destination: to }, from)
    }

    fn refuse(&self, stream: TcpStream, from: SocketAddr, to: SocketAddr, reason: Reason, detail: &str) {
        refusal::refused(&self.ctx.metrics, Direction::Inbound, reason, (from, to), detail);
        socket::abort(stream);
    }

    /// Refuses plaintext, and remembers whose.
    fn deny_plaintext(&self, arrival: Arrival, denial: &Denial) {
        let Arrival { stream, from, to, .. } = arrival;
        let subject = Subject { peer: Peer::Unknown, source: from.ip(), destination: to };
        let policy = self.ctx.policy.borrow().clone();
        // Whom policy refuses too is no reason to take the mode back.
        let by_mode = denial.reason == Reason::StrictPlaintext
            && policy.is_none_or(|policy| policies_may_admit(&policy, &subject));
        let outcome = if by_mode { Outcome::DeniedByMode } else { Outcome::Denied };
        self.ctx.evidence.refused(from.ip(), to.port(), outcome);
        refusal::denied(&self.ctx.metrics, denial, (from, to), None);
        socket::abort(stream);
    }
}

/// Registers a connection, then judges it by the policy of now.
fn admit(ctx: &Context, subject: Subject, from: SocketAddr) -> Result<Registered, Denial> {
    let registered = ctx.live.register(subject);
    let policy = ctx.policy.borrow().clone();
    let Some(policy) = policy else { return Err(Denial::of(Reason::ControlUnreachable)) };
    let subject = registered.subject();
    let judged = judge_new(&policy, subject);
    let decision = match &judged {
        Ok(Pass::Http) => {
            // Decisions, audits and dry runs come with the requests.
            registered.set_http();
            return Ok(registered);
        }
        Ok(Pass::Plain(reason)) => Ok(*reason),
        Err(denial) => Err(denial.reason),
    };
    if policy.policies.is_some() {
        ctx.metrics.count_decision(decision);
    }
    if let Some(report) = report(&policy, subject) {
        refusal::reported(&ctx.metrics, &report, (from, subject.destination));
    }
    judged.map(|_| registered)
}
