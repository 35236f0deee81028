//! `status` of the three kinds: what the operator tells of a policy, and its schema.
//!
//! Where Istio runs too, `conditions`, `validationMessages` and `observedGeneration` are its own (`IstioStatus` of
//! `istio.io/api/meta/v1alpha1`), and its definitions have them as one atomic list. So what is ours stands under a
//! key of its own, and conditions are added only where nobody else writes any.

use super::schema::{described, list, number, open, required, text};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::{Deserialize, Serialize};

/// The policy could be read, and no proxy had trouble with it.
pub const ACCEPTED: &str = "cinch.dev/Accepted";
/// Every proxy that the policy selects enforces its current generation.
pub const ENFORCED: &str = "cinch.dev/Enforced";
/// The keys of all its issuers are there (RequestAuthentication with keys to fetch).
pub const KEYS_FETCHED: &str = "cinch.dev/KeysFetched";
/// What our types of conditions begin with.
pub const CONDITION_PREFIX: &str = "cinch.dev/";

/// `status`, as far as it is ours.
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyStatus {
    /// The generation that the conditions speak of; absent where the status is Istio's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// [`ACCEPTED`], [`ENFORCED`], [`KEYS_FETCHED`]; absent where the status is Istio's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The short of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cinch: Option<PolicyReport>,
}

/// How it stands with a policy.
#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyReport {
    /// The generation that this speaks of.
    pub observed_generation: i64,
    /// Pods with the sidecar that it selects.
    pub selected: u32,
    /// Of these, those whose proxy enforces this generation.
    pub enforcing: u32,
    /// A word of the reason table: the worst that is the case.
    pub reason: String,
    /// Its sentence, with what was seen.
    pub message: String,
}

/// The schema: closed nowhere, so that a status which Istio wrote survives a change of definitions.
pub(super) fn schema() -> JSONSchemaProps {
    let condition = open([
        ("type", text("What it is about.")),
        ("status", text("True, False or Unknown.")),
        ("reason", text("A word for why.")),
        ("message", text("A sentence.")),
        ("lastTransitionTime", text("Since when the status is so.")),
    ]);
    let condition = described(required(condition, &["type"]), "A condition.");
    // A map by type: each writer has its own conditions and leaves the others alone.
    let conditions = JSONSchemaProps {
        x_kubernetes_list_type: Some("map".to_owned()),
        x_kubernetes_list_map_keys: Some(vec!["type".to_owned()]),
        ..list(condition, "Whether the policy was accepted and is enforced.")
    };
    let cinch = open([
        ("observedGeneration", number("The generation that this speaks of.")),
        ("selected", number("Pods with the sidecar that the policy selects.")),
        ("enforcing", number("Proxies of these that enforce this generation.")),
        ("reason", text("The worst that is the case.")),
        ("message", text("A sentence.")),
    ]);
    let schema = open([("conditions", conditions), ("cinch", described(cinch, "The short of it."))]);
    described(schema, "What became of the policy. Written by the operator.")
}
