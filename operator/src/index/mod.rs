//! What the cluster looks like: watch events of pods, Services, EndpointSlices, namespaces, nodes, owners,
//! ServiceCIDRs and Istio's policies go in; records for addresses, the mesh's CIDRs, policies of workloads and names of
//! sources come out. The state is pure (`state`); only `watch` (which `relist` bids begin anew) and `confirm` talk to the API server.

mod confirm;
mod convert;
mod convert_services;
mod endpoints;
pub(crate) mod keyed;
mod memory;
mod mesh;
mod model;
mod nodes;
mod owner;
mod pods;
mod policies;
mod policy;
mod protocol;
mod record;
mod relist;
mod services;
pub mod sidecar;
mod state;
mod watch;
mod watch_policies;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;

pub use model::{Labels, NamespaceInfo, Phase, PodInfo, PodPort, Protocol, SourceName, WorkloadName};
pub use policies::{Asker, JwksSource, PolicyInfo, PolicyKey, PolicyKind, UnknownKey};

use cinch_control::v1;
use cinch_policy::{MeshConfig, PathNormalization};
use ipnet::IpNet;
use parking_lot::{Mutex, RwLock};
use state::State;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tokio::sync::{broadcast, watch as channel};

/// What the index must know beforehand.
#[derive(Debug, Clone)]
pub struct IndexSettings {
    /// The trust domain of identities in records.
    pub trust_domain: String,
    /// By which our sidecar is known.
    pub sidecar: sidecar::Ours,
    /// CIDRs that belong to the mesh besides those that the cluster tells.
    pub mesh_cidrs: Vec<IpNet>,
    /// The namespace whose policies apply everywhere.
    pub root_namespace: String,
    /// Other names of the trust domain in policies.
    pub trust_domain_aliases: Vec<String>,
    /// How policies read paths.
    pub path_normalization: PathNormalization,
}

impl IndexSettings {
    /// What policies are read against.
    fn mesh(&self) -> MeshConfig {
        MeshConfig {
            trust_domain: self.trust_domain.clone(),
            trust_domain_aliases: self.trust_domain_aliases.clone(),
            root_namespace: self.root_namespace.clone(),
            path_normalization: self.path_normalization,
        }
    }
}

/// Requests to fetch a key set again that may wait for whoever fetches; older ones are dropped.
const UNKNOWN_KEYS: usize = 64;

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
    unknown_keys: broadcast::Sender<UnknownKey>,
    relists: relist::Relists,
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
            unknown_keys: broadcast::Sender::new(UNKNOWN_KEYS),
            relists: relist::Relists::default(),
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

    /// What stands behind an address for the pod that asks, as far as the watchers have told: traffic policies and
    /// hints of Services look at where that pod runs. The kind is unspecified while the index has not synced and the
    /// address is not known: don't send such a record. See [`Index::resolve`] for addresses that are not known.
    #[must_use]
    pub fn record(&self, pod_uid: &str, to: SocketAddr) -> v1::Record {
        self.shared.state.read().record(pod_uid, to)
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

    /// What a pod's inbound side enforces: modes, all policies that select the pod's labels of now, and the ports
    /// that are declared to speak HTTP, as one message whose version follows from its content. `None` while the pod,
    /// its namespace or the policies are not known. Pods that enforce the same share it.
    #[must_use]
    pub fn workload_policy(&self, pod_uid: &str) -> Option<Arc<v1::WorkloadPolicy>> {
        self.shared.state.read().workload_policy(pod_uid)
    }

    /// Every policy object of the cluster, by kind, namespace and name.
    #[must_use]
    pub fn policies(&self) -> Vec<Arc<PolicyInfo>> {
        self.shared.state.read().policy_infos()
    }

    /// The live pods with our sidecar that a policy selects.
    #[must_use]
    pub fn selected_by(&self, policy: &PolicyKey) -> Vec<Arc<PodInfo>> {
        self.shared.state.read().selected_by(policy)
    }

    /// The policies that select a pod, by kind, namespace and name; of PeerAuthentications also those that an older
    /// one of the same scope overrides.
    #[must_use]
    pub fn policies_of(&self, pod_uid: &str) -> Vec<Arc<PolicyInfo>> {
        self.shared.state.read().policies_of(pod_uid)
    }

    /// The PeerAuthentications that say PERMISSIVE or DISABLE of any port; `None` while that can't be told: they have
    /// not been listed, or the API server refuses to show them.
    #[must_use]
    pub fn pins(&self) -> Option<BTreeSet<PolicyKey>> {
        self.shared.state.read().pins()
    }

    /// The key sets that policies ask for.
    #[must_use]
    pub fn jwks_sources(&self) -> BTreeMap<JwksSource, BTreeSet<Asker>> {
        self.shared.state.read().jwks_sources()
    }

    /// A number that grows with every change of a policy object.
    #[must_use]
    pub fn policies_revision(&self) -> u64 {
        self.shared.state.read().policies.revision()
    }

    /// Takes the newest document of a source ([`JwksSource::name`]), which then travels with the policies that ask
    /// for it; `None` takes it away, and its tokens are refused.
    pub fn set_jwks(&self, source: &str, document: Option<Arc<[u8]>>) {
        self.update(|state| state.policies.set_document(source, document));
    }

    /// The API server serves at least one of the kinds of policies.
    #[must_use]
    pub fn istio_kinds_served(&self) -> bool {
        self.shared.state.read().policies.served()
    }

    /// A pod's proxy saw a token whose key the document of `source` does not hold. Only sources that the pod's own
    /// policies ask for count; how often to fetch is for the receiver to decide.
    pub fn unknown_key(&self, pod_uid: &str, source: &str, kid: &str) {
        if self.shared.state.read().asks_for(pod_uid, source) {
            let key = UnknownKey { source: source.to_owned(), kid: kid.to_owned() };
            let _ = self.shared.unknown_keys.send(key);
        }
    }

    /// Requests to fetch a key set again, from now on; a slow receiver loses the oldest.
    #[must_use]
    pub fn unknown_keys(&self) -> broadcast::Receiver<UnknownKey> {
        self.shared.unknown_keys.subscribe()
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
