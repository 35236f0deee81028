//! From the control plane's `WorkloadPolicy` to what the inbound side enforces. Whatever can't be understood
//! closes: a mode becomes STRICT, a policy refuses everything, and the operator is told why.

use crate::context::InboundPolicy;
use cinch_control::v1;
use cinch_policy::{
    AuthorizationPolicy, Enforcement, MeshConfig, Mode, ObjectName, PolicyError, PolicyObject, PortModes,
    Workload, WorkloadPolicies,
};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Features of policies that this version enforces beyond what every version does; none so far.
pub const FEATURES: &[&str] = &[];

/// Where the policy applies.
#[derive(Debug, Clone)]
pub struct Target {
    /// The pod's namespace.
    pub namespace: String,
    /// Our trust domain.
    pub trust_domain: String,
}

/// The policy to enforce, and what the operator must be told when a part could not be used.
pub struct Received {
    /// To be put in force.
    pub policy: InboundPolicy,
    /// The faults, joined; empty when all of it is in force as meant.
    pub nack: String,
}

/// Reads a whole policy. It never fails: what can't be read closes what it selects.
#[must_use]
pub fn receive(message: v1::WorkloadPolicy, target: &Target) -> Received {
    let mut faults = Vec::new();
    let mode = known_mode(message.mode, "the workload", &mut faults);
    let mut ports = Vec::with_capacity(message.ports.len());
    for of_port in &message.ports {
        match u16::try_from(of_port.port) {
            Ok(port) => ports.push((port, known_mode(of_port.mode, &format!("port {port}"), &mut faults))),
            Err(_) => faults.push(format!("{} is no port", of_port.port)),
        }
    }
    let mut modes = PortModes::uniform(mode, ports);
    if message.locked {
        modes = modes.at_least(Mode::Strict);
    }
    let policies = compile(message.policies, target, &mut faults);
    let policy = InboundPolicy { version: message.version, modes, policies, locked: message.locked };
    Received { policy, nack: faults.join("; ") }
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

fn compile(
    policies: Vec<v1::Policy>,
    target: &Target,
    faults: &mut Vec<String>,
) -> Option<Arc<WorkloadPolicies>> {
    if policies.is_empty() {
        return None;
    }
    let (mut usable, mut broken) = (Vec::new(), Vec::new());
    for policy in policies {
        let name = name_of(&policy.name);
        match read(&policy) {
            Ok(spec) => usable.push(AuthorizationPolicy::new(name, Enforcement::Enforced, &spec)),
            Err(fault) => broken.push((name, fault)),
        }
    }
    let foreign: BTreeSet<&str> = usable
        .iter()
        .map(|policy| policy.name().namespace.as_str())
        .filter(|namespace| *namespace != target.namespace)
        .collect();
    // The operator sends those of our namespace and of the root namespace, so one other name is the root's.
    let root = foreign.first().map_or(String::new(), |root| (*root).to_owned());
    let strange: Vec<_> = usable
        .iter()
        .map(|policy| policy.name().clone())
        .filter(|name| name.namespace != target.namespace && name.namespace != root)
        .collect();
    let mesh = MeshConfig {
        trust_domain: target.trust_domain.clone(),
        root_namespace: root,
        ..MeshConfig::default()
    };
    let workload = Workload { namespace: target.namespace.clone(), ..Workload::default() };
    let usable: Vec<_> = usable.into_iter().map(PolicyObject::AuthorizationPolicy).collect();
    let mut compiled = WorkloadPolicies::compile(&mesh, &usable, &workload);
    let strange =
        strange.into_iter().map(|name| (name, PolicyError::NotAPolicy("it is of a third namespace".into())));
    for (name, fault) in broken.into_iter().chain(strange) {
        compiled.close(&name, fault);
    }
    faults.extend(compiled.faults().map(|(name, fault)| format!("{name}: {fault}")));
    Some(Arc::new(compiled))
}

fn name_of(name: &str) -> ObjectName {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }
}

/// The spec without its selector: the operator has selected, and live labels are not known here.
fn read(policy: &v1::Policy) -> Result<Value, PolicyError> {
    if let Some(missing) =
        policy.required_features.iter().find(|feature| !FEATURES.contains(&feature.as_str()))
    {
        return Err(PolicyError::Unreadable(format!("this proxy lacks the feature {missing:?}")));
    }
    let mut spec: Value =
        serde_json::from_slice(&policy.body).map_err(|error| PolicyError::Unreadable(error.to_string()))?;
    let Some(fields) = spec.as_object_mut() else {
        return Err(PolicyError::Unreadable("it is no JSON object".to_owned()));
    };
    fields.remove("selector");
    let action = fields.get("action").and_then(Value::as_str).unwrap_or("ALLOW");
    if action != policy.action {
        return Err(PolicyError::Unreadable(format!(
            "its action is {action:?}, announced as {:?}",
            policy.action
        )));
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cinch_policy::{Connection, Decision, no_providers};
    use cinch_reason::Reason;
    use std::net::IpAddr;

    fn target() -> Target {
        Target { namespace: "shop".into(), trust_domain: "cluster.local".into() }
    }

    fn policy(name: &str, action: &str, body: &str) -> v1::Policy {
        v1::Policy {
            name: name.into(),
            action: action.into(),
            body: body.as_bytes().to_vec().into(),
            ..v1::Policy::default()
        }
    }

    fn message(policies: Vec<v1::Policy>) -> v1::WorkloadPolicy {
        v1::WorkloadPolicy { version: 7, mode: v1::Mode::Permissive as i32, policies, ..Default::default() }
    }

    fn decide<'p>(received: &'p Received, peer: &str) -> Decision<'p> {
        let destination = "10.0.0.2:80".parse().unwrap();
        let connection = Connection::new(Some(peer), IpAddr::from([10, 0, 0, 1]), destination);
        received.policy.policies.as_ref().unwrap().tcp(&connection, &no_providers)
    }

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    #[test]
    fn modes_and_the_lock_are_taken_over() {
        let mut sent = message(Vec::new());
        sent.ports = vec![v1::PortMode { port: 80, mode: v1::Mode::Disable as i32 }];
        let received = receive(sent.clone(), &target());
        assert_eq!((received.policy.version, received.nack.as_str()), (7, ""));
        assert_eq!(received.policy.modes.mode(80), Mode::Disable);
        assert_eq!(received.policy.modes.mode(81), Mode::Permissive);
        assert!(received.policy.policies.is_none());
        sent.locked = true;
        assert_eq!(receive(sent, &target()).policy.modes.weakest(), Mode::Strict);
    }

    #[test]
    fn unknown_modes_and_ports_close_and_are_reported() {
        let mut sent = message(Vec::new());
        sent.mode = 0;
        sent.ports = vec![
            v1::PortMode { port: 80, mode: 9 },
            v1::PortMode { port: 70000, mode: v1::Mode::Disable as i32 },
        ];
        let received = receive(sent, &target());
        assert_eq!(received.policy.modes.weakest(), Mode::Strict);
        for part in ["the workload", "port 80", "70000"] {
            assert!(received.nack.contains(part), "{}", received.nack);
        }
    }

    #[test]
    fn policies_of_the_own_and_the_root_namespace_decide_whatever_their_selector() {
        let allow = r#"{"action":"ALLOW","selector":{"matchLabels":{"app":"api"}},"rules":[{"from":[{"source":{"principals":["cluster.local/ns/shop/sa/web"]}}]}]}"#;
        let deny = r#"{"action":"DENY","rules":[{"from":[{"source":{"namespaces":["legacy"]}}]}]}"#;
        let sent = message(vec![policy("shop/allow-web", "ALLOW", allow), policy("mesh/deny", "DENY", deny)]);
        let received = receive(sent, &target());
        assert_eq!(received.nack, "");
        assert!(decide(&received, WEB).is_allowed());
        let other = decide(&received, "spiffe://cluster.local/ns/shop/sa/other");
        assert_eq!(other.reason, Reason::NoAllowMatched);
        let legacy = decide(&received, "spiffe://cluster.local/ns/legacy/sa/x");
        assert_eq!(legacy.reason, Reason::DeniedByPolicy);
    }

    #[test]
    fn what_cannot_be_used_closes_and_is_named() {
        let good = r#"{"action":"ALLOW","rules":[{}]}"#;
        let mut featured = policy("shop/p", "ALLOW", good);
        featured.required_features = vec!["weather".into()];
        for bad in [
            policy("shop/p", "DENY", "{"),
            policy("shop/p", "DENY", "[]"),
            policy("shop/p", "DENY", good),
            policy("shop/p", "ALLOW", r#"{"action":"ALLOW","colour":"red"}"#),
            featured,
        ] {
            let received = receive(message(vec![policy("shop/good", "ALLOW", good), bad.clone()]), &target());
            assert!(received.nack.contains("shop/p"), "{bad:?}: {}", received.nack);
            assert!(!decide(&received, WEB).is_allowed(), "{bad:?}");
        }
        let third = [policy("a/p", "ALLOW", good), policy("b/p", "ALLOW", good)];
        assert!(!decide(&receive(message(third.to_vec()), &target()), WEB).is_allowed());
    }
}
