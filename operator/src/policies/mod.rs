//! What becomes of policies: the leader writes `status` of each object in enrolled namespaces and in the root
//! namespace, tells postures which are broken, and measures how long a change takes. In go the index, what proxies
//! acknowledged, and how it stands with keys.
//!
//! `gather` looks, `verdict` and `status` decide (pure), `room` paces, `write` writes.

mod broken;
mod gather;
mod latency;
mod room;
mod status;
mod verdict;
mod write;

pub use broken::BrokenPolicies;

use crate::control::Sessions;
use crate::index::Index;
use crate::jwks::KeySets;
use crate::metrics::Metrics;
use crate::settings::Settings;
use kube::Client;
use room::{Left, Room};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Changes of one moment are looked at together.
const GATHER: Duration = Duration::from_millis(250);
/// Between the end of a round and the next.
const PAUSE: Duration = Duration::from_millis(750);
/// A new leader gives proxies so long to come back before it tells who does not enforce what.
const RETURN: Duration = Duration::from_secs(5);
/// When objects wait for their turn.
const AGAIN: Duration = Duration::from_secs(1);

/// What the room reads and where it writes.
#[derive(Clone)]
pub struct Parts {
    /// Access to the API server.
    pub client: Client,
    /// Pods and policies.
    pub index: Index,
    /// What proxies acknowledged.
    pub sessions: Sessions,
    /// How it stands with keys of tokens.
    pub keys: KeySets,
    /// Where postures read what is broken.
    pub broken: BrokenPolicies,
    /// The root namespace.
    pub settings: Arc<Settings>,
    /// Where to count.
    pub metrics: Metrics,
}

/// Looks after all policies until `shutdown`. Only the leader may run this.
pub async fn run(parts: Parts, shutdown: CancellationToken) {
    let measuring = latency::run(parts.index.clone(), parts.sessions.clone(), parts.metrics.clone());
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = measuring => {}
        () = rounds(parts) => {}
    }
}

async fn rounds(parts: Parts) {
    let mut pods = parts.index.changes();
    let mut streams = parts.sessions.changes();
    let mut keys = parts.keys.changes();
    let mut room = Room::new(parts);
    tokio::time::sleep(RETURN).await;
    loop {
        let left = room.round().await;
        tokio::time::sleep(PAUSE).await;
        let again = async {
            match left {
                Left::Some => tokio::time::sleep(AGAIN).await,
                Left::Nothing => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = pods.changed() => if changed.is_err() { return },
            changed = streams.changed() => if changed.is_err() { return },
            changed = keys.changed() => if changed.is_err() { return },
            () = again => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}
