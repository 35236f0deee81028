//! From the control plane's `WorkloadPolicy` to what the inbound side enforces. Whatever can't be understood
//! closes: a mode becomes STRICT, a policy refuses what it may decide on, and the operator is told why.

use crate::config::Protocol;
use crate::http_filter::Tokens;
use crate::inbound_policy::InboundPolicy;
use cinch_control::v1;
use cinch_policy::{
    AuthorizationPolicy, Enforcement, MeshConfig, Mode, ObjectName, PathNormalization, PolicyError,
    PolicyObject, PortModes, RequestAuthentication, Workload, WorkloadPolicies,
};
use cinch_reason::Reason;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

#[cfg(test)]
mod tests;

/// Features of policies that this version enforces beyond what every version does: policies that are evaluated and
/// reported, and never enforced; policies that only requests can answer.
pub const FEATURES: &[&str] = &["dry-run", HTTP];

/// The feature of policies that only requests can answer.
const HTTP: &str = "http";

/// Characters of one fault that the operator is told.
const FAULT: usize = 300;

/// Bytes of all faults that the operator is told.
const FAULTS: usize = 64 * 1024;

/// Where the policy applies.
#[derive(Debug, Clone)]
pub struct Target {
    /// The pod's namespace.
    pub namespace: String,
    /// Our trust domain.
    pub trust_domain: String,
}

/// What becomes of one policy of the message.
enum Part {
    /// It is put in force as meant.
    Usable(PolicyObject),
    /// It is put in force as the strictest that it may mean.
    Closed { stand_in: PolicyObject, name: ObjectName, reason: Reason, fault: PolicyError },
    /// It refuses everything.
    Broken { name: ObjectName, reason: Reason, fault: PolicyError },
    /// It decides nothing, so it only goes unreported.
    Silent { name: ObjectName, fault: PolicyError },
}

/// Reads a whole policy. It never fails: what can't be read closes what it selects, and is named in
/// [`InboundPolicy::nack`].
#[must_use]
pub fn receive(message: v1::WorkloadPolicy, target: &Target) -> InboundPolicy {
    receive_with(message, target, FEATURES)
}

/// As [`receive`], for a proxy that has `features`.
fn receive_with(message: v1::WorkloadPolicy, target: &Target, features: &[&str]) -> InboundPolicy {
    let mut faults = Vec::new();
    let modes = modes(&message, &mut faults);
    let mesh = mesh(&message, target, &mut faults);
    let declared = declared(&message);
    let mut parts = Parts { usable: Vec::new(), broken: Vec::new(), unusable: Vec::new() };
    let mut misleading = Vec::new();
    let reads_http = message.policies.iter().any(|policy| !only_reports(policy) && asks_http(policy));
    for policy in &message.policies {
        match read(policy, &mesh, target, features) {
            // Nobody's connection is read as HTTP, and so perhaps cut, for a policy that refuses nothing; and what is
            // said of connections that are not read would mislead.
            Part::Usable(object) if only_reports(policy) && asks_http(policy) && !reads_http => {
                misleading.push(object);
            }
            part => parts.take(part, &mut faults),
        }
    }
    let workload = Workload { namespace: target.namespace.clone(), ..Workload::default() };
    let keys = message.policies.iter().flat_map(|policy| &policy.jwks);
    let documents = keys.map(|jwks| (jwks.source.as_str(), &*jwks.document));
    let tokens = Tokens::of_workload(&mesh, &parts.usable, &workload, documents);
    let mut policies = WorkloadPolicies::compile(&mesh, &parts.usable, &workload);
    faults.extend(policies.faults().map(|(name, fault)| line(name, fault)));
    parts.close(&mut policies);
    let (other, http): (Vec<_>, Vec<_>) = declared.iter().partition(|(_, speaks)| **speaks == Protocol::Tcp);
    let other = || other.iter().map(|(port, _)| **port);
    policies.declare_other(other());
    let mut reports = None;
    if !http.is_empty() && !misleading.is_empty() {
        // Connections to declared ports are read anyway, so their requests can be reported on.
        parts.usable.append(&mut misleading);
        let mut of_requests = WorkloadPolicies::compile(&mesh, &parts.usable, &workload);
        parts.close(&mut of_requests);
        of_requests.declare_other(other());
        reports = Some(Arc::new(std::mem::replace(&mut policies, of_requests)));
    }
    InboundPolicy {
        version: message.version,
        modes,
        policies: (!policies.is_empty()).then(|| Arc::new(policies)),
        tokens: tokens.map(Arc::new),
        unusable: parts.unusable,
        declared,
        reports,
        only_reports: message.policies.iter().all(only_reports),
        locked: message.locked,
        path_normalization: mesh.path_normalization,
        nack: joined(&faults),
    }
}

/// A port or a protocol that we don't know declares nothing: that costs metrics, and nobody a connection.
fn declared(message: &v1::WorkloadPolicy) -> BTreeMap<u16, Protocol> {
    let known = |declared: &v1::DeclaredPort| {
        let protocol = match declared.protocol() {
            v1::Protocol::Http => Protocol::Http,
            v1::Protocol::Http2 => Protocol::Http2,
            v1::Protocol::Grpc => Protocol::Grpc,
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Unspecified => return None,
        };
        Some((u16::try_from(declared.port).ok()?, protocol))
    };
    message.declared.iter().filter_map(known).collect()
}

/// Whether a policy decides nothing.
fn only_reports(policy: &v1::Policy) -> bool {
    policy.dry_run || policy.action == "AUDIT"
}

fn asks_http(policy: &v1::Policy) -> bool {
    policy.required_features.iter().any(|feature| feature == HTTP)
}

/// The policies of one message, as far as they have been read.
struct Parts {
    usable: Vec<PolicyObject>,
    broken: Vec<(ObjectName, PolicyError)>,
    unusable: Vec<(Arc<str>, Reason)>,
}

impl Parts {
    fn close(&self, policies: &mut WorkloadPolicies) {
        for (name, fault) in &self.broken {
            policies.close(name, fault.clone());
        }
    }

    fn take(&mut self, part: Part, faults: &mut Vec<String>) {
        match part {
            Part::Usable(object) => self.usable.push(object),
            Part::Closed { stand_in, name, reason, fault } => {
                faults.push(line(&name.to_string(), &fault));
                self.unusable.push((name.to_string().into(), reason));
                self.usable.push(stand_in);
            }
            Part::Broken { name, reason, fault } => {
                faults.push(line(&name.to_string(), &fault));
                self.unusable.push((name.to_string().into(), reason));
                self.broken.push((name, fault));
            }
            Part::Silent { name, fault } => faults.push(line(&name.to_string(), &fault)),
        }
    }
}

/// A line of the nack.
fn line(name: &str, fault: &PolicyError) -> String {
    let fault: String = fault.to_string().chars().take(FAULT).collect();
    format!("{name}: {}", fault.replace('\n', " "))
}

/// The whole nack. Where there are too many faults for it, names matter more than what is wrong.
fn joined(faults: &[String]) -> String {
    let mut nack = faults.join("\n");
    if nack.len() > FAULTS {
        let names: Vec<&str> =
            faults.iter().map(|line| line.split(": ").next().unwrap_or_default()).collect();
        nack = names.join(": not in force\n") + ": not in force";
    }
    nack.truncate(nack.floor_char_boundary(FAULTS));
    nack
}

fn modes(message: &v1::WorkloadPolicy, faults: &mut Vec<String>) -> PortModes {
    let mode = known_mode(message.mode, "the workload", faults);
    let mut ports = Vec::with_capacity(message.ports.len());
    for of_port in &message.ports {
        match u16::try_from(of_port.port) {
            Ok(port) => ports.push((port, known_mode(of_port.mode, &format!("port {port}"), faults))),
            Err(_) => faults.push(format!("{} is no port", of_port.port)),
        }
    }
    let modes = PortModes::uniform(mode, ports);
    if message.locked { modes.at_least(Mode::Strict) } else { modes }
}

fn known_mode(number: i32, what: &str, faults: &mut Vec<String>) -> Mode {
    match v1::Mode::try_from(number) {
        Ok(v1::Mode::Disable) => Mode::Disable,
        Ok(v1::Mode::Permissive) => Mode::Permissive,
        Ok(v1::Mode::Strict) => Mode::Strict,
        Ok(v1::Mode::Unspecified) | Err(_) => {
            faults.push(format!("{what} has the unknown mode {number} and is closed"));
            Mode::Strict
        }
    }
}

/// The settings that policies are read against.
fn mesh(message: &v1::WorkloadPolicy, target: &Target, faults: &mut Vec<String>) -> MeshConfig {
    let trust_domain = target.trust_domain.clone();
    let Some(mesh) = &message.mesh else {
        // An operator of before sends policies of our namespace and of the root namespace, so one other name is the
        // root's.
        let names = message.policies.iter().map(|policy| name_of(&policy.name).namespace);
        let root_namespace =
            names.filter(|namespace| *namespace != target.namespace).min().unwrap_or_default();
        return MeshConfig { trust_domain, root_namespace, ..MeshConfig::default() };
    };
    let word = match mesh.path_normalization.as_str() {
        "" => "SAFE",
        word => word,
    };
    let path_normalization = serde_json::from_value(json!(word)).unwrap_or_else(|_| {
        faults.push(format!(
            "the mesh reads paths by {word:?}, which is unknown here: judged under all readings"
        ));
        PathNormalization::Safe
    });
    MeshConfig {
        trust_domain,
        trust_domain_aliases: mesh.trust_domain_aliases.clone(),
        root_namespace: mesh.root_namespace.clone(),
        path_normalization,
    }
}

fn name_of(name: &str) -> ObjectName {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn read(policy: &v1::Policy, mesh: &MeshConfig, target: &Target, features: &[&str]) -> Part {
    let name = name_of(&policy.name);
    if name.namespace != target.namespace && name.namespace != mesh.root_namespace {
        let fault = PolicyError::NotAPolicy("it is of a third namespace".to_owned());
        return Part::Broken { name, reason: Reason::PolicyInvalid, fault };
    }
    let lacks = |feature: &&String| !features.contains(&feature.as_str());
    if let Some(missing) = policy.required_features.iter().find(lacks) {
        return without(policy, name, missing);
    }
    match object(policy, &name) {
        Ok(object) => Part::Usable(object),
        Err(fault) if policy.dry_run => Part::Silent { name, fault },
        Err(fault) => Part::Broken { name, reason: Reason::PolicyInvalid, fault },
    }
}

/// A policy that asks for a feature that we lack: DENY and CUSTOM match everything on their ports, ALLOW is there
/// and never matches, and tokens that can't be looked at are refused with what carries them.
fn without(policy: &v1::Policy, name: ObjectName, missing: &str) -> Part {
    let fault = PolicyError::Unreadable(format!("this proxy lacks the feature {missing:?}"));
    let reason = if missing == HTTP { Reason::HttpPolicyClosed } else { Reason::PolicyInvalid };
    let spec = match policy.action.as_str() {
        _ if policy.dry_run => return Part::Silent { name, fault },
        _ if !policy.fault.is_empty() || !policy.kind.is_empty() && policy.kind != AUTHORIZATION => {
            return Part::Broken { name, reason, fault };
        }
        "AUDIT" => return Part::Silent { name, fault },
        "ALLOW" => json!({"action": "ALLOW"}),
        "DENY" | "CUSTOM" if policy.ports.is_empty() => json!({"action": "DENY", "rules": [{}]}),
        "DENY" | "CUSTOM" => {
            let ports: Vec<String> = policy.ports.iter().map(u32::to_string).collect();
            json!({"action": "DENY", "rules": [{"to": [{"operation": {"ports": ports}}]}]})
        }
        _ => return Part::Broken { name, reason, fault },
    };
    let stand_in = AuthorizationPolicy::new(name.clone(), Enforcement::Enforced, &spec);
    Part::Closed { stand_in: PolicyObject::AuthorizationPolicy(stand_in), name, reason, fault }
}

/// The words for kinds; an AuthorizationPolicy may also go without.
const AUTHORIZATION: &str = "AuthorizationPolicy";
const REQUEST: &str = "RequestAuthentication";

/// The object without what selects: the operator has selected, and live labels are not known here.
fn object(policy: &v1::Policy, name: &ObjectName) -> Result<PolicyObject, PolicyError> {
    if !policy.fault.is_empty() {
        let (field, problem) = ("the operator could not use it".to_owned(), policy.fault.clone());
        return Err(PolicyError::Value { field, problem });
    }
    let mut spec: Value =
        serde_json::from_slice(&policy.body).map_err(|error| PolicyError::Unreadable(error.to_string()))?;
    let Some(fields) = spec.as_object_mut() else {
        return Err(PolicyError::Unreadable("it is no JSON object".to_owned()));
    };
    for selecting in ["selector", "targetRef", "targetRefs"] {
        fields.remove(selecting);
    }
    match policy.kind.as_str() {
        "" | AUTHORIZATION => {
            let action = fields.get("action").and_then(Value::as_str).unwrap_or("ALLOW");
            if action != policy.action {
                let problem = format!("its action is {action:?}, announced as {:?}", policy.action);
                return Err(PolicyError::Unreadable(problem));
            }
            let enforcement = if policy.dry_run { Enforcement::DryRun } else { Enforcement::Enforced };
            let object = AuthorizationPolicy::new(name.clone(), enforcement, &spec);
            Ok(PolicyObject::AuthorizationPolicy(object))
        }
        REQUEST => Ok(PolicyObject::RequestAuthentication(RequestAuthentication::new(name.clone(), &spec))),
        other => Err(PolicyError::NotAPolicy(format!("kind {other:?}"))),
    }
}
