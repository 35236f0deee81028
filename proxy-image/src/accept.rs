//! The accept loop of either side: bounded, never ended by an error of a single connection, stopped by the drain.

use crate::context::Context;
use crate::path_metrics::{OpenGauge, PathMetrics};
use crate::socket;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Where a redirected connection was meant to go.
pub type OriginalDestination = Arc<dyn Fn(&TcpStream) -> io::Result<SocketAddr> + Send + Sync>;

/// As the redirect of the pod says.
#[must_use]
pub fn redirected() -> OriginalDestination {
    Arc::new(cinch_redirect::original_destination)
}

/// Out of descriptors or memory: others must end first.
const PAUSE: Duration = Duration::from_millis(50);

/// Between two looks at whether connections are still open, once the drain has begun.
const LOOK: Duration = Duration::from_millis(10);

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// Its other end.
    pub from: SocketAddr,
    /// Its place under the limit of connections.
    pub place: OwnedSemaphorePermit,
    /// Counts it as on its way.
    pub opening: OpenGauge,
}

/// Accepts until the drain has begun and no app connection is open any more (until then the app lives, and what it
/// dials and is asked still counts), or the drain ends; then what waits already (its client may have said all and be
/// gone). Hands each connection to `serve`, which must not wait.
pub async fn accept(listener: TcpListener, ctx: &Context, mut serve: impl FnMut(Accepted)) {
    socket::prepare_listener(&listener);
    let places = Arc::new(Semaphore::new(ctx.limits.connections));
    let mut take = |stream, from: SocketAddr| {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        match places.clone().try_acquire_owned() {
            Ok(place) => serve(Accepted { stream, from, place, opening: ctx.metrics.opening() }),
            Err(_) => over_limit(&ctx.metrics, stream),
        }
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = over(ctx) => break,
        };
        match accepted {
            Ok((stream, from)) => take(stream, from),
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

fn over_limit(metrics: &PathMetrics, stream: TcpStream) {
    metrics.count_limit("connections");
    socket::abort(stream);
}
