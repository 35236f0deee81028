//! One policy made ready for matching: each field a clause of compiled values, checked on the way.

use crate::authorization::{Action, AuthorizationPolicySpec, Condition, Operation, Rule, Source, Values};
use crate::compile::Connection;
use crate::error::PolicyError;
use crate::object::ObjectName;
use crate::value::{Attribute, Attributes, Test};
use std::sync::Arc;

/// Istio's limits on lists.
const MAX_RULES: usize = 512;
const MAX_FROM: usize = 512;
const MAX_TARGETS: usize = 16;
const MAX_SELECTOR_VALUE: usize = 63;

/// A policy whose rules are ready to be matched.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CompiledPolicy {
    pub(crate) name: Arc<str>,
    pub(crate) action: Action,
    rules: Vec<CompiledRule>,
}

/// (any of `from`) and (any of `to`) and `when`; an empty list doesn't constrain.
#[derive(Debug, Clone, PartialEq)]
struct CompiledRule {
    from: Vec<AllOf>,
    to: Vec<AllOf>,
    when: AllOf,
}

type AllOf = Vec<Clause>;

/// A field: any of its values, or none of them.
#[derive(Debug, Clone, PartialEq)]
struct Clause {
    sense: Sense,
    any: Vec<Test>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Sense {
    Is,
    IsNot,
}

impl CompiledPolicy {
    /// Whether the spec can be used at all.
    pub(crate) fn check(name: &ObjectName, spec: &AuthorizationPolicySpec) -> Result<(), PolicyError> {
        Self::compile(name, spec, "cluster.local").map(|_| ())
    }

    pub(crate) fn compile(
        name: &ObjectName,
        spec: &AuthorizationPolicySpec,
        trust_domain: &str,
    ) -> Result<Self, PolicyError> {
        check_frame(spec)?;
        let context = Attributes { trust_domain, policy_namespace: &name.namespace };
        let mut rules = Vec::new();
        let list = spec.rules.as_deref().unwrap_or_default();
        at_most(list.len(), MAX_RULES, "spec.rules")?;
        for (index, rule) in list.iter().enumerate() {
            let path = format!("spec.rules[{index}]");
            rules.extend(CompiledRule::compile(rule, spec.action, &context, &path)?);
        }
        Ok(CompiledPolicy { name: name.to_string().into(), action: spec.action, rules })
    }

    pub(crate) fn matches(&self, connection: &Connection<'_>) -> bool {
        self.rules.iter().any(|rule| rule.matches(connection))
    }
}

impl CompiledRule {
    /// `None`: an ALLOW rule that asks for something of HTTP can't hold on a TCP connection and is left out
    /// whole; of other actions only that condition is left out, which widens the rule.
    fn compile(
        rule: &Rule,
        action: Action,
        context: &Attributes<'_>,
        path: &str,
    ) -> Result<Option<Self>, PolicyError> {
        let mut asks_http = false;
        let mut from = Vec::new();
        if let Some(list) = &rule.from {
            not_empty(list, &format!("{path}.from"))?;
            at_most(list.len(), MAX_FROM, &format!("{path}.from"))?;
            for (index, member) in list.iter().enumerate() {
                let path = format!("{path}.from[{index}].source");
                check_source(&member.source, &path)?;
                from.push(fields(source_fields(&member.source), context, &path, &mut asks_http)?);
            }
        }
        let mut to = Vec::new();
        if let Some(list) = &rule.to {
            not_empty(list, &format!("{path}.to"))?;
            for (index, member) in list.iter().enumerate() {
                let path = format!("{path}.to[{index}].operation");
                to.push(fields(operation_fields(&member.operation), context, &path, &mut asks_http)?);
            }
        }
        let mut when = Vec::new();
        if let Some(list) = &rule.when {
            not_empty(list, &format!("{path}.when"))?;
            for (index, condition) in list.iter().enumerate() {
                let path = format!("{path}.when[{index}]");
                when.extend(condition_clauses(condition, context, &path, &mut asks_http)?);
            }
        }
        let dropped = asks_http && action == Action::Allow;
        Ok((!dropped).then_some(CompiledRule { from, to, when }))
    }

    fn matches(&self, connection: &Connection<'_>) -> bool {
        any_of(&self.from, connection) && any_of(&self.to, connection) && all_of(&self.when, connection)
    }
}

fn any_of(list: &[AllOf], connection: &Connection<'_>) -> bool {
    list.is_empty() || list.iter().any(|clauses| all_of(clauses, connection))
}

fn all_of(clauses: &[Clause], connection: &Connection<'_>) -> bool {
    clauses.iter().all(|clause| {
        let found = clause.any.iter().any(|test| test.holds(connection));
        match clause.sense {
            Sense::Is => found,
            Sense::IsNot => !found,
        }
    })
}

type Field<'a> = (&'static str, Attribute, Sense, &'a Values);

fn source_fields(source: &Source) -> Vec<Field<'_>> {
    use Attribute::{Http, Ip, Namespace, Principal, ServiceAccount, TrustDomain};
    use Sense::{Is, IsNot};
    vec![
        ("principals", Principal, Is, &source.principals),
        ("notPrincipals", Principal, IsNot, &source.not_principals),
        ("requestPrincipals", Http, Is, &source.request_principals),
        ("notRequestPrincipals", Http, IsNot, &source.not_request_principals),
        ("namespaces", Namespace, Is, &source.namespaces),
        ("notNamespaces", Namespace, IsNot, &source.not_namespaces),
        ("serviceAccounts", ServiceAccount, Is, &source.service_accounts),
        ("notServiceAccounts", ServiceAccount, IsNot, &source.not_service_accounts),
        ("trustDomains", TrustDomain, Is, &source.trust_domains),
        ("notTrustDomains", TrustDomain, IsNot, &source.not_trust_domains),
        ("ipBlocks", Ip, Is, &source.ip_blocks),
        ("notIpBlocks", Ip, IsNot, &source.not_ip_blocks),
        // On a sidecar the client is whoever opened the connection.
        ("remoteIpBlocks", Ip, Is, &source.remote_ip_blocks),
        ("notRemoteIpBlocks", Ip, IsNot, &source.not_remote_ip_blocks),
    ]
}

fn operation_fields(operation: &Operation) -> Vec<Field<'_>> {
    use Attribute::{Http, Port};
    use Sense::{Is, IsNot};
    vec![
        ("hosts", Http, Is, &operation.hosts),
        ("notHosts", Http, IsNot, &operation.not_hosts),
        ("ports", Port, Is, &operation.ports),
        ("notPorts", Port, IsNot, &operation.not_ports),
        ("methods", Http, Is, &operation.methods),
        ("notMethods", Http, IsNot, &operation.not_methods),
        ("paths", Http, Is, &operation.paths),
        ("notPaths", Http, IsNot, &operation.not_paths),
    ]
}

/// Compiles the fields that are set; at least one must be.
fn fields(
    list: Vec<Field<'_>>,
    context: &Attributes<'_>,
    path: &str,
    asks_http: &mut bool,
) -> Result<AllOf, PolicyError> {
    let mut clauses = Vec::new();
    let mut set = false;
    for (name, attribute, sense, values) in list {
        let Some(values) = values.as_deref().filter(|values| !values.is_empty()) else { continue };
        set = true;
        let any = context.tests(attribute, values, &format!("{path}.{name}"))?;
        match any {
            Some(any) => clauses.push(Clause { sense, any }),
            None => *asks_http = true,
        }
    }
    if set {
        Ok(clauses)
    } else {
        Err(PolicyError::value(path, "names nothing; leave it out to match everything"))
    }
}

fn condition_clauses(
    condition: &Condition,
    context: &Attributes<'_>,
    path: &str,
    asks_http: &mut bool,
) -> Result<AllOf, PolicyError> {
    let attribute = Attribute::of_key(&condition.key, &format!("{path}.key"))?;
    let list = vec![
        ("values", attribute, Sense::Is, &condition.values),
        ("notValues", attribute, Sense::IsNot, &condition.not_values),
    ];
    fields(list, context, path, asks_http).map_err(|error| match error {
        PolicyError::Value { field, .. } if field == path => {
            PolicyError::value(path, "needs values or notValues")
        }
        other => other,
    })
}

fn check_source(source: &Source, path: &str) -> Result<(), PolicyError> {
    let filled = |values: &Values| values.as_ref().is_some_and(|values| !values.is_empty());
    let accounts = filled(&source.service_accounts) || filled(&source.not_service_accounts);
    let others = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    if accounts && others.into_iter().any(filled) {
        let problem = "can not stand together with principals or namespaces in one source";
        return Err(PolicyError::value(format!("{path}.serviceAccounts"), problem));
    }
    Ok(())
}

/// What concerns the policy as a whole.
fn check_frame(spec: &AuthorizationPolicySpec) -> Result<(), PolicyError> {
    if spec.action == Action::Custom {
        return Err(PolicyError::NotImplemented { field: "spec.action: CUSTOM".to_owned() });
    }
    if spec.provider.is_some() {
        return Err(PolicyError::value("spec.provider", "belongs to action CUSTOM only"));
    }
    let targets = spec.target_refs.as_deref().unwrap_or_default();
    at_most(targets.len(), MAX_TARGETS, "spec.targetRefs")?;
    let labels = spec.selector.as_ref().map(|selector| &selector.match_labels);
    if labels.is_some() && (spec.target_ref.is_some() || !targets.is_empty()) {
        return Err(PolicyError::value("spec.selector", "can not stand together with targetRefs"));
    }
    for (key, value) in labels.into_iter().flatten() {
        if key.is_empty() || key.contains('*') || value.contains('*') || value.len() > MAX_SELECTOR_VALUE {
            let problem = format!("{key:?}: {value:?} is no label; wildcards are not possible");
            return Err(PolicyError::value("spec.selector.matchLabels", problem));
        }
    }
    Ok(())
}

fn not_empty<T>(list: &[T], field: &str) -> Result<(), PolicyError> {
    match list {
        [] => Err(PolicyError::value(field, "is empty; leave it out to match everything")),
        _ => Ok(()),
    }
}

fn at_most(len: usize, limit: usize, field: &str) -> Result<(), PolicyError> {
    if len > limit {
        return Err(PolicyError::value(field, format!("has {len} entries; at most {limit} are possible")));
    }
    Ok(())
}
