//! `AuthorizationPolicy` as Istio's API writes it (`security.istio.io/v1`): plain types, unknown fields refused.

use crate::peer_authentication::LabelSelector;
use serde::{Deserialize, Serialize};

/// `spec` of an AuthorizationPolicy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// Pods that it applies to; absent or empty: all of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Gateways and waypoints that it applies to instead of ordinary workloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetReference>,
    /// As `targetRef`, several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_refs: Option<Vec<TargetReference>>,
    /// Absent is ALLOW.
    #[serde(default)]
    pub action: Action,
    /// Absent: the policy matches nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<Rule>>,
    /// Of CUSTOM only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
}

/// What a matching policy does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    /// Let it through; with one ALLOW policy present, what none matches is denied.
    #[default]
    Allow,
    /// Refuse it, whatever ALLOW policies say.
    Deny,
    /// Note it; never changes the result.
    Audit,
    /// Ask an external authoriser.
    Custom,
}

/// The extension of a CUSTOM policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Name of the extension provider.
    #[serde(default)]
    pub name: String,
}

/// Istio's `PolicyTargetReference`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TargetReference {
    #[serde(default)]
    pub group: String,
    pub kind: String,
    pub name: String,
    #[serde(default)]
    pub namespace: String,
}

/// One rule: (any of `from`) and (any of `to`) and (all of `when`); absent parts don't constrain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<RuleFrom>>,
    /// What.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<RuleTo>>,
    /// Further conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Vec<Condition>>,
}

/// One member of `from`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleFrom {
    /// The source of the connection.
    pub source: Source,
}

/// One member of `to`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleTo {
    /// The operation asked for.
    pub operation: Operation,
}

/// A list of strings; absent doesn't constrain.
pub type Values = Option<Vec<String>>;

/// Who connects: the fields are joined by AND, the values of a field by OR.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Source {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principals: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_principals: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_principals: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_request_principals: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_namespaces: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_accounts: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_service_accounts: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_domains: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_trust_domains: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_blocks: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_ip_blocks: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_ip_blocks: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_remote_ip_blocks: Values,
}

/// What is asked for: the fields are joined by AND, the values of a field by OR.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Operation {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_hosts: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_ports: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub methods: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_methods: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paths: Values,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_paths: Values,
}

/// One member of `when`: needs `values` or `notValues`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// An attribute, such as `source.ip`.
    pub key: String,
    /// Any of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Values,
    /// None of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_values: Values,
}
