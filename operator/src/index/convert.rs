//! From API objects to what the index keeps of them (Services and their slices: `convert_services`). Nothing here
//! judges; objects without a name or UID give `None`.

use super::IndexSettings;
use super::model::{Labels, NamespaceInfo, Phase, PodInfo, PodPort, WorkloadName};
use super::owner::{OwnerRef, controller};
use super::protocol;
use super::sidecar;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Container, ContainerPort, Namespace, Node, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Shares equal strings and label maps: the pods of a workload differ in little.
#[derive(Debug, Default)]
pub(super) struct Interner {
    strings: HashSet<Arc<str>>,
    labels: HashSet<Labels>,
    ports: HashSet<Arc<[PodPort]>>,
    sweep_at: usize,
}

impl Interner {
    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.strings.get(text) {
            return Arc::clone(known);
        }
        self.sweep();
        let shared: Arc<str> = Arc::from(text);
        self.strings.insert(Arc::clone(&shared));
        shared
    }

    fn labels<'a>(&mut self, map: impl Iterator<Item = (&'a String, &'a String)>) -> Labels {
        let map: BTreeMap<_, _> = map.map(|(key, value)| (self.text(key), self.text(value))).collect();
        if let Some(known) = self.labels.get(&map) {
            return Arc::clone(known);
        }
        let shared = Arc::new(map);
        self.labels.insert(Arc::clone(&shared));
        shared
    }

    fn ports(&mut self, ports: Vec<PodPort>) -> Arc<[PodPort]> {
        if let Some(known) = self.ports.get(&*ports) {
            return Arc::clone(known);
        }
        let shared: Arc<[PodPort]> = ports.into();
        self.ports.insert(Arc::clone(&shared));
        shared
    }

    /// Drops what nobody else holds, each time the table has doubled.
    fn sweep(&mut self) {
        if self.strings.len() + self.labels.len() >= self.sweep_at.max(4096) {
            self.labels.retain(|labels| Arc::strong_count(labels) > 1);
            self.ports.retain(|ports| Arc::strong_count(ports) > 1);
            self.strings.retain(|text| Arc::strong_count(text) > 1);
            self.sweep_at = 2 * (self.strings.len() + self.labels.len());
        }
    }
}

/// A pod as its own object tells it; the workload and its node's state are filled in by the index.
pub(super) fn pod(
    pod: &Pod,
    settings: &IndexSettings,
    intern: &mut Interner,
) -> Option<(PodInfo, Option<OwnerRef>)> {
    let meta = &pod.metadata;
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref());
    let namespace = intern.text(meta.namespace.as_deref()?);
    let name: Arc<str> = Arc::from(meta.name.as_deref()?);
    let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    let created_unix_ms = created(meta);
    let kind = intern.text("Pod");
    let injected = sidecar::is_injected(spec, &settings.sidecar);
    let info = PodInfo {
        uid: Arc::from(meta.uid.as_deref()?),
        ips: status.map(pod_ips).unwrap_or_default(),
        node: intern.text(spec.node_name.as_deref().unwrap_or_default()),
        service_account: intern.text(account),
        workload: WorkloadName { namespace: Arc::clone(&namespace), kind, name: Arc::clone(&name) },
        workload_created_unix_ms: created_unix_ms,
        injected,
        by_agent: injected && !begins_with_init(spec),
        host_network: spec.host_network.unwrap_or(false),
        phase: phase(status),
        started: status.is_some_and(has_started),
        ready: status.is_some_and(|status| {
            is_ready(status.conditions.iter().flatten().map(|c| (&*c.type_, &*c.status)))
        }),
        terminating: meta.deletion_timestamp.is_some(),
        labels: intern.labels(meta.labels.iter().flatten()),
        ports: intern.ports(ports(spec)),
        created_unix_ms,
        host_ips: status.map(host_ips).unwrap_or_default(),
        node_ready: false,
        windows: spec.os.as_ref().is_some_and(|os| os.name == "windows"),
        mirror: meta.annotations.as_ref().is_some_and(|map| map.contains_key("kubernetes.io/config.mirror")),
        namespace,
        name,
    };
    Some((info, controller(meta, intern)))
}

/// Whether the pod sets its redirect itself; else, when it is injected, the node agent does.
fn begins_with_init(spec: &PodSpec) -> bool {
    spec.init_containers.iter().flatten().next().is_some_and(|first| first.name == sidecar::INIT)
}

/// The ports that say more than a number. Sidecars are init containers and may serve as well, but the kubelet maps
/// ports of the node for `spec.containers` alone: what an init container asks for would draw others' traffic.
fn ports(spec: &PodSpec) -> Vec<PodPort> {
    let of = |container: &Container| -> Vec<PodPort> {
        let tcp = container.ports.iter().flatten().filter(|port| is_tcp(port.protocol.as_deref()));
        tcp.filter_map(pod_port).collect()
    };
    let mut ports: Vec<PodPort> = spec.containers.iter().flat_map(of).collect();
    let of_init = spec.init_containers.iter().flatten().flat_map(of);
    ports.extend(of_init.map(|port| PodPort { host: None, ..port }));
    ports.retain(|port| port.protocol.is_some() || port.host.is_some());
    ports
}

fn pod_port(port: &ContainerPort) -> Option<PodPort> {
    // A word that is no address is refused by the API server; one that means every address is no limit.
    let on = port.host_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
    let on = on.filter(|ip| !ip.is_unspecified());
    Some(PodPort {
        number: port_number(port.container_port)?,
        protocol: port.name.as_deref().and_then(protocol::by_port_name),
        host: port.host_port.and_then(port_number).map(|number| (number, on)),
    })
}

fn pod_ips(status: &PodStatus) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> =
        status.pod_ips.iter().flatten().chain([]).filter_map(|entry| entry.ip.parse().ok()).collect();
    if ips.is_empty() {
        ips.extend(status.pod_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    ips
}

fn host_ips(status: &PodStatus) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> =
        status.host_ips.iter().flatten().filter_map(|entry| entry.ip.parse().ok()).collect();
    if ips.is_empty() {
        ips.extend(status.host_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    ips
}

fn phase(status: Option<&PodStatus>) -> Phase {
    match status.and_then(|status| status.phase.as_deref()) {
        None | Some("Pending" | "") => Phase::Pending,
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some(_) => Phase::Unknown,
    }
}

/// The sidecar passed its startup probe at least once. While it restarts, `started` is false although the
/// app's containers run; restarts and states of the app's containers tell.
fn has_started(status: &PodStatus) -> bool {
    let proxy = status.init_container_statuses.iter().flatten().find(|status| status.name == sidecar::PROXY);
    let proxy_started = proxy.is_some_and(|proxy| proxy.started == Some(true) || proxy.restart_count > 0);
    let app_ran = status.container_statuses.iter().flatten().any(|container| {
        container.restart_count > 0
            || container
                .state
                .as_ref()
                .is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    });
    proxy_started || app_ran
}

fn is_ready<'a>(mut conditions: impl Iterator<Item = (&'a str, &'a str)>) -> bool {
    conditions.any(|(kind, status)| kind == "Ready" && status == "True")
}

/// Unix milliseconds of an object's creation; 0 when it says none.
pub(super) fn created(meta: &ObjectMeta) -> u64 {
    let stamp = meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_millisecond());
    u64::try_from(stamp).unwrap_or(0)
}

/// A namespace.
pub(super) fn namespace(namespace: &Namespace, intern: &mut Interner) -> Option<NamespaceInfo> {
    let meta = &namespace.metadata;
    let label = |key: &str, value: &str| {
        meta.labels.as_ref().and_then(|labels| labels.get(key)).is_some_and(|found| found == value)
    };
    let ours = meta.annotations.iter().flatten().filter(|(key, _)| key.starts_with("cinch.dev/"));
    Some(NamespaceInfo {
        name: intern.text(meta.name.as_deref()?),
        uid: Arc::from(meta.uid.as_deref().unwrap_or_default()),
        resource_version: Arc::from(meta.resource_version.as_deref().unwrap_or_default()),
        enrolled: label("cinch.dev/mesh", "enabled"),
        injection_required: label("cinch.dev/injection", "required"),
        locked: label("cinch.dev/mode", "STRICT"),
        host_network_allowed: label("cinch.dev/host-network", "allowed"),
        labels: intern.labels(meta.labels.iter().flatten()),
        annotations: intern.labels(ours),
        terminating: meta.deletion_timestamp.is_some(),
        created_unix_ms: created(meta),
    })
}

/// What the index keeps of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeInfo {
    pub(super) name: Arc<str>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) pod_cidrs: Vec<IpNet>,
    pub(super) ready: bool,
    pub(super) zone: Arc<str>,
}

/// A node.
pub(super) fn node(node: &Node, intern: &mut Interner) -> Option<NodeInfo> {
    let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
    let addresses = status.into_iter().flat_map(|status| status.addresses.iter().flatten());
    let addresses = addresses.filter(|address| matches!(&*address.type_, "InternalIP" | "ExternalIP"));
    let mut cidrs: Vec<&str> =
        spec.into_iter().flat_map(|spec| spec.pod_cidrs.iter().flatten()).map(String::as_str).collect();
    if cidrs.is_empty() {
        cidrs.extend(spec.and_then(|spec| spec.pod_cidr.as_deref()));
    }
    let labels = node.metadata.labels.as_ref();
    let zone = labels.and_then(|labels| labels.get("topology.kubernetes.io/zone"));
    let conditions = status.into_iter().flat_map(|status| status.conditions.iter().flatten());
    Some(NodeInfo {
        name: intern.text(node.metadata.name.as_deref()?),
        addresses: addresses.filter_map(|address| address.address.parse().ok()).collect(),
        pod_cidrs: cidrs.into_iter().filter_map(|cidr| cidr.parse().ok()).collect(),
        ready: is_ready(conditions.map(|condition| (&*condition.type_, &*condition.status))),
        zone: intern.text(zone.map_or("", String::as_str)),
    })
}

/// Namespace and name.
pub(super) type ObjectName = (Arc<str>, Arc<str>);

/// Namespace and name of an object of a namespace.
pub(super) fn object_name(meta: &ObjectMeta, intern: &mut Interner) -> Option<ObjectName> {
    Some((intern.text(meta.namespace.as_deref()?), intern.text(meta.name.as_deref()?)))
}

/// Whether an object's `protocol` is TCP, which it is where it says none.
pub(super) fn is_tcp(protocol: Option<&str>) -> bool {
    matches!(protocol, None | Some("TCP" | ""))
}

/// A port as the API server has it; `None` for what is none.
pub(super) fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}
