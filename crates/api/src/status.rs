//! `status` of a Posture: only the operator writes it. The lock is not here: it is the namespace's label, so
//! that it survives restores.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// What the operator found and decided.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PostureStatus {
    /// The generation of the spec that was acted upon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What the namespace accepts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<PostureMode>,
    /// Where it stands on the way to STRICT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PostureState>,
    /// Since when no plaintext was served and every pod was observed: the quiet period runs from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet_since: Option<Time>,
    /// Since when the namespace is locked STRICT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_since: Option<Time>,
    /// Pods by what we know of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodCounts>,
    /// Pods with the sidecar of those that count, such as `3/9`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meshed: Option<String>,
    /// Plaintext connections since the window began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plaintext: Option<PlaintextStatus>,
    /// For what the counts speak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<EvidenceStatus>,
    /// Everything that stands against a promotion now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blockers: Vec<Blocker>,
    /// The first blocker and how many there are besides, such as `PodsNotInjected +1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_by: Option<String>,
    /// Who sends plaintext: at most 20, the most served first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub offenders: Vec<Offender>,
    /// What stays outside the mesh and was accepted as such.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub debt: Vec<Debt>,
    /// Policies that select pods here and can't be used as they are: at most 20. They close what they select, so
    /// they don't stand against a promotion.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<BrokenPolicy>,
    /// Ready, Injected, Reporting, Quiet, Unpinned, Strict, PoliciesUsable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// What the next leader needs to go on; not meant for reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub promotion: Option<Value>,
}

fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "nullable": true, "x-kubernetes-preserve-unknown-fields": true })
}

/// What a namespace accepts, in Istio's words.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PostureMode {
    /// Plaintext and tunnels.
    Permissive,
    /// Tunnels only.
    Strict,
}

/// Where a namespace stands on the way to STRICT.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostureState {
    /// Nothing blocks; the quiet period runs.
    Observing,
    /// Something stands against it.
    Blocked,
    /// All gates held over the quiet period; the steps of the promotion are under way or waited for.
    Eligible,
    /// Locked, and can still be taken back.
    Probation,
    /// Locked for good.
    Strict,
    /// The lock was taken back because a client was refused that had been served before.
    RolledBack,
    /// A person took the lock away.
    Relaxed,
}

impl PostureState {
    /// The word in status and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            PostureState::Observing => "Observing",
            PostureState::Blocked => "Blocked",
            PostureState::Eligible => "Eligible",
            PostureState::Probation => "Probation",
            PostureState::Strict => "Strict",
            PostureState::RolledBack => "RolledBack",
            PostureState::Relaxed => "Relaxed",
        }
    }
}

impl fmt::Display for PostureState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Pods by what we know of them.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodCounts {
    /// Pods that count: not ended, not on the host network.
    pub total: u32,
    /// Of these, with the sidecar.
    pub injected: u32,
    /// Of these, with a recent report.
    pub reporting: u32,
}

/// Plaintext connections since the window began.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PlaintextStatus {
    /// Allowed, accepted by the app, and at least one byte passed. Only these count against a promotion.
    pub served: u64,
    /// Open now.
    pub open: u64,
    /// Refused by mode or policy.
    pub denied: u64,
    /// Refused by the app.
    pub no_listener: u64,
    /// Closed without a byte.
    pub empty: u64,
    /// When one was served last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Time>,
}

/// For what the counts speak.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EvidenceStatus {
    /// Every pod has reported for all time up to here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_through: Option<Time>,
    /// Pod-seconds of the window for which nobody can speak.
    pub unobserved_seconds: u64,
    /// Names this evidence for `spec.approve`.
    pub hash: String,
}

/// One thing that stands against a promotion.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Blocker {
    /// A word of the reason table.
    pub reason: String,
    /// What is the case, and what to do.
    pub message: String,
    /// Since when.
    pub since: Time,
    /// The first object that it is about, such as `pod/web-1`.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// A policy that can't be used as it is.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct BrokenPolicy {
    /// The object, such as `authorizationpolicy/shop/allow-web`.
    #[serde(rename = "ref")]
    pub reference: String,
    /// A word of the reason table.
    pub reason: String,
    /// What is the case, and what to do.
    pub message: String,
}

/// Somebody who sends plaintext. Exactly one of `workload`, `node` and `external` is set.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Offender {
    /// `namespace/name` of a workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Kind of the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// A node, its kubelet's probes included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// An address outside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<String>,
    /// The app's port.
    pub port: u16,
    /// Connections served.
    pub count: u64,
    /// Connections refused.
    pub denied: u64,
    /// The newest connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Time>,
    /// A pod that saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported_by: Option<String>,
}

/// Something outside the mesh that was accepted as such.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Debt {
    /// A word of the reason table.
    pub reason: String,
    /// What is the case.
    pub message: String,
}
