//! From an object of Istio's API, as raw JSON, to what the index keeps of it: whom it selects, what is wrong with
//! it, and the message that travels to proxies. An object is never dropped for being broken: it closes.

use super::model::{JwksSource, PolicyInfo, PolicyKey, PolicyKind};
use bytes::Bytes;
use cinch_control::v1;
use cinch_policy::{
    AuthorizationPolicy, AuthorizationPolicySpec, Enforcement, LabelSelector, MutualTlsMode, ObjectName,
    PeerAuthentication, PolicyError, RequestAuthentication, RequestAuthenticationSpec, Rule, Scope,
};
use kube::api::DynamicObject;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

/// The word for policies that only a proxy which reads HTTP can decide by.
pub(super) const HTTP: &str = "http";

/// A fault is shown in conditions and logs: room for the first few problems of an object.
const FAULT_LENGTH: usize = 1024;

/// What the index keeps of one policy object.
#[derive(Debug)]
pub(in crate::index) struct Object {
    pub(super) info: Arc<PolicyInfo>,
    /// Labels that a pod must have; `None`: the object is for gateways and selects no pod.
    pub(super) selector: Option<LabelSelector>,
    /// The selector was there and could not be read, so all pods in scope count as selected.
    pub(super) unreadable_selector: bool,
    pub(super) body: Body,
    /// The key sets that it needs fetched.
    pub(super) sources: Vec<JwksSource>,
    /// The spec as it was found, to notice what is no change.
    spec: Bytes,
    created: String,
}

/// What differs by kind.
#[derive(Debug)]
pub(super) enum Body {
    /// Decides modes.
    Modes(Box<PeerAuthentication>),
    /// Travels to proxies, with the key sets that it asks for.
    Wire(Box<v1::Policy>),
}

impl Object {
    /// Reads an object of `kind`; `None` for one without namespace or name, which the API server never sends.
    pub(super) fn read(kind: PolicyKind, object: &DynamicObject) -> Option<Self> {
        let meta = &object.metadata;
        let key = PolicyKey {
            kind,
            namespace: meta.namespace.as_deref()?.into(),
            name: meta.name.as_deref()?.into(),
        };
        let name = ObjectName { namespace: key.namespace.to_string(), name: key.name.to_string() };
        let spec = object.data.get("spec").unwrap_or(&Value::Null);
        let annotations = meta.annotations.clone().unwrap_or_default();
        let created = meta.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
        let head = Head {
            key,
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            generation: meta.generation.unwrap_or_default(),
            spec: Bytes::from(spec.to_string()),
            unreadable_selector: has_unreadable_selector(spec),
            created,
        };
        Some(match kind {
            PolicyKind::PeerAuthentication => head.peer(name, spec),
            PolicyKind::AuthorizationPolicy => head.authorization(name, &annotations, spec),
            PolicyKind::RequestAuthentication => head.request(name, spec),
        })
    }

    /// Whether `other` is the same object and says the same: a status was written, nothing else.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        let of_object = |object: &Self| {
            let PolicyInfo { uid, generation, dry_run, .. } = &*object.info;
            (Arc::clone(uid), *generation, *dry_run, object.spec.clone(), object.created.clone())
        };
        of_object(self) == of_object(other)
    }

    /// Whether it applies to a pod of `namespace` with these labels. `root` is the root namespace.
    pub(super) fn selects<'a>(
        &self,
        root: &str,
        namespace: &str,
        label: impl Fn(&str) -> Option<&'a str>,
    ) -> bool {
        let own = &*self.info.key.namespace;
        let Some(selector) = &self.selector else { return false };
        if own != namespace && own != root {
            return false;
        }
        // In the root namespace a PeerAuthentication with a selector selects nothing, as in Istio.
        if own == root && matches!(self.body, Body::Modes(_)) {
            return selector.is_empty();
        }
        selector.match_labels.iter().all(|(key, value)| label(key) == Some(value))
    }

    /// The message to proxies with its key sets, where it is of a kind that travels.
    pub(super) fn wire(&self, documents: &BTreeMap<Arc<str>, Bytes>) -> Option<v1::Policy> {
        let Body::Wire(wire) = &self.body else { return None };
        let jwks = self.info.key_sources.iter().filter_map(|source| {
            Some(v1::Jwks { source: source.to_string(), document: documents.get(source)?.clone() })
        });
        Some(v1::Policy { jwks: jwks.collect(), ..v1::Policy::clone(wire) })
    }

    /// Whether it says of any port that plaintext may come.
    pub(super) fn is_below_strict(&self) -> bool {
        let Body::Modes(object) = &self.body else { return false };
        let mut modes = std::iter::once(object.mode()).chain(object.port_modes().map(|(_, mode)| mode));
        modes.any(|mode| matches!(mode, MutualTlsMode::Disable | MutualTlsMode::Permissive))
    }
}

/// What all kinds have.
struct Head {
    key: PolicyKey,
    uid: Arc<str>,
    generation: i64,
    spec: Bytes,
    unreadable_selector: bool,
    created: String,
}

/// What is found out about a policy of any kind.
struct Findings {
    selector: Option<LabelSelector>,
    faults: Vec<PolicyError>,
    action: &'static str,
    dry_run: bool,
    needs_http: bool,
    sources: Vec<JwksSource>,
}

impl Head {
    fn peer(self, name: ObjectName, spec: &Value) -> Object {
        let object = PeerAuthentication::new(name, &self.created, spec);
        let findings = Findings {
            selector: Some(object.selector().clone()),
            faults: object.faults().to_vec(),
            action: "",
            dry_run: false,
            needs_http: false,
            sources: Vec::new(),
        };
        self.object(findings, |_| Body::Modes(Box::new(object)))
    }

    fn authorization(self, name: ObjectName, annotations: &BTreeMap<String, String>, spec: &Value) -> Object {
        let asked = Enforcement::of(annotations);
        let object = AuthorizationPolicy::new(name, asked, spec);
        let read = object.spec().ok();
        let findings = Findings {
            selector: selector_of(object.scope()),
            faults: object.faults().to_vec(),
            action: word(spec.get("action")),
            dry_run: object.enforcement() == Enforcement::DryRun,
            needs_http: read.is_some_and(AuthorizationPolicySpec::needs_http),
            sources: Vec::new(),
        };
        let ports = read.map(deciding_ports).unwrap_or_default();
        self.object(findings, |wire| Body::Wire(Box::new(v1::Policy { ports, ..wire })))
    }

    fn request(self, name: ObjectName, spec: &Value) -> Object {
        let object = RequestAuthentication::new(name, spec);
        let read = object.spec().ok();
        let findings = Findings {
            selector: selector_of(object.scope()),
            faults: object.faults().to_vec(),
            action: "",
            dry_run: false,
            needs_http: read.is_some_and(|spec| !spec.jwt_rules.is_empty()),
            sources: read.map(sources_of).unwrap_or_default(),
        };
        self.object(findings, |wire| Body::Wire(Box::new(wire)))
    }

    fn object(self, found: Findings, body: impl FnOnce(v1::Policy) -> Body) -> Object {
        let Head { key, uid, generation, spec, unreadable_selector, created } = self;
        let fault = joined(&found.faults);
        let names: BTreeSet<&str> = found.sources.iter().map(JwksSource::name).collect();
        let key_sources = names.into_iter().map(Arc::from).collect();
        let wire = v1::Policy {
            name: key.object(),
            action: found.action.to_owned(),
            required_features: found.needs_http.then(|| HTTP.to_owned()).into_iter().collect(),
            body: if fault.is_none() { spec.clone() } else { Bytes::new() },
            kind: match key.kind {
                PolicyKind::RequestAuthentication => key.kind.as_str().to_owned(),
                PolicyKind::PeerAuthentication | PolicyKind::AuthorizationPolicy => String::new(),
            },
            dry_run: found.dry_run,
            generation,
            fault: fault.clone().unwrap_or_default(),
            ..v1::Policy::default()
        };
        let info = PolicyInfo {
            key,
            uid,
            generation,
            fault,
            unsupported: found.faults.iter().any(PolicyError::is_unsupported),
            needs_http: found.needs_http,
            action: found.action,
            dry_run: found.dry_run,
            key_sources,
            seen: Instant::now(),
        };
        Object {
            info: Arc::new(info),
            selector: found.selector,
            unreadable_selector,
            body: body(wire),
            sources: found.sources,
            spec,
            created,
        }
    }
}

/// The action as Istio reads it: absent is ALLOW. A word that is none of the four is announced as nothing, which
/// proxies take for the worst.
fn word(action: Option<&Value>) -> &'static str {
    match action {
        None | Some(Value::Null) => "ALLOW",
        Some(Value::String(word)) => {
            ["ALLOW", "DENY", "AUDIT", "CUSTOM"].into_iter().find(|known| known == word).unwrap_or_default()
        }
        Some(_) => "",
    }
}

fn selector_of(scope: &Scope) -> Option<LabelSelector> {
    match scope {
        Scope::Pods(selector) => Some(selector.clone()),
        Scope::NotWorkloads => None,
    }
}

/// `cinch_policy` reads a selector that it can't understand as one that selects all.
fn has_unreadable_selector(spec: &Value) -> bool {
    let Some(selector) = spec.get("selector").filter(|selector| !selector.is_null()) else { return false };
    let Some(fields) = selector.as_object() else { return true };
    fields.iter().any(|(name, value)| match value {
        Value::Null => false,
        Value::Object(labels) if name == "matchLabels" => {
            labels.values().any(|value| !value.is_string() && !value.is_null())
        }
        _ => true,
    })
}

fn joined(faults: &[PolicyError]) -> Option<String> {
    let all: Vec<String> = faults.iter().map(PolicyError::to_string).collect();
    (!all.is_empty()).then(|| all.join("; ").chars().take(FAULT_LENGTH).collect())
}

/// The ports on which the policy can match, if every rule names its ports; empty for all.
fn deciding_ports(spec: &AuthorizationPolicySpec) -> Vec<u32> {
    let of_rules: Option<Vec<BTreeSet<u16>>> = spec.rules.iter().flatten().map(ports_of).collect();
    let ports: BTreeSet<u16> = of_rules.unwrap_or_default().into_iter().flatten().collect();
    ports.into_iter().map(u32::from).collect()
}

/// The ports to which the rule is limited; `None` where it is not, or in other words than plain numbers.
fn ports_of(rule: &Rule) -> Option<BTreeSet<u16>> {
    let parse =
        |ports: &[String]| ports.iter().map(|port| port.parse().ok()).collect::<Option<BTreeSet<u16>>>();
    let named = |ports: Option<&Vec<String>>| parse(ports.filter(|ports| !ports.is_empty())?);
    let of_to = rule.to.as_ref().filter(|to| !to.is_empty()).and_then(|to| {
        let each = to.iter().map(|to| named(to.operation.ports.as_ref()));
        Some(each.collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
    });
    let conditions = || rule.when.iter().flatten().filter(|when| when.key == "destination.port");
    of_to.or_else(|| conditions().find_map(|when| named(when.values.as_ref())))
}

fn sources_of(spec: &RequestAuthenticationSpec) -> Vec<JwksSource> {
    let fetched = spec.jwt_rules.iter().filter(|rule| rule.jwks.is_empty());
    let mut sources: Vec<JwksSource> = fetched
        .map(|rule| JwksSource {
            issuer: rule.issuer.clone(),
            uri: (!rule.jwks_uri.is_empty()).then(|| rule.jwks_uri.clone()),
            timeout: rule.fetch_timeout(),
        })
        .collect();
    sources.sort();
    sources.dedup();
    sources
}
