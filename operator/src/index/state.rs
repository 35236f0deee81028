//! The state of the index and how each kind of object enters it. Pure: events and the time go in, nothing
//! is asked of anybody.

use super::IndexSettings;
use super::convert::{self, Interner, ObjectName};
use super::convert_services;
use super::keyed::Table;
use super::model::{NamespaceInfo, PodInfo, SourceName};
use super::nodes::Nodes;
use super::owner::{Owners, owner_meta};
use super::pods::Pods;
use super::policies::Policies;
use super::services::Services;
use ipnet::IpNet;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::core::PartialObjectMeta;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// The kinds that must be listed before an address counts as unknown.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Pods,
    Services,
    Slices,
    Namespaces,
    Nodes,
    ReplicaSets,
    Jobs,
    ServiceCidrs,
}

const ALL_KINDS: u8 = u8::MAX;

/// Everything the index knows.
#[derive(Debug)]
pub(super) struct State {
    pub(super) settings: IndexSettings,
    pub(super) pods: Pods,
    pub(super) services: Services,
    pub(super) nodes: Nodes,
    pub(super) namespaces: HashMap<Arc<str>, Arc<NamespaceInfo>>,
    pub(super) service_cidrs: HashMap<Arc<str>, Vec<IpNet>>,
    pub(super) policies: Policies,
    replica_sets: Owners,
    jobs: Owners,
    intern: Interner,
    listed: u8,
    /// When the batch at hand came: watch events carry no time of ours.
    pub(super) now: Instant,
}

impl State {
    pub(super) fn new(settings: IndexSettings) -> Self {
        Self {
            policies: Policies::new(settings.mesh()),
            settings,
            pods: Pods::default(),
            services: Services::default(),
            nodes: Nodes::default(),
            namespaces: HashMap::new(),
            service_cidrs: HashMap::new(),
            replica_sets: Owners::new(),
            jobs: Owners::new(),
            intern: Interner::default(),
            listed: 0,
            now: Instant::now(),
        }
    }

    pub(super) fn synced(&self) -> bool {
        self.listed == ALL_KINDS && self.policies.synced()
    }

    fn mark(&mut self, kind: Kind) -> bool {
        let before = self.listed;
        self.listed |= 1 << kind as u8;
        self.listed != before
    }

    pub(super) fn pod(&self, uid: &str) -> Option<Arc<PodInfo>> {
        self.pods.get(uid).cloned()
    }

    pub(super) fn pod_by_ip(&self, ip: IpAddr) -> Option<Arc<PodInfo>> {
        self.pods.holder(ip).cloned()
    }

    pub(super) fn pods_in(&self, namespace: &str) -> Vec<Arc<PodInfo>> {
        let mut pods: Vec<_> = self.pods.in_namespace(namespace).cloned().collect();
        pods.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
        pods
    }

    pub(super) fn namespace(&self, name: &str) -> Option<Arc<NamespaceInfo>> {
        self.namespaces.get(name).cloned()
    }

    pub(super) fn namespaces(&self) -> Vec<Arc<NamespaceInfo>> {
        self.namespaces.values().cloned().collect()
    }

    pub(super) fn enrolled(&self) -> Vec<String> {
        let enrolled =
            self.namespaces.values().filter(|namespace| namespace.enrolled && !namespace.terminating);
        let mut names: Vec<String> = enrolled.map(|namespace| namespace.name.to_string()).collect();
        names.sort();
        names
    }

    /// The node that has `ip`, by its own word or its pods'.
    pub(super) fn node_with(&self, ip: IpAddr) -> Option<&Arc<str>> {
        self.nodes.by_address(ip).or_else(|| self.pods.host(ip))
    }

    pub(super) fn source(&self, ip: IpAddr, now: Instant) -> SourceName {
        // A node's address before the memory of pods, a live pod before all: addresses are given anew.
        if self.pods.holder(ip).is_none()
            && let Some(node) = self.node_with(ip).or_else(|| self.nodes.by_gateway(ip))
        {
            return SourceName::Node(Arc::clone(node));
        }
        match self.pods.workload(ip, now) {
            Some((name, created_unix_ms)) => SourceName::Workload { name, created_unix_ms },
            None => SourceName::External(ip),
        }
    }
}

impl Table<Pod> for State {
    type Key = Arc<str>;

    fn key(&mut self, object: &Pod) -> Option<Arc<str>> {
        object.metadata.uid.as_deref().map(Arc::from)
    }

    fn apply(&mut self, object: &Pod) -> bool {
        let Some((mut info, owner)) = convert::pod(object, &self.settings, &mut self.intern) else {
            return false;
        };
        info.node_ready = self.nodes.is_ready(&info.node);
        let owners = match owner.as_ref().map(|owner| &*owner.kind) {
            Some("Job") => &self.jobs,
            _ => &self.replica_sets,
        };
        self.pods.apply(info, owner, owners, self.now)
    }

    fn remove(&mut self, key: &Arc<str>) -> bool {
        self.pods.remove(key, self.now)
    }

    fn keys(&self) -> Vec<Arc<str>> {
        self.pods.uids().cloned().collect()
    }

    fn listed(&mut self) -> bool {
        self.mark(Kind::Pods)
    }
}

impl Table<Service> for State {
    type Key = ObjectName;

    fn key(&mut self, object: &Service) -> Option<ObjectName> {
        convert::object_name(&object.metadata, &mut self.intern)
    }

    fn apply(&mut self, object: &Service) -> bool {
        convert_services::service(object, &mut self.intern)
            .is_some_and(|service| self.services.apply(service))
    }

    fn remove(&mut self, key: &ObjectName) -> bool {
        self.services.remove(key)
    }

    fn keys(&self) -> Vec<ObjectName> {
        self.services.names().cloned().collect()
    }

    fn listed(&mut self) -> bool {
        self.mark(Kind::Services)
    }
}

impl Table<EndpointSlice> for State {
    type Key = ObjectName;

    fn key(&mut self, object: &EndpointSlice) -> Option<ObjectName> {
        convert::object_name(&object.metadata, &mut self.intern)
    }

    fn apply(&mut self, object: &EndpointSlice) -> bool {
        match convert_services::slice(object, &mut self.intern) {
            Some(slice) => self.services.apply_slice(slice),
            // Its label was taken away: it belongs to no Service any more.
            None => convert::object_name(&object.metadata, &mut self.intern)
                .is_some_and(|name| self.services.remove_slice(&name)),
        }
    }

    fn remove(&mut self, key: &ObjectName) -> bool {
        self.services.remove_slice(key)
    }

    fn keys(&self) -> Vec<ObjectName> {
        self.services.slice_names().cloned().collect()
    }

    fn listed(&mut self) -> bool {
        self.mark(Kind::Slices)
    }
}

impl Table<Namespace> for State {
    type Key = Arc<str>;

    fn key(&mut self, object: &Namespace) -> Option<Arc<str>> {
        object.metadata.name.as_deref().map(|name| self.intern.text(name))
    }

    fn apply(&mut self, object: &Namespace) -> bool {
        let Some(info) = convert::namespace(object, &mut self.intern) else { return false };
        if self.namespaces.get(&info.name).is_some_and(|known| **known == info) {
            return false;
        }
        self.namespaces.insert(Arc::clone(&info.name), Arc::new(info));
        true
    }

    fn remove(&mut self, key: &Arc<str>) -> bool {
        self.policies.forget(key);
        self.namespaces.remove(key).is_some()
    }

    fn keys(&self) -> Vec<Arc<str>> {
        self.namespaces.keys().cloned().collect()
    }

    fn listed(&mut self) -> bool {
        self.mark(Kind::Namespaces)
    }
}

impl Table<Node> for State {
    type Key = Arc<str>;

    fn key(&mut self, object: &Node) -> Option<Arc<str>> {
        object.metadata.name.as_deref().map(|name| self.intern.text(name))
    }

    fn apply(&mut self, object: &Node) -> bool {
        let Some(node) = convert::node(object, &mut self.intern) else { return false };
        let (name, ready) = (Arc::clone(&node.name), node.ready);
        self.nodes.apply(node) && {
            self.pods.node_changed(&name, ready, self.now);
            true
        }
    }

    fn remove(&mut self, key: &Arc<str>) -> bool {
        self.nodes.remove(key) && {
            self.pods.node_changed(key, false, self.now);
            true
        }
    }

    fn keys(&self) -> Vec<Arc<str>> {
        self.nodes.names().cloned().collect()
    }

    fn listed(&mut self) -> bool {
        self.mark(Kind::Nodes)
    }
}

/// ReplicaSets and Jobs differ only in where they are kept.
macro_rules! owners {
    ($kind:ty, $field:ident, $listed:expr) => {
        impl Table<PartialObjectMeta<$kind>> for State {
            type Key = Arc<str>;

            fn key(&mut self, object: &PartialObjectMeta<$kind>) -> Option<Arc<str>> {
                object.metadata.uid.as_deref().map(|uid| self.intern.text(uid))
            }

            fn apply(&mut self, object: &PartialObjectMeta<$kind>) -> bool {
                let Some((uid, meta)) = owner_meta(&object.metadata, &mut self.intern) else { return false };
                if self.$field.get(&uid) == Some(&meta) {
                    return false;
                }
                let namespace = Arc::clone(&meta.namespace);
                self.$field.insert(Arc::clone(&uid), meta);
                self.pods.owner_changed(&namespace, &uid, &self.$field, self.now)
            }

            /// The pods that it owned keep the workload that was found through it.
            fn remove(&mut self, key: &Arc<str>) -> bool {
                self.$field.remove(key);
                false
            }

            fn keys(&self) -> Vec<Arc<str>> {
                self.$field.keys().cloned().collect()
            }

            fn listed(&mut self) -> bool {
                self.mark($listed)
            }
        }
    };
}

owners!(ReplicaSet, replica_sets, Kind::ReplicaSets);
owners!(Job, jobs, Kind::Jobs);

impl Table<ServiceCIDR> for State {
    type Key = Arc<str>;

    fn key(&mut self, object: &ServiceCIDR) -> Option<Arc<str>> {
        object.metadata.name.as_deref().map(|name| self.intern.text(name))
    }

    fn apply(&mut self, object: &ServiceCIDR) -> bool {
        let Some(name) = object.metadata.name.as_deref().map(|name| self.intern.text(name)) else {
            return false;
        };
        let cidrs = object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
        let cidrs: Vec<IpNet> = cidrs.filter_map(|cidr| cidr.parse().ok()).collect();
        if self.service_cidrs.get(&name) == Some(&cidrs) {
            return false;
        }
        self.service_cidrs.insert(name, cidrs);
        true
    }

    fn remove(&mut self, key: &Arc<str>) -> bool {
        self.service_cidrs.remove(key).is_some()
    }

    fn keys(&self) -> Vec<Arc<str>> {
        self.service_cidrs.keys().cloned().collect()
    }

    fn listed(&mut self) -> bool {
        self.mark(Kind::ServiceCidrs)
    }
}
