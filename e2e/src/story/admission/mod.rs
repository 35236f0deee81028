//! The admission policies rule by rule, with the webhook dead: what they refuse, what they warn of, and what they
//! let through. The base of every case is the pod that the webhook itself made, so its shape is tried too.

mod cases;
mod ways_out;

use crate::process::Output;
use crate::see::{See, text};
use crate::terminal;
use anyhow::{Result, bail, ensure};
use cases::Answer::{self, Refused, Stored, Warned};
use cases::{ALL, LOCKED, OPEN, OTHERS, PRESENCE, REQUIRED, SHAPE, WITH_INIT};
pub use cases::{remove, set};
use serde_json::{Value, json};
use ways_out::{BEYOND, OUTSIDE, PATHS};

/// The operator as the API server knows it.
const OPERATOR: &str = "--as=system:serviceaccount:cinch-system:cinch-operator";

/// A group that may create namespaces.
const BUILDER: &str = "--as-group=admission-builder";
const RBAC: &str = "rbac.authorization.k8s.io/v1";

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
    ensure!(pod.to_string().contains("\"cinch-proxy\""), "the webhook did not inject: {pod}");
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
        (OUTSIDE, json!({})),
    ] {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        see.apply(&namespace.to_string())?;
    }
    for namespace in ALL.iter().chain(&[OUTSIDE]) {
        see.kubectl(&["wait", "serviceaccount/default", "-n", namespace, "--for=create", "--timeout=120s"])?;
    }
    let (mut tried, mut api) = (0, see.cluster.api()?);
    let with_init = text(canonical, "/spec/initContainers/0/name") == "cinch-init";
    let all = [PRESENCE, SHAPE, OTHERS, PATHS, BEYOND].into_iter().flatten();
    for (name, namespaces, change, answer) in all.filter(|case| !with_init || !cases::is_of_agents(case.0)) {
        for namespace in *namespaces {
            let mut pod = canonical.clone();
            set(&mut pod, "/metadata", "namespace", json!(namespace));
            if with_init {
                cases::behind_init(&mut pod, *change)
            } else {
                change(&mut pod)
            }
            let output = api.try_create(&format!("/api/v1/namespaces/{namespace}/pods"), &pod)?;
            judge(&format!("{name} in {namespace}"), &output, *answer)?;
            tried += 1;
        }
    }
    if with_init {
        let mut required = canonical.clone();
        set(&mut required, "/metadata", "namespace", json!(REQUIRED));
        tried += rules_with_init(see, &required)?;
    } else {
        tried += ways_out::left_behind(see, canonical)?;
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
    see.kubectl(&["delete", "namespace", OPEN, REQUIRED, LOCKED, OUTSIDE, "--timeout=180s"])?;
    terminal::show(&format!("{tried} cases of the admission policies came out as they should"));
    Ok(format!("{tried} cases of admission; locked namespaces can be deleted"))
}

/// Tries what is special where an init container sets the redirect, with the pod that the webhook made for it.
pub fn rules_with_init(see: &See<'_>, canonical: &Value) -> Result<usize> {
    for (name, change, answer) in WITH_INIT {
        let mut pod = canonical.clone();
        change(&mut pod);
        judge(name, &see.create(&pod.to_string(), &["--dry-run=server"])?, *answer)?;
    }
    Ok(WITH_INIT.len())
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
