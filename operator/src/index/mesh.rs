//! Which addresses proxies must ask about: whatever may be a pod, a Service or a node. All else passes
//! through them unasked.

use super::policy::{content_version, ip_bytes};
use super::state::State;
use cinch_control::v1;
use ipnet::IpNet;
use std::net::IpAddr;

impl State {
    pub(super) fn mesh(&self) -> v1::Mesh {
        let cidrs = self.mesh_cidrs();
        let mut content = String::new();
        for cidr in &cidrs {
            content.push_str(&cidr.to_string());
            content.push('\n');
        }
        let wire = |cidr: &IpNet| v1::Cidr {
            address: ip_bytes(cidr.network()),
            prefix_length: cidr.prefix_len().into(),
        };
        v1::Mesh { version: content_version(content.as_bytes()), cidrs: cidrs.iter().map(wire).collect() }
    }

    /// Whether an address may be a pod's or a Service's: one of which "unknown" needs a second look.
    pub(super) fn may_be_ours(&self, ip: IpAddr) -> bool {
        self.ranges().any(|cidr| cidr.contains(&ip))
    }

    /// Whether `ip` may be the second address of a pod or a Service: the API server can't be asked for these. It
    /// knows pods by their first address, which is of the family of their node's first range, and Services by
    /// their first one, whichever family that is.
    pub(super) fn may_be_second(&self, ip: IpAddr) -> bool {
        let other = |address: IpAddr| address.is_ipv4() != ip.is_ipv4();
        let two_families =
            self.ranges().any(|range| other(range.network())) || self.pods.addresses().any(other);
        let mut firsts = self.nodes.all().filter_map(|node| node.pod_cidrs.first()).peekable();
        let pods_show = firsts.peek().is_some() && firsts.all(|range| !other(range.network()));
        let of_services = self.service_cidrs.values().flatten().any(|range| range.contains(&ip));
        two_families && (!pods_show || of_services)
    }

    fn ranges(&self) -> impl Iterator<Item = IpNet> + '_ {
        let services = self.service_cidrs.values().flatten();
        let pods = self.nodes.all().flat_map(|node| &node.pod_cidrs);
        services.chain(pods).chain(&self.settings.mesh_cidrs).map(IpNet::trunc)
    }

    /// Sorted and without overlap. Addresses outside all ranges stand alone: pods of a CNI with its own
    /// CIDRs, nodes, load balancers.
    fn mesh_cidrs(&self) -> Vec<IpNet> {
        let ranges = IpNet::aggregate(&self.ranges().collect());
        let pods = self.pods.addresses();
        let nodes = self.nodes.addresses().chain(self.pods.host_addresses());
        let single = pods.chain(nodes).chain(self.services.addresses()).filter(|ip| is_unicast(*ip));
        let outside = single.filter(|ip| !ranges.iter().any(|range| range.contains(ip)));
        let mut cidrs: Vec<IpNet> = outside.map(IpNet::from).collect();
        cidrs.extend(&ranges);
        let mut cidrs = IpNet::aggregate(&cidrs);
        cidrs.sort();
        cidrs
    }
}

/// Addresses that leave a host one by one: a status that names loopback or multicast captures nothing.
fn is_unicast(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || link_local)
}
