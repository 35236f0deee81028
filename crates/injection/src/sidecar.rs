//! The canonical form of what is injected: one container and three volumes, or, where no node agent sets the redirect,
//! two containers and two volumes. Every field that the API server would fill in stands here with the value it would
//! get, so that comparing with an admitted pod is comparing values.

use crate::facts::{Redirect, Resources, Sidecar};
use crate::pod::{Container, Pod};
use crate::quantity;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Environment variable of the proxy with the installation's settings for it, as JSON; absent: its defaults.
pub const SETTINGS_VARIABLE: &str = "CINCH_PROXY_SETTINGS";
/// Name of the init container that sets the redirect.
pub const INIT_CONTAINER: &str = "cinch-init";
/// Name of the native sidecar.
pub const PROXY_CONTAINER: &str = "cinch-proxy";
/// Volume with the token of the audience [`TOKEN_AUDIENCE`].
pub const TOKEN_VOLUME: &str = "cinch-token";
/// Volume with the namespace's trust bundle.
pub const TRUST_VOLUME: &str = "cinch-trust";
/// Volume with the socket of the node agent.
pub const AGENT_VOLUME: &str = "cinch-agent";
/// The CSI driver that the node agent is.
pub const AGENT_DRIVER: &str = "node.cinch.dev";
/// Where the sidecar has the volume.
pub const AGENT_DIRECTORY: &str = "/var/run/cinch/agent";
/// The socket's name in it.
pub const AGENT_SOCKET: &str = "agent.sock";
/// Environment variable that says who sets the redirect; absent: `cinch-init` has.
pub const REDIRECT_VARIABLE: &str = "CINCH_REDIRECT";
/// Its value when the sidecar must ask the node agent.
pub const REDIRECT_BY_AGENT: &str = "agent";
/// Annotation that says with which version a pod was injected, or for which reason it was not.
pub const INJECTED_ANNOTATION: &str = "cinch.dev/injected";
/// Label with which a pod opts out; its value is `disabled`.
pub const OPT_OUT_LABEL: &str = "cinch.dev/inject";

/// Audience of the sidecar's token.
pub(crate) const TOKEN_AUDIENCE: &str = "cinch.dev";
/// UID and GID of the proxy. A redirect of `cinch-init` lets its packets through.
pub const PROXY_UID: u32 = 1507;
/// Port that the proxy answers health and probes on; nobody listens there, the redirect leads to it.
pub(crate) const PROBE_PORT: u16 = 15021;
/// Ports that belong to the sidecar.
pub(crate) const OWN_PORTS: [u16; 5] = [15000, 15001, 15006, 15020, PROBE_PORT];
/// Environment variable of the proxy that carries the pod's original probes.
pub(crate) const PROBES_VARIABLE: &str = "CINCH_PROBES";

/// Whether a container of this name is (meant as) one of ours.
pub(crate) fn is_ours(container: &str) -> bool {
    matches!(container, INIT_CONTAINER | PROXY_CONTAINER)
}

/// `cinch-init`: UID 0 with NET_ADMIN alone, because a container of another UID gets no capability that
/// survives exec.
pub(crate) fn init_container(sidecar: &Sidecar, resources: &Value) -> Value {
    json!({
        "name": INIT_CONTAINER,
        "image": sidecar.image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["init"],
        "resources": resources,
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

/// `cinch-proxy`: a native sidecar (KEP-753). `probes` is the JSON text of the pod's original probes.
pub(crate) fn proxy_container(sidecar: &Sidecar, resources: &Value, probes: &str) -> Value {
    json!({
        "name": PROXY_CONTAINER,
        "image": sidecar.image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["run"],
        "env": environment(sidecar, probes),
        "restartPolicy": "Always",
        "startupProbe": health(1, 120),
        "readinessProbe": health(5, 3),
        "resources": resources,
        "securityContext": {
            "runAsUser": PROXY_UID,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": true,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts(sidecar.redirect),
    })
}

fn mounts(redirect: Redirect) -> Value {
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path, "readOnly": true});
    let mut mounts =
        vec![mount(TOKEN_VOLUME, "/var/run/cinch/token"), mount(TRUST_VOLUME, "/var/run/cinch/trust")];
    if redirect == Redirect::Agent {
        mounts.push(mount(AGENT_VOLUME, AGENT_DIRECTORY));
    }
    Value::Array(mounts)
}

fn health(period_seconds: u32, failure_threshold: u32) -> Value {
    json!({
        "httpGet": {"path": "/ready", "port": PROBE_PORT, "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": period_seconds,
        "successThreshold": 1,
        "failureThreshold": failure_threshold,
    })
}

fn environment(sidecar: &Sidecar, probes: &str) -> Value {
    let fields = [
        ("CINCH_POD_NAME", "metadata.name"),
        ("CINCH_POD_NAMESPACE", "metadata.namespace"),
        ("CINCH_POD_UID", "metadata.uid"),
        ("CINCH_POD_IPS", "status.podIPs"),
        ("CINCH_HOST_IPS", "status.hostIPs"),
        ("CINCH_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        ("CINCH_NODE_NAME", "spec.nodeName"),
    ];
    let mut list: Vec<Value> = fields
        .iter()
        .map(|(name, path)| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}))
        .collect();
    list.push(json!({"name": "CINCH_TRUST_DOMAIN", "value": sidecar.trust_domain}));
    list.push(json!({"name": "CINCH_OPERATOR_ID", "value": sidecar.operator_id}));
    list.push(json!({"name": PROBES_VARIABLE, "value": probes}));
    if sidecar.redirect == Redirect::Agent {
        list.push(json!({"name": REDIRECT_VARIABLE, "value": REDIRECT_BY_AGENT}));
    }
    if let Some(log) = &sidecar.log {
        list.push(json!({"name": "CINCH_LOG", "value": log}));
    }
    if let Some(settings) = &sidecar.settings {
        list.push(json!({"name": SETTINGS_VARIABLE, "value": settings}));
    }
    Value::Array(list)
}

/// The volumes: a token that is good for our operator alone, the trust bundle, and what the node agent gives to
/// this pod. The ConfigMap is optional, so that a pod whose bundle is late starts and says so instead of hanging in
/// the kubelet.
pub(crate) fn volumes(redirect: Redirect) -> Vec<(&'static str, Value)> {
    let token = json!({
        "name": TOKEN_VOLUME,
        "projected": {
            "defaultMode": 420,
            "sources": [{"serviceAccountToken": {"audience": TOKEN_AUDIENCE, "expirationSeconds": 3600, "path": "token"}}],
        },
    });
    let trust = json!({
        "name": TRUST_VOLUME,
        "configMap": {"name": TRUST_VOLUME, "defaultMode": 420, "optional": true},
    });
    let mut volumes = vec![(TOKEN_VOLUME, token), (TRUST_VOLUME, trust)];
    if redirect == Redirect::Agent {
        let agent = json!({"name": AGENT_VOLUME, "csi": {"driver": AGENT_DRIVER, "readOnly": true}});
        volumes.push((AGENT_VOLUME, agent));
    }
    volumes
}

/// Requests and limits of our containers in this pod.
pub(crate) fn resources(pod: &Pod<'_>, resources: &Resources) -> Value {
    if let Some(budget) = pod.raw.pointer("/spec/resources").filter(|value| value.is_object()) {
        return within_pod_budget(resources, budget);
    }
    if pod.users().all(is_guaranteed) {
        return json!({"requests": resources.guaranteed, "limits": resources.guaranteed});
    }
    json!({"requests": resources.requests, "limits": resources.limits})
}

/// In a pod with resources of its own (KEP-2837) containers share one budget: their requests may not add up
/// to more than it and no limit may exceed it. So ours ask for nothing and stop where the pod does.
fn within_pod_budget(resources: &Resources, budget: &Value) -> Value {
    let of_pod = |list: &str, name: &str| budget.get(list).and_then(|map| map.get(name));
    let requests: BTreeMap<&str, &str> = resources
        .requests
        .iter()
        .map(|(name, own)| {
            let budgeted = of_pod("requests", name).or_else(|| of_pod("limits", name)).is_some();
            (name.as_str(), if budgeted { "0" } else { own.as_str() })
        })
        .collect();
    let limits: Map<String, Value> = resources
        .limits
        .iter()
        .map(|(name, own)| {
            let smaller = of_pod("limits", name).filter(|limit| {
                quantity::parse(limit)
                    .is_some_and(|limit| quantity::parse_text(own).is_some_and(|own| limit < own))
            });
            (name.clone(), smaller.cloned().unwrap_or_else(|| json!(own)))
        })
        .collect();
    json!({"requests": requests, "limits": limits})
}

/// Class Guaranteed as the kubelet computes it: limits for CPU and memory, and requests equal to them
/// (requests that are left out take the limit's value).
fn is_guaranteed(container: &Container<'_>) -> bool {
    ["cpu", "memory"].iter().all(|name| {
        let of = |list: &str| container.raw.pointer(&format!("/resources/{list}/{name}"));
        let limit = of("limits").and_then(quantity::parse);
        limit.is_some_and(|limit| limit > 0)
            && of("requests").is_none_or(|request| quantity::parse(request) == limit)
    })
}
