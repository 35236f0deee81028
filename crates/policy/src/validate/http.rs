//! Which parts of a policy only a request can answer, and what follows from that for connections.

use super::values::{Named, operation_values, source_values};
use crate::authorization::{Action, AuthorizationPolicySpec, Rule};
use crate::compile::{Attribute, port};
use crate::object::Enforcement;
use crate::request_authentication::RequestAuthenticationSpec;

/// Fields of a source or operation that only a request can answer.
const HTTP_FIELDS: &[&str] = &[
    "requestPrincipals",
    "notRequestPrincipals",
    "hosts",
    "notHosts",
    "methods",
    "notMethods",
    "paths",
    "notPaths",
];

impl AuthorizationPolicySpec {
    /// Whether a proxy must read HTTP to decide by it: some rule has a field that only a request can answer.
    #[must_use]
    pub fn needs_http(&self) -> bool {
        self.http_field().is_some()
    }

    /// The first such field with its path.
    fn http_field(&self) -> Option<String> {
        let mut rules = self.rules.iter().flatten().enumerate();
        rules.find_map(|(number, rule)| Some(format!("spec.rules[{number}].{}", http_field(rule)?)))
    }
}

/// The warning for an AuthorizationPolicy that only reports: no connection is read as HTTP for its sake, since what
/// is no HTTP would be cut then.
pub(super) fn seldom_reported(spec: &AuthorizationPolicySpec, enforcement: Enforcement) -> Option<String> {
    let field = spec.http_field()?;
    let decides = enforcement == Enforcement::Enforced && !matches!(spec.action, Action::Audit);
    let reported = "reported only on ports that are declared to carry HTTP, and where a policy in force makes the \
                    proxies read it";
    (!decides).then(|| format!("{field}: {reported}"))
}

/// The warning for an AuthorizationPolicy that decides on requests: on its ports nothing but HTTP passes any more, and
/// nothing at all where a pod still runs a proxy that does not read HTTP.
pub(super) fn needs_requests(spec: &AuthorizationPolicySpec, enforcement: Enforcement) -> Option<String> {
    let field = spec.http_field()?;
    let decides = enforcement == Enforcement::Enforced && !matches!(spec.action, Action::Audit);
    let effect = "this needs HTTP: on the ports that it may decide on (all of them, unless the rule names ports) the \
                  proxies cut connections that carry none, and a proxy without the feature http fails closed there";
    decides.then(|| format!("{field}: {effect}"))
}

/// The warning for a RequestAuthentication: it can't say on which ports HTTP is spoken.
pub(super) fn reads_every_port(spec: &RequestAuthenticationSpec) -> Option<String> {
    let effect = "every port of what it selects must carry HTTP, but for those that all Services in front, or else the \
                  container, declare to be something else (tcp, tls, redis, …): the proxies cut connections that \
                  carry none";
    (!spec.jwt_rules.is_empty()).then(|| format!("spec.jwtRules: {effect}"))
}

/// The first field of the rule that only a request can answer.
pub(super) fn http_field(rule: &Rule) -> Option<String> {
    let filled = |(name, values): &Named<'_>| {
        HTTP_FIELDS.contains(name) && values.as_ref().is_some_and(|values| !values.is_empty())
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

/// The ports that every operation of the rule names, if each does.
pub(super) fn named_ports(rule: &Rule) -> Vec<u16> {
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
