//! The accept loop of either side: bounded, never ended by an error of a single connection, stopped by the drain.

use crate::capacity::{Capacity, Place};
use crate::context::Context;
use crate::path_metrics::OpenGauge;
use crate::socket;
use cinch_redirect::{Family, original_destination, original_destination_in};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

/// Where a redirected connection was meant to go.
pub type OriginalDestination = Arc<dyn Fn(&TcpStream) -> io::Result<SocketAddr> + Send + Sync>;

/// As the redirect of the pod says of connections that `listener` accepts.
#[must_use]
pub fn redirected(listener: &TcpListener) -> OriginalDestination {
    match listener.local_addr().map(Family::of) {
        Ok(family) => Arc::new(move |stream: &TcpStream| original_destination_in(family, stream)),
        Err(_) => Arc::new(original_destination),
    }
}

/// Out of descriptors or memory: others must end first.
const PAUSE: Duration = Duration::from_millis(50);

/// Between two looks at whether connections are still open, once the drain has begun.
const LOOK: Duration = Duration::from_millis(10);

/// Between two looks at what the system had to drop before it was accepted.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// The connections that the system dropped because too many waited already. Where some were dropped others are accepted,
/// so that is when it is asked.
#[derive(Debug, Default)]
struct Backlog {
    looked: Option<Instant>,
    dropped: u32,
}

impl Backlog {
    /// Counts those since the last look, if that was long ago.
    fn look(&mut self, listener: &TcpListener, ctx: &Context) {
        let now = Instant::now();
        if self.looked.is_some_and(|looked| now.saturating_duration_since(looked) < BETWEEN_LOOKS) {
            return;
        }
        let dropped = socket::dropped(listener);
        let since = dropped.wrapping_sub(self.dropped);
        (self.looked, self.dropped) = (Some(now), dropped);
        if since > 0 {
            ctx.metrics.limit_refusals.count_many("listen_backlog", since.into());
        }
    }
}

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// Its other end.
    pub from: SocketAddr,
    /// Where it was meant to go; `None`: the redirect does not know.
    pub to: Option<SocketAddr>,
    /// Its place under the limits of connections.
    pub place: Place,
    /// Counts it as on its way.
    pub opening: OpenGauge,
}

/// Accepts until the drain has begun and no app connection is open any more (until then the app lives, and what it
/// dials and is asked still counts), or the drain ends; then what waits already (its client may have said all and be
/// gone). Asks `original` where each connection was meant to go, and hands those that `capacity` has room for to
/// `serve`, which must not wait.
pub async fn accept(
    listener: TcpListener,
    capacity: Capacity,
    original: OriginalDestination,
    ctx: &Context,
    mut serve: impl FnMut(Accepted),
) {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let mut take = |stream: TcpStream, from: SocketAddr| {
        let (from, to) = (canonical(from), original(&stream).ok().map(canonical));
        match capacity.take(from.ip(), to.map(|to| to.port())) {
            Ok(place) => serve(Accepted { stream, from, to, place, opening: ctx.metrics.opening() }),
            Err(limit) => {
                ctx.metrics.count_limit(limit);
                socket::abort(stream);
            }
        }
    };
    let mut over = pin!(over(ctx));
    let mut backlog = Backlog::default();
    loop {
        let accepted = tokio::select! {
            // In this order, or a flood of connections would hide the drain.
            biased;
            () = &mut over => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                take(stream, from);
                backlog.look(&listener, ctx);
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    for (stream, from) in waiting(listener).take(ctx.limits.connections) {
        take(stream, from);
    }
}

/// Returns when nothing more need be accepted. Looked at by the clock: the drain is short and comes once.
async fn over(ctx: &Context) {
    ctx.drain.cancelled().await;
    while ctx.metrics.open_connections() > 0 && !ctx.end.is_cancelled() {
        tokio::time::sleep(LOOK).await;
    }
}

/// The connections that wait to be accepted, asked of the system: the runtime may not have heard of them yet.
fn waiting(listener: TcpListener) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
    let listener = listener.into_std().ok();
    std::iter::from_fn(move || {
        let (stream, from) = listener.as_ref()?.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, from))
    })
}
