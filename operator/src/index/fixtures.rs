//! Builders for test objects: what a case is about stands in the case, the rest is here.

use super::IndexSettings;
use super::keyed::{Feed, Table};
use super::model::PodInfo;
use super::policies::PolicyKind;
use super::sidecar;
use super::state::State;
use cinch_control::v1;
use cinch_policy::PathNormalization;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub(super) const IMAGE: &str = "example.test/cinch-proxy:0.1.0";

/// Of no pod that the index knows: where it runs is not known.
pub(super) const ASKER: &str = "asker-uid";

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A pod in the making: running, ready, meshed, in `shop`, on `node1`, created at second 100.
#[derive(Clone)]
pub(super) struct PodBuilder(Value);

pub(super) fn pod(name: &str) -> PodBuilder {
    PodBuilder(json!({
        "metadata": {"namespace": "shop", "name": name, "uid": format!("{name}-uid"), "labels": {"app": name},
            "creationTimestamp": "1970-01-01T00:01:40Z"},
        "spec": {"nodeName": "node1", "serviceAccountName": name, "containers": [{"name": "app"}],
            "initContainers": sidecar::containers(IMAGE)},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }))
}

impl PodBuilder {
    pub(super) fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.0.pointer_mut(parent).unwrap()[key] = value;
        self
    }

    pub(super) fn ip(self, ip: &str) -> Self {
        self.set("/status/podIPs", json!([{"ip": ip}]))
    }

    pub(super) fn uid(self, uid: &str) -> Self {
        self.set("/metadata/uid", json!(uid))
    }

    pub(super) fn namespace(self, namespace: &str) -> Self {
        self.set("/metadata/namespace", json!(namespace))
    }

    pub(super) fn phase(self, phase: &str) -> Self {
        self.set("/status/phase", json!(phase))
    }

    /// Seconds after the epoch, below 1000.
    pub(super) fn created(self, second: u64) -> Self {
        let stamp = format!("1970-01-01T00:{:02}:{:02}Z", second / 60, second % 60);
        self.set("/metadata/creationTimestamp", json!(stamp))
    }

    pub(super) fn terminating(self) -> Self {
        self.set("/metadata/deletionTimestamp", json!("1970-01-01T00:10:00Z"))
    }

    pub(super) fn unmeshed(self) -> Self {
        self.set("/spec/initContainers", json!([]))
    }

    pub(super) fn host_network(self) -> Self {
        self.set("/spec/hostNetwork", json!(true))
    }

    pub(super) fn owner(self, api: &str, kind: &str, name: &str) -> Self {
        let owner = json!([{"apiVersion": api, "kind": kind, "name": name, "uid": format!("{name}-uid"), "controller": true}]);
        self.set("/metadata/ownerReferences", owner)
    }

    pub(super) fn label(self, key: &str, value: &str) -> Self {
        let mut pod = self;
        pod.0["metadata"]["labels"][key] = json!(value);
        pod
    }

    pub(super) fn build(self) -> Pod {
        serde_json::from_value(self.0).unwrap()
    }
}

/// A pod as the index holds it.
pub(super) fn indexed_pod(name: &str) -> Arc<PodInfo> {
    let mut state = empty_state();
    Table::<Pod>::apply(&mut state, &pod(name).build());
    state.pod(&format!("{name}-uid")).unwrap()
}

/// A Service of `shop` with one port 80 called `http`, created at second 10.
pub(super) fn service(name: &str, cluster_ip: &str) -> Service {
    service_with(name, json!({"clusterIP": cluster_ip, "clusterIPs": [cluster_ip]}), json!({}))
}

pub(super) fn service_with(name: &str, spec: Value, status: Value) -> Service {
    let mut all = json!({"ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    let metadata = json!({"namespace": "shop", "name": name, "uid": format!("{name}-svc"),
        "creationTimestamp": "1970-01-01T00:00:10Z"});
    serde_json::from_value(json!({"metadata": metadata, "spec": all, "status": status})).unwrap()
}

/// A slice of a Service of `shop` with the port `http` 8080.
pub(super) fn slice(name: &str, service: &str, endpoints: Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }))
    .unwrap()
}

/// An endpoint that refers to a pod by name.
pub(super) fn endpoint(ip: &str, pod: &str, ready: bool) -> Value {
    json!({"addresses": [ip], "conditions": {"ready": ready},
        "targetRef": {"kind": "Pod", "name": pod, "uid": format!("{pod}-uid")}})
}

pub(super) fn namespace(name: &str, labels: Value) -> Namespace {
    serde_json::from_value(json!({"metadata": {"name": name, "uid": name, "labels": labels}})).unwrap()
}

pub(super) fn node(name: &str, address: &str, pod_cidr: &str) -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "zone-a"}},
        "spec": {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .unwrap()
}

pub(super) fn settings() -> IndexSettings {
    IndexSettings {
        trust_domain: "cluster.local".into(),
        sidecar: super::sidecar::ours(IMAGE),
        mesh_cidrs: Vec::new(),
        root_namespace: "cinch-system".into(),
        trust_domain_aliases: Vec::new(),
        path_normalization: PathNormalization::Safe,
    }
}

/// Nothing is listed, and Istio's kinds are not served.
pub(super) fn empty_state() -> State {
    let mut state = State::new(settings());
    no_policies(&mut state);
    state
}

/// The API server does not serve Istio's kinds.
pub(super) fn no_policies(state: &mut State) {
    for kind in PolicyKind::ALL {
        state.policies.not_served(kind);
    }
}

/// Lists `objects` as one whole list.
pub(super) fn list<K>(state: &mut State, objects: Vec<K>) -> bool
where
    State: Table<K>,
{
    let mut feed = Feed::default();
    let mut changed = feed.event(state, Event::Init);
    for object in objects {
        changed |= feed.event(state, Event::InitApply(object));
    }
    changed | feed.event(state, Event::InitDone)
}

pub(super) fn kind(record: &v1::Record) -> v1::record::Kind {
    record.kind()
}

/// The endpoints as text: `ip:port`, the account or `-`, `!` when not ready.
pub(super) fn endpoints(record: &v1::Record) -> Vec<String> {
    record
        .endpoints
        .iter()
        .map(|endpoint| {
            let address = endpoint.address.as_ref().unwrap();
            let ip = match <[u8; 4]>::try_from(&address.ip[..]) {
                Ok(v4) => IpAddr::from(v4),
                Err(_) => IpAddr::from(<[u8; 16]>::try_from(&address.ip[..]).unwrap()),
            };
            let account = endpoint.identity.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("-");
            assert_eq!(endpoint.meshed, account != "-");
            format!(
                "{} {account}{}",
                SocketAddr::new(ip, u16::try_from(address.port).unwrap()),
                if endpoint.ready { "" } else { " !" }
            )
        })
        .collect()
}
