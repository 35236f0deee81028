//! What is tried with pods: changes to the pod that the webhook made, and what must come of each.

use serde_json::{Value, json};

/// An enrolled namespace.
pub const OPEN: &str = "admission-open";
/// One where injection is required.
pub const REQUIRED: &str = "admission-required";
/// One that is locked as well.
pub const LOCKED: &str = "admission-locked";

/// What must come of a case.
#[derive(Clone, Copy)]
pub enum Answer {
    /// Stored, without a word.
    Stored,
    /// Stored, with a warning that has this word.
    Warned(&'static str),
    /// Refused with this word.
    Refused(&'static str),
}

use Answer::{Refused, Stored, Warned};

/// A change to a good pod.
pub type Change = fn(&mut Value);
/// Name, namespaces, change, answer.
pub type Case = (&'static str, &'static [&'static str], Change, Answer);

/// Where the sidecar is in a pod whose redirect the node agent sets.
const PROXY: &str = "/spec/initContainers/0";
/// Where the app is.
pub const APP: &str = "/spec/containers/0";

/// Sets a key of the object at `parent`.
pub fn set(pod: &mut Value, parent: &str, key: &str, value: Value) {
    if let Some(parent) = pod.pointer_mut(parent).and_then(Value::as_object_mut) {
        parent.insert(key.to_owned(), value);
    }
}

/// The list at `path`.
pub fn list<'a>(pod: &'a mut Value, path: &str) -> Option<&'a mut Vec<Value>> {
    pod.pointer_mut(path).and_then(Value::as_array_mut)
}

/// Adds to the list at `path`.
pub fn push(pod: &mut Value, path: &str, item: Value) {
    if let Some(list) = list(pod, path) {
        list.push(item);
    }
}

/// Removes keys of the object at `parent`.
pub fn remove(object: &mut Value, parent: &str, keys: &[&str]) {
    if let Some(parent) = object.pointer_mut(parent).and_then(Value::as_object_mut) {
        for key in keys {
            parent.remove(*key);
        }
    }
}

/// The app alone, as nobody has injected anything.
pub fn without_sidecar(pod: &mut Value) {
    remove(pod, "/spec", &["initContainers", "volumes"]);
    set(pod, "/spec", "containers", json!([{"name": "app", "image": "app"}]));
}

/// What a release whose redirect is set by an init container has in front of the sidecar.
fn cinch_init() -> Value {
    json!({"name": "cinch-init", "image": "cinch.local/cinch-proxy:0.1.0", "args": ["init"], "securityContext": {
        "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false, "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true, "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}})
}

fn cinch_init_in_front(pod: &mut Value) {
    if let Some(list) = list(pod, "/spec/initContainers") {
        list.insert(0, cinch_init());
    }
}

/// As a webhook that has not heard of the agent makes it.
fn of_an_older_webhook(pod: &mut Value) {
    without_variable(pod, "CINCH_REDIRECT");
    without(pod, &format!("{PROXY}/volumeMounts"), "cinch-agent");
    without(pod, "/spec/volumes", "cinch-agent");
    cinch_init_in_front(pod);
}

/// Takes everything of this name out of a list.
fn without(pod: &mut Value, path: &str, name: &str) {
    if let Some(list) = list(pod, path) {
        list.retain(|item| item.get("name").and_then(Value::as_str) != Some(name));
    }
}

fn without_variable(pod: &mut Value, name: &str) {
    without(pod, &format!("{PROXY}/env"), name);
}

/// The agent's socket where the API server would else mount the pod's own token, which is no part of our shape.
fn socket_elsewhere(pod: &mut Value) {
    let path = "/var/run/secrets/kubernetes.io/serviceaccount";
    let Some(mounts) = list(pod, &format!("{PROXY}/volumeMounts")) else { return };
    mounts.retain(|mount| mount.get("mountPath").and_then(Value::as_str) != Some(path));
    for mount in mounts {
        if mount.get("name").and_then(Value::as_str) == Some("cinch-agent") {
            set(mount, "", "mountPath", json!(path));
        }
    }
}

fn token(audience: &str) -> Value {
    json!({"name": "t", "projected": {"sources": [{"serviceAccountToken": {"audience": audience, "path": "t"}}]}})
}

fn variable(pod: &mut Value, name: &str, value: &str) {
    push(pod, &format!("{PROXY}/env"), json!({"name": name, "value": value}));
}

fn app_security(pod: &mut Value, context: Value) {
    set(pod, APP, "securityContext", context);
}

/// Whether a case, by its name, is about what only a pod has whose redirect the node agent sets.
pub fn is_of_agents(case: &str) -> bool {
    case.contains("agent") || case.contains("cinch-init") || case == "another redirect"
}

/// Changes a pod whose redirect an init container sets as one without it would be, which has the sidecar first.
pub fn behind_init(pod: &mut Value, change: Change) {
    let init = list(pod, "/spec/initContainers").filter(|list| !list.is_empty()).map(|list| list.remove(0));
    change(pod);
    if let (Some(init), Some(list)) = (init, list(pod, "/spec/initContainers")) {
        list.insert(0, init);
    }
}

/// All three.
pub const ALL: &[&str] = &[OPEN, REQUIRED, LOCKED];
const MUST: &[&str] = &[REQUIRED, LOCKED];

/// Changes that concern whether the sidecar is there, and first.
pub const PRESENCE: &[Case] = &[
    ("the webhook's pod", ALL, |_| (), Stored),
    ("no sidecar", MUST, without_sidecar, Refused("SidecarMissing")),
    ("no sidecar where it is not required", &[OPEN], without_sidecar, Stored),
    (
        "opted out",
        MUST,
        |p| set(p, "/metadata/labels", "cinch.dev/inject", json!("disabled")),
        Refused("SidecarMissing"),
    ),
    (
        "without the agent's volume",
        MUST,
        |p| without(p, &format!("{PROXY}/volumeMounts"), "cinch-agent"),
        Refused("SidecarMissing"),
    ),
    ("the agent's socket elsewhere", MUST, socket_elsewhere, Refused("SidecarMissing")),
    ("not told to ask the agent", MUST, |p| without_variable(p, "CINCH_REDIRECT"), Refused("SidecarMissing")),
    // Its exemption by user is less than the agents give, so it is no way in without the webhook.
    ("with cinch-init in front", MUST, of_an_older_webhook, Refused("SidecarMissing")),
    ("with cinch-init in front, where it is not required", &[OPEN], of_an_older_webhook, Stored),
    ("told to ask the agent, with cinch-init in front", MUST, cinch_init_in_front, Refused("SidecarMissing")),
    (
        "behind another",
        MUST,
        |p| {
            if let Some(list) = list(p, "/spec/initContainers") {
                list.insert(0, json!({"name": "first", "image": "first"}));
            }
        },
        Refused("SidecarMissing"),
    ),
    ("before another", ALL, |p| push(p, "/spec/initContainers", json!({"name": "x", "image": "x"})), Stored),
    (
        "without startup probe",
        MUST,
        |p| set(p, PROXY, "startupProbe", Value::Null),
        Refused("SidecarMissing"),
    ),
    (
        "on the host network",
        MUST,
        |p| {
            without_sidecar(p);
            set(p, "/spec", "hostNetwork", json!(true));
        },
        Refused("HostNetwork"),
    ),
];

/// Changes to our own containers and volumes.
pub const SHAPE: &[Case] = &[
    ("another image", ALL, |p| set(p, PROXY, "image", json!("evil:1")), Refused("SidecarImage")),
    (
        "a longer tag",
        ALL,
        |p| set(p, PROXY, "image", json!("cinch.local/cinch-proxy:0.1.0x")),
        Refused("SidecarImage"),
    ),
    (
        "a digest",
        ALL,
        |p| set(p, PROXY, "image", json!(format!("cinch.local/cinch-proxy:0.1.0@sha256:{}", "a".repeat(64)))),
        Stored,
    ),
    ("a command", ALL, |p| set(p, PROXY, "command", json!(["/x"])), Refused("SidecarShape")),
    (
        "other arguments",
        ALL,
        |p| set(p, PROXY, "args", json!(["run", "--config", "/x"])),
        Refused("SidecarShape"),
    ),
    ("a foreign variable", ALL, |p| variable(p, "CINCH_X", "1"), Refused("SidecarShape")),
    (
        "another operator",
        ALL,
        |p| variable(p, "CINCH_OPERATOR_ID", "spiffe://cluster.local/ns/x/sa/x"),
        Refused("SidecarShape"),
    ),
    ("another redirect", ALL, |p| variable(p, "CINCH_REDIRECT", "init"), Refused("SidecarShape")),
    (
        "other settings of the proxy",
        ALL,
        |p| variable(p, "CINCH_PROXY_SETTINGS", r#"{"limits":{"connections":1}}"#),
        Refused("SidecarShape"),
    ),
    ("settings that say nothing", ALL, |p| variable(p, "CINCH_PROXY_SETTINGS", "{}"), Stored),
    ("another account", ALL, |p| variable(p, "CINCH_SERVICE_ACCOUNT", "x"), Refused("SidecarShape")),
    (
        "a mount over the binary",
        ALL,
        |p| {
            push(p, "/spec/volumes", json!({"name": "v", "emptyDir": {}}));
            push(p, &format!("{PROXY}/volumeMounts"), json!({"name": "v", "mountPath": "/cinch-proxy"}));
        },
        Refused("SidecarShape"),
    ),
    ("as root", ALL, |p| set(p, PROXY, "securityContext", json!({"runAsUser": 0})), Refused("SidecarShape")),
    (
        "a startup probe that runs a program",
        ALL,
        |p| set(p, PROXY, "startupProbe", json!({"exec": {"command": ["/cinch-proxy", "version"]}})),
        Refused("SidecarShape"),
    ),
    (
        "a startup probe that connects",
        ALL,
        |p| set(p, PROXY, "startupProbe", json!({"tcpSocket": {"port": 15006}})),
        Refused("SidecarShape"),
    ),
    (
        "a startup probe of another host",
        ALL,
        |p| set(p, &format!("{PROXY}/startupProbe/httpGet"), "host", json!("192.0.2.1")),
        Refused("SidecarShape"),
    ),
    (
        "a startup probe of another port",
        ALL,
        |p| set(p, &format!("{PROXY}/startupProbe/httpGet"), "port", json!(8080)),
        Refused("SidecarShape"),
    ),
    (
        "a readiness probe of another path",
        ALL,
        |p| set(p, &format!("{PROXY}/readinessProbe/httpGet"), "path", json!("/x")),
        Refused("SidecarShape"),
    ),
    (
        "the agent's socket elsewhere, where the sidecar is not required",
        &[OPEN],
        socket_elsewhere,
        Refused("SidecarShape"),
    ),
    (
        "a hook",
        ALL,
        |p| set(p, PROXY, "lifecycle", json!({"preStop": {"exec": {"command": ["x"]}}})),
        Refused("SidecarShape"),
    ),
];

/// Changes to the other containers.
pub const OTHERS: &[Case] = &[
    (
        "our token in the app",
        ALL,
        |p| set(p, APP, "volumeMounts", json!([{"name": "cinch-token", "mountPath": "/t"}])),
        Refused("SidecarMount"),
    ),
    (
        "the agent's socket in the app",
        ALL,
        |p| set(p, APP, "volumeMounts", json!([{"name": "cinch-agent", "mountPath": "/a"}])),
        Refused("SidecarMount"),
    ),
    (
        "the agent's socket under another name",
        ALL,
        |p| {
            push(
                p,
                "/spec/volumes",
                json!({"name": "mine", "csi": {"driver": "node.cinch.dev", "readOnly": true}}),
            )
        },
        Refused("ReservedName"),
    ),
    (
        "something else in the place of the agent's socket",
        ALL,
        |p| {
            if let Some(volumes) = list(p, "/spec/volumes") {
                volumes.retain(|volume| volume.get("name") != Some(&json!("cinch-agent")));
                volumes.push(json!({"name": "cinch-agent", "emptyDir": {}}));
            }
        },
        Refused("SidecarShape"),
    ),
    (
        "a token of our audience",
        ALL,
        |p| push(p, "/spec/volumes", token("cinch.dev")),
        Refused("ForeignToken"),
    ),
    ("a token of another audience", ALL, |p| push(p, "/spec/volumes", token("vault")), Stored),
    (
        "our UID, locked",
        &[LOCKED],
        |p| app_security(p, json!({"runAsUser": 1507})),
        Refused("CouldUndoRedirect"),
    ),
    (
        "our UID, not locked",
        &[OPEN, REQUIRED],
        |p| app_security(p, json!({"runAsUser": 1507})),
        Warned("CouldUndoRedirect"),
    ),
    (
        "NET_ADMIN, locked",
        &[LOCKED],
        |p| app_security(p, json!({"capabilities": {"add": ["NET_ADMIN"]}})),
        Refused("CouldUndoRedirect"),
    ),
    (
        "net_admin in lower case, locked",
        &[LOCKED],
        |p| app_security(p, json!({"capabilities": {"add": ["net_admin"]}})),
        Refused("CouldUndoRedirect"),
    ),
    (
        "NET_ADMIN, not locked",
        &[OPEN],
        |p| app_security(p, json!({"capabilities": {"add": ["NET_ADMIN"]}})),
        Warned("CouldUndoRedirect"),
    ),
    (
        "privileged, locked",
        &[LOCKED],
        |p| app_security(p, json!({"privileged": true})),
        Refused("CouldUndoRedirect"),
    ),
    (
        "shared processes, locked",
        &[LOCKED],
        |p| set(p, "/spec", "shareProcessNamespace", json!(true)),
        Refused("CouldUndoRedirect"),
    ),
    (
        "host processes, locked",
        &[LOCKED],
        |p| set(p, "/spec", "hostPID", json!(true)),
        Refused("CouldUndoRedirect"),
    ),
];

/// Changes to a pod of a release whose redirect an init container sets; its namespace requires the sidecar.
pub const WITH_INIT: &[(&str, Change, Answer)] = &[
    ("the webhook's pod", |_| (), Stored),
    (
        "in another order",
        |p| {
            if let Some(list) = list(p, "/spec/initContainers") {
                list.reverse();
            }
        },
        Refused("SidecarMissing"),
    ),
    (
        "without cinch-init",
        |p| {
            if let Some(list) = list(p, "/spec/initContainers") {
                list.remove(0);
            }
        },
        Refused("SidecarMissing"),
    ),
    (
        "cinch-init as a sidecar",
        |p| set(p, "/spec/initContainers/0", "restartPolicy", json!("Always")),
        Refused("SidecarMissing"),
    ),
    (
        "without the capability to set the redirect",
        |p| remove(p, "/spec/initContainers/0/securityContext/capabilities", &["add"]),
        Refused("SidecarMissing"),
    ),
    (
        "told to ask the agent",
        |p| push(p, "/spec/initContainers/1/env", json!({"name": "CINCH_REDIRECT", "value": "agent"})),
        Refused("SidecarMissing"),
    ),
    (
        "another image",
        |p| set(p, "/spec/initContainers/0", "image", json!("cinch.local/cinch-proxy:0.1.0x")),
        Refused("SidecarImage"),
    ),
    (
        "more capabilities",
        |p| {
            let capabilities = json!(["NET_ADMIN", "NET_RAW"]);
            set(p, "/spec/initContainers/0/securityContext/capabilities", "add", capabilities);
        },
        Refused("SidecarShape"),
    ),
];
