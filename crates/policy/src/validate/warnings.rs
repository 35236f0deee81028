//! What is allowed and will surprise.

use crate::authorization::{Action, AuthorizationPolicySpec, Operation, Rule, Source};
use crate::compile::{Attribute, port};
use crate::mesh::{MeshConfig, Workload};
use crate::object::{
    AuthorizationPolicy, Enforcement, PeerAuthentication, PolicyObject, RequestAuthentication,
};
use serde_json::Value;
use std::collections::BTreeMap;

/// The pods that a policy could select, as far as they are known.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// All pods of the object's namespace; for the root namespace, of the mesh.
    pub pods: Vec<PodFacts>,
}

/// What counts of a pod.
#[derive(Debug, Clone, Default)]
pub struct PodFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The ports that its containers declare.
    pub ports: Vec<PodPort>,
    /// An enforced ALLOW policy selects it already.
    pub has_allow: bool,
}

/// A port that a pod declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodPort {
    /// Its number.
    pub number: u16,
    /// It is declared to carry something else than HTTP.
    pub opaque: bool,
}

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

fn of_request(
    object: &RequestAuthentication,
    mesh: &MeshConfig,
    around: Option<&Surroundings>,
    warnings: &mut Vec<String>,
) {
    let selected = around.map(|around| pods(around, |workload| object.applies_to(mesh, workload)));
    let selects = object.spec().is_ok_and(|spec| spec.selector.is_some());
    if selects && selected.is_some_and(|pods| pods.is_empty()) {
        warnings.push(SELECTS_NONE.to_owned());
    }
    if object.spec().is_ok_and(|spec| !spec.jwt_rules.is_empty()) {
        warnings.push(
            "spec.jwtRules: a request without a token still passes; require one with an AuthorizationPolicy on requestPrincipals"
                .to_owned(),
        );
    }
    let rules = object.spec().into_iter().flat_map(|spec| spec.jwt_rules.iter().enumerate());
    warnings.extend(
        rules.flat_map(|(index, rule)| crate::jwt::rule_warnings(rule, &format!("spec.jwtRules[{index}]"))),
    );
}

fn pods(around: &Surroundings, applies: impl Fn(&Workload) -> bool) -> Vec<&PodFacts> {
    let selected = |pod: &&PodFacts| {
        let workload = Workload {
            namespace: pod.namespace.clone(),
            labels: pod.labels.clone(),
            service_account: String::new(),
        };
        applies(&workload)
    };
    around.pods.iter().filter(selected).collect()
}

fn of_authorization(
    object: &AuthorizationPolicy,
    mesh: &MeshConfig,
    around: Option<&Surroundings>,
    warnings: &mut Vec<String>,
) {
    let Ok(spec) = object.spec() else { return };
    let rules = spec.rules.as_deref().unwrap_or_default();
    for (number, rule) in rules.iter().enumerate() {
        of_rule(rule, number, spec.action, warnings);
    }
    if spec.rules.as_ref().is_none_or(Vec::is_empty) && object.enforcement() == Enforcement::Enforced {
        warnings.push(
            "spec.rules: an ALLOW policy without rules denies everything on what it selects".to_owned(),
        );
    }
    let Some(around) = around else { return };
    let selected = pods(around, |workload| object.applies_to(mesh, workload));
    if selected.is_empty() {
        warnings.push(SELECTS_NONE.to_owned());
        return;
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

fn of_rule(rule: &Rule, number: usize, action: Action, warnings: &mut Vec<String>) {
    let path = format!("spec.rules[{number}]");
    each_value(rule, |field, value| {
        of_value(&format!("{path}.{field}"), field, value, warnings);
    });
    let Some(field) = http_field(rule) else { return };
    if action != Action::Allow && named_ports(rule).is_empty() {
        warnings.push(format!(
            "{path}.{field}: on connections that carry no HTTP the rule matches without this field, so it is wider; name the ports in to.operation.ports"
        ));
    }
    if action == Action::Allow {
        warnings.push(format!(
            "{path}.{field}: only requests over HTTP can match this rule; where the proxy reads no HTTP (a port that carries something else, or a proxy without the feature http) the rule allows nothing"
        ));
    }
}

/// Calls `each` with the path within the rule, and each value.
fn each_value(rule: &Rule, mut each: impl FnMut(&str, &str)) {
    let mut list = |path: String, values: &Option<Vec<String>>| {
        for (index, value) in values.iter().flatten().enumerate() {
            each(&format!("{path}[{index}]"), value);
        }
    };
    for (index, from) in rule.from.iter().flatten().enumerate() {
        for (name, values) in source_values(&from.source) {
            list(format!("from[{index}].source.{name}"), values);
        }
    }
    for (index, to) in rule.to.iter().flatten().enumerate() {
        for (name, values) in operation_values(&to.operation) {
            list(format!("to[{index}].operation.{name}"), values);
        }
    }
    for (index, when) in rule.when.iter().flatten().enumerate() {
        list(format!("when[{index}].values"), &when.values);
        list(format!("when[{index}].notValues"), &when.not_values);
    }
}

type Named<'a> = (&'static str, &'a Option<Vec<String>>);

fn source_values(source: &Source) -> [Named<'_>; 10] {
    [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
    ]
}

fn operation_values(operation: &Operation) -> [Named<'_>; 8] {
    [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("ports", &operation.ports),
        ("notPorts", &operation.not_ports),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ]
}

fn of_value(path: &str, field: &str, value: &str, warnings: &mut Vec<String>) {
    let is = |name: &str| {
        let last = field.rsplit('.').next().unwrap_or(field);
        last.split('[').next().is_some_and(|last| last.to_lowercase().trim_start_matches("not") == name)
    };
    let template = value.contains("{*}") || value.contains("{**}");
    let inner = value.strip_prefix('*').unwrap_or_else(|| value.strip_suffix('*').unwrap_or(value));
    if inner.contains('*') && !(is("paths") && template) {
        warnings.push(format!(
            "{path}: a * counts only at the beginning or the end of {value:?}; the other one is taken literally"
        ));
    }
    if is("requestprincipals") {
        if value.ends_with('*') && value.rsplit_once('/').is_some_and(|(_, subject)| subject != "*") {
            warnings.push(format!(
                "{path}: {value:?} is split at its last slash into issuer and subject, so the * is part of the subject; write the whole issuer and `/*`"
            ));
        } else if !value.contains(['/', '*']) {
            warnings.push(format!("{path}: {value:?} can never match; write issuer/subject"));
        }
    }
    if is("methods") && value.bytes().any(|byte| byte.is_ascii_lowercase()) {
        warnings
            .push(format!("{path}: methods are case-sensitive, so {value:?} matches none of the usual ones"));
    }
    if is("paths") && !value.starts_with(['/', '*', '{']) {
        warnings.push(format!("{path}: paths begin with a slash, so {value:?} matches none"));
    }
    if is("paths") && value.contains('?') {
        warnings.push(format!("{path}: paths are matched without their query, so {value:?} matches none"));
    }
    if is("principals") && !value.contains(['/', '*']) {
        warnings.push(format!(
            "{path}: a principal is written trust-domain/ns/namespace/sa/account, so {value:?} matches none"
        ));
    }
}

/// The first field of the rule that only a request can answer.
fn http_field(rule: &Rule) -> Option<String> {
    let filled = |(name, values): &Named<'_>| {
        let http = ["Hosts", "Methods", "Paths", "RequestPrincipals"];
        let bare = name.strip_prefix("not").map_or_else(|| capital(name), str::to_owned);
        http.contains(&bare.as_str()) && values.as_ref().is_some_and(|values| !values.is_empty())
    };
    let of_from = rule.from.iter().flatten().enumerate().find_map(|(index, from)| {
        let (name, _) = source_values(&from.source).into_iter().find(filled)?;
        Some(format!("from[{index}].source.{name}"))
    });
    let of_to = || {
        rule.to.iter().flatten().enumerate().find_map(|(index, to)| {
            let (name, _) = operation_values(&to.operation).into_iter().find(filled)?;
            Some(format!("to[{index}].operation.{name}"))
        })
    };
    let of_when = || {
        rule.when.iter().flatten().enumerate().find_map(|(index, when)| {
            let http = Attribute::of_key(&when.key, "").is_ok_and(|attribute| attribute.is_http());
            http.then(|| format!("when[{index}].key"))
        })
    };
    of_from.or_else(of_to).or_else(of_when)
}

fn capital(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

/// The ports that every operation of the rule names, if each does.
fn named_ports(rule: &Rule) -> Vec<u16> {
    let mut all = Vec::new();
    for to in rule.to.iter().flatten() {
        match to.operation.ports.as_deref() {
            Some(ports) if !ports.is_empty() => all.extend(ports.iter().filter_map(|text| port(text))),
            _ => return Vec::new(),
        }
    }
    let conditions = rule.when.iter().flatten().filter(|when| when.key == "destination.port");
    all.extend(conditions.flat_map(|when| when.values.iter().flatten()).filter_map(|text| port(text)));
    all
}
