//! What the pods of one namespace enforce: modes, composed with the lock, and the policies that select them as one
//! message with one version. Made once for all pods whose labels look the same to the selectors.

use super::model::{PolicyInfo, PolicyKey, PolicyKind};
use super::object::{Body, Object};
use crate::index::model::{Labels, Protocol};
use crate::index::policy::{content_version, wire};
use crate::index::protocol;
use bytes::{Bytes, BytesMut};
use cinch_control::{MAX_MESSAGE, size, v1};
use cinch_policy::{MeshConfig, Mode, PathNormalization, PortModes, Workload};
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What a message may hold of policies, with room for the frame around it, modes of ports and declared ports.
const BOUND: usize = MAX_MESSAGE - 32 * 1024;

/// Kinds of pods that are kept of one namespace; beyond it they are put together again.
const LOOKS: usize = 1024;

/// Lists of declared ports that are kept of pods that enforce the same; beyond it one is dropped for each
/// that comes.
const DECLARED: usize = 64;

/// The values of the labels that selectors ask for, in the order of the keys, and whether the lock is on.
type Look = (bool, Vec<Option<Arc<str>>>);

/// Ports and what they are declared to speak, in order.
type Declared = Vec<(u16, Protocol)>;

/// The objects that may concern pods of one namespace.
#[derive(Debug)]
pub(super) struct OfNamespace {
    mesh: MeshConfig,
    namespace: Arc<str>,
    objects: Vec<Arc<Object>>,
    /// Messages of those that travel, with their key sets; sorted as they travel.
    travelling: Vec<(Arc<Object>, v1::Policy)>,
    /// Label keys that some selector asks for: pods that agree in them enforce the same.
    keys: Vec<Arc<str>>,
    composed: RwLock<HashMap<Look, Arc<Composed>>>,
}

/// What a pod enforces.
#[derive(Debug)]
pub(in crate::index) struct Composed {
    /// What each port accepts.
    pub(in crate::index) modes: PortModes,
    /// What travels to the pod's proxy, but for declared ports.
    policy: Arc<v1::WorkloadPolicy>,
    /// A RequestAuthentication is among it.
    looks_for_tokens: bool,
    /// The same with declared ports.
    declared: RwLock<HashMap<Declared, Arc<v1::WorkloadPolicy>>>,
    /// The objects that select the pod, by kind and name.
    pub(in crate::index) selected: Vec<Arc<PolicyInfo>>,
    /// Those of them that did not fit the message and are closed, and why.
    pub(in crate::index) oversized: BTreeMap<PolicyKey, String>,
}

impl Composed {
    /// What travels to the proxy of a pod whose `ports` are declared. That one speaks something other than HTTP matters
    /// only where tokens are looked for; elsewhere messages need not differ by it.
    pub(in crate::index) fn policy_with(&self, mut ports: Declared) -> Arc<v1::WorkloadPolicy> {
        if !self.looks_for_tokens {
            ports.retain(|(_, protocol)| *protocol != Protocol::Other);
        }
        if ports.is_empty() {
            return Arc::clone(&self.policy);
        }
        if let Some(held) = self.declared.read().get(&ports) {
            return Arc::clone(held);
        }
        let declared = ports.iter().map(|(port, protocol)| v1::DeclaredPort {
            port: u32::from(*port),
            protocol: protocol::wire(*protocol).into(),
        });
        let policy = v1::WorkloadPolicy { declared: declared.collect(), ..self.policy.as_ref().clone() };
        let made = Arc::new(versioned(policy));
        let mut held = self.declared.write();
        // One goes for one that comes: to drop all would have every pod's message put together again.
        if held.len() >= DECLARED
            && let Some(any) = held.keys().next().cloned()
        {
            held.remove(&any);
        }
        held.insert(ports, Arc::clone(&made));
        made
    }
}

/// With the version that follows from its content.
fn versioned(mut policy: v1::WorkloadPolicy) -> v1::WorkloadPolicy {
    policy.version = 0;
    let mut content = BytesMut::new();
    // It is within the bound of a message: what was not has been closed.
    let _ = cinch_control::encode(&policy, &mut content);
    policy.version = content_version(&content);
    policy
}

impl OfNamespace {
    pub(super) fn new(
        mesh: &MeshConfig,
        namespace: &Arc<str>,
        objects: Vec<Arc<Object>>,
        documents: &BTreeMap<Arc<str>, Bytes>,
    ) -> Self {
        let selectors = objects.iter().filter_map(|object| object.selector.as_ref());
        let keys: BTreeSet<Arc<str>> = selectors
            .flat_map(|selector| selector.match_labels.keys())
            .map(|key| Arc::from(&**key))
            .collect();
        let with_message = |object: &Arc<Object>| Some((Arc::clone(object), object.wire(documents)?));
        let mut travelling: Vec<_> = objects.iter().filter_map(with_message).collect();
        travelling.sort_by(|(a, _), (b, _)| a.info.key.cmp(&b.info.key));
        Self {
            mesh: mesh.clone(),
            namespace: Arc::clone(namespace),
            objects,
            travelling,
            keys: keys.into_iter().collect(),
            composed: RwLock::default(),
        }
    }

    /// Whether the objects could be too large for one message, whoever is selected.
    pub(super) fn may_be_too_large(&self) -> bool {
        self.travelling.iter().map(|(_, message)| on_the_wire(message)).sum::<usize>() > BOUND / 2
    }

    pub(super) fn composed(&self, labels: &Labels, locked: bool) -> Arc<Composed> {
        let look = (locked, self.keys.iter().map(|key| labels.get(key).cloned()).collect());
        if let Some(held) = self.composed.read().get(&look) {
            return Arc::clone(held);
        }
        let made = Arc::new(self.compose(&look));
        let mut composed = self.composed.write();
        if composed.len() >= LOOKS {
            composed.clear();
        }
        composed.insert(look, Arc::clone(&made));
        made
    }

    fn compose(&self, look: &Look) -> Composed {
        let (locked, values) = look;
        let labels: BTreeMap<&str, &str> = self
            .keys
            .iter()
            .zip(values)
            .filter_map(|(key, value)| Some((&**key, &**value.as_ref()?)))
            .collect();
        let root = &*self.mesh.root_namespace;
        let selects = |object: &Object| object.selects(root, &self.namespace, |key| labels.get(key).copied());
        let modes = self.modes(*locked, &labels);
        let mut policies: Vec<(&PolicyKey, v1::Policy)> = self
            .travelling
            .iter()
            .filter(|(object, _)| selects(object))
            .map(|(object, message)| (&object.info.key, message.clone()))
            .collect();
        let oversized = close_what_is_too_large(&mut policies);
        let mut selected: Vec<_> = self
            .objects
            .iter()
            .filter(|object| selects(object))
            .map(|object| Arc::clone(&object.info))
            .collect();
        selected.sort_by(|a, b| a.key.cmp(&b.key));
        let ports = modes
            .exceptions()
            .map(|(port, mode)| v1::PortMode { port: port.into(), mode: wire(mode).into() });
        let policy = versioned(v1::WorkloadPolicy {
            version: 0,
            mode: wire(modes.default_mode()).into(),
            ports: ports.collect(),
            policies: policies.into_iter().map(|(_, message)| message).collect(),
            locked: *locked,
            mesh: Some(mesh_settings(&self.mesh)),
            declared: Vec::new(),
        });
        let is_token = |policy: &v1::Policy| policy.kind == PolicyKind::RequestAuthentication.as_str();
        let looks_for_tokens = policy.policies.iter().any(is_token);
        let (policy, declared) = (Arc::new(policy), RwLock::default());
        Composed { modes, policy, looks_for_tokens, declared, selected, oversized }
    }

    /// The lock is a floor. So is a PeerAuthentication of the namespace whose selector can't be read: nobody can
    /// tell which pods it would have closed.
    fn modes(&self, locked: bool, labels: &BTreeMap<&str, &str>) -> PortModes {
        let authentications = self.objects.iter().filter_map(|object| match &object.body {
            Body::Modes(authentication) => Some(&**authentication),
            Body::Wire(_) => None,
        });
        let unreadable = self.objects.iter().any(|object| {
            object.unreadable_selector
                && object.info.key.kind == PolicyKind::PeerAuthentication
                && object.info.key.namespace == self.namespace
        });
        let workload = Workload {
            namespace: self.namespace.to_string(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            service_account: String::new(),
        };
        let floor = (locked || unreadable).then_some(Mode::Strict);
        PortModes::compose(authentications, &self.mesh, &workload, floor)
    }
}

/// Takes the bodies of the largest policies away until the rest fits a message. Such a policy closes what it
/// selects, so nothing is allowed that would not have been.
fn close_what_is_too_large(policies: &mut Vec<(&PolicyKey, v1::Policy)>) -> BTreeMap<PolicyKey, String> {
    let mut oversized = BTreeMap::new();
    let mut total: usize = policies.iter().map(|(_, policy)| on_the_wire(policy)).sum();
    let mut largest_first: Vec<_> =
        policies.iter_mut().map(|(key, policy)| (size(policy), *key, policy)).collect();
    largest_first.sort_by(|(a, a_key, _), (b, b_key, _)| (b, b_key).cmp(&(a, a_key)));
    for (before, key, policy) in largest_first {
        if total <= BOUND {
            break;
        }
        let fault = format!(
            "its {before} bytes, with those of the pod's other policies, are more than the {BOUND} that a proxy takes; split it, or select fewer pods"
        );
        policy.body = Bytes::new();
        policy.jwks.clear();
        policy.ports.clear();
        policy.fault.clone_from(&fault);
        total = total.saturating_sub(before).saturating_add(size(policy));
        oversized.insert(key.clone(), fault);
    }
    if total > BOUND {
        // Even their names don't fit. One policy that can't be used closes the pod as well as all of them.
        policies.truncate(1);
    }
    oversized
}

/// A policy as part of a message: with its tag and length.
fn on_the_wire(policy: &v1::Policy) -> usize {
    size(policy) + 16
}

fn mesh_settings(mesh: &MeshConfig) -> v1::MeshSettings {
    v1::MeshSettings {
        root_namespace: mesh.root_namespace.clone(),
        trust_domain_aliases: mesh.trust_domain_aliases.clone(),
        path_normalization: match mesh.path_normalization {
            PathNormalization::Safe => "SAFE",
            PathNormalization::DecodeAndMergeSlashes => "DECODE_AND_MERGE_SLASHES",
            PathNormalization::MergeSlashes => "MERGE_SLASHES",
            PathNormalization::Base => "BASE",
            PathNormalization::None => "NONE",
        }
        .to_owned(),
    }
}
