//! What proxies say about plaintext: reports go in, evidence by pod, source and namespace comes out. The
//! book-keeping is pure (`ledger`); this file joins it with the index and the clocks.

mod agent;
mod bypass;
mod ledger;
mod model;
mod sources;

#[cfg(test)]
mod tests;

pub use model::{
    BypassEvidence, Counts, LastReport, NamespaceEvidence, PodEvidence, SourceEvidence, VanishedPod,
};

use crate::index::Index;
use cinch_control::v1;
use ledger::{Clock, Ledger};
use parking_lot::Mutex;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often pods that have gone are looked for besides changes of the index: a forgotten pod must not stay.
const SWEEP: Duration = Duration::from_secs(10);

/// Least time between two looks: pods come and go all the time, and each look is at every pod.
const PAUSE: Duration = Duration::from_secs(1);

/// A cheap handle to the evidence of this operator; empty until it leads and proxies report.
#[derive(Clone)]
pub struct EvidenceStore {
    index: Index,
    ledger: Arc<Mutex<Ledger>>,
}

impl EvidenceStore {
    /// An empty store that asks `index` who an address is and which pods there are.
    #[must_use]
    pub fn new(index: Index) -> Self {
        Self { index, ledger: Arc::new(Mutex::new(Ledger::default())) }
    }

    /// Takes a pod's report. Reports are cumulative: an older one than the newest known changes nothing.
    pub fn report(&self, pod_uid: &str, evidence: v1::Evidence) {
        let namespace = self.index.pod(pod_uid).map(|pod| Arc::clone(&pod.namespace));
        let resolve = |ip: IpAddr| self.index.source(ip);
        self.ledger.lock().report(pod_uid, namespace, &evidence, Clock::now(), &resolve);
    }

    /// What a pod's proxies have said; `None` when they have not.
    #[must_use]
    pub fn of(&self, pod_uid: &str) -> Option<PodEvidence> {
        self.ledger.lock().of(pod_uid)
    }

    /// Forgets what was not seen to pass by the proxies of `pods` since `before_unix_ms`.
    pub fn forget_bypass<'a>(&self, pods: impl Iterator<Item = &'a str>, before_unix_ms: u64) {
        self.ledger.lock().forget_bypass(pods, before_unix_ms);
    }

    /// When a pod reported last; `None` when it has not.
    #[must_use]
    pub fn last_report(&self, pod_uid: &str) -> Option<LastReport> {
        self.ledger.lock().last_report(pod_uid)
    }

    /// The plaintext of a namespace since this operator leads.
    #[must_use]
    pub fn namespace(&self, namespace: &str) -> NamespaceEvidence {
        self.ledger.lock().namespace(namespace)
    }

    /// Folds pods that have gone from the index into their namespace's totals, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut changes = self.index.changes();
        loop {
            let due = async {
                tokio::time::sleep(PAUSE).await;
                tokio::time::timeout(SWEEP, changes.changed()).await
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = due => if matches!(changed, Ok(Err(_))) { return },
            }
            // Before the index has listed everything, a pod that it does not know has not gone.
            if self.index.synced() {
                let namespace_of = |uid: &str| self.index.pod(uid).map(|pod| Arc::clone(&pod.namespace));
                let known = |namespace: &str| self.index.namespace(namespace).is_some();
                self.ledger.lock().sweep(Clock::now(), &namespace_of, &known);
            }
        }
    }
}
