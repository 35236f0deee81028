//! What all connections share.

use crate::budget::Budget;
use crate::certificate::Serving;
use crate::facts::Caches;
use crate::metrics::Metrics;
use arc_swap::ArcSwapOption;
use cinch_injection::Sidecar;
use cinch_places::Lines;
use cinch_policy::MeshConfig;
use parking_lot::Mutex;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What all connections share.
pub struct State {
    /// What is known about the cluster.
    pub caches: Arc<Caches>,
    /// The sidecar to inject.
    pub sidecar: Sidecar,
    /// The mesh that policies are read in.
    pub mesh: MeshConfig,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Set when the process is to end: not ready any more, answers close their connections.
    pub draining: CancellationToken,
    /// The memory that reviews may take.
    pub budget: Budget,
    /// Of the log, about connections that came to nothing.
    lines: Mutex<Lines<&'static str>>,
    serving: ArcSwapOption<Serving>,
    serving_changed: Notify,
}

impl State {
    /// State without a certificate.
    #[must_use]
    pub fn new(caches: Arc<Caches>, sidecar: Sidecar, mesh: MeshConfig, metrics: Arc<Metrics>) -> Self {
        Self {
            caches,
            sidecar,
            mesh,
            metrics,
            draining: CancellationToken::new(),
            budget: Budget::default(),
            lines: Mutex::default(),
            serving: ArcSwapOption::empty(),
            serving_changed: Notify::new(),
        }
    }

    /// Tells the log of a connection that came to nothing, as long as there are few: anybody may connect here.
    pub fn tell(&self, source: IpAddr, why: &'static str, detail: &str) {
        let said = self.lines.lock().say(&why, Instant::now());
        if let Some(unsaid) = said {
            tracing::warn!(%source, why, detail, unsaid, "closed a connection");
        }
    }

    /// Serves new connections with this from now on.
    pub fn serve_with(&self, serving: Serving) {
        self.serving.store(Some(Arc::new(serving)));
        self.serving_changed.notify_waiters();
    }

    /// What is served with, once there is a certificate.
    #[must_use]
    pub fn serving(&self) -> Option<Arc<Serving>> {
        self.serving.load_full()
    }

    /// Waits until there is a certificate.
    pub async fn until_serving(&self) {
        loop {
            let changed = self.serving_changed.notified();
            if self.serving().is_some() {
                return;
            }
            changed.await;
        }
    }

    /// Why the webhook is not ready; `None` when it is.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        if self.draining.is_cancelled() {
            return Some("draining".to_owned());
        }
        if self.serving().is_none() {
            return Some(format!("waiting for Secret {}", crate::certificate::SECRET));
        }
        self.caches.unsynced().map(|kind| format!("waiting for the list of {kind}"))
    }
}
