//! What stands behind an address, for the pod that asks. The order decides: a pod's address is the pod's, a node's is
//! the node's, a ClusterIP is the oldest Service's that has it, and only then may a load balancer's address count, so
//! that no Service can draw another's traffic.

use super::convert_services::{ServiceInfo, SliceEndpoint};
use super::endpoints::{Candidates, Place, Traffic};
use super::model::PodInfo;
use super::policy::{content_version, ip_bytes, wire};
use super::state::State;
use bytes::BytesMut;
use cinch_control::v1;
use cinch_control::v1::record::Kind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// What an endpoint of a slice turned out to be.
enum Backend {
    Pod(Arc<PodInfo>),
    /// A node, a host-network pod, or something outside of the cluster.
    Unmeshed,
    /// A pod that has gone, or that the index has not seen yet: to call it unmeshed would leak plaintext.
    Absent,
}

/// What an address turned out to be: endpoints, and for how long a client keeps to one of them.
struct Behind {
    kind: Kind,
    endpoints: Vec<v1::Endpoint>,
    affinity_seconds: u32,
}

impl Behind {
    fn endpoints(endpoints: Vec<v1::Endpoint>) -> Self {
        Behind { kind: Kind::Endpoints, endpoints, affinity_seconds: 0 }
    }

    fn without(kind: Kind) -> Self {
        Behind { kind, endpoints: Vec::new(), affinity_seconds: 0 }
    }
}

impl State {
    pub(super) fn record(&self, asker: &str, to: SocketAddr) -> v1::Record {
        let ip = to.ip().to_canonical();
        let Behind { kind, endpoints, affinity_seconds } = if self.synced() {
            self.behind(asker, ip, to.port())
        } else {
            Behind::without(Kind::Unspecified)
        };
        let address = Some(address(to.ip(), to.port()));
        let mut record = v1::Record { address, version: 0, kind: kind.into(), endpoints, affinity_seconds };
        let mut content = BytesMut::new();
        if cinch_control::encode(&record, &mut content).is_err() {
            // More endpoints than fit a message: as many as surely do.
            record.endpoints.truncate(10_000);
            let _ = cinch_control::encode(&record, &mut content);
        }
        record.version = content_version(&content);
        record
    }

    fn behind(&self, asker: &str, ip: IpAddr, port: u16) -> Behind {
        if let Some(pod) = self.pods.holder(ip) {
            // Who dials a pod wants this pod, ready or not.
            return Behind::endpoints(vec![self.pod_endpoint(pod, ip, port, true, "")]);
        }
        let node = self.node_with(ip);
        if let Some(name) = node.or_else(|| self.nodes.by_gateway(ip)) {
            let found = self.at_node_port(asker, ip, port).or_else(|| self.at_host_port(name, ip, port));
            if let Some(found) = found {
                return found;
            }
        }
        if node.is_some() {
            return Behind::without(Kind::PassThrough);
        }
        let v4 = ip.is_ipv4();
        let declared = |service: &ServiceInfo, traffic: Traffic| {
            let port = service.ports.iter().find(|declared| declared.port == port)?;
            Some(self.service(asker, service, &port.name, v4, traffic))
        };
        if let Some(service) = self.services.by_cluster_ip(ip) {
            let traffic = if service.internal_local { Traffic::Local } else { Traffic::Cluster };
            // A port that is not declared is refused, as kube-proxy does.
            return declared(service, traffic).unwrap_or(Behind::endpoints(Vec::new()));
        }
        if let Some(service) = self.services.by_load_balancer_ip(ip) {
            return declared(service, Traffic::Cluster).unwrap_or(Behind::without(Kind::PassThrough));
        }
        Behind::without(Kind::Unknown)
    }

    /// A Service's port of every node. `externalTrafficPolicy` is for those who come from outside: kube-proxy serves
    /// pods from the whole cluster.
    fn at_node_port(&self, asker: &str, ip: IpAddr, port: u16) -> Option<Behind> {
        let service = self.services.by_node_port(port)?;
        let port = service.ports.iter().find(|declared| declared.node_port == Some(port))?;
        Some(self.service(asker, service, &port.name, ip.is_ipv4(), Traffic::Cluster))
    }

    /// A pod's port of its node, which the node's network plugin leads to the pod.
    fn at_host_port(&self, node: &Arc<str>, ip: IpAddr, port: u16) -> Option<Behind> {
        let found = self.pods.at_host_port(node, ip, port)?;
        Some(Behind::endpoints(vec![self.pod_endpoint(found.pod, found.ip, found.port, true, "")]))
    }

    fn pod_endpoint(&self, pod: &PodInfo, ip: IpAddr, port: u16, ready: bool, zone: &str) -> v1::Endpoint {
        let zone = if zone.is_empty() { self.nodes.zone(&pod.node) } else { zone };
        if !pod.injected {
            return unmeshed(ip, port, ready, zone);
        }
        let (trust_domain, namespace, account) =
            (&self.settings.trust_domain, &pod.namespace, &pod.service_account);
        v1::Endpoint {
            address: Some(address(ip, port)),
            meshed: true,
            identity: format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}"),
            mode: wire(self.port_mode(pod, port)).into(),
            ready,
            zone: zone.to_owned(),
        }
    }

    /// One port of a Service, as the node of the pod that asks would serve it.
    fn service(
        &self,
        asker: &str,
        service: &ServiceInfo,
        port_name: &str,
        v4: bool,
        traffic: Traffic,
    ) -> Behind {
        let mut candidates = Candidates::default();
        for slice in self.services.slices_of(&service.name) {
            let Some((_, port)) = slice.ports.iter().find(|(name, _)| **name == *port_name) else { continue };
            for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.address.is_ipv4() == v4) {
                if let Some(found) = self.endpoint(endpoint, *port) {
                    candidates.add(SocketAddr::new(endpoint.address, *port), endpoint, found);
                }
            }
        }
        let endpoints = candidates.chosen(traffic, self.place(asker));
        Behind { kind: Kind::Endpoints, endpoints, affinity_seconds: service.affinity_seconds }
    }

    fn place(&self, asker: &str) -> Place<'_> {
        let Some(pod) = self.pods.get(asker) else { return Place::default() };
        Place { node: &pod.node, zone: self.nodes.zone(&pod.node) }
    }

    fn endpoint(&self, endpoint: &SliceEndpoint, port: u16) -> Option<v1::Endpoint> {
        let (ip, ready) = (endpoint.address, endpoint.ready);
        match self.backend(endpoint) {
            Backend::Pod(pod) => Some(self.pod_endpoint(&pod, ip, port, ready, &endpoint.zone)),
            Backend::Unmeshed => Some(unmeshed(ip, port, ready, &endpoint.zone)),
            Backend::Absent => None,
        }
    }

    /// Joins an endpoint to its pod. The address decides who is reached, so an identity is only ever given
    /// for the pod that has it; the reference serves to notice what is stale or not seen yet.
    fn backend(&self, endpoint: &SliceEndpoint) -> Backend {
        let holder = self.pods.holder(endpoint.address);
        let Some(uid) = &endpoint.pod_uid else { return self.backend_by_address(endpoint, holder) };
        match (self.pods.get(uid), holder) {
            (None, _) => Backend::Absent,
            (Some(meant), _) if meant.phase.is_terminal() => Backend::Absent,
            (Some(meant), None) if meant.host_network => Backend::Unmeshed,
            // The slice knows the address before the pod's own event has come.
            (Some(meant), None) if meant.ips.is_empty() => Backend::Pod(Arc::clone(meant)),
            (Some(meant), Some(holder)) if meant.uid == holder.uid => Backend::Pod(Arc::clone(holder)),
            // The address was given to a newer pod.
            (Some(meant), Some(_)) if meant.ips.contains(&endpoint.address) => Backend::Absent,
            (Some(_), holder) => self.backend_by_address(endpoint, holder),
        }
    }

    fn backend_by_address(&self, endpoint: &SliceEndpoint, holder: Option<&Arc<PodInfo>>) -> Backend {
        let ip = endpoint.address;
        if let Some(pod) = holder {
            return Backend::Pod(Arc::clone(pod));
        }
        let of_node = self.node_with(ip).or_else(|| self.nodes.by_gateway(ip)).is_some();
        if !of_node && self.nodes.is_pod_range(ip) { Backend::Absent } else { Backend::Unmeshed }
    }
}

fn unmeshed(ip: IpAddr, port: u16, ready: bool, zone: &str) -> v1::Endpoint {
    v1::Endpoint {
        address: Some(address(ip, port)),
        meshed: false,
        identity: String::new(),
        mode: v1::Mode::Unspecified.into(),
        ready,
        zone: zone.to_owned(),
    }
}

fn address(ip: IpAddr, port: u16) -> v1::Address {
    v1::Address { ip: ip_bytes(ip), port: port.into() }
}
