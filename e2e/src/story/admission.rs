//! The admission policies rule by rule, with the webhook dead: what they refuse, what they warn of, and what they
//! let through. The base of every case is the pod that the webhook itself made, so its shape is tried too.

use crate::process::Output;
use crate::see::{See, text};
use crate::terminal;
use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

const OPEN: &str = "admission-open";
const REQUIRED: &str = "admission-required";
const LOCKED: &str = "admission-locked";
/// The operator as the API server knows it.
const OPERATOR: &str = "--as=system:serviceaccount:cinch-system:cinch-operator";

/// A group that may create namespaces.
const BUILDER: &str = "--as-group=admission-builder";
const RBAC: &str = "rbac.authorization.k8s.io/v1";

/// What must come of a case.
#[derive(Clone, Copy)]
enum Answer {
    Stored,
    Warned(&'static str),
    Refused(&'static str),
}

use Answer::{Refused, Stored, Warned};

/// A change to a good pod.
type Change = fn(&mut Value);
/// Name, namespaces, change, answer.
type Case = (&'static str, &'static [&'static str], Change, Answer);

/// Where things are in a pod.
const INIT: &str = "/spec/initContainers/0";
const PROXY: &str = "/spec/initContainers/1";
const APP: &str = "/spec/containers/0";

fn set(pod: &mut Value, parent: &str, key: &str, value: Value) {
    if let Some(parent) = pod.pointer_mut(parent).and_then(Value::as_object_mut) {
        parent.insert(key.to_owned(), value);
    }
}

fn list<'a>(pod: &'a mut Value, path: &str) -> Option<&'a mut Vec<Value>> {
    pod.pointer_mut(path).and_then(Value::as_array_mut)
}

fn push(pod: &mut Value, path: &str, item: Value) {
    if let Some(list) = list(pod, path) {
        list.push(item);
    }
}

fn remove(object: &mut Value, parent: &str, keys: &[&str]) {
    if let Some(parent) = object.pointer_mut(parent).and_then(Value::as_object_mut) {
        for key in keys {
            parent.remove(*key);
        }
    }
}

fn without_sidecar(pod: &mut Value) {
    remove(pod, "/spec", &["initContainers", "volumes"]);
    set(pod, "/spec", "containers", json!([{"name": "app", "image": "app"}]));
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

const ALL: &[&str] = &[OPEN, REQUIRED, LOCKED];
const MUST: &[&str] = &[REQUIRED, LOCKED];

/// Changes that concern whether the sidecar is there, and first.
const PRESENCE: &[Case] = &[
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
        "in another order",
        MUST,
        |p| {
            if let Some(list) = list(p, "/spec/initContainers") {
                list.reverse();
            }
        },
        Refused("SidecarMissing"),
    ),
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
const SHAPE: &[Case] = &[
    ("another image", ALL, |p| set(p, PROXY, "image", json!("evil:1")), Refused("SidecarImage")),
    (
        "a longer tag",
        ALL,
        |p| set(p, INIT, "image", json!("cinch.local/cinch-proxy:0.1.0x")),
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
    ("another account", ALL, |p| variable(p, "CINCH_SERVICE_ACCOUNT", "x"), Refused("SidecarShape")),
    (
        "a mount over the binary",
        ALL,
        |p| {
            push(p, "/spec/volumes", json!({"name": "v", "emptyDir": {}}));
            push(p, "/spec/initContainers/1/volumeMounts", json!({"name": "v", "mountPath": "/cinch-proxy"}));
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
        "a hook",
        ALL,
        |p| set(p, PROXY, "lifecycle", json!({"preStop": {"exec": {"command": ["x"]}}})),
        Refused("SidecarShape"),
    ),
];

/// Changes to the other containers.
const OTHERS: &[Case] = &[
    (
        "our token in the app",
        ALL,
        |p| set(p, APP, "volumeMounts", json!([{"name": "cinch-token", "mountPath": "/t"}])),
        Refused("SidecarMount"),
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

/// Our own patches to the namespace, as the operator: what, patch, answer.
fn operator_patches() -> [(&'static str, &'static str, Value, Answer); 6] {
    let label = |key: &str, value: Value| json!({"metadata": {"labels": {key: value}}});
    [
        (
            "unlocks outside a promotion",
            LOCKED,
            label("cinch.dev/mode", Value::Null),
            Refused("RollbackWindow"),
        ),
        (
            "un-requires outside a promotion",
            REQUIRED,
            label("cinch.dev/injection", Value::Null),
            Refused("RollbackWindow"),
        ),
        (
            "begins a promotion of what is locked",
            LOCKED,
            json!({"metadata": {"annotations": {"cinch.dev/promotion": "now"}}}),
            Refused("RollbackWindow"),
        ),
        ("leaves the mesh", LOCKED, label("cinch.dev/mesh", Value::Null), Refused("NamespaceLocked")),
        ("writes another key", OPEN, label("team", json!("x")), Refused("OperatorKeysOnly")),
        ("locks", OPEN, label("cinch.dev/mode", json!("STRICT")), Stored),
    ]
}

/// New namespaces: what, as whom, labels, annotations, answer.
fn new_namespaces() -> [(&'static str, &'static str, Value, Value, Answer); 8] {
    let (admin, free) = ("--as-group=system:masters", json!({}));
    let strict =
        json!({"cinch.dev/mesh": "enabled", "cinch.dev/injection": "required", "cinch.dev/mode": "STRICT"});
    let allowed = json!({"cinch.dev/mesh": "enabled", "cinch.dev/host-network": "allowed"});
    let promotion = json!({"cinch.dev/promotion": "2026-01-01T00:00:00Z"});
    let reason = json!({"cinch.dev/relax-reason": "monitoring agents"});
    [
        ("without a word of ours", BUILDER, free.clone(), free.clone(), Stored),
        ("born strict", BUILDER, strict.clone(), free.clone(), Stored),
        ("in the midst of a promotion", BUILDER, strict, promotion.clone(), Refused("PromotionAnnotation")),
        ("the same by an admin", admin, free.clone(), promotion, Refused("PromotionAnnotation")),
        ("with host network", BUILDER, allowed.clone(), reason.clone(), Refused("HostNetworkGuarded")),
        (
            "with host network, not yet enrolled",
            BUILDER,
            json!({"cinch.dev/host-network": "allowed"}),
            reason.clone(),
            Refused("HostNetworkGuarded"),
        ),
        ("with host network for no reason", admin, allowed.clone(), free, Refused("HostNetworkGuarded")),
        ("with host network by an admin", admin, allowed, reason, Stored),
    ]
}

/// Tries [`new_namespaces`], some of them as somebody who may create namespaces and nothing else.
fn births(see: &See<'_>) -> Result<usize> {
    let name = "admission-builder";
    let meta = json!({"name": name});
    let rule = json!({"apiGroups": [""], "resources": ["namespaces"], "verbs": ["create"]});
    let role = json!({"apiVersion": RBAC, "kind": "ClusterRole", "metadata": meta, "rules": [rule]});
    let binding = json!({"apiVersion": RBAC, "kind": "ClusterRoleBinding", "metadata": meta,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name}]});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [role, binding]});
    see.apply(&list.to_string())?;
    let cases = new_namespaces();
    let tried = cases.len();
    for (what, whom, labels, annotations, answer) in cases {
        let metadata = json!({"name": "admission-new", "labels": labels, "annotations": annotations});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        let output = see.create(&namespace.to_string(), &["--dry-run=server", "--as=somebody", whom])?;
        judge(&format!("a new namespace {what}"), &output, answer)?;
    }
    see.kubectl(&["delete", "clusterrolebinding,clusterrole", name])?;
    Ok(tried)
}

/// The pod as the webhook makes it: to be asked for while it is alive.
pub fn canonical(see: &See<'_>, pod: &str) -> Result<Value> {
    let output = see.create(pod, &["--dry-run=server", "-o", "json"])?;
    ensure!(output.ok(), "an ordinary pod was refused: {}", output.text().trim());
    let mut pod: Value = serde_json::from_str(&output.stdout)?;
    let server = ["uid", "creationTimestamp", "managedFields", "generation", "resourceVersion"];
    remove(&mut pod, "/metadata", &server);
    remove(&mut pod, "", &["status"]);
    ensure!(text(&pod, "/spec/initContainers/1/name") == "cinch-proxy", "the webhook did not inject: {pod}");
    Ok(pod)
}

/// Tries every rule; namespaces made for it are deleted again, which must not be refused either.
pub fn rules(see: &See<'_>, canonical: &Value) -> Result<String> {
    for (name, labels) in [
        (OPEN, json!({"cinch.dev/mesh": "enabled"})),
        (REQUIRED, json!({"cinch.dev/mesh": "enabled", "cinch.dev/injection": "required"})),
        (
            LOCKED,
            json!({"cinch.dev/mesh": "enabled", "cinch.dev/injection": "required", "cinch.dev/mode": "STRICT"}),
        ),
    ] {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        see.apply(&namespace.to_string())?;
    }
    for namespace in ALL {
        see.kubectl(&["wait", "serviceaccount/default", "-n", namespace, "--for=create", "--timeout=30s"])?;
    }
    let mut tried = 0;
    for (name, namespaces, change, answer) in [PRESENCE, SHAPE, OTHERS].into_iter().flatten() {
        for namespace in *namespaces {
            let mut pod = canonical.clone();
            set(&mut pod, "/metadata", "namespace", json!(namespace));
            change(&mut pod);
            let output = see.create(&pod.to_string(), &["--dry-run=server"])?;
            judge(&format!("{name} in {namespace}"), &output, *answer)?;
            tried += 1;
        }
    }
    for (name, namespace, patch, answer) in operator_patches() {
        let patch = patch.to_string();
        let args =
            [OPERATOR, "patch", "namespace", namespace, "--type=merge", "-p", &patch, "--dry-run=server"];
        judge(&format!("the operator {name}"), &see.attempt(&args)?, answer)?;
        tried += 1;
    }
    tried += births(see)? + templates(see)?;
    types_are_sound(see)?;
    see.kubectl(&["delete", "namespace", OPEN, REQUIRED, LOCKED, "--timeout=90s"])?;
    terminal::show(&format!("{tried} cases of the admission policies came out as they should"));
    Ok(format!("{tried} cases of admission; locked namespaces can be deleted"))
}

fn judge(name: &str, output: &Output, answer: Answer) -> Result<()> {
    let said = output.text();
    let held = match answer {
        Stored => output.ok() && !said.contains("Warning"),
        Warned(word) => output.ok() && said.contains(&format!("{word}: ")),
        Refused(word) => !output.ok() && said.contains(&format!("{word}: ")),
    };
    if !held {
        let wanted = match answer {
            Stored => "be accepted without a warning".to_owned(),
            Warned(word) => format!("be accepted with the warning {word}"),
            Refused(word) => format!("be refused with {word}"),
        };
        bail!("{name}: should {wanted}; it came to: {}", said.trim());
    }
    Ok(())
}

/// The person who applies a workload is warned of what its pods would be refused for.
fn templates(see: &See<'_>) -> Result<usize> {
    let pod = json!({"metadata": {"labels": {"app": "x", "cinch.dev/inject": "disabled"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "app", "image": "app"}]}});
    let mut always = pod.clone();
    set(&mut always, "/spec", "restartPolicy", json!("Always"));
    let apps = json!({"selector": {"matchLabels": {"app": "x"}}, "serviceName": "x", "template": always});
    let mut plain = apps.clone();
    remove(&mut plain, "", &["serviceName"]);
    let specs = [
        ("apps/v1", "Deployment", plain.clone()),
        ("apps/v1", "StatefulSet", apps),
        ("apps/v1", "DaemonSet", plain),
        ("batch/v1", "Job", json!({"template": pod})),
        ("batch/v1", "CronJob", json!({"schedule": "0 0 * * *", "jobTemplate": {"spec": {"template": pod}}})),
    ];
    let tried = specs.len();
    for (version, kind, spec) in specs {
        let object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x", "namespace": REQUIRED}, "spec": spec});
        let output = see.create(&object.to_string(), &["--dry-run=server"])?;
        judge(&format!("a {kind} whose pods opt out"), &output, Warned("SidecarMissing"))?;
    }
    Ok(tried)
}

/// The API server's own type checker found nothing in any expression.
fn types_are_sound(see: &See<'_>) -> Result<()> {
    for policy in see.items(&["validatingadmissionpolicies"])? {
        let name = text(&policy, "/metadata/name");
        let warnings = policy.pointer("/status/typeChecking/expressionWarnings");
        ensure!(warnings.is_none(), "policy {name} has type errors: {warnings:?}");
    }
    Ok(())
}
