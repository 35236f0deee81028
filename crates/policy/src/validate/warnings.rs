//! What is allowed and will surprise.

use super::around::{PodFacts, Surroundings};
use super::http::{http_field, named_ports, needs_requests, reads_every_port, seldom_reported};
use super::values::{each_value, of_value};
use crate::authorization::{Action, AuthorizationPolicySpec, Rule};
use crate::mesh::{MeshConfig, Workload};
use crate::object::{
    AuthorizationPolicy, Enforcement, PeerAuthentication, PolicyObject, RequestAuthentication,
};
use crate::peer_authentication::{LabelSelector, MutualTlsMode};
use serde_json::Value;

/// The warnings for an object that is accepted.
pub(super) fn warnings(
    parsed: &PolicyObject,
    object: &Value,
    mesh: &MeshConfig,
    around: Option<&Surroundings>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    if has_targets(object) {
        warnings.push(
            "spec.targetRefs: the policy applies to gateways and waypoints only, which Cinch does not have; use spec.selector to select pods"
                .to_owned(),
        );
        return warnings;
    }
    match parsed {
        PolicyObject::PeerAuthentication(object) => of_peer(object, mesh, around, &mut warnings),
        PolicyObject::RequestAuthentication(object) => of_request(object, mesh, around, &mut warnings),
        PolicyObject::AuthorizationPolicy(object) => {
            of_authorization(object, mesh, around, &mut warnings);
        }
    }
    warnings
}

fn has_targets(object: &Value) -> bool {
    let spec = object.get("spec");
    ["targetRef", "targetRefs"]
        .into_iter()
        .filter_map(|name| spec?.get(name))
        .any(|targets| !targets.is_null() && targets.as_array().is_none_or(|list| !list.is_empty()))
}

const SELECTS_NONE: &str =
    "spec.selector: no pod has these labels now; check them with kubectl get pods --show-labels";

fn of_peer(
    object: &PeerAuthentication,
    mesh: &MeshConfig,
    around: Option<&Surroundings>,
    warnings: &mut Vec<String>,
) {
    if object.name().namespace == mesh.root_namespace && !object.selector().is_empty() {
        warnings.push(
            "spec.selector: in the root namespace an object with a selector selects nothing; put it into the pods' namespace"
                .to_owned(),
        );
        return;
    }
    let Some(around) = around else { return };
    of_lock(object, around, warnings);
    let selected: Vec<_> = around
        .pods
        .iter()
        .filter(|pod| pod.namespace == object.name().namespace && object.selector().selects(&pod.labels))
        .collect();
    if !object.selector().is_empty() && selected.is_empty() {
        warnings.push(SELECTS_NONE.to_owned());
        return;
    }
    for (number, _) in object.port_modes() {
        if !selected.iter().any(|pod| pod.ports.iter().any(|port| port.number == number)) {
            warnings.push(format!(
                "spec.portLevelMtls[\"{number}\"]: no selected pod declares this port; write the container's port, not the Service's"
            ));
        }
    }
}

/// A lock lifts every port, whatever the object says.
fn of_lock(object: &PeerAuthentication, around: &Surroundings, warnings: &mut Vec<String>) {
    let below = |mode| matches!(mode, MutualTlsMode::Permissive | MutualTlsMode::Disable);
    if around.locked && (below(object.mode()) || object.port_modes().any(|(_, mode)| below(mode))) {
        warnings.push(
            "spec: the namespace is locked STRICT, so PERMISSIVE and DISABLE change nothing while the lock stands"
                .to_owned(),
        );
    }
}

fn of_request(
    object: &RequestAuthentication,
    mesh: &MeshConfig,
    around: Option<&Surroundings>,
    warnings: &mut Vec<String>,
) {
    let Ok(spec) = object.spec() else { return };
    warnings.extend(reads_every_port(spec));
    let selected = around.map(|around| pods(around, |workload| object.applies_to(mesh, workload)));
    if is_narrow(spec.selector.as_ref()) && selected.is_some_and(|pods| pods.is_empty()) {
        warnings.push(SELECTS_NONE.to_owned());
    }
    if !spec.jwt_rules.is_empty() {
        warnings.push(
            "spec.jwtRules: by this alone a request without a token still passes; require one with an AuthorizationPolicy on requestPrincipals"
                .to_owned(),
        );
    }
    let rules = spec.jwt_rules.iter().enumerate();
    warnings.extend(
        rules.flat_map(|(index, rule)| crate::jwt::rule_warnings(rule, &format!("spec.jwtRules[{index}]"))),
    );
}

/// Whether there is a selector that leaves pods out: without one, to have no pod yet is no surprise.
fn is_narrow(selector: Option<&LabelSelector>) -> bool {
    selector.is_some_and(|selector| !selector.is_empty())
}

fn pods(around: &Surroundings, applies: impl Fn(&Workload) -> bool) -> Vec<&PodFacts> {
    around.pods.iter().filter(|pod| applies(&pod.workload())).collect()
}

fn of_authorization(
    object: &AuthorizationPolicy,
    mesh: &MeshConfig,
    around: Option<&Surroundings>,
    warnings: &mut Vec<String>,
) {
    let Ok(spec) = object.spec() else { return };
    let rules = spec.rules.as_deref().unwrap_or_default();
    warnings.extend(seldom_reported(spec, object.enforcement()));
    warnings.extend(needs_requests(spec, object.enforcement()));
    for (number, rule) in rules.iter().enumerate() {
        of_rule(rule, number, spec.action, mesh, warnings);
    }
    if spec.rules.as_ref().is_none_or(Vec::is_empty) && object.enforcement() == Enforcement::Enforced {
        warnings.push(
            "spec.rules: an ALLOW policy without rules denies everything on what it selects".to_owned(),
        );
    }
    let Some(around) = around else { return };
    let selected = pods(around, |workload| object.applies_to(mesh, workload));
    if is_narrow(spec.selector.as_ref()) && selected.is_empty() {
        warnings.push(SELECTS_NONE.to_owned());
    }
    of_selected(object, spec, &selected, warnings);
}

fn of_selected(
    object: &AuthorizationPolicy,
    spec: &AuthorizationPolicySpec,
    selected: &[&PodFacts],
    warnings: &mut Vec<String>,
) {
    let rules = spec.rules.as_deref().unwrap_or_default();
    let newly = selected.iter().filter(|pod| !pod.has_allow).count();
    if spec.action == Action::Allow && object.enforcement() == Enforcement::Enforced && newly > 0 {
        warnings.push(format!(
            "spec.action: {newly} of the selected pods had no ALLOW policy until now: whatever this one does not allow is denied there from now on"
        ));
    }
    for (number, rule) in rules.iter().enumerate() {
        let Some(field) = http_field(rule) else { continue };
        let opaque: Vec<_> = selected.iter().flat_map(|pod| &pod.ports).filter(|port| port.opaque).collect();
        let named = named_ports(rule);
        if let Some(port) = opaque.iter().find(|port| named.is_empty() || named.contains(&port.number)) {
            let effect = match spec.action {
                Action::Allow => "there the rule never matches",
                _ => "there the rule matches without it, so it is wider",
            };
            warnings.push(format!(
                "spec.rules[{number}].{field}: port {} is declared to carry no HTTP; {effect}",
                port.number
            ));
        }
    }
}

fn of_rule(rule: &Rule, number: usize, action: Action, mesh: &MeshConfig, warnings: &mut Vec<String>) {
    let path = format!("spec.rules[{number}]");
    each_value(rule, |field, value| {
        of_value(&format!("{path}.{field}"), field, value, mesh, warnings);
    });
    for (index, when) in
        rule.when.iter().flatten().enumerate().filter(|(_, when)| when.key == "connection.sni")
    {
        let never = if when.values.is_some() { "values never match" } else { "notValues always match" };
        warnings.push(format!(
            "{path}.when[{index}].key: proxies see no server name (connection.sni), so {never}"
        ));
    }
    let Some(field) = http_field(rule) else { return };
    if action != Action::Allow && named_ports(rule).is_empty() {
        warnings.push(format!(
            "{path}.{field}: on connections that carry no HTTP the rule matches without this field, so it is wider; name the ports in to.operation.ports"
        ));
    }
}
