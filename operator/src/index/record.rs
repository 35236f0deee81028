//! What stands behind an address. The order decides: a pod's address is the pod's, a node's is the node's,
//! a ClusterIP is the oldest Service's that has it, and only then may a load balancer's address count, so
//! that no Service can draw another's traffic.

use super::convert::{ServiceInfo, SliceEndpoint};
use super::model::PodInfo;
use super::policy::{content_version, ip_bytes, wire};
use super::state::State;
use bytes::BytesMut;
use cinch_control::v1;
use cinch_control::v1::record::Kind;
use std::collections::BTreeMap;
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

/// An endpoint before it is known whether draining ones are needed.
struct Candidate {
    endpoint: v1::Endpoint,
    draining: bool,
}

impl State {
    pub(super) fn record(&self, to: SocketAddr) -> v1::Record {
        let ip = to.ip().to_canonical();
        let (kind, endpoints) =
            if self.synced() { self.behind(ip, to.port()) } else { (Kind::Unspecified, Vec::new()) };
        let address = Some(address(to.ip(), to.port()));
        let mut record = v1::Record { address, version: 0, kind: kind.into(), endpoints };
        let mut content = BytesMut::new();
        if cinch_control::encode(&record, &mut content).is_err() {
            // More endpoints than fit a message: as many as surely do.
            record.endpoints.truncate(10_000);
            let _ = cinch_control::encode(&record, &mut content);
        }
        record.version = content_version(&content);
        record
    }

    fn behind(&self, ip: IpAddr, port: u16) -> (Kind, Vec<v1::Endpoint>) {
        if let Some(pod) = self.pods.holder(ip) {
            // Who dials a pod wants this pod, ready or not.
            return (Kind::Endpoints, vec![self.pod_endpoint(pod, ip, port, true, "")]);
        }
        let of_node = self.node_with(ip).is_some();
        if of_node || self.nodes.by_gateway(ip).is_some() {
            let service = self.services.by_node_port(port);
            let found = service.and_then(|service| {
                Some((service, service.ports.iter().find(|p| p.node_port == Some(port))?))
            });
            if let Some((service, port)) = found {
                return (Kind::Endpoints, self.service_endpoints(service, &port.name, ip.is_ipv4()));
            }
        }
        if of_node {
            return (Kind::PassThrough, Vec::new());
        }
        let declared = |service: &ServiceInfo| {
            let port = service.ports.iter().find(|declared| declared.port == port)?;
            Some(self.service_endpoints(service, &port.name, ip.is_ipv4()))
        };
        if let Some(service) = self.services.by_cluster_ip(ip) {
            // A port that is not declared is refused, as kube-proxy does.
            return (Kind::Endpoints, declared(service).unwrap_or_default());
        }
        if let Some(service) = self.services.by_load_balancer_ip(ip) {
            return match declared(service) {
                Some(endpoints) => (Kind::Endpoints, endpoints),
                None => (Kind::PassThrough, Vec::new()),
            };
        }
        (Kind::Unknown, Vec::new())
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

    /// The endpoints of one port of a Service. As kube-proxy does: the ready ones serve; when there are none,
    /// the terminating ones that still serve (KEP-1669).
    fn service_endpoints(&self, service: &ServiceInfo, port_name: &str, v4: bool) -> Vec<v1::Endpoint> {
        let mut candidates: BTreeMap<SocketAddr, Candidate> = BTreeMap::new();
        for slice in self.services.slices_of(&service.name) {
            let Some((_, port)) = slice.ports.iter().find(|(name, _)| **name == *port_name) else { continue };
            for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.address.is_ipv4() == v4) {
                let Some(found) = self.candidate(endpoint, *port) else { continue };
                // While slices are rearranged, an address may stand in two of them.
                candidates
                    .entry(SocketAddr::new(endpoint.address, *port))
                    .and_modify(|known| {
                        known.endpoint.ready |= found.endpoint.ready;
                        known.draining |= found.draining;
                    })
                    .or_insert(found);
            }
        }
        let any_ready = candidates.values().any(|candidate| candidate.endpoint.ready);
        let endpoint = |mut candidate: Candidate| {
            candidate.endpoint.ready |= !any_ready && candidate.draining;
            candidate.endpoint
        };
        candidates.into_values().map(endpoint).collect()
    }

    fn candidate(&self, endpoint: &SliceEndpoint, port: u16) -> Option<Candidate> {
        let (ip, ready) = (endpoint.address, endpoint.ready);
        let wire = match self.backend(endpoint) {
            Backend::Pod(pod) => self.pod_endpoint(&pod, ip, port, ready, &endpoint.zone),
            Backend::Unmeshed => unmeshed(ip, port, ready, &endpoint.zone),
            Backend::Absent => return None,
        };
        Some(Candidate { endpoint: wire, draining: endpoint.draining })
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
