//! Policy objects: metadata, whom they select, and a spec that is either usable or names its faults.

use crate::authorization::{Action, AuthorizationPolicySpec, TargetReference};
use crate::compile::compile_rules;
use crate::error::{PolicyError, UNKNOWN};
use crate::mesh::{MeshConfig, Workload};
use crate::peer_authentication::{LabelSelector, MutualTlsMode, PeerAuthenticationSpec};
use crate::request_authentication::RequestAuthenticationSpec;
use crate::validate::schema;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// Istio's limits of selectors.
const MAX_TARGETS: usize = 16;
const MAX_SELECTOR_VALUE: usize = 63;

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

/// Whether a policy decides or is only evaluated (`istio.io/dry-run`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Enforcement {
    /// It decides.
    #[default]
    Enforced,
    /// It never changes a decision, not even by its presence.
    DryRun,
}

impl Enforcement {
    /// The annotation that asks for a dry run.
    pub const ANNOTATION: &str = "istio.io/dry-run";

    /// As the annotation says.
    #[must_use]
    pub fn of(annotations: &BTreeMap<String, String>) -> Self {
        match annotations.get(Self::ANNOTATION).map(String::as_str) {
            Some("true") => Enforcement::DryRun,
            _ => Enforcement::Enforced,
        }
    }
}

/// Whom an object selects. It can be told even of objects whose spec is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Pods with these labels in the object's namespace (for the root namespace: in all).
    Pods(LabelSelector),
    /// Only gateways or waypoints (`targetRefs`): no ordinary workload.
    NotWorkloads,
}

impl Scope {
    fn of(spec: &Value) -> Self {
        let elsewhere = ["targetRef", "targetRefs"].iter().any(|key| spec.get(key).is_some_and(is_filled))
            && !spec.get("selector").is_some_and(is_filled);
        if elsewhere { Scope::NotWorkloads } else { Scope::Pods(selector_of(spec)) }
    }

    /// Whether an object of this scope in `namespace` applies to `workload`.
    fn applies(&self, namespace: &str, mesh: &MeshConfig, workload: &Workload) -> bool {
        let here = namespace == workload.namespace || namespace == mesh.root_namespace;
        match self {
            Scope::Pods(selector) => here && selector.selects(&workload.labels),
            Scope::NotWorkloads => false,
        }
    }
}

/// A PeerAuthentication as it was found.
#[derive(Debug, Clone)]
pub struct PeerAuthentication {
    name: ObjectName,
    created: String,
    selector: LabelSelector,
    spec: Result<PeerAuthenticationSpec, Vec<PolicyError>>,
}

impl PeerAuthentication {
    /// Reads `spec`. `created` is `metadata.creationTimestamp` (RFC 3339 in UTC, as the API server writes it;
    /// empty where there is none). A spec that can't be used makes an object that closes what it selects.
    #[must_use]
    pub fn new(name: ObjectName, created: &str, spec: &Value) -> Self {
        let read = read(spec, &schema::PEER_AUTHENTICATION, PeerAuthenticationSpec::check);
        PeerAuthentication { name, created: created.to_owned(), selector: selector_of(spec), spec: read }
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

    /// Why it can't be used, if so: the first fault.
    #[must_use]
    pub fn fault(&self) -> Option<&PolicyError> {
        self.faults().first()
    }

    /// Everything that is wrong with it.
    #[must_use]
    pub fn faults(&self) -> &[PolicyError] {
        faults_of(&self.spec)
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

/// A policy that selects pods, as it was found: a spec of type `S` that is either usable or names its faults.
/// One that can't be used closes what it selects.
#[derive(Debug, Clone)]
pub struct SelectingPolicy<S> {
    name: ObjectName,
    scope: Scope,
    enforcement: Enforcement,
    spec: Result<S, Vec<PolicyError>>,
}

/// An AuthorizationPolicy as it was found.
pub type AuthorizationPolicy = SelectingPolicy<AuthorizationPolicySpec>;

/// A RequestAuthentication as it was found.
pub type RequestAuthentication = SelectingPolicy<RequestAuthenticationSpec>;

impl<S> SelectingPolicy<S> {
    /// Its namespace and name.
    #[must_use]
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// Whom it selects.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Whether it decides. A RequestAuthentication always does.
    #[must_use]
    pub fn enforcement(&self) -> Enforcement {
        self.enforcement
    }

    /// Its spec, or why it can't be used.
    ///
    /// # Errors
    /// The first fault of an invalid policy, which closes what it selects.
    pub fn spec(&self) -> Result<&S, &PolicyError> {
        self.spec.as_ref().map_err(|faults| faults.first().unwrap_or(&UNKNOWN))
    }

    /// Everything that is wrong with it.
    #[must_use]
    pub fn faults(&self) -> &[PolicyError] {
        faults_of(&self.spec)
    }

    /// Whether it applies to `workload`: the workload's namespace or the root namespace, and the selector.
    #[must_use]
    pub fn applies_to(&self, mesh: &MeshConfig, workload: &Workload) -> bool {
        self.scope.applies(&self.name.namespace, mesh, workload)
    }
}

impl AuthorizationPolicy {
    /// Reads `spec`. A spec that can't be used makes an object that closes what it selects. Only ALLOW and DENY
    /// can be dry runs; the others are enforced whatever is asked.
    #[must_use]
    pub fn new(name: ObjectName, enforcement: Enforcement, spec: &Value) -> Self {
        let check = |spec: &AuthorizationPolicySpec| {
            compile_rules(spec, &name.namespace, &MeshConfig::default()).err().unwrap_or_default()
        };
        let read = read(spec, &schema::AUTHORIZATION_POLICY, check);
        let asked = spec.get("action").and_then(Value::as_str);
        let enforcement =
            if matches!(asked, Some("AUDIT" | "CUSTOM")) { Enforcement::Enforced } else { enforcement };
        SelectingPolicy { name, scope: Scope::of(spec), enforcement, spec: read }
    }

    /// Whether it never matches although its author surely meant something: anything but ALLOW without a rule.
    #[must_use]
    pub fn matches_nothing(&self) -> bool {
        self.spec
            .as_ref()
            .is_ok_and(|spec| spec.action != Action::Allow && spec.rules.as_ref().is_none_or(Vec::is_empty))
    }

    /// Whether its presence alone denies what no ALLOW policy matches.
    #[must_use]
    pub fn closes_by_presence(&self) -> bool {
        let allows = self.spec.as_ref().is_ok_and(|spec| spec.action == Action::Allow);
        allows && self.enforcement == Enforcement::Enforced
    }
}

impl RequestAuthentication {
    /// Reads `spec`. A spec that can't be used makes an object that closes what it selects.
    #[must_use]
    pub fn new(name: ObjectName, spec: &Value) -> Self {
        let read = read(spec, &schema::REQUEST_AUTHENTICATION, RequestAuthenticationSpec::check);
        SelectingPolicy { name, scope: Scope::of(spec), enforcement: Enforcement::Enforced, spec: read }
    }
}

/// One object of a policy file or watch.
#[derive(Debug, Clone)]
pub enum PolicyObject {
    /// `kind: PeerAuthentication`
    PeerAuthentication(PeerAuthentication),
    /// `kind: AuthorizationPolicy`
    AuthorizationPolicy(AuthorizationPolicy),
    /// `kind: RequestAuthentication`
    RequestAuthentication(RequestAuthentication),
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
    annotations: Option<BTreeMap<String, String>>,
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
        let created = creation_timestamp.as_deref().unwrap_or_default();
        match envelope.kind.as_str() {
            "PeerAuthentication" => {
                Ok(Self::PeerAuthentication(PeerAuthentication::new(name, created, &envelope.spec)))
            }
            "AuthorizationPolicy" => {
                let enforcement = Enforcement::of(&annotations.unwrap_or_default());
                Ok(Self::AuthorizationPolicy(AuthorizationPolicy::new(name, enforcement, &envelope.spec)))
            }
            "RequestAuthentication" => {
                Ok(Self::RequestAuthentication(RequestAuthentication::new(name, &envelope.spec)))
            }
            other => Err(PolicyError::NotAPolicy(format!("kind {other:?}"))),
        }
    }
}

/// Shape first, so that every unknown field is named with its path; then types; then what `check` finds.
fn read<T: DeserializeOwned + Default>(
    spec: &Value,
    shape: &schema::Shape,
    check: impl FnOnce(&T) -> Vec<PolicyError>,
) -> Result<T, Vec<PolicyError>> {
    let spec = without_nulls(spec);
    let faults = schema::check(&spec, shape, "spec");
    if !faults.is_empty() {
        return Err(faults);
    }
    let typed = if spec.is_null() { Ok(T::default()) } else { T::deserialize(&spec) };
    let typed = typed.map_err(|error| vec![PolicyError::Unreadable(error.to_string())])?;
    let faults = check(&typed);
    if faults.is_empty() { Ok(typed) } else { Err(faults) }
}

/// The API server drops fields that are null; files may still have them.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), without_nulls(value)))
            .collect(),
        Value::Array(members) => members.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

fn faults_of<T>(spec: &Result<T, Vec<PolicyError>>) -> &[PolicyError] {
    spec.as_ref().err().map_or(&[], Vec::as_slice)
}

/// What a selector and targets may be.
pub(crate) fn check_selection(
    selector: Option<&LabelSelector>,
    target: Option<&TargetReference>,
    targets: Option<&[TargetReference]>,
    faults: &mut Vec<PolicyError>,
) {
    let targets = targets.unwrap_or_default();
    if targets.len() > MAX_TARGETS {
        let problem = format!("has {} entries; at most {MAX_TARGETS} are possible", targets.len());
        faults.push(PolicyError::value("spec.targetRefs", problem));
    }
    if target.is_some() && !targets.is_empty() {
        faults.push(PolicyError::value(
            "spec.targetRef",
            "can not stand together with targetRefs; keep one of them",
        ));
    }
    if selector.is_some() && (target.is_some() || !targets.is_empty()) {
        faults.push(PolicyError::value(
            "spec.selector",
            "can not stand together with targetRefs; keep one of them",
        ));
    }
    for (key, value) in selector.into_iter().flat_map(|selector| &selector.match_labels) {
        if key.is_empty() || key.contains('*') || value.contains('*') || value.len() > MAX_SELECTOR_VALUE {
            let problem = format!("{key:?}: {value:?} is no label; wildcards are not possible");
            faults.push(PolicyError::value("spec.selector.matchLabels", problem));
        }
    }
}

/// The selector, read apart from the rest: a broken spec closes only what it selects. When the selector itself
/// is broken, everything in scope is selected.
fn selector_of(spec: &Value) -> LabelSelector {
    let selector = without_nulls(spec.get("selector").unwrap_or(&Value::Null));
    LabelSelector::deserialize(&selector).unwrap_or_default()
}

fn is_filled(value: &Value) -> bool {
    !matches!(value, Value::Null) && value.as_array().is_none_or(|list| !list.is_empty())
}
