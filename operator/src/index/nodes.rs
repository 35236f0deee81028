//! The nodes: their addresses, pod CIDRs and the gateways from which kubelets probe.

use super::convert::NodeInfo;
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// All nodes.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    by_name: HashMap<Arc<str>, NodeInfo>,
    by_address: HashMap<IpAddr, Arc<str>>,
    by_gateway: HashMap<IpAddr, Arc<str>>,
}

impl Nodes {
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_name.keys()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &NodeInfo> {
        self.by_name.values()
    }

    pub(super) fn is_ready(&self, name: &str) -> bool {
        self.by_name.get(name).is_some_and(|node| node.ready)
    }

    pub(super) fn zone(&self, name: &str) -> &str {
        self.by_name.get(name).map_or("", |node| &node.zone)
    }

    /// The node that has `ip` as its own address.
    pub(super) fn by_address(&self, ip: IpAddr) -> Option<&Arc<str>> {
        self.by_address.get(&ip)
    }

    /// The node whose pods see `ip` as their gateway.
    pub(super) fn by_gateway(&self, ip: IpAddr) -> Option<&Arc<str>> {
        self.by_gateway.get(&ip)
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.by_address.keys().copied()
    }

    /// Whether `ip` lies in the pod CIDR of any node.
    pub(super) fn is_pod_range(&self, ip: IpAddr) -> bool {
        self.all().any(|node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&ip)))
    }

    pub(super) fn apply(&mut self, node: NodeInfo) -> bool {
        if self.by_name.get(&node.name) == Some(&node) {
            return false;
        }
        self.by_name.insert(Arc::clone(&node.name), node);
        self.link();
        true
    }

    pub(super) fn remove(&mut self, name: &str) -> bool {
        let removed = self.by_name.remove(name).is_some();
        if removed {
            self.link();
        }
        removed
    }

    /// Nodes change seldom and are few, so both maps are made anew.
    fn link(&mut self) {
        let addresses = self
            .by_name
            .values()
            .flat_map(|node| node.addresses.iter().map(|ip| (*ip, Arc::clone(&node.name))));
        self.by_address = addresses.collect();
        let gateways = self.by_name.values().flat_map(|node| {
            node.pod_cidrs.iter().filter_map(gateway).map(|ip| (ip, Arc::clone(&node.name)))
        });
        self.by_gateway = gateways.collect();
    }
}

/// The first address of a pod CIDR, which the usual CNI plugins (host-local) give to the node's end.
fn gateway(cidr: &IpNet) -> Option<IpAddr> {
    match cidr {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            u32::from(net.network()).checked_add(1).map(|ip| IpAddr::V4(Ipv4Addr::from(ip)))
        }
        IpNet::V6(net) if net.prefix_len() < 127 => {
            u128::from(net.network()).checked_add(1).map(|ip| IpAddr::V6(Ipv6Addr::from(ip)))
        }
        _ => None,
    }
}
