//! What control streams read of the cluster and where reports go: the index and the evidence store behind one
//! small trait, so that streams can be tested with a cluster of constants.

use crate::evidence::EvidenceStore;
use crate::index::{Index, PodInfo};
use cinch_control::v1;
use futures::future::BoxFuture;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::sync::watch;

/// The cluster as streams see it.
pub trait ClusterView: Send + Sync + 'static {
    /// A number that grows with each change.
    fn changes(&self) -> watch::Receiver<u64>;
    /// A pod by its UID.
    fn pod(&self, uid: &str) -> Option<Arc<PodInfo>>;
    /// The pod that holds an address.
    fn pod_by_ip(&self, ip: IpAddr) -> Option<Arc<PodInfo>>;
    /// Which addresses belong to the mesh.
    fn mesh(&self) -> v1::Mesh;
    /// What a pod's inbound side enforces.
    fn workload_policy(&self, pod_uid: &str) -> Option<Arc<v1::WorkloadPolicy>>;
    /// What stands behind an address for the pod that asks, as far as is known now.
    fn record(&self, pod_uid: &str, to: SocketAddr) -> v1::Record;
    /// The same, with a consistent read before the answer "unknown".
    fn resolve(&self, pod_uid: &str, to: SocketAddr) -> BoxFuture<'static, v1::Record>;
    /// Takes a pod's report.
    fn report(&self, pod_uid: &str, evidence: v1::Evidence);
    /// A pod saw a token with a key that the document of `source` does not hold.
    fn unknown_key(&self, pod_uid: &str, source: &str, kid: &str);
}

/// The real one.
#[derive(Clone)]
pub struct LiveView {
    /// Where questions go.
    pub index: Index,
    /// Where reports go.
    pub evidence: EvidenceStore,
}

impl ClusterView for LiveView {
    fn changes(&self) -> watch::Receiver<u64> {
        self.index.changes()
    }

    fn pod(&self, uid: &str) -> Option<Arc<PodInfo>> {
        self.index.pod(uid)
    }

    fn pod_by_ip(&self, ip: IpAddr) -> Option<Arc<PodInfo>> {
        self.index.pod_by_ip(ip)
    }

    fn mesh(&self) -> v1::Mesh {
        self.index.mesh()
    }

    fn workload_policy(&self, pod_uid: &str) -> Option<Arc<v1::WorkloadPolicy>> {
        self.index.workload_policy(pod_uid)
    }

    fn record(&self, pod_uid: &str, to: SocketAddr) -> v1::Record {
        self.index.record(pod_uid, to)
    }

    fn resolve(&self, pod_uid: &str, to: SocketAddr) -> BoxFuture<'static, v1::Record> {
        let (index, pod_uid) = (self.index.clone(), pod_uid.to_owned());
        Box::pin(async move { index.resolve(&pod_uid, to).await })
    }

    fn report(&self, pod_uid: &str, evidence: v1::Evidence) {
        self.evidence.report(pod_uid, evidence);
    }

    fn unknown_key(&self, pod_uid: &str, source: &str, kid: &str) {
        self.index.unknown_key(pod_uid, source, kid);
    }
}
