//! What leads out of a pod: paths of its node, and the node agent's socket where nobody has a sidecar.

use super::cases::{APP, Answer, Case, LOCKED, OPEN, REQUIRED, list, push, set, without_sidecar};
use super::judge;
use crate::see::See;
use Answer::{Refused, Stored, Warned};
use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// A namespace that is not enrolled.
pub const OUTSIDE: &str = "admission-outside";

/// The app mounts a path of its node.
fn path(pod: &mut Value, path: &str, read_only: bool) {
    push(pod, "/spec/volumes", json!({"name": "node", "hostPath": {"path": path}}));
    set(pod, APP, "volumeMounts", json!([{"name": "node", "mountPath": "/node", "readOnly": read_only}]));
}

/// A volume of the agent's driver under a name of its own, in a pod without anything else of ours.
fn only_the_socket(pod: &mut Value) {
    without_sidecar(pod);
    let volume = json!({"name": "mine", "csi": {"driver": "node.cinch.dev", "readOnly": true}});
    set(pod, "/spec", "volumes", json!([volume]));
}

/// Paths of the node, in pods that are right otherwise. Where nothing is locked each is a warning at most.
pub const PATHS: &[Case] = &[
    ("the node's root", &[LOCKED], |p| path(p, "/", true), Refused("CouldUndoRedirect")),
    (
        "what holds the kubelet's directory",
        &[LOCKED],
        |p| path(p, "/var/lib", true),
        Refused("CouldUndoRedirect"),
    ),
    (
        "the sockets of all agents",
        &[LOCKED],
        |p| path(p, "/var/lib/kubelet/pods", true),
        Refused("CouldUndoRedirect"),
    ),
    (
        "the runtime's socket",
        &[LOCKED],
        |p| path(p, "/run/containerd/containerd.sock", true),
        Refused("CouldUndoRedirect"),
    ),
    (
        "the same with more slashes",
        &[LOCKED],
        |p| path(p, "//var/./run//containerd/", true),
        Refused("CouldUndoRedirect"),
    ),
    ("processes of the node", &[LOCKED], |p| path(p, "/proc", true), Refused("CouldUndoRedirect")),
    ("cgroups of the node", &[LOCKED], |p| path(p, "/sys", true), Refused("CouldUndoRedirect")),
    (
        "a path that no container mounts yet",
        &[LOCKED],
        |p| {
            push(p, "/spec/volumes", json!({"name": "node", "hostPath": {"path": "/run/docker.sock"}}));
        },
        Refused("CouldUndoRedirect"),
    ),
    ("files of the node, to be written", &[LOCKED], |p| path(p, "/etc", false), Refused("CouldUndoRedirect")),
    ("files of the node, to be read", &[LOCKED], |p| path(p, "/etc", true), Stored),
    ("logs and data of the node", &[LOCKED], |p| path(p, "/var/log/pods", false), Stored),
    ("a socket of another agent", &[LOCKED], |p| path(p, "/run/spire/sockets", true), Stored),
    ("a name that only begins alike", &[LOCKED], |p| path(p, "/etcd", false), Stored),
    (
        "the runtime's socket, not locked",
        &[OPEN, REQUIRED],
        |p| path(p, "/run/containerd/containerd.sock", true),
        Warned("CouldUndoRedirect"),
    ),
];

/// In the namespace that is not enrolled.
pub const BEYOND: &[Case] = &[
    ("the webhook's pod with the agent's socket", &[OUTSIDE], |_| (), Refused("DriverOutsideMesh")),
    ("only the agent's socket", &[OUTSIDE], only_the_socket, Refused("DriverOutsideMesh")),
    ("nothing of ours", &[OUTSIDE], without_sidecar, Stored),
    (
        "another driver",
        &[OUTSIDE],
        |p| {
            only_the_socket(p);
            if let Some(volumes) = list(p, "/spec/volumes") {
                volumes.clear();
                volumes.push(json!({"name": "mine", "csi": {"driver": "csi.example.com"}}));
            }
        },
        Stored,
    ),
];

/// A pod with the agent's socket stays what it is when its namespace leaves the mesh: it is changed and deleted as
/// before, and only a new one is refused. `canonical` is the webhook's pod; no node takes it. Enrols the namespace
/// again.
pub fn left_behind(see: &See<'_>, canonical: &Value) -> Result<usize> {
    let mut pod = canonical.clone();
    set(&mut pod, "/metadata", "namespace", json!(OPEN));
    set(&mut pod, "/metadata", "name", json!("left-behind"));
    set(&mut pod, "/spec", "nodeSelector", json!({"cinch-e2e": "nowhere"}));
    let created = see.create(&pod.to_string(), &[])?;
    ensure!(created.ok(), "the webhook's pod in an enrolled namespace: {}", created.text());
    see.kubectl(&["label", "namespace", OPEN, "cinch.dev/mesh-"])?;
    let changed = see.attempt(&["label", "pod", "left-behind", "-n", OPEN, "changed=yes"])?;
    judge("a pod that was there before its namespace left the mesh", &changed, Stored)?;
    set(&mut pod, "/metadata", "name", json!("too-late"));
    let late = see.create(&pod.to_string(), &["--dry-run=server"])?;
    judge("a pod made after its namespace left the mesh", &late, Refused("DriverOutsideMesh"))?;
    let gone = see.attempt(&["delete", "pod", "left-behind", "-n", OPEN])?;
    judge("the end of a pod whose namespace left the mesh", &gone, Stored)?;
    see.kubectl(&["label", "namespace", OPEN, "cinch.dev/mesh=enabled"])?;
    Ok(3)
}
