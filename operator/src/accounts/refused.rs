//! Workloads whose pods admission refuses once their namespace is locked: made without the sidecar, or able to undo
//! the redirect. They may run for years, or not at all at the moment; at their next start they would be missed. In go
//! the templates that are watched for accounts; out comes what stands against a lock, by namespace.

use super::observed::Observed;
use cinch_injection::template::{Place, Verdict, judge as judge_injection};
use cinch_injection::{Redirect, privileges};
use cinch_reason::Reason;
use serde_json::Value;
use std::collections::BTreeMap;

/// Workloads of one namespace that are named; the others come up when these are mended.
const NAMED: usize = 5;

/// Why pods of a template are refused, and what of it is the cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    reason: Reason,
    detail: String,
}

/// A workload that stands against a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// `HostNetworkPods`, which the label `cinch.dev/host-network` allows, `WorkloadNotInjectable` or
    /// `CouldUndoRedirect`.
    pub reason: Reason,
    /// The workload, and what of its template is the cause.
    pub detail: String,
    /// The workload, such as `deployment/web`.
    pub reference: String,
}

/// Workloads that stand against a lock, by namespace.
pub(super) type ByNamespace = BTreeMap<String, Vec<Refused>>;

/// What the template of pods says by itself. What the labels of a namespace keep from being injected is seen at its
/// pods.
pub(super) fn judge(template: &Value) -> Vec<Refusal> {
    let none = BTreeMap::new();
    let place = Place { namespace: "", labels: &none, annotations: &none, redirect: Redirect::Agent };
    let left_out = match judge_injection(template, place) {
        Verdict::Injected => None,
        Verdict::LeftOut(Reason::HostNetwork, detail) => {
            Some(Refusal { reason: Reason::HostNetworkPods, detail })
        }
        Verdict::LeftOut(reason, detail) | Verdict::Refused(reason, detail) => {
            let detail = format!("{reason}, {detail}");
            Some(Refusal { reason: Reason::WorkloadNotInjectable, detail })
        }
    };
    let found = privileges(template);
    let undoes =
        (!found.is_empty()).then(|| Refusal { reason: Reason::CouldUndoRedirect, detail: found.join("; ") });
    left_out.into_iter().chain(undoes).collect()
}

/// Whether an object is a Job that has run to its end.
pub(super) fn has_ended(object: &Value) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|condition| {
        let text = |key: &str| condition.get(key).and_then(Value::as_str);
        matches!(text("type"), Some("Complete" | "Failed")) && text("status") == Some("True")
    })
}

/// By namespace, the first ones by name.
pub(super) fn by_namespace(observed: &Observed) -> ByNamespace {
    let mut all: Vec<_> = observed.workloads.values().filter(|one| !one.refused.is_empty()).collect();
    all.sort_by(|a, b| (&a.namespace, &a.owner).cmp(&(&b.namespace, &b.owner)));
    let mut found = ByNamespace::new();
    for workload in all {
        let named = found.entry(workload.namespace.clone()).or_default();
        let kind = workload.owner.kind.as_str().to_lowercase();
        let refused = workload.refused.iter().map(|refusal| Refused {
            reason: refusal.reason,
            detail: format!("{}: {}", workload.owner, refusal.detail),
            reference: format!("{kind}/{}", workload.owner.name),
        });
        named.extend(refused.take(NAMED.saturating_sub(named.len())));
    }
    found
}
