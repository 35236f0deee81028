//! What the cluster looks like: watch events of pods, Services, EndpointSlices, namespaces, nodes, owners
//! and ServiceCIDRs go in; records for addresses, the mesh's CIDRs, policies of workloads and names of
//! sources come out. The state is pure (`state`); only `watch` and `confirm` talk to the API server.

mod confirm;
mod convert;
pub(crate) mod keyed;
mod memory;
mod mesh;
mod model;
mod nodes;
mod owner;
mod pods;
mod policy;
mod record;
mod services;
pub mod sidecar;
mod state;
mod watch;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;

pub use model::{Labels, NamespaceInfo, Phase, PodInfo, SourceName, WorkloadName};

use cinch_control::v1;
use ipnet::IpNet;
use parking_lot::{Mutex, RwLock};
use state::State;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tokio::sync::watch as channel;

/// What the index must know beforehand.
#[derive(Debug, Clone)]
pub struct IndexSettings {
    /// The trust domain of identities in records.
    pub trust_domain: String,
    /// Images that count as our sidecar; a suffix `@sha256:` is accepted.
    pub allowed_images: Vec<String>,
    /// CIDRs that belong to the mesh besides those that the cluster tells.
    pub mesh_cidrs: Vec<IpNet>,
}

/// A cheap handle to the one index of this process.
#[derive(Clone)]
pub struct Index {
    shared: Arc<Shared>,
}

struct Shared {
    state: RwLock<State>,
    generation: channel::Sender<u64>,
    /// For consistent reads; there once the watchers run.
    client: OnceLock<kube::Client>,
    confirmations: confirm::Confirmations,
    mesh: Mutex<Option<(u64, v1::Mesh)>>,
}

impl Index {
    /// An empty index; [`Index::run`] fills it.
    #[must_use]
    pub fn new(settings: IndexSettings) -> Self {
        let shared = Shared {
            state: RwLock::new(State::new(settings)),
            generation: channel::Sender::new(0),
            client: OnceLock::new(),
            confirmations: confirm::Confirmations::default(),
            mesh: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// A generation that grows with every batch of events that changed anything.
    #[must_use]
    pub fn changes(&self) -> channel::Receiver<u64> {
        self.shared.generation.subscribe()
    }

    /// Every watcher has listed once.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.shared.state.read().synced()
    }

    /// What stands behind an address, as far as the watchers have told. The kind is unspecified while the
    /// index has not synced and the address is not known: don't send such a record. See [`Index::resolve`]
    /// for addresses that are not known.
    #[must_use]
    pub fn record(&self, to: SocketAddr) -> v1::Record {
        self.shared.state.read().record(to)
    }

    /// Which addresses proxies must ask about. Made once per generation: every stream asks for it.
    #[must_use]
    pub fn mesh(&self) -> v1::Mesh {
        let generation = *self.shared.generation.borrow();
        let mut cached = self.shared.mesh.lock();
        match &*cached {
            Some((made_at, mesh)) if *made_at == generation => mesh.clone(),
            _ => {
                let mesh = self.shared.state.read().mesh();
                *cached = Some((generation, mesh.clone()));
                mesh
            }
        }
    }

    /// What a pod's inbound side enforces; `None` while the pod or its namespace is not known.
    #[must_use]
    pub fn workload_policy(&self, pod_uid: &str) -> Option<v1::WorkloadPolicy> {
        self.shared.state.read().workload_policy(pod_uid)
    }

    /// A pod by its UID.
    #[must_use]
    pub fn pod(&self, uid: &str) -> Option<Arc<PodInfo>> {
        self.shared.state.read().pod(uid)
    }

    /// The pod that holds an address now; never a host-network pod.
    #[must_use]
    pub fn pod_by_ip(&self, ip: IpAddr) -> Option<Arc<PodInfo>> {
        self.shared.state.read().pod_by_ip(ip)
    }

    /// All pods of a namespace, ended and terminating ones too.
    #[must_use]
    pub fn pods_in(&self, namespace: &str) -> Vec<Arc<PodInfo>> {
        self.shared.state.read().pods_in(namespace)
    }

    /// Who an address is, or was within the last ten minutes.
    #[must_use]
    pub fn source(&self, ip: IpAddr) -> SourceName {
        self.shared.state.read().source(ip, Instant::now())
    }

    /// A namespace by its name.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<Arc<NamespaceInfo>> {
        self.shared.state.read().namespace(name)
    }

    /// Every namespace.
    #[must_use]
    pub fn namespaces(&self) -> Vec<Arc<NamespaceInfo>> {
        self.shared.state.read().namespaces()
    }

    /// The first ClusterIP of a Service.
    #[must_use]
    pub fn cluster_ip(&self, namespace: &str, service: &str) -> Option<IpAddr> {
        self.shared.state.read().services.cluster_ip(namespace, service)
    }

    /// Names of the enrolled namespaces that are not terminating, sorted.
    #[must_use]
    pub fn enrolled(&self) -> Vec<String> {
        self.shared.state.read().enrolled()
    }

    /// Changes the state and tells the listeners when `change` says that it changed anything.
    fn update(&self, change: impl FnOnce(&mut State) -> bool) {
        if change(&mut self.shared.state.write()) {
            self.shared.generation.send_modify(|generation| *generation = generation.wrapping_add(1));
        }
    }
}
