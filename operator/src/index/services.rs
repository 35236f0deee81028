//! Services and their EndpointSlices: by address and port, joined by name, and by the pods that they mean.

use super::convert::ObjectName;
use super::convert_services::{ServiceInfo, SliceInfo};
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

/// Services by age, oldest first: the older one keeps an address that a younger one claims.
type ByAge = BTreeSet<(u64, ObjectName)>;

/// All Services and EndpointSlices.
#[derive(Debug, Default)]
pub(super) struct Services {
    services: HashMap<ObjectName, ServiceInfo>,
    slices: HashMap<ObjectName, Arc<SliceInfo>>,
    by_cluster_ip: HashMap<IpAddr, ByAge>,
    by_load_balancer_ip: HashMap<IpAddr, ByAge>,
    by_node_port: HashMap<u16, ByAge>,
    slices_of: HashMap<ObjectName, BTreeSet<ObjectName>>,
    /// Slices by the UIDs of the pods that they mean.
    slices_with: HashMap<Arc<str>, BTreeSet<ObjectName>>,
}

impl Services {
    pub(super) fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }

    pub(super) fn slice_names(&self) -> impl Iterator<Item = &ObjectName> {
        self.slices.keys()
    }

    /// The Service of this name.
    pub(super) fn get(&self, name: &ObjectName) -> Option<&ServiceInfo> {
        self.services.get(name)
    }

    /// The Service with this ClusterIP.
    pub(super) fn by_cluster_ip(&self, ip: IpAddr) -> Option<&ServiceInfo> {
        self.oldest(self.by_cluster_ip.get(&ip))
    }

    /// The Service to which a load balancer gave this address.
    pub(super) fn by_load_balancer_ip(&self, ip: IpAddr) -> Option<&ServiceInfo> {
        self.oldest(self.by_load_balancer_ip.get(&ip))
    }

    /// The Service with this node port.
    pub(super) fn by_node_port(&self, port: u16) -> Option<&ServiceInfo> {
        self.oldest(self.by_node_port.get(&port))
    }

    /// The first ClusterIP of the Service of this name.
    pub(super) fn cluster_ip(&self, namespace: &str, name: &str) -> Option<IpAddr> {
        let key = (Arc::from(namespace), Arc::from(name));
        self.services.get(&key).and_then(|service| service.cluster_ips.first().copied())
    }

    fn oldest(&self, found: Option<&ByAge>) -> Option<&ServiceInfo> {
        found?.first().and_then(|(_, name)| self.services.get(name))
    }

    /// ClusterIPs and load balancer addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.by_cluster_ip.keys().chain(self.by_load_balancer_ip.keys()).copied()
    }

    /// The slices of a Service, in the order of their names.
    pub(super) fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &Arc<SliceInfo>> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    /// The slices that mean a pod, in the order of their names.
    pub(super) fn slices_with(&self, pod_uid: &str) -> impl Iterator<Item = &Arc<SliceInfo>> {
        self.slices_with.get(pod_uid).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    pub(super) fn apply(&mut self, service: ServiceInfo) -> bool {
        if self.services.get(&service.name) == Some(&service) {
            return false;
        }
        self.remove(&service.name.clone());
        let key = (service.created_unix_ms, service.name.clone());
        for ip in &service.cluster_ips {
            self.by_cluster_ip.entry(*ip).or_default().insert(key.clone());
        }
        for ip in &service.load_balancer_ips {
            self.by_load_balancer_ip.entry(*ip).or_default().insert(key.clone());
        }
        for port in service.ports.iter().filter_map(|port| port.node_port) {
            self.by_node_port.entry(port).or_default().insert(key.clone());
        }
        self.services.insert(service.name.clone(), service);
        true
    }

    pub(super) fn remove(&mut self, name: &ObjectName) -> bool {
        let Some(service) = self.services.remove(name) else { return false };
        let key = (service.created_unix_ms, service.name);
        for ip in &service.cluster_ips {
            unlink(&mut self.by_cluster_ip, ip, &key);
        }
        for ip in &service.load_balancer_ips {
            unlink(&mut self.by_load_balancer_ip, ip, &key);
        }
        for port in service.ports.iter().filter_map(|port| port.node_port) {
            unlink(&mut self.by_node_port, &port, &key);
        }
        true
    }

    pub(super) fn apply_slice(&mut self, slice: SliceInfo) -> bool {
        if self.slices.get(&slice.name).is_some_and(|known| **known == slice) {
            return false;
        }
        // The label with the Service's name may have changed.
        self.remove_slice(&slice.name.clone());
        self.slices_of.entry(slice.service.clone()).or_default().insert(slice.name.clone());
        for uid in slice.endpoints.iter().filter_map(|endpoint| endpoint.pod_uid.as_ref()) {
            self.slices_with.entry(Arc::clone(uid)).or_default().insert(slice.name.clone());
        }
        self.slices.insert(slice.name.clone(), Arc::new(slice));
        true
    }

    pub(super) fn remove_slice(&mut self, name: &ObjectName) -> bool {
        let Some(slice) = self.slices.remove(name) else { return false };
        unlink(&mut self.slices_of, &slice.service, name);
        for uid in slice.endpoints.iter().filter_map(|endpoint| endpoint.pod_uid.as_ref()) {
            unlink(&mut self.slices_with, uid, name);
        }
        true
    }
}

fn unlink<K: Hash + Eq, V: Ord>(map: &mut HashMap<K, BTreeSet<V>>, at: &K, key: &V) {
    if let Some(set) = map.get_mut(at) {
        set.remove(key);
        if set.is_empty() {
            map.remove(at);
        }
    }
}
