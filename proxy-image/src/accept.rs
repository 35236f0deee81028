//! The accept loop of either side: bounded, never ended by an error of a single connection, stopped by the drain.

use crate::context::Context;
use crate::path_metrics::PathMetrics;
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

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// Its other end.
    pub from: SocketAddr,
    /// Its place under the limit of connections.
    pub place: OwnedSemaphorePermit,
}

/// Accepts until the drain begins, and hands each connection to `serve`, which must not wait.
pub async fn accept(listener: TcpListener, ctx: &Context, mut serve: impl FnMut(Accepted)) {
    let places = Arc::new(Semaphore::new(ctx.limits.connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ctx.drain.cancelled() => return,
        };
        match accepted {
            Ok((stream, from)) => {
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                match places.clone().try_acquire_owned() {
                    Ok(place) => serve(Accepted { stream, from, place }),
                    Err(_) => over_limit(&ctx.metrics, stream),
                }
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn over_limit(metrics: &PathMetrics, stream: TcpStream) {
    metrics.count_limit("connections");
    socket::abort(stream);
}
