//! A namespace's facts, a patched pod, and what the API server adds to it on its way back.
#![allow(dead_code)]

use cinch_injection::{
    AccountState, DefaultAccount, Facts, JobOrigin, Op, Outcome, ProbeKey, Redirect, Resources, Sidecar,
    inject,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub const IMAGE: &str = "registry.example/cinch-proxy:0.1.0";
pub const MIRROR: &str = "mirror.example/cinch/cinch-proxy:0.1.0";

/// A namespace in which everything is ready.
pub struct Namespace {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub trust: bool,
    pub default_account: DefaultAccount,
    pub accounts: BTreeMap<String, AccountState>,
    pub jobs: BTreeMap<String, JobOrigin>,
    pub dry_run: bool,
    pub sidecar: Sidecar,
    pub key: ProbeKey,
}

impl Namespace {
    pub fn new() -> Self {
        let ours = [
            ("web", "Deployment/web"),
            ("db-statefulset", "StatefulSet/db"),
            ("nightly-cronjob", "CronJob/nightly"),
        ];
        Self {
            name: "shop".into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            trust: true,
            default_account: DefaultAccount::PerWorkload,
            accounts: ours.iter().map(|(n, o)| ((*n).into(), AccountState::Ours((*o).into()))).collect(),
            jobs: BTreeMap::from([("nightly-29".into(), JobOrigin::CronJob("nightly".into()))]),
            dry_run: false,
            sidecar: Sidecar {
                image: IMAGE.into(),
                allowed_images: vec![
                    IMAGE.into(),
                    MIRROR.into(),
                    "registry.example/cinch-proxy:0.0.9".into(),
                ],
                version: "0.1.0".into(),
                trust_domain: "cluster.local".into(),
                operator_id: "spiffe://cluster.local/ns/cinch-system/sa/cinch-operator".into(),
                log: None,
                settings: None,
                resources: Resources::default(),
                redirect: Redirect::Init,
            },
            key: ProbeKey::new(&[7; 32]).unwrap(),
        }
    }

    /// The same where a node agent sets the redirect.
    pub fn with_agent() -> Self {
        let mut namespace = Self::new();
        namespace.sidecar.redirect = Redirect::Agent;
        namespace
    }

    pub fn decide(&self, pod: &Value) -> Outcome {
        let accounts = |name: &str| self.accounts.get(name).cloned().unwrap_or(AccountState::Missing);
        let jobs = |name: &str| self.jobs.get(name).cloned().unwrap_or(JobOrigin::Unknown);
        inject(
            pod,
            &Facts {
                namespace: &self.name,
                namespace_labels: &self.labels,
                namespace_annotations: &self.annotations,
                trust_bundle_present: self.trust,
                default_account: self.default_account.clone(),
                accounts: &accounts,
                jobs: &jobs,
                dry_run: self.dry_run,
                sidecar: &self.sidecar,
                probe_key: &self.key,
            },
        )
    }

    /// The operations of an injection; anything else fails the test.
    pub fn operations(&self, pod: &Value) -> Vec<Op> {
        match self.decide(pod) {
            Outcome::Inject { operations, .. } => operations,
            other => panic!("not injected: {other:?}"),
        }
    }

    /// The injected pod.
    pub fn injected(&self, pod: &Value) -> Value {
        apply(pod, &self.operations(pod))
    }
}

pub fn apply(pod: &Value, operations: &[Op]) -> Value {
    let patch: json_patch::Patch = serde_json::from_value(serde_json::to_value(operations).unwrap()).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

/// What the API server's defaulting, ServiceAccount and LimitRanger plugins add to a pod.
pub fn defaulted(mut pod: Value) -> Value {
    for list in ["containers", "initContainers"] {
        let Some(containers) = pod["spec"].get_mut(list).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            default_container(container);
        }
    }
    let spec = pod["spec"].as_object_mut().unwrap();
    if spec.get("volumes").is_none_or(Value::is_null) {
        spec.insert("volumes".into(), json!([]));
    }
    let volumes = spec["volumes"].as_array_mut().unwrap();
    if !volumes.iter().any(|v| v["name"] == "kube-api-access-x7k2p") {
        volumes.push(json!({"name": "kube-api-access-x7k2p", "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}]}}));
    }
    for (key, value) in [("restartPolicy", json!("Always")), ("dnsPolicy", json!("ClusterFirst"))] {
        spec.entry(key).or_insert(value);
    }
    spec.entry("serviceAccountName").or_insert(json!("default"));
    let account = spec["serviceAccountName"].clone();
    spec.insert("serviceAccount".into(), account);
    pod
}

fn default_container(container: &mut Value) {
    let map = container.as_object_mut().unwrap();
    map.entry("terminationMessagePath").or_insert(json!("/dev/termination-log"));
    map.entry("terminationMessagePolicy").or_insert(json!("File"));
    map.entry("imagePullPolicy").or_insert(json!("IfNotPresent"));
    let resources = map.entry("resources").or_insert(json!({})).as_object_mut().unwrap();
    resources.entry("limits").or_insert(json!({}))["ephemeral-storage"] = json!("1Gi");
    let mounts = map.entry("volumeMounts").or_insert(json!([])).as_array_mut().unwrap();
    if !mounts.iter().any(|m| m["name"] == "kube-api-access-x7k2p") {
        mounts.push(json!({"name": "kube-api-access-x7k2p", "readOnly": true,
            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}));
    }
    for kind in ["readinessProbe", "livenessProbe", "startupProbe"] {
        let Some(probe) = map.get_mut(kind).and_then(Value::as_object_mut) else { continue };
        for (key, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            probe.entry(key).or_insert(json!(value));
        }
        if let Some(http) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
            http.entry("scheme").or_insert(json!("HTTP"));
            http.entry("path").or_insert(json!("/"));
        }
    }
}

/// A pod of the Deployment `web` with one plain container.
pub fn web_pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "web-7d9f-",
            "labels": {"app": "web", "pod-template-hash": "7d9f"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d9f", "uid": "u", "controller": true}],
        },
        "spec": {"containers": [{"name": "app", "image": "app:1", "ports": [{"containerPort": 8080, "name": "http"}]}]},
    })
}

/// As [`web_pod`], changed.
pub fn web_pod_with(change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = web_pod();
    change(&mut pod);
    pod
}
