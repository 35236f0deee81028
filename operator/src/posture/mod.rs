//! Postures: the leader looks at each enrolled namespace every second or so and carries out what
//! `cinch_promotion` decides. In go the index, the evidence, the sessions and the Postures that users write;
//! out come statuses, labels of namespaces, and events. Decisions are pure, in that crate; here is only what
//! joins it with the cluster.
//!
//! The order of a round is what makes a change of leader safe: decide, persist the memory into status, and only
//! then act on the namespace.

mod clock;
mod facts;
mod pins;
mod record;
mod room;
mod slot;
mod status;
mod watch;
mod workloads;
mod write;

#[cfg(test)]
mod tests;

use crate::accounts::Accounts;
use crate::control::Sessions;
use crate::evidence::EvidenceStore;
use crate::index::Index;
use crate::metrics::Metrics;
use crate::policies::BrokenPolicies;
use crate::pulse::Pulse;
use crate::settings::Settings;
use kube::Client;
use room::Room;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Changes of one moment are looked at together: at least so long.
const GATHER: Duration = Duration::from_millis(250);
/// And at most so long.
const GATHER_AT_MOST: Duration = Duration::from_secs(2);
/// No round is further from the next: evidence comes without a change of anything else.
const SLOWEST: Duration = Duration::from_secs(10);
/// Nor nearer, when nothing changes.
const FASTEST: Duration = Duration::from_secs(1);

/// What the room reads and where it writes.
#[derive(Clone)]
pub struct Parts {
    /// Access to the API server.
    pub client: Client,
    /// Pods and namespaces.
    pub index: Index,
    /// What is known of workloads.
    pub accounts: Accounts,
    /// What proxies reported.
    pub evidence: EvidenceStore,
    /// What proxies acknowledged.
    pub sessions: Sessions,
    /// Policies that can't be used as they are.
    pub broken: BrokenPolicies,
    /// Defaults of the installation.
    pub settings: Arc<Settings>,
    /// Where to count.
    pub metrics: Metrics,
    /// Where it says that rounds go on.
    pub pulse: Pulse,
}

/// Looks after all Postures until `shutdown`. Only the leader may run this.
pub async fn run(parts: Parts, shutdown: CancellationToken) {
    let postures = watch::Postures::default();
    let watching = watch::run(parts.client.clone(), postures.clone());
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = watching => {}
        () = rounds(Room::new(parts, postures)) => {}
    }
}

async fn rounds(mut room: Room) {
    let mut pods = room.parts.index.changes();
    let mut streams = room.parts.sessions.changes();
    while !room.ready() {
        tokio::time::sleep(GATHER).await;
    }
    info!("postures are looked after from now on");
    // A round costs more in a large mesh, where reports come more seldom too.
    let gather = (room.parts.settings.proxy.report_interval / 4).clamp(GATHER, GATHER_AT_MOST);
    loop {
        let next = room.round().await;
        let next = Instant::now() + next.clamp(gather, SLOWEST);
        tokio::time::sleep(gather).await;
        tokio::select! {
            changed = pods.changed() => if changed.is_err() { return },
            changed = streams.changed() => if changed.is_err() { return },
            () = room.postures.changed() => {}
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

/// How often to look without a change: some times within a short quiet period, not more often than reports
/// come or a second.
fn pace(settings: &Settings) -> Duration {
    settings.proxy.report_interval.clamp(FASTEST, SLOWEST)
}
