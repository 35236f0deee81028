//! Service accounts for workloads. A workload of an enrolled namespace that asks for `default` gets an
//! account of its own, so that it gets an identity of its own; the webhook assigns it. In go the workloads,
//! accounts, role bindings and Postures that are watched (`observed`); decisions are pure (`plan`, `bound`, `turns`);
//! out come creations and corrections of our own accounts (`write`). Accounts of others are never touched. What is
//! watched for this tells as well which workloads a lock of their namespace would stop (`refused`).

mod bound;
mod observed;
mod plan;
mod refused;
mod turns;
mod watch;
mod write;

#[cfg(test)]
mod tests;

use crate::index::Index;
use kube::Client;
use observed::Observed;
use parking_lot::{Mutex, RwLock};
use refused::ByNamespace;
pub use refused::Refused;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use turns::Tried;
use write::Round;

/// Events of one moment are planned together; far below the two seconds that the webhook waits.
const GATHER: Duration = Duration::from_millis(20);

/// Writes that failed are planned again so often.
const RETRY: Duration = Duration::from_secs(3);

/// What is left of a plan is planned again after this at the latest: by then the watch has told of what was written.
const NEXT: Duration = Duration::from_millis(200);

/// A cheap handle to what was decided about accounts.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    forced: Arc<RwLock<BTreeMap<String, String>>>,
    refused: Arc<RwLock<Option<ByNamespace>>>,
}

impl Accounts {
    /// Why workloads of a namespace keep `default` although nobody asked for it
    /// (`DefaultServiceAccountBound`): what permissions hang on that account. `None`: they need not keep it.
    #[must_use]
    pub fn forced_keep(&self, namespace: &str) -> Option<String> {
        self.forced.read().get(namespace).cloned()
    }

    /// The workloads of a namespace whose pods a lock would have refused. `None`: nobody knows yet.
    #[must_use]
    pub fn refused_when_locked(&self, namespace: &str) -> Option<Vec<Refused>> {
        self.refused.read().as_ref().map(|all| all.get(namespace).cloned().unwrap_or_default())
    }

    /// Creates and corrects accounts until `shutdown`. Only the leader may run this.
    pub async fn run(self, client: Client, index: Index, shutdown: CancellationToken) {
        let observed = Arc::new(Mutex::new(Observed::default()));
        let changed = Arc::new(Notify::new());
        let watching = watch::run(client.clone(), Arc::clone(&observed), Arc::clone(&changed));
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = watching => {}
            () = self.keep(client, index, &observed, &changed) => {}
        }
    }

    async fn keep(&self, client: Client, index: Index, observed: &Mutex<Observed>, changed: &Notify) {
        let mut namespaces = index.changes();
        let mut enrolled = Vec::new();
        // A time, not a pause: pods of the whole cluster change in between.
        let mut again: Option<Instant> = None;
        let mut tried = Tried::default();
        loop {
            tokio::select! {
                () = changed.notified() => {}
                changed = namespaces.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Pods come and go all the time; only enrolment matters here.
                    let now = index.enrolled();
                    if now == enrolled {
                        continue;
                    }
                    enrolled = now;
                }
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            }
            tokio::time::sleep(GATHER).await;
            let (forced, steps) = {
                let observed = observed.lock();
                if !index.synced() || !observed.synced() {
                    continue;
                }
                *self.refused.write() = Some(refused::by_namespace(&observed));
                plan::plan(&index.enrolled(), &observed)
            };
            *self.forced.write() = forced;
            again = match write::carry_out(&client, &steps, &mut tried).await {
                Round::Done => None,
                Round::More => Some(Instant::now() + NEXT),
                Round::Failed => Some(Instant::now() + RETRY),
            };
        }
    }
}
