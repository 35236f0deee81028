//! What would become of pods of a template, said before there is one: the injection itself decides, on a pod made
//! from the template. In go the template and what is known of its namespace; out comes a [`Verdict`].

use crate::{AccountState, DefaultAccount, Facts, JobOrigin, Outcome, ProbeKey, Redirect, Sidecar, inject};
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

/// Where the pods would be.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Name of the namespace.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: &'a BTreeMap<String, String>,
    /// Who sets the redirect there.
    pub redirect: Redirect,
}

/// What would become of a pod of `template`, as far as that does not depend on the moment.
#[must_use]
pub fn judge(template: &Value, place: Place<'_>) -> Verdict {
    // The key and the sidecar's own looks have no part in the decision.
    let Ok(probe_key) = ProbeKey::new(&[0; 32]) else { return Verdict::Injected };
    let sidecar = Sidecar {
        redirect: place.redirect,
        ..Sidecar::usual("cinch-proxy", "preflight", "cluster.local", "cinch-system")
    };
    let facts = Facts {
        namespace: place.namespace,
        namespace_labels: place.labels,
        namespace_annotations: place.annotations,
        trust_bundle_present: true,
        default_account: DefaultAccount::Keep,
        accounts: &|_| AccountState::Missing,
        jobs: &|_| JobOrigin::Named,
        dry_run: true,
        sidecar: &sidecar,
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
