//! Istio's policy objects: watch events of the three kinds go in; what a pod's proxy enforces, whom an object
//! selects and what is wrong with it come out.
//!
//! Nothing is put together when events come: a change only forgets what was put together for the namespaces that
//! it can matter to, and the next question makes it anew, once for all pods whose labels look the same to the
//! selectors. So a pod's event costs nothing here, and a policy's event costs as much as its namespace has kinds
//! of pods.

mod compose;
mod model;
mod object;

pub use model::{Asker, JwksSource, PolicyInfo, PolicyKey, PolicyKind, UnknownKey};

use super::keyed::Table;
use super::model::{Labels, PodInfo};
use super::state::State;
use bytes::Bytes;
use cinch_policy::MeshConfig;
pub(super) use compose::Composed;
use compose::OfNamespace;
use kube::api::DynamicObject;
use object::Object;
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// How much of a kind is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Listed {
    /// Nothing: no list has come.
    #[default]
    Never,
    /// The API server does not serve the kind, so there are no objects.
    NotServed,
    /// All objects.
    All,
}

/// What is known of one kind.
#[derive(Debug, Clone, Copy, Default)]
struct Knowledge {
    listed: Listed,
    /// The API server refuses to show them: what is known may be out of date.
    forbidden: bool,
}

/// All policy objects.
#[derive(Debug)]
pub(super) struct Policies {
    mesh: MeshConfig,
    objects: BTreeMap<PolicyKey, Arc<Object>>,
    knowledge: [Knowledge; PolicyKind::ALL.len()],
    /// Key sets by the name of their source.
    documents: BTreeMap<Arc<str>, Bytes>,
    /// Grows with every change of an object.
    revision: u64,
    /// What was put together since the last change that concerns the namespace.
    namespaces: RwLock<HashMap<Arc<str>, Arc<OfNamespace>>>,
}

impl Policies {
    pub(super) fn new(mesh: MeshConfig) -> Self {
        Self {
            mesh,
            objects: BTreeMap::new(),
            knowledge: Default::default(),
            documents: BTreeMap::new(),
            revision: 0,
            namespaces: RwLock::default(),
        }
    }

    fn knowledge(&self, kind: PolicyKind) -> Knowledge {
        self.knowledge.get(kind as usize).copied().unwrap_or_default()
    }

    /// Every kind has been listed once, or is not served.
    pub(super) fn synced(&self) -> bool {
        self.knowledge.iter().all(|known| known.listed != Listed::Never)
    }

    /// Whether what is known of the kind can be relied on now.
    pub(super) fn reliable(&self, kind: PolicyKind) -> bool {
        let known = self.knowledge(kind);
        known.listed != Listed::Never && !known.forbidden
    }

    /// Whether the API server serves any of the kinds.
    pub(super) fn served(&self) -> bool {
        self.knowledge.iter().any(|known| known.listed == Listed::All)
    }

    fn learn(&mut self, kind: PolicyKind, listed: Listed) -> bool {
        let Some(known) = self.knowledge.get_mut(kind as usize) else { return false };
        let changed = known.listed != listed || known.forbidden;
        *known = Knowledge { listed, forbidden: false };
        changed
    }

    /// The API server does not serve the kind: there are no such objects.
    pub(super) fn not_served(&mut self, kind: PolicyKind) -> bool {
        for key in self.keys_of(kind) {
            self.remove(&key);
        }
        self.learn(kind, Listed::NotServed)
    }

    /// The API server refuses to show the kind; what is known stays.
    pub(super) fn forbidden(&mut self, kind: PolicyKind) -> bool {
        let Some(known) = self.knowledge.get_mut(kind as usize) else { return false };
        !std::mem::replace(&mut known.forbidden, true)
    }

    fn apply(&mut self, object: Object) -> bool {
        let key = object.info.key.clone();
        if self.objects.get(&key).is_some_and(|held| held.says_the_same(&object)) {
            return false;
        }
        self.forget(&key.namespace);
        self.objects.insert(key, Arc::new(object));
        self.revision += 1;
        true
    }

    fn remove(&mut self, key: &PolicyKey) -> bool {
        self.forget(&key.namespace);
        self.revision += 1;
        self.objects.remove(key).is_some()
    }

    fn keys_of(&self, kind: PolicyKind) -> Vec<PolicyKey> {
        self.objects.keys().filter(|key| key.kind == kind).cloned().collect()
    }

    /// Takes the document of a source, or that there is none; says whether that is new.
    pub(super) fn set_document(&mut self, source: &str, document: Option<Arc<[u8]>>) -> bool {
        let held = self.documents.get(source);
        if held.map(|held| &**held) == document.as_deref() {
            return false;
        }
        match document {
            Some(document) => {
                self.documents.insert(source.into(), Bytes::from_owner(document));
            }
            None => {
                self.documents.remove(source);
            }
        }
        self.namespaces.get_mut().clear();
        true
    }

    /// What was put together for the namespace is out of date; for the root namespace, everything is.
    pub(super) fn forget(&mut self, namespace: &str) {
        if *namespace == *self.mesh.root_namespace {
            self.namespaces.get_mut().clear();
        } else {
            self.namespaces.get_mut().remove(namespace);
        }
    }

    /// What pods of `namespace` with these labels enforce, `locked` or not.
    pub(super) fn composed(&self, namespace: &Arc<str>, labels: &Labels, locked: bool) -> Arc<Composed> {
        self.of_namespace(namespace).composed(labels, locked)
    }

    fn of_namespace(&self, namespace: &Arc<str>) -> Arc<OfNamespace> {
        if let Some(held) = self.namespaces.read().get(namespace) {
            return Arc::clone(held);
        }
        let root = &*self.mesh.root_namespace;
        let mut scopes = vec![&**namespace];
        if **namespace != *root {
            scopes.push(root);
        }
        let objects = PolicyKind::ALL.into_iter().flat_map(|kind| {
            scopes.clone().into_iter().flat_map(move |scope| self.in_scope(kind, scope)).cloned()
        });
        let made = OfNamespace::new(&self.mesh, namespace, objects.collect(), &self.documents);
        let made = Arc::new(made);
        self.namespaces.write().insert(Arc::clone(namespace), Arc::clone(&made));
        made
    }

    fn in_scope<'a>(&'a self, kind: PolicyKind, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Object>> {
        let first = PolicyKey { kind, namespace: namespace.into(), name: "".into() };
        let here = move |key: &PolicyKey| key.kind == kind && *key.namespace == *namespace;
        self.objects.range(first..).take_while(move |(key, _)| here(key)).map(|(_, object)| object)
    }

    /// A number that grows with every change of an object, so that nobody looks through them for nothing.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Every object, without what only shows when it is put together with others.
    fn infos(&self) -> impl Iterator<Item = &Arc<PolicyInfo>> {
        self.objects.values().map(|object| &object.info)
    }
}

/// The objects of one kind, as a watch fills them.
pub(super) struct OfKind<'a> {
    pub(super) state: &'a mut State,
    pub(super) kind: PolicyKind,
}

impl Table<DynamicObject> for OfKind<'_> {
    type Key = PolicyKey;

    fn key(&mut self, object: &DynamicObject) -> Option<PolicyKey> {
        let meta = &object.metadata;
        let (namespace, name) = (meta.namespace.as_deref()?.into(), meta.name.as_deref()?.into());
        Some(PolicyKey { kind: self.kind, namespace, name })
    }

    fn apply(&mut self, object: &DynamicObject) -> bool {
        Object::read(self.kind, object).is_some_and(|object| self.state.policies.apply(object))
    }

    fn remove(&mut self, key: &PolicyKey) -> bool {
        self.state.policies.remove(key)
    }

    fn keys(&self) -> Vec<PolicyKey> {
        self.state.policies.keys_of(self.kind)
    }

    fn listed(&mut self) -> bool {
        self.state.policies.learn(self.kind, Listed::All)
    }
}

impl State {
    /// Every policy object, with its faults.
    pub(super) fn policy_infos(&self) -> Vec<Arc<PolicyInfo>> {
        let oversized = self.oversized();
        let overlaid = |info: &Arc<PolicyInfo>| match oversized.get(&info.key) {
            Some(fault) if info.fault.is_none() => {
                Arc::new(PolicyInfo { fault: Some(fault.clone()), ..PolicyInfo::clone(info) })
            }
            _ => Arc::clone(info),
        };
        self.policies.infos().map(overlaid).collect()
    }

    /// Policies that are closed for some pod because they don't fit its message.
    fn oversized(&self) -> BTreeMap<PolicyKey, String> {
        let crowded = self
            .namespaces
            .values()
            .filter(|namespace| self.policies.of_namespace(&namespace.name).may_be_too_large());
        let pods = crowded.flat_map(|namespace| self.pods.in_namespace(&namespace.name));
        let composed = pods.filter(|pod| is_enforcing(pod)).filter_map(|pod| self.composed(pod));
        composed.flat_map(|composed| composed.oversized.clone()).collect()
    }

    /// The live pods with our sidecar that a policy selects.
    pub(super) fn selected_by(&self, key: &PolicyKey) -> Vec<Arc<PodInfo>> {
        let Some(object) = self.policies.objects.get(key) else { return Vec::new() };
        let root = &*self.policies.mesh.root_namespace;
        let namespaces: Vec<&Arc<str>> =
            if *key.namespace == *root { self.namespaces.keys().collect() } else { vec![&key.namespace] };
        let pods = namespaces.into_iter().flat_map(|namespace| self.pods.in_namespace(namespace));
        let selected = pods.filter(|pod| {
            is_enforcing(pod) && object.selects(root, &pod.namespace, |key| pod.labels.get(key).map(|v| &**v))
        });
        let mut pods: Vec<_> = selected.cloned().collect();
        pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        pods
    }

    /// The policies that select a pod, PeerAuthentications first, by kind and name.
    pub(super) fn policies_of(&self, pod_uid: &str) -> Vec<Arc<PolicyInfo>> {
        let Some(composed) = self.pods.get(pod_uid).and_then(|pod| self.composed(pod)) else {
            return Vec::new();
        };
        let overlaid = |info: &Arc<PolicyInfo>| match composed.oversized.get(&info.key) {
            Some(fault) => Arc::new(PolicyInfo { fault: Some(fault.clone()), ..PolicyInfo::clone(info) }),
            None => Arc::clone(info),
        };
        composed.selected.iter().map(overlaid).collect()
    }

    /// PeerAuthentications that say PERMISSIVE or DISABLE of any port; `None` while that can't be told.
    pub(super) fn pins(&self) -> Option<BTreeSet<PolicyKey>> {
        let reliable = self.policies.reliable(PolicyKind::PeerAuthentication);
        let pinning = self.policies.objects.iter().filter(|(_, object)| object.is_below_strict());
        reliable.then(|| pinning.map(|(key, _)| key.clone()).collect())
    }

    /// The key sets that policies of enrolled namespaces and of the root namespace ask for, each with who does.
    pub(super) fn jwks_sources(&self) -> BTreeMap<JwksSource, BTreeSet<Asker>> {
        let root = &*self.policies.mesh.root_namespace;
        let mut sources: BTreeMap<JwksSource, BTreeSet<Asker>> = BTreeMap::new();
        for object in self.policies.objects.values() {
            let namespace = &object.info.key.namespace;
            let asker = if **namespace == *root {
                Asker::Mesh
            } else if self.namespaces.get(&**namespace).is_some_and(|found| found.enrolled) {
                Asker::Namespace(Arc::clone(namespace))
            } else {
                continue;
            };
            for source in &object.sources {
                sources.entry(source.clone()).or_default().insert(asker.clone());
            }
        }
        sources
    }

    /// Whether a policy of the pod asks for the keys of `source`.
    pub(super) fn asks_for(&self, pod_uid: &str, source: &str) -> bool {
        let composed = self.pods.get(pod_uid).and_then(|pod| self.composed(pod));
        let mut asked =
            composed.iter().flat_map(|composed| &composed.selected).flat_map(|info| &info.key_sources);
        asked.any(|asked| **asked == *source)
    }
}

/// Whether the pod has a proxy that enforces policies: live, with our sidecar.
fn is_enforcing(pod: &PodInfo) -> bool {
    pod.injected && pod.owns_its_ips()
}
