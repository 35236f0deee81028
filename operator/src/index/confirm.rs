//! "Unknown" needs a second look. Watches lag: an address that no watcher has told of may be a pod that
//! started a moment ago, and to pass its traffic through would send plaintext to a meshed peer. So before an
//! address inside the cluster's ranges counts as unknown, the API server is asked with a consistent read.

use super::Index;
use cinch_control::v1;
use cinch_control::v1::record::Kind;
use cinch_places::{Pace, RateLimit};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Reads in flight: a proxy that is asked to dial at random must not load the API server.
const IN_FLIGHT: usize = 8;

/// How often one pod may make us ask: who walks through all addresses must not keep others waiting, whose peers have
/// just started.
const OF_A_POD: Pace = Pace { burst: 32, refill: Duration::from_millis(200) };

/// How long "nothing has this address" holds. Shorter than a pod takes from its address to being dialled.
const HOLDS: Duration = Duration::from_secs(2);

/// Answers kept; beyond it the oldest is asked again.
const CAPACITY: usize = 4096;

/// How long the watchers get to tell what a consistent read has seen.
const CATCH_UP: Duration = Duration::from_millis(800);

/// Addresses that were lately confirmed to be nothing's.
pub(super) struct Confirmations {
    permits: Semaphore,
    nothing: Mutex<HashMap<IpAddr, Instant>>,
    asked: Mutex<RateLimit<String>>,
}

impl Default for Confirmations {
    fn default() -> Self {
        let asked = Mutex::new(RateLimit::new(OF_A_POD));
        Self { permits: Semaphore::new(IN_FLIGHT), nothing: Mutex::default(), asked }
    }
}

impl Confirmations {
    fn holds(&self, ip: IpAddr) -> bool {
        self.nothing.lock().get(&ip).is_some_and(|at| at.elapsed() < HOLDS)
    }

    fn note(&self, ip: IpAddr) {
        let mut nothing = self.nothing.lock();
        if nothing.len() >= CAPACITY {
            nothing.retain(|_, at| at.elapsed() < HOLDS);
        }
        if nothing.len() >= CAPACITY
            && let Some(oldest) = nothing.iter().min_by_key(|(_, at)| **at).map(|(ip, _)| *ip)
        {
            nothing.remove(&oldest);
        }
        nothing.insert(ip, Instant::now());
    }

    /// Whether the API server may be asked once more for this pod.
    fn may_ask(&self, pod_uid: &str) -> bool {
        self.asked.lock().take(&pod_uid.to_owned(), Instant::now()).is_ok()
    }
}

impl Index {
    /// As [`Index::record`], with a consistent read before the answer "unknown" where the address may be a pod's or a
    /// Service's. The kind is unspecified when that can't be told now (not synced, the API server does not answer, it
    /// can't be asked for second addresses, the pod had it asked too often): don't send such a record; the proxy holds the connection and refuses.
    pub async fn resolve(&self, pod_uid: &str, to: SocketAddr) -> v1::Record {
        let record = self.record(pod_uid, to);
        let ip = to.ip().to_canonical();
        if record.kind() != Kind::Unknown
            || !self.shared.state.read().may_be_ours(ip)
            || self.shared.confirmations.holds(ip)
        {
            return record;
        }
        let Some(client) = self.shared.client.get() else { return unspecified(record) };
        if !self.shared.confirmations.may_ask(pod_uid) {
            return unspecified(record);
        }
        let Ok(_permit) = self.shared.confirmations.permits.acquire().await else {
            return unspecified(record);
        };
        match exists(client, ip).await {
            // The read would not have shown it.
            Ok(false) if self.shared.state.read().may_be_second(ip) => unspecified(self.record(pod_uid, to)),
            Ok(false) => {
                self.shared.confirmations.note(ip);
                self.record(pod_uid, to)
            }
            Ok(true) => self.wait_for(pod_uid, to).await,
            Err(error) => {
                tracing::warn!(%ip, %error, "an unknown address could not be confirmed");
                unspecified(record)
            }
        }
    }

    /// Waits for the watchers: what a read returns must not enter the index by another door, where it might
    /// overtake its own deletion.
    async fn wait_for(&self, pod_uid: &str, to: SocketAddr) -> v1::Record {
        let mut changes = self.changes();
        let caught_up = async {
            loop {
                let record = self.record(pod_uid, to);
                if record.kind() != Kind::Unknown {
                    return record;
                }
                if changes.changed().await.is_err() {
                    return unspecified(record);
                }
            }
        };
        match tokio::time::timeout(CATCH_UP, caught_up).await {
            Ok(record) => record,
            Err(_) => unspecified(self.record(pod_uid, to)),
        }
    }
}

fn unspecified(mut record: v1::Record) -> v1::Record {
    if record.kind() == Kind::Unknown {
        record.set_kind(Kind::Unspecified);
    }
    record
}

/// Whether a live pod or a Service has `ip` as its first address: the API server selects by no other. A list without a
/// resourceVersion is a consistent read.
async fn exists(client: &Client, ip: IpAddr) -> Result<bool, kube::Error> {
    let pods = Api::<PartialObjectMeta<Pod>>::all(client.clone());
    let live =
        format!("status.podIP={ip},status.phase!=Succeeded,status.phase!=Failed,spec.hostNetwork=false");
    if !pods.list(&ListParams::default().fields(&live).limit(1)).await?.items.is_empty() {
        return Ok(true);
    }
    let services = Api::<PartialObjectMeta<Service>>::all(client.clone());
    let cluster_ip = format!("spec.clusterIP={ip}");
    Ok(!services.list(&ListParams::default().fields(&cluster_ip).limit(1)).await?.items.is_empty())
}
