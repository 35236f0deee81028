//! Pods that are left alone, each for a reason that the user meets again in the annotation, in the warning
//! and in the namespace's status. Where injection is required, the admission policy refuses them afterwards.

use crate::facts::{Facts, Redirect};
use crate::pod::Pod;
use crate::sidecar::{
    AGENT_DRIVER, AGENT_VOLUME, OPT_OUT_LABEL, OWN_PORTS, TOKEN_VOLUME, TRUST_VOLUME, is_ours,
};
use cinch_reason::Reason;
use serde_json::Value;

/// Why the pod is left alone, with what was seen.
pub(crate) type Because = (Reason, String);

type Check = fn(&Pod<'_>, &Facts<'_>) -> Option<Because>;

/// In the order in which a user would want to hear of them: his own wish first.
const CHECKS: &[Check] = &[
    opted_out,
    host_network,
    windows,
    user_namespace,
    other_mesh_namespace,
    other_mesh_pod,
    pod_security,
    hooks,
    ports,
];

/// The first reason to leave the pod alone.
pub(crate) fn reason_to_skip(pod: &Pod<'_>, facts: &Facts<'_>) -> Option<Because> {
    CHECKS.iter().find_map(|check| check(pod, facts))
}

/// A pod that the kubelet made from a file: it runs already, this object only mirrors it.
pub(crate) fn is_mirror(pod: &Pod<'_>) -> bool {
    pod.annotation("kubernetes.io/config.mirror").is_some()
}

/// Names that belong to the sidecar used for something else: by a container that is no init container, by a volume
/// of our driver under another name, or by mounting our volumes elsewhere. Nothing sensible can be injected beside it.
pub(crate) fn reserved_name(pod: &Pod<'_>) -> Option<Because> {
    if let Some(container) = pod.containers.iter().find(|container| is_ours(container.name)) {
        return Some((Reason::ReservedName, format!("container {}", container.name)));
    }
    if let Some(volume) = pod.volumes.iter().find_map(foreign_volume) {
        return Some((Reason::ReservedName, format!("volume {volume}, driver {AGENT_DRIVER}")));
    }
    pod.users().find_map(|container| {
        let mounts = container.list("volumeMounts").iter();
        let mut names = mounts.filter_map(|mount| mount.get("name").and_then(Value::as_str));
        let volume = names.find(|name| matches!(*name, TOKEN_VOLUME | TRUST_VOLUME | AGENT_VOLUME))?;
        Some((Reason::SidecarMount, format!("container {}, volume {volume}", container.name)))
    })
}

/// The name of a volume of our driver that is not called as ours.
fn foreign_volume(volume: &Value) -> Option<&str> {
    let driver = volume.pointer("/csi/driver")?.as_str()?;
    let name = volume.get("name").and_then(Value::as_str).unwrap_or_default();
    (driver == AGENT_DRIVER && name != AGENT_VOLUME).then_some(name)
}

/// The name of a container, wherever it stands, that is called as one of ours.
pub(crate) fn look_alike<'a>(pod: &Pod<'a>) -> Option<&'a str> {
    pod.containers
        .iter()
        .chain(&pod.init_containers)
        .map(|container| container.name)
        .find(|name| is_ours(name))
}

fn opted_out(pod: &Pod<'_>, _: &Facts<'_>) -> Option<Because> {
    let opted_out = pod.label(OPT_OUT_LABEL) == Some("disabled");
    opted_out.then(|| (Reason::OptedOut, format!("label {OPT_OUT_LABEL}: disabled")))
}

fn host_network(pod: &Pod<'_>, _: &Facts<'_>) -> Option<Because> {
    let host = pod.flag("/spec/hostNetwork") == Some(true);
    host.then(|| (Reason::HostNetwork, "hostNetwork: true".to_owned()))
}

fn windows(pod: &Pod<'_>, _: &Facts<'_>) -> Option<Because> {
    let selected = pod.raw.pointer("/spec/nodeSelector").and_then(|s| s.get("kubernetes.io/os")?.as_str());
    let windows = pod.text("/spec/os/name") == Some("windows") || selected == Some("windows");
    windows.then(|| (Reason::WindowsPod, "os windows".to_owned()))
}

fn user_namespace(pod: &Pod<'_>, _: &Facts<'_>) -> Option<Because> {
    let own = pod.flag("/spec/hostUsers") == Some(false);
    own.then(|| (Reason::HostUsersDisabled, "hostUsers: false".to_owned()))
}

fn pod_security(_: &Pod<'_>, facts: &Facts<'_>) -> Option<Because> {
    if facts.sidecar.redirect == Redirect::Agent {
        return None;
    }
    let level = facts.namespace_labels.get("pod-security.kubernetes.io/enforce")?;
    let forbids = matches!(level.as_str(), "baseline" | "restricted");
    forbids
        .then(|| (Reason::PodSecurityForbidsInit, format!("namespace {} enforces {level}", facts.namespace)))
}

/// Containers that only another mesh's injector writes.
const FOREIGN_CONTAINERS: &[&str] = &[
    "istio-proxy",
    "istio-init",
    "istio-validation",
    "linkerd-proxy",
    "linkerd-init",
    "linkerd-network-validator",
    "kuma-sidecar",
    "kuma-init",
    "consul-dataplane",
    "consul-connect-inject-init",
];

/// Labels or annotations of a namespace that hand its pods to another mesh; an empty list means any value.
const FOREIGN_NAMESPACE_MARKS: &[(&str, &[&str])] = &[
    ("istio-injection", &["enabled"]),
    ("istio.io/rev", &[]),
    ("istio.io/dataplane-mode", &["ambient"]),
    ("linkerd.io/inject", &["enabled", "ingress"]),
    ("kuma.io/sidecar-injection", &["enabled", "true"]),
];

/// The same on a pod.
const FOREIGN_POD_MARKS: &[(&str, &[&str])] = &[
    ("sidecar.istio.io/inject", &["true"]),
    ("sidecar.istio.io/status", &[]),
    ("istio.io/dataplane-mode", &["ambient"]),
    ("linkerd.io/inject", &["enabled", "ingress"]),
    ("linkerd.io/proxy-version", &[]),
    ("kuma.io/sidecar-injection", &["enabled", "true"]),
    ("consul.hashicorp.com/connect-inject", &["true"]),
];

fn marked<'a>(marks: &[(&str, &[&str])], value_of: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
    marks.iter().find_map(|(key, values)| {
        let value = value_of(key)?;
        (values.is_empty() || values.contains(&value)).then(|| format!("{key}: {value}"))
    })
}

fn other_mesh_namespace(pod: &Pod<'_>, facts: &Facts<'_>) -> Option<Because> {
    // A pod may opt out of the other mesh, and is ours then.
    let opted_out = [("sidecar.istio.io/inject", "false"), ("linkerd.io/inject", "disabled")]
        .iter()
        .any(|(key, value)| [pod.label(key), pod.annotation(key)].contains(&Some(*value)));
    if opted_out {
        return None;
    }
    let value = |key: &str| {
        facts.namespace_labels.get(key).or_else(|| facts.namespace_annotations.get(key)).map(String::as_str)
    };
    let mark = marked(FOREIGN_NAMESPACE_MARKS, value)?;
    Some((Reason::OtherMesh, format!("namespace {} has {mark}", facts.namespace)))
}

fn other_mesh_pod(pod: &Pod<'_>, _: &Facts<'_>) -> Option<Because> {
    let all = pod.containers.iter().chain(&pod.init_containers);
    if let Some(container) = all.into_iter().find(|c| FOREIGN_CONTAINERS.contains(&c.name)) {
        return Some((Reason::OtherMesh, format!("container {}", container.name)));
    }
    let mark = marked(FOREIGN_POD_MARKS, |key| pod.label(key).or_else(|| pod.annotation(key)))?;
    Some((Reason::OtherMesh, format!("pod has {mark}")))
}

/// The kubelet calls HTTP and TCP hooks from outside the pod, as it does probes, but they must reach the app
/// exactly once.
fn hooks(pod: &Pod<'_>, _: &Facts<'_>) -> Option<Because> {
    pod.users().find_map(|container| {
        let hooks = container.raw.get("lifecycle")?.as_object()?;
        hooks.iter().find_map(|(hook, handler)| {
            let kind = ["httpGet", "tcpSocket"]
                .into_iter()
                .find(|k| handler.get(k).is_some_and(|h| !h.is_null()))?;
            Some((Reason::ProbeNotSupported, format!("container {}, {hook} {kind}", container.name)))
        })
    })
}

fn ports(pod: &Pod<'_>, _: &Facts<'_>) -> Option<Because> {
    pod.users().find_map(|container| {
        container.list("ports").iter().find_map(|port| {
            let tcp = port.get("protocol").and_then(Value::as_str).is_none_or(|protocol| protocol == "TCP");
            let number = port.get("containerPort")?.as_u64()?;
            let ours = OWN_PORTS.iter().any(|own| u64::from(*own) == number);
            (tcp && ours)
                .then(|| (Reason::PortConflict, format!("container {}, port {number}", container.name)))
        })
    })
}
