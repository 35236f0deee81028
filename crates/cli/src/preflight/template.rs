//! What the webhook would say to a pod template: its own code decides, on a pod made from the template.

use crate::survey::Survey;
use cinch_injection::{
    AccountState, DefaultAccount, Facts, JobOrigin, Outcome, ProbeKey, Redirect, Resources, Sidecar, inject,
};
use cinch_reason::Reason;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The webhook's answer, without its patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Pods of the template get the sidecar.
    Injected,
    /// They run without it, for this reason.
    LeftOut(Reason, String),
    /// They are refused.
    Refused(Reason, String),
}

/// What would become of an ordinary pod: tells what stands against the namespace as a whole.
pub fn of_namespace(survey: &Survey) -> Verdict {
    of_workload(survey, &json!({"spec": {"containers": [{"name": "app", "image": "app"}]}}))
}

/// What would become of a pod of this template.
pub fn of_workload(survey: &Survey, template: &Value) -> Verdict {
    // The key and the sidecar's own looks have no part in the decision.
    let Ok(probe_key) = ProbeKey::new(&[0; 32]) else { return Verdict::Injected };
    let facts = Facts {
        namespace: &survey.namespace,
        namespace_labels: &survey.labels,
        namespace_annotations: &survey.annotations,
        trust_bundle_present: true,
        default_account: DefaultAccount::Keep,
        accounts: &|_| AccountState::Missing,
        jobs: &|_| JobOrigin::Named,
        dry_run: true,
        sidecar: &sidecar(survey.redirect),
        probe_key: &probe_key,
    };
    let mut pod = template.clone();
    if let Some(pod) = pod.as_object_mut() {
        pod.insert("apiVersion".to_owned(), json!("v1"));
        pod.insert("kind".to_owned(), json!("Pod"));
        pod.entry("metadata").or_insert_with(|| json!({}));
    }
    match inject(&pod, &facts) {
        Outcome::Inject { .. } => Verdict::Injected,
        Outcome::Skip { reason, detail, .. } => Verdict::LeftOut(reason, detail),
        Outcome::Refuse { reason, detail } => Verdict::Refused(reason, detail),
    }
}

fn sidecar(redirect: Redirect) -> Sidecar {
    Sidecar {
        image: "cinch-proxy".to_owned(),
        allowed_images: vec!["cinch-proxy".to_owned()],
        version: "preflight".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        operator_id: "spiffe://cluster.local/ns/cinch-system/sa/cinch-operator".to_owned(),
        log: None,
        settings: None,
        resources: Resources {
            requests: BTreeMap::new(),
            limits: BTreeMap::new(),
            guaranteed: BTreeMap::new(),
        },
        redirect,
    }
}

/// The account that the template asks for.
pub fn account(template: &Value) -> &str {
    ["/spec/serviceAccountName", "/spec/serviceAccount"]
        .iter()
        .find_map(|path| template.pointer(path)?.as_str())
        .filter(|name| !name.is_empty())
        .unwrap_or("default")
}

/// Capabilities with which a container could undo the redirect, as admission refuses them in locked namespaces.
const CAPABILITIES: [&str; 5] = ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "ALL"];
const PROXY_UID: i64 = 1507;

/// What admission would refuse in the template once the namespace is locked.
pub fn privileges(template: &Value) -> Vec<String> {
    let flag = |path: &str| template.pointer(path).and_then(Value::as_bool) == Some(true);
    let mut found = Vec::new();
    for (path, word) in
        [("/spec/shareProcessNamespace", "shareProcessNamespace"), ("/spec/hostPID", "hostPID")]
    {
        if flag(path) {
            found.push(word.to_owned());
        }
    }
    if template.pointer("/spec/securityContext/runAsUser").and_then(Value::as_i64) == Some(PROXY_UID) {
        found.push(format!("runAsUser {PROXY_UID}"));
    }
    let lists = ["/spec/initContainers", "/spec/containers"];
    let containers = lists.iter().filter_map(|path| template.pointer(path)?.as_array()).flatten();
    for container in containers {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        if let Some(what) = privilege(container) {
            found.push(format!("container {name}, {what}"));
        }
    }
    found
}

fn privilege(container: &Value) -> Option<String> {
    let context = container.get("securityContext")?;
    if context.get("privileged").and_then(Value::as_bool) == Some(true) {
        return Some("privileged".to_owned());
    }
    if context.get("runAsUser").and_then(Value::as_i64) == Some(PROXY_UID) {
        return Some(format!("runAsUser {PROXY_UID}"));
    }
    let added = context.pointer("/capabilities/add")?.as_array()?;
    let plain = |name: &'_ Value| name.as_str().map(|text| text.trim_start_matches("CAP_").to_owned());
    added.iter().filter_map(plain).find(|name| CAPABILITIES.contains(&name.as_str()))
}
