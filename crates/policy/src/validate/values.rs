//! The values of a rule one by one, and what surprises about them.

use crate::authorization::{Operation, Rule, Source};
use crate::mesh::MeshConfig;

/// Calls `each` with the path within the rule, and each value.
pub(super) fn each_value(rule: &Rule, mut each: impl FnMut(&str, &str)) {
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

/// A field's name and values.
pub(super) type Named<'a> = (&'static str, &'a Option<Vec<String>>);

/// The fields of a source whose values are looked at.
pub(super) fn source_values(source: &Source) -> [Named<'_>; 10] {
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

/// The fields of an operation.
pub(super) fn operation_values(operation: &Operation) -> [Named<'_>; 8] {
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

/// What surprises about one value.
pub(super) fn of_value(path: &str, field: &str, value: &str, mesh: &MeshConfig, warnings: &mut Vec<String>) {
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
    if is("paths") && value.contains(['{', '}']) && !template {
        warnings.push(format!(
            "{path}: the braces in {value:?} are taken literally; write {{*}} for one segment, {{**}} for any number"
        ));
    }
    if is("principals")
        && let Some((domain, _)) = value.split_once("/ns/")
        && !domain.contains('*')
        && !mesh.is_ours(domain)
    {
        warnings.push(format!(
            "{path}: no workload of this mesh has the trust domain {domain:?}; ours is {}",
            mesh.trust_domain
        ));
    }
}
