//! The control port with a cluster of constants: the session's logic alone, then over real TLS.

mod port;
mod session;

use super::*;
use crate::index::{Phase, PodInfo, WorkloadName};
use cinch_control::v1::record::Kind as RecordKind;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

pub(super) const API_ID: &str = "spiffe://cluster.local/ns/shop/sa/api";

/// A cluster of constants that tests change by hand.
pub(super) struct FakeView {
    pub(super) pods: Mutex<HashMap<String, PodInfo>>,
    pub(super) records: Mutex<HashMap<SocketAddr, v1::Record>>,
    /// What a consistent read says of addresses that are not in `records`.
    pub(super) confirmed: Mutex<RecordKind>,
    pub(super) policy: Mutex<u64>,
    /// What the policy of every pod holds.
    pub(super) policies: Mutex<Vec<v1::Policy>>,
    pub(super) reports: Mutex<Vec<(String, u64)>>,
    pub(super) unknown_keys: Mutex<Vec<(String, String, String)>>,
    pub(super) generation: watch::Sender<u64>,
}

impl FakeView {
    pub(super) fn new(pods: &[PodInfo]) -> Self {
        Self {
            pods: Mutex::new(pods.iter().map(|pod| (pod.uid.to_string(), pod.clone())).collect()),
            records: Mutex::default(),
            confirmed: Mutex::new(RecordKind::Unknown),
            policy: Mutex::new(1),
            policies: Mutex::default(),
            reports: Mutex::default(),
            unknown_keys: Mutex::default(),
            generation: watch::Sender::new(0),
        }
    }

    pub(super) fn changed(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    pub(super) fn set(&self, to: &str, kind: RecordKind, version: u64) {
        let to: SocketAddr = to.parse().unwrap();
        let mut record = v1::Record { address: Some(address(to)), version, ..v1::Record::default() };
        record.set_kind(kind);
        self.records.lock().insert(to, record);
    }
}

pub(super) fn address(to: SocketAddr) -> v1::Address {
    let ip = match to.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    v1::Address { ip: ip.into(), port: u32::from(to.port()) }
}

pub(crate) fn pod(uid: &str, account: &str, ips: &[&str]) -> PodInfo {
    PodInfo {
        uid: uid.into(),
        namespace: "shop".into(),
        name: uid.into(),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        node: "n1".into(),
        service_account: account.into(),
        workload: WorkloadName { namespace: "shop".into(), kind: "Deployment".into(), name: account.into() },
        workload_created_unix_ms: 0,
        injected: true,
        by_agent: false,
        host_network: false,
        phase: Phase::Running,
        started: true,
        ready: true,
        terminating: false,
        labels: Arc::default(),
        ports: Arc::default(),
        created_unix_ms: 0,
        host_ips: Vec::new(),
        node_ready: true,
        windows: false,
        mirror: false,
    }
}

impl ClusterView for FakeView {
    fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn pod(&self, uid: &str) -> Option<Arc<PodInfo>> {
        self.pods.lock().get(uid).cloned().map(Arc::new)
    }

    fn pod_by_ip(&self, ip: IpAddr) -> Option<Arc<PodInfo>> {
        self.pods.lock().values().find(|pod| pod.ips.contains(&ip)).cloned().map(Arc::new)
    }

    fn mesh(&self) -> v1::Mesh {
        v1::Mesh { version: 1, cidrs: Vec::new() }
    }

    fn workload_policy(&self, _: &str) -> Option<Arc<v1::WorkloadPolicy>> {
        let (version, policies) = (*self.policy.lock(), self.policies.lock().clone());
        Some(Arc::new(v1::WorkloadPolicy { version, policies, ..v1::WorkloadPolicy::default() }))
    }

    fn record(&self, _: &str, to: SocketAddr) -> v1::Record {
        let unknown = || {
            let mut record = v1::Record { address: Some(address(to)), ..v1::Record::default() };
            record.set_kind(RecordKind::Unknown);
            record
        };
        self.records.lock().get(&to).cloned().unwrap_or_else(unknown)
    }

    fn resolve(&self, pod_uid: &str, to: SocketAddr) -> BoxFuture<'static, v1::Record> {
        let mut record = self.record(pod_uid, to);
        if record.kind() == RecordKind::Unknown {
            record.set_kind(*self.confirmed.lock());
        }
        Box::pin(async move { record })
    }

    fn report(&self, pod_uid: &str, evidence: v1::Evidence) {
        self.reports.lock().push((pod_uid.to_owned(), evidence.sequence));
    }

    fn unknown_key(&self, pod_uid: &str, source: &str, kid: &str) {
        self.unknown_keys.lock().push((pod_uid.to_owned(), source.to_owned(), kid.to_owned()));
    }
}

pub(super) fn hello(uid: &str, ips: &[&str]) -> v1::Hello {
    let ips = ips.iter().map(|ip| address(SocketAddr::new(ip.parse().unwrap(), 1)).ip).collect();
    v1::Hello { pod_uid: uid.to_owned(), pod_ips: ips, ..v1::Hello::default() }
}
