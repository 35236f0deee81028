//! What admission says of an object: everything that is wrong, each with the field's path and what to do, and
//! warnings for what is allowed but will surprise.

mod around;
mod hints;
mod http;
mod request;
pub(crate) mod schema;
mod values;
mod warnings;

pub use around::{PodFacts, PodPort, Surroundings};

use crate::authorization::Action;
use crate::error::PolicyError;
use crate::mesh::MeshConfig;
use crate::object::{AuthorizationPolicy, Enforcement, PolicyObject};
use crate::request_authentication::RequestAuthenticationSpec;
use serde_json::Value;

/// The answer on one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validation {
    /// Why it is refused; empty when it is accepted.
    pub errors: Vec<String>,
    /// What will surprise, whether it is accepted or not.
    pub warnings: Vec<String>,
}

impl Validation {
    /// Whether it is accepted.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.errors.is_empty()
    }
}

/// Judges one Kubernetes object by itself.
#[must_use]
pub fn validate(object: &Value, mesh: &MeshConfig) -> Validation {
    validate_among(object, mesh, None)
}

/// Judges one Kubernetes object, with the pods and policies around it where they are known.
#[must_use]
pub fn validate_among(object: &Value, mesh: &MeshConfig, around: Option<&Surroundings>) -> Validation {
    let mut validation = Validation::default();
    if let Some(advice) = foreign_kind(object) {
        validation.errors.push(advice);
        return validation;
    }
    let parsed = match PolicyObject::parse(object) {
        Ok(parsed) => parsed,
        Err(error) => {
            validation.errors.push(error.to_string());
            return validation;
        }
    };
    let mut errors: Vec<PolicyError> = match &parsed {
        PolicyObject::PeerAuthentication(object) => object.faults().to_vec(),
        PolicyObject::RequestAuthentication(object) => {
            let undiscoverable =
                object.spec().map(RequestAuthenticationSpec::undiscoverable).unwrap_or_default();
            object.faults().iter().cloned().chain(undiscoverable).collect()
        }
        PolicyObject::AuthorizationPolicy(object) => {
            object.faults().iter().cloned().chain(only_at_admission(object)).collect()
        }
    };
    errors.extend(dry_run_faults(object, &parsed));
    validation.errors = errors.iter().map(ToString::to_string).collect();
    if validation.errors.is_empty() {
        validation.warnings = warnings::warnings(&parsed, object, mesh, around);
    }
    validation
}

/// What the engine can evaluate and admission still refuses.
fn only_at_admission(object: &AuthorizationPolicy) -> Vec<PolicyError> {
    let Ok(spec) = object.spec() else { return Vec::new() };
    let mut errors = Vec::new();
    if spec.action == Action::Custom {
        errors.push(PolicyError::value(
            "spec.action",
            "CUSTOM is not implemented yet: nothing carries requests to a provider; use ALLOW or DENY",
        ));
    }
    if object.matches_nothing() {
        let problem = "is missing: without a rule this policy never matches; write `rules: [{}]` to match everything, or delete the policy";
        errors.push(PolicyError::value("spec.rules", problem));
    }
    errors
}

fn dry_run_faults(object: &Value, parsed: &PolicyObject) -> Option<PolicyError> {
    let annotation = object.get("metadata")?.get("annotations")?.get(Enforcement::ANNOTATION)?;
    let field = format!("metadata.annotations[{:?}]", Enforcement::ANNOTATION);
    if !matches!(annotation.as_str(), Some("true" | "false")) {
        return Some(PolicyError::value(
            field,
            format!("{annotation} is neither \"true\" nor \"false\"; write one of them in quotes"),
        ));
    }
    let PolicyObject::AuthorizationPolicy(policy) = parsed else {
        return Some(PolicyError::value(field, "only an AuthorizationPolicy can be a dry run; remove it"));
    };
    let enforced = matches!(policy.spec().map(|spec| spec.action), Ok(Action::Audit | Action::Custom));
    (enforced && annotation == "true").then(|| {
        PolicyError::value(
            field,
            "only ALLOW and DENY can be a dry run; remove it, or use action AUDIT alone",
        )
    })
}

/// Kinds of Istio's that people bring and that we don't have.
fn foreign_kind(object: &Value) -> Option<String> {
    let kind = object.get("kind").and_then(Value::as_str)?;
    let advice = match kind {
        "EnvoyFilter" => {
            "there is no Envoy here to configure; use an AuthorizationPolicy for access, a RequestAuthentication for tokens"
        }
        "WasmPlugin" => "extensions are not run; use an AuthorizationPolicy, or put the logic into the app",
        "ProxyConfig" => "the proxy has no such settings; set resources with the chart value proxy.resources",
        "DestinationRule" | "VirtualService" | "ServiceEntry" | "Sidecar" | "Telemetry" | "Gateway"
        | "WorkloadEntry" | "WorkloadGroup" => {
            "this version enforces PeerAuthentication, AuthorizationPolicy and RequestAuthentication only; remove it"
        }
        _ => return None,
    };
    Some(format!("kind: {kind} is not implemented: {advice}"))
}
