//! From Services and EndpointSlices to what the index keeps of them.

use super::convert::{Interner, ObjectName, created, is_tcp, object_name, port_number};
use super::model::Protocol;
use super::protocol::{by_app_protocol, by_port_name};
use k8s_openapi::api::core::v1::{Service, ServicePort as ApiPort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use std::net::IpAddr;
use std::sync::Arc;

/// The API server's default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u32 = 10_800;

/// One TCP port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServicePort {
    pub(super) name: Arc<str>,
    pub(super) port: u16,
    pub(super) node_port: Option<u16>,
    /// What it is declared to speak.
    pub(super) protocol: Option<Protocol>,
}

/// What the index keeps of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceInfo {
    pub(super) name: ObjectName,
    pub(super) created_unix_ms: u64,
    pub(super) cluster_ips: Vec<IpAddr>,
    pub(super) load_balancer_ips: Vec<IpAddr>,
    pub(super) ports: Vec<ServicePort>,
    /// `internalTrafficPolicy: Local`: who dials the ClusterIP is served on his own node or not at all.
    pub(super) internal_local: bool,
    /// `sessionAffinity: ClientIP` and its timeout; 0 for none.
    pub(super) affinity_seconds: u32,
}

/// A Service. `externalIPs` are left out on purpose: whoever may write a Service could draw any address's
/// traffic to his own pods.
pub(super) fn service(service: &Service, intern: &mut Interner) -> Option<ServiceInfo> {
    let name = object_name(&service.metadata, intern)?;
    let spec = service.spec.as_ref()?;
    let alias = spec.type_.as_deref() == Some("ExternalName");
    let mut cluster_ips: Vec<IpAddr> =
        spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
    if cluster_ips.is_empty() {
        cluster_ips.extend(spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    let ingress = service.status.iter().filter_map(|status| status.load_balancer.as_ref());
    let ingress = ingress.flat_map(|balancer| balancer.ingress.iter().flatten());
    // ipMode Proxy (KEP-1860): such traffic goes through the balancer itself, not through kube-proxy.
    let ingress = ingress.filter(|entry| entry.ip_mode.as_deref() != Some("Proxy"));
    let load_balancer_ips = ingress.filter_map(|entry| entry.ip.as_deref()?.parse().ok()).collect();
    let tcp = spec.ports.iter().flatten().filter(|port| is_tcp(port.protocol.as_deref()));
    Some(ServiceInfo {
        name,
        created_unix_ms: created(&service.metadata),
        ports: tcp.filter_map(|port| service_port(port, intern)).collect(),
        cluster_ips: if alias { Vec::new() } else { cluster_ips },
        load_balancer_ips: if alias { Vec::new() } else { load_balancer_ips },
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        affinity_seconds: affinity_seconds(spec),
    })
}

fn service_port(port: &ApiPort, intern: &mut Interner) -> Option<ServicePort> {
    let name = port.name.as_deref().unwrap_or_default();
    let declared = port.app_protocol.as_deref().filter(|word| !word.is_empty());
    Some(ServicePort {
        name: intern.text(name),
        port: port_number(port.port)?,
        node_port: port.node_port.and_then(port_number),
        protocol: declared.map(by_app_protocol).or_else(|| by_port_name(name)),
    })
}

fn affinity_seconds(spec: &ServiceSpec) -> u32 {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds);
    seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(AFFINITY_SECONDS)
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SliceEndpoint {
    pub(super) address: IpAddr,
    /// UID of the pod that the slice's writer meant.
    pub(super) pod_uid: Option<Arc<str>>,
    pub(super) ready: bool,
    /// Terminating, and still able to serve: used when nothing is ready.
    pub(super) draining: bool,
    pub(super) zone: Arc<str>,
    /// The node that it runs on; empty when nobody says.
    pub(super) node: Arc<str>,
    /// For clients of which nodes and zones it is meant (KEP-2433, KEP-3015).
    pub(super) for_nodes: Vec<Arc<str>>,
    pub(super) for_zones: Vec<Arc<str>>,
}

/// What the index keeps of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SliceInfo {
    pub(super) name: ObjectName,
    pub(super) service: ObjectName,
    /// Port name and number, TCP only.
    pub(super) ports: Vec<(Arc<str>, u16)>,
    pub(super) endpoints: Vec<SliceEndpoint>,
}

/// An EndpointSlice; `None` for one that belongs to no Service.
pub(super) fn slice(slice: &EndpointSlice, intern: &mut Interner) -> Option<SliceInfo> {
    let name = object_name(&slice.metadata, intern)?;
    let service = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
    let service = (Arc::clone(&name.0), intern.text(service));
    let tcp = slice.ports.iter().flatten().filter(|port| is_tcp(port.protocol.as_deref()));
    let ports = tcp.filter_map(|port| {
        Some((intern.text(port.name.as_deref().unwrap_or_default()), port.port.and_then(port_number)?))
    });
    let ports = ports.collect();
    let mut endpoints = Vec::new();
    for endpoint in slice.endpoints.iter().flatten() {
        add_endpoint(endpoint, &mut endpoints, intern);
    }
    Some(SliceInfo { name, service, ports, endpoints })
}

fn add_endpoint(endpoint: &Endpoint, endpoints: &mut Vec<SliceEndpoint>, intern: &mut Interner) {
    let conditions = endpoint.conditions.as_ref();
    // Absent means true for ready and serving, false for terminating (KEP-1672).
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    let hints = endpoint.hints.as_ref();
    let for_nodes = hints.iter().flat_map(|hints| hints.for_nodes.iter().flatten());
    let for_zones = hints.iter().flat_map(|hints| hints.for_zones.iter().flatten());
    let made = SliceEndpoint {
        address: IpAddr::from([0, 0, 0, 0]),
        pod_uid: target.and_then(|target| target.uid.as_deref()).map(Arc::from),
        ready,
        draining: terminating && serving,
        zone: intern.text(endpoint.zone.as_deref().unwrap_or_default()),
        node: intern.text(endpoint.node_name.as_deref().unwrap_or_default()),
        for_nodes: for_nodes.map(|hint| intern.text(&hint.name)).collect(),
        for_zones: for_zones.map(|hint| intern.text(&hint.name)).collect(),
    };
    let addresses = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
    endpoints.extend(addresses.map(|address| SliceEndpoint { address, ..made.clone() }));
}
