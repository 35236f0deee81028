//! The webhook's decision with assumptions in place of a cluster.

use super::workload::{self, FuturePod, future_pod};
use cinch_api::names::{MESH_ENABLED, MESH_LABEL};
use cinch_injection::{
    AccountState, DefaultAccount, Facts, JobOrigin, Op, Outcome, Owner, ProbeKey, Redirect, Sidecar, inject,
};
use cinch_reason::Reason;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Namespaces that the API server never asks the webhook about, besides the one of Cinch.
const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// The real key is the webhook's secret. Paths made with this one are of the right form, and no proxy answers
/// them.
const PROBE_KEY: [u8; 32] = [0; 32];

/// What is taken for granted about the cluster.
pub struct Assumed<'a> {
    /// Namespace of objects that name none.
    pub namespace: &'a str,
    /// Labels of the namespace. It is taken as enrolled unless its label says something else.
    pub labels: BTreeMap<String, String>,
    /// Whether the account of each workload is there.
    pub service_account_exists: bool,
    /// Where Cinch is installed.
    pub cinch_namespace: &'a str,
    /// Image of the sidecar.
    pub image: &'a str,
    /// Trust domain of the mesh.
    pub trust_domain: &'a str,
    /// Who sets the redirect.
    pub redirect: Redirect,
}

/// What becomes of an object.
#[derive(Debug, Default)]
pub struct Reviewed {
    /// Operations on the object; none where it stays as it is.
    pub operations: Vec<Op>,
    /// What the person should know.
    pub notes: Vec<String>,
    /// Why it would not be stored.
    pub refusal: Option<String>,
}

impl Reviewed {
    fn untouched(note: String) -> Self {
        Self { notes: vec![note], ..Self::default() }
    }
}

impl Assumed<'_> {
    /// What the webhook would make of `object`, and how the object is called. `kind_of_list` is the kind of an
    /// object that does not say its own, empty where there is none.
    pub fn review(&self, object: &Value, kind_of_list: &str) -> (String, Reviewed) {
        let kind = object.get("kind").and_then(Value::as_str).unwrap_or(kind_of_list);
        let called = format!("{kind}/{}", workload::name(object));
        let Some(future) = future_pod(object, kind) else { return (called, Reviewed::default()) };
        let reviewed = match self.not_asked(object, &future) {
            Some(note) => Reviewed::untouched(note),
            None => self.decide(object, future),
        };
        (called, reviewed)
    }

    fn namespace_of<'b>(&'b self, object: &'b Value) -> &'b str {
        let own = object.pointer("/metadata/namespace").and_then(Value::as_str);
        own.filter(|namespace| !namespace.is_empty()).unwrap_or(self.namespace)
    }

    /// Why the API server would not even ask: the selectors and conditions of `cinch-injector`.
    fn not_asked(&self, object: &Value, future: &FuturePod) -> Option<String> {
        let namespace = self.namespace_of(object);
        if namespace == self.cinch_namespace || SYSTEM_NAMESPACES.contains(&namespace) {
            return Some(Reason::SystemNamespace.message_with(&format!("namespace {namespace}")));
        }
        if self.labels.get(MESH_LABEL).is_some_and(|value| value != MESH_ENABLED) {
            return Some(Reason::NotEnrolled.message_with(&format!("namespace {namespace}")));
        }
        let host_network = future.pod.pointer("/spec/hostNetwork").and_then(Value::as_bool) == Some(true);
        host_network.then(|| Reason::HostNetwork.message_with("hostNetwork: true"))
    }

    fn decide(&self, object: &Value, future: FuturePod) -> Reviewed {
        let Ok(probe_key) = ProbeKey::new(&PROBE_KEY) else { return Reviewed::default() };
        let FuturePod { pod, at, job } = future;
        let jobs = |_: &str| job.clone();
        let owner = Owner::of_pod(&pod, jobs).map(|owner| owner.to_string()).unwrap_or_default();
        let accounts = |_: &str| match self.service_account_exists {
            true => AccountState::Ours(owner.clone()),
            false => AccountState::Missing,
        };
        let facts = Facts {
            namespace: self.namespace_of(object),
            namespace_labels: &self.labels,
            namespace_annotations: &BTreeMap::new(),
            trust_bundle_present: true,
            default_account: DefaultAccount::PerWorkload,
            accounts: &accounts,
            jobs: &jobs as &dyn Fn(&str) -> JobOrigin,
            // No pod is created from a template now: by then the operator has made the account.
            dry_run: !at.is_empty(),
            sidecar: &self.sidecar(),
            probe_key: &probe_key,
        };
        let (operations, notes) = match inject(&pod, &facts) {
            Outcome::Inject { operations, warnings } => (operations, warnings),
            Outcome::Skip { reason, detail, operations } => (operations, vec![reason.message_with(&detail)]),
            Outcome::Refuse { reason, detail } => {
                return Reviewed { refusal: Some(reason.message_with(&detail)), ..Reviewed::default() };
            }
        };
        Reviewed { operations: placed(object, at, operations), notes, refusal: None }
    }

    fn sidecar(&self) -> Sidecar {
        let version = env!("CARGO_PKG_VERSION");
        let usual = Sidecar::usual(self.image, version, self.trust_domain, self.cinch_namespace);
        Sidecar { redirect: self.redirect, ..usual }
    }
}

/// The operations with their pointers moved to where the pod's template stands in `object`.
fn placed(object: &Value, at: &str, operations: Vec<Op>) -> Vec<Op> {
    let bare = object.pointer(&format!("{at}/metadata")).is_none_or(Value::is_null);
    let mut all = Vec::new();
    if bare && !operations.is_empty() {
        all.push(Op::Add { path: format!("{at}/metadata"), value: json!({}) });
    }
    all.extend(operations.into_iter().map(|operation| match operation {
        Op::Add { path, value } => Op::Add { path: format!("{at}{path}"), value },
        Op::Replace { path, value } => Op::Replace { path: format!("{at}{path}"), value },
        Op::Remove { path } => Op::Remove { path: format!("{at}{path}") },
    }));
    all
}
