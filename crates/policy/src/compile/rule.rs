//! The rules of one policy: each field a clause of compiled values, checked on the way.

use super::attribute::Attribute;
use super::value::Values;
use crate::authorization::{self, Action, AuthorizationPolicySpec, Condition, Operation, Source};
use crate::decide::rules::{AllOf, Clause, Rule, Sense};
use crate::error::PolicyError;
use crate::mesh::MeshConfig;
use crate::object::check_selection;

/// Istio's limits on lists.
const MAX_RULES: usize = 512;
const MAX_FROM: usize = 512;

/// Compiles the rules of a policy in `namespace`.
///
/// # Errors
/// Everything that is wrong with the policy.
pub(crate) fn compile(
    spec: &AuthorizationPolicySpec,
    namespace: &str,
    mesh: &MeshConfig,
) -> Result<Vec<Rule>, Vec<PolicyError>> {
    let mut values = Values { mesh, namespace, action: spec.action, faults: Vec::new() };
    check_frame(spec, &mut values);
    let list = spec.rules.as_deref().unwrap_or_default();
    let rules = (0..).zip(list).map(|(number, rule)| compile_rule(rule, number, &mut values)).collect();
    if values.faults.is_empty() { Ok(rules) } else { Err(values.faults) }
}

fn compile_rule(rule: &authorization::Rule, number: u32, values: &mut Values<'_>) -> Rule {
    let path = format!("spec.rules[{number}]");
    let mut compiled =
        Rule { policy: 0, number, from: Vec::new(), to: Vec::new(), when: Vec::new(), asks_http: false };
    if let Some(list) = &rule.from {
        check_filled(list, &format!("{path}.from"), values);
        check_at_most(list.len(), MAX_FROM, &format!("{path}.from"), values);
        for (index, member) in list.iter().enumerate() {
            let path = format!("{path}.from[{index}].source");
            check_source(&member.source, &path, values);
            compiled.from.push(fields(source_fields(&member.source), &path, values, &mut compiled.asks_http));
        }
    }
    if let Some(list) = &rule.to {
        check_filled(list, &format!("{path}.to"), values);
        for (index, member) in list.iter().enumerate() {
            let path = format!("{path}.to[{index}].operation");
            compiled.to.push(fields(
                operation_fields(&member.operation),
                &path,
                values,
                &mut compiled.asks_http,
            ));
        }
    }
    if let Some(list) = &rule.when {
        check_filled(list, &format!("{path}.when"), values);
        for (index, condition) in list.iter().enumerate() {
            let path = format!("{path}.when[{index}]");
            compiled.when.extend(condition_clauses(condition, &path, values, &mut compiled.asks_http));
        }
    }
    compiled
}

type Field<'a> = (&'static str, Attribute, Sense, &'a authorization::Values);

fn source_fields(source: &Source) -> Vec<Field<'_>> {
    use Attribute::{
        Namespace, Principal, RemoteIp, RequestPrincipal, ServiceAccount, SourceIp, TrustDomain,
    };
    use Sense::{Is, IsNot};
    vec![
        ("principals", Principal, Is, &source.principals),
        ("notPrincipals", Principal, IsNot, &source.not_principals),
        ("requestPrincipals", RequestPrincipal, Is, &source.request_principals),
        ("notRequestPrincipals", RequestPrincipal, IsNot, &source.not_request_principals),
        ("namespaces", Namespace, Is, &source.namespaces),
        ("notNamespaces", Namespace, IsNot, &source.not_namespaces),
        ("serviceAccounts", ServiceAccount, Is, &source.service_accounts),
        ("notServiceAccounts", ServiceAccount, IsNot, &source.not_service_accounts),
        ("trustDomains", TrustDomain, Is, &source.trust_domains),
        ("notTrustDomains", TrustDomain, IsNot, &source.not_trust_domains),
        ("ipBlocks", SourceIp, Is, &source.ip_blocks),
        ("notIpBlocks", SourceIp, IsNot, &source.not_ip_blocks),
        ("remoteIpBlocks", RemoteIp, Is, &source.remote_ip_blocks),
        ("notRemoteIpBlocks", RemoteIp, IsNot, &source.not_remote_ip_blocks),
    ]
}

fn operation_fields(operation: &Operation) -> Vec<Field<'_>> {
    use Attribute::{Host, Method, Path, Port};
    use Sense::{Is, IsNot};
    vec![
        ("ports", Port, Is, &operation.ports),
        ("notPorts", Port, IsNot, &operation.not_ports),
        ("methods", Method, Is, &operation.methods),
        ("notMethods", Method, IsNot, &operation.not_methods),
        ("hosts", Host, Is, &operation.hosts),
        ("notHosts", Host, IsNot, &operation.not_hosts),
        ("paths", Path, Is, &operation.paths),
        ("notPaths", Path, IsNot, &operation.not_paths),
    ]
}

/// Compiles the fields that are set; at least one must be.
fn fields(list: Vec<Field<'_>>, path: &str, values: &mut Values<'_>, asks_http: &mut bool) -> AllOf {
    let clauses = clauses(list, path, values, asks_http);
    if clauses.is_empty() {
        values.fault(path, "names nothing; fill it, or leave it out to match everything");
    }
    clauses
}

fn clauses(list: Vec<Field<'_>>, path: &str, values: &mut Values<'_>, asks_http: &mut bool) -> AllOf {
    let mut clauses = Vec::new();
    for (name, attribute, sense, given) in list {
        let Some(given) = given.as_deref().filter(|given| !given.is_empty()) else { continue };
        let field = format!("{path}.{name}");
        let test = values.test(&attribute, sense, given, &field);
        *asks_http |= attribute.is_http();
        clauses.push(Clause { field: field.into(), sense, test });
    }
    clauses
}

fn condition_clauses(
    condition: &Condition,
    path: &str,
    values: &mut Values<'_>,
    asks_http: &mut bool,
) -> AllOf {
    let attribute = match Attribute::of_key(&condition.key, &format!("{path}.key")) {
        Ok(attribute) => attribute,
        Err(fault) => {
            values.faults.push(fault);
            return Vec::new();
        }
    };
    let list = vec![
        ("values", attribute.clone(), Sense::Is, &condition.values),
        ("notValues", attribute, Sense::IsNot, &condition.not_values),
    ];
    let clauses = clauses(list, path, values, asks_http);
    if clauses.is_empty() {
        values.fault(path, "needs values or notValues; write `values: [\"…\"]`");
    }
    clauses
}

fn check_source(source: &Source, path: &str, values: &mut Values<'_>) {
    let filled = |values: &authorization::Values| values.as_ref().is_some_and(|values| !values.is_empty());
    let accounts =
        [("serviceAccounts", &source.service_accounts), ("notServiceAccounts", &source.not_service_accounts)];
    let others = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    if !others.into_iter().any(filled) {
        return;
    }
    for (name, _) in accounts.into_iter().filter(|(_, values)| filled(values)) {
        let problem = "can not stand together with principals or namespaces in one source; write two sources, or put the namespace into the account as namespace/name";
        values.fault(format!("{path}.{name}"), problem);
    }
}

/// What concerns the policy as a whole.
fn check_frame(spec: &AuthorizationPolicySpec, values: &mut Values<'_>) {
    let provider = spec.provider.as_ref().map(|provider| provider.name.as_str());
    match (spec.action, provider) {
        (Action::Custom, None | Some("")) => {
            values.fault("spec.provider.name", "is missing; CUSTOM needs the name of a provider");
        }
        (Action::Custom, Some(_)) | (_, None) => {}
        (_, Some(_)) => values.fault("spec.provider", "belongs to action CUSTOM only; remove it"),
    }
    check_selection(
        spec.selector.as_ref(),
        spec.target_ref.as_ref(),
        spec.target_refs.as_deref(),
        &mut values.faults,
    );
    check_at_most(spec.rules.as_ref().map_or(0, Vec::len), MAX_RULES, "spec.rules", values);
}

fn check_filled<T>(list: &[T], field: &str, values: &mut Values<'_>) {
    if list.is_empty() {
        values.fault(field, "is empty; fill it, or leave it out to match everything");
    }
}

fn check_at_most(length: usize, limit: usize, field: &str, values: &mut Values<'_>) {
    if length > limit {
        values.fault(field, format!("has {length} entries; at most {limit} are possible"));
    }
}
