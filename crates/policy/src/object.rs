//! Policy objects: metadata, whom they select, and a spec that is either usable or names its fault.

use crate::authorization::{Action, AuthorizationPolicySpec};
use crate::error::PolicyError;
use crate::peer_authentication::{LabelSelector, MutualTlsMode, PeerAuthenticationSpec};
use crate::rule::CompiledPolicy;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// Namespace and name of a policy; shown as `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The workload for which policies are composed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkloadRef {
    /// Namespace of the pod.
    pub namespace: String,
    /// Live labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// Our trust domain.
    pub trust_domain: String,
    /// The namespace whose policies apply to the whole mesh.
    pub root_namespace: String,
}

/// Whether a policy decides or is only evaluated (`istio.io/dry-run`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Enforcement {
    /// It decides.
    #[default]
    Enforced,
    /// It never changes a decision, not even by its presence.
    DryRun,
}

/// Whom an object selects. It can be told even of objects whose spec is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Pods with these labels in the object's namespace (for the root namespace: in all).
    Pods(LabelSelector),
    /// Only gateways or waypoints (`targetRefs`): no ordinary workload.
    NotWorkloads,
}

/// A PeerAuthentication as it was found.
#[derive(Debug, Clone)]
pub struct PeerAuthentication {
    name: ObjectName,
    created: String,
    selector: LabelSelector,
    spec: Result<PeerAuthenticationSpec, PolicyError>,
}

impl PeerAuthentication {
    /// Reads `spec`. `created` is `metadata.creationTimestamp` (RFC 3339 in UTC, as the API server writes it;
    /// empty where there is none). A spec that can't be used makes an object that closes what it selects.
    #[must_use]
    pub fn new(name: ObjectName, created: &str, spec: &Value) -> Self {
        let parsed = read::<PeerAuthenticationSpec>(spec).and_then(|read| read.check().map(|()| read));
        PeerAuthentication { name, created: created.to_owned(), selector: selector_of(spec), spec: parsed }
    }

    /// Its namespace and name.
    #[must_use]
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// Whom it selects within its namespace.
    #[must_use]
    pub fn selector(&self) -> &LabelSelector {
        &self.selector
    }

    /// Why it can't be used, if so.
    #[must_use]
    pub fn fault(&self) -> Option<&PolicyError> {
        self.spec.as_ref().err()
    }

    /// The mode of all ports that it does not name; an unusable object closes: STRICT.
    #[must_use]
    pub fn mode(&self) -> MutualTlsMode {
        self.spec.as_ref().map_or(MutualTlsMode::Strict, PeerAuthenticationSpec::mode)
    }

    /// The modes of the ports that it names.
    pub fn port_modes(&self) -> impl Iterator<Item = (u16, MutualTlsMode)> + '_ {
        self.spec.iter().flat_map(PeerAuthenticationSpec::port_modes)
    }

    /// Sorts the oldest first, equal ages by name.
    pub(crate) fn age_key(&self) -> (&str, &ObjectName) {
        (&self.created, &self.name)
    }
}

/// An AuthorizationPolicy as it was found.
#[derive(Debug, Clone)]
pub struct AuthorizationPolicy {
    name: ObjectName,
    scope: Scope,
    enforcement: Enforcement,
    spec: Result<AuthorizationPolicySpec, PolicyError>,
}

impl AuthorizationPolicy {
    /// Reads `spec`. A spec that can't be used makes an object that closes what it selects.
    #[must_use]
    pub fn new(name: ObjectName, enforcement: Enforcement, spec: &Value) -> Self {
        let parsed = read::<AuthorizationPolicySpec>(spec).and_then(|spec| {
            CompiledPolicy::check(&name, &spec)?;
            Ok(spec)
        });
        let elsewhere = ["targetRef", "targetRefs"].iter().any(|key| spec.get(key).is_some_and(is_filled))
            && !spec.get("selector").is_some_and(is_filled);
        let scope = if elsewhere { Scope::NotWorkloads } else { Scope::Pods(selector_of(spec)) };
        AuthorizationPolicy { name, scope, enforcement, spec: parsed }
    }

    /// Its namespace and name.
    #[must_use]
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// Whether it decides.
    #[must_use]
    pub fn enforcement(&self) -> Enforcement {
        self.enforcement
    }

    /// Its spec, or why it can't be used.
    ///
    /// # Errors
    /// The fault of an invalid policy, which closes what it selects.
    pub fn spec(&self) -> Result<&AuthorizationPolicySpec, &PolicyError> {
        self.spec.as_ref()
    }

    /// Why admission should refuse it: what makes it unusable, and what never matches although its author surely
    /// meant something.
    #[must_use]
    pub fn refusal(&self) -> Option<PolicyError> {
        let spec = match &self.spec {
            Ok(spec) => spec,
            Err(fault) => return Some(fault.clone()),
        };
        let matches_nothing = spec.rules.as_ref().is_none_or(Vec::is_empty);
        (matches_nothing && spec.action != Action::Allow).then(|| {
            PolicyError::value(
                "spec.rules",
                "without a rule this policy never matches; `rules: [{}]` matches all",
            )
        })
    }

    /// Whether it applies to `workload`: the workload's namespace or the root namespace, and the selector.
    #[must_use]
    pub fn applies_to(&self, workload: &WorkloadRef) -> bool {
        let here =
            self.name.namespace == workload.namespace || self.name.namespace == workload.root_namespace;
        match &self.scope {
            Scope::Pods(selector) => here && selector.selects(&workload.labels),
            Scope::NotWorkloads => false,
        }
    }
}

/// One object of a policy file or watch.
#[derive(Debug, Clone)]
pub enum PolicyObject {
    /// `kind: PeerAuthentication`
    PeerAuthentication(PeerAuthentication),
    /// `kind: AuthorizationPolicy`
    AuthorizationPolicy(AuthorizationPolicy),
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    creation_timestamp: Option<String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl PolicyObject {
    /// Reads a whole Kubernetes object, as kubectl would take it; without a namespace it is in `default`.
    ///
    /// # Errors
    /// When it is no object of `security.istio.io` that this version enforces, so that nobody can tell whom it
    /// would select. A broken spec is no error here: the object then closes what it selects.
    pub fn parse(object: &Value) -> Result<Self, PolicyError> {
        let envelope =
            Envelope::deserialize(object).map_err(|error| PolicyError::NotAPolicy(error.to_string()))?;
        if !matches!(envelope.api_version.as_str(), "security.istio.io/v1" | "security.istio.io/v1beta1") {
            return Err(PolicyError::NotAPolicy(format!("apiVersion {:?}", envelope.api_version)));
        }
        let Metadata { name, namespace, creation_timestamp, annotations } = envelope.metadata;
        let name = ObjectName { namespace: namespace.unwrap_or_else(|| "default".to_owned()), name };
        match envelope.kind.as_str() {
            "PeerAuthentication" => Ok(PolicyObject::PeerAuthentication(PeerAuthentication::new(
                name,
                creation_timestamp.as_deref().unwrap_or_default(),
                &envelope.spec,
            ))),
            "AuthorizationPolicy" => {
                let enforcement = Enforcement::of(&annotations);
                Ok(PolicyObject::AuthorizationPolicy(AuthorizationPolicy::new(
                    name,
                    enforcement,
                    &envelope.spec,
                )))
            }
            other => Err(PolicyError::NotAPolicy(format!("kind {other:?}"))),
        }
    }
}

impl Enforcement {
    /// As the annotation `istio.io/dry-run` says.
    #[must_use]
    pub fn of(annotations: &BTreeMap<String, String>) -> Self {
        match annotations.get("istio.io/dry-run").map(String::as_str) {
            Some("true") => Enforcement::DryRun,
            _ => Enforcement::Enforced,
        }
    }
}

fn read<T: DeserializeOwned + Default>(spec: &Value) -> Result<T, PolicyError> {
    if spec.is_null() {
        return Ok(T::default());
    }
    T::deserialize(spec).map_err(|error| PolicyError::Unreadable(error.to_string()))
}

/// The selector, read apart from the rest: a broken spec closes only what it selects. When the selector itself
/// is broken, everything in scope is selected.
fn selector_of(spec: &Value) -> LabelSelector {
    let selector = spec.get("selector").unwrap_or(&Value::Null);
    if selector.is_null() {
        return LabelSelector::default();
    }
    LabelSelector::deserialize(selector).unwrap_or_default()
}

fn is_filled(value: &Value) -> bool {
    !matches!(value, Value::Null) && value.as_array().is_none_or(|list| !list.is_empty())
}
