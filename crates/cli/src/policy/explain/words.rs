//! A rule of an AuthorizationPolicy in plain words.

use cinch_policy::{Condition, Operation, Rule, Source};
use serde::Serialize;
use serde_json::Value;

/// Field, what it says of one of its values, and what is said where it holds the single value `*`.
type Row = (&'static str, &'static str, Option<&'static str>);

const SOURCE: &[Row] = &[
    ("principals", "the caller is", Some("the caller has an identity (mutual TLS)")),
    ("notPrincipals", "the caller is not", Some("the caller has no identity (plaintext)")),
    ("requestPrincipals", "the token is of", Some("a valid token comes with it")),
    ("notRequestPrincipals", "no token comes with it that is of", Some("no valid token comes with it")),
    ("namespaces", "the caller is in namespace", Some("the caller is in some namespace of the mesh")),
    ("notNamespaces", "the caller is not in namespace", Some("the caller is in no namespace of the mesh")),
    ("serviceAccounts", "the caller runs as service account", None),
    ("notServiceAccounts", "the caller does not run as service account", None),
    ("trustDomains", "the caller's trust domain is", Some("the caller has a trust domain")),
    ("notTrustDomains", "the caller's trust domain is not", Some("the caller has no trust domain")),
    ("ipBlocks", "it comes from", None),
    ("notIpBlocks", "it does not come from", None),
    ("remoteIpBlocks", "the client's address is in", None),
    ("notRemoteIpBlocks", "the client's address is not in", None),
];

const OPERATION: &[Row] = &[
    ("methods", "the method is", Some("it is HTTP")),
    ("notMethods", "the method is not", None),
    ("hosts", "the host is", Some("there is a host")),
    ("notHosts", "the host is not", None),
    ("paths", "the path is", Some("it is HTTP")),
    ("notPaths", "the path is not", None),
    ("ports", "the port is", None),
    ("notPorts", "the port is not", None),
];

/// When the rule matches: `always`, or clauses joined by `and`.
pub fn rule(rule: &Rule) -> String {
    let from = alternatives(rule.from.iter().flatten().map(|from| source(&from.source)));
    let to = alternatives(rule.to.iter().flatten().map(|to| operation(&to.operation)));
    let when = rule.when.iter().flatten().map(condition).filter(|clause| !clause.is_empty());
    let clauses: Vec<String> = from.into_iter().chain(to).chain(when).collect();
    if clauses.is_empty() { "always".to_owned() } else { format!("when {}", clauses.join(" and ")) }
}

/// One alternative stands bare, several in brackets.
fn alternatives(all: impl Iterator<Item = String>) -> Option<String> {
    let all: Vec<String> = all.filter(|clause| !clause.is_empty()).collect();
    match all.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        many => {
            let many: Vec<String> = many.iter().map(|one| format!("({one})")).collect();
            Some(format!("({})", many.join(" or ")))
        }
    }
}

fn source(source: &Source) -> String {
    fields(source, SOURCE)
}

fn operation(operation: &Operation) -> String {
    fields(operation, OPERATION)
}

fn fields(of: &impl Serialize, rows: &[Row]) -> String {
    let Ok(of) = serde_json::to_value(of) else { return String::new() };
    let clause = |(field, words, any): &Row| {
        let values = strings(of.get(field)?);
        match (values.as_slice(), any) {
            ([star], Some(any)) if star == "*" => Some((*any).to_owned()),
            _ => Some(format!("{words} {}", listed(&values))),
        }
    };
    rows.iter().filter_map(clause).collect::<Vec<_>>().join(" and ")
}

fn condition(condition: &Condition) -> String {
    let key = &condition.key;
    let of = |values: &Option<Vec<String>>, words: &str| {
        values.as_ref().map(|values| format!("{key} {words} {}", listed(values)))
    };
    let clauses = [of(&condition.values, "is"), of(&condition.not_values, "is not")];
    clauses.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

fn strings(value: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    value.as_array().into_iter().flatten().map(text).collect()
}

fn listed(values: &[String]) -> String {
    values.iter().map(|value| pattern(value)).collect::<Vec<_>>().join(" or ")
}

fn pattern(value: &str) -> String {
    if value.contains("{*}") || value.contains("{**}") {
        return format!("like {value}");
    }
    match (value, value.strip_prefix('*'), value.strip_suffix('*')) {
        ("*", ..) => "anything".to_owned(),
        (_, Some(end), _) => format!("something that ends with {end}"),
        (_, _, Some(start)) => format!("something that begins with {start}"),
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(of: Value) -> String {
        rule(&serde_json::from_value(of).unwrap())
    }

    #[test]
    fn rules_read_as_sentences() {
        let cases = [
            (json!({}), "always"),
            (
                json!({"from": [{"source": {"principals": ["td/ns/a/sa/b"]}}],
                    "to": [{"operation": {"methods": ["GET", "POST"], "paths": ["/api/*"]}}]}),
                "when the caller is td/ns/a/sa/b and the method is GET or POST and the path is something that begins with /api/",
            ),
            (
                json!({"from": [{"source": {"notPrincipals": ["*"]}}]}),
                "when the caller has no identity (plaintext)",
            ),
            (
                json!({"from": [{"source": {"namespaces": ["a"]}}, {"source": {"ipBlocks": ["10.0.0.0/8"]}}]}),
                "when ((the caller is in namespace a) or (it comes from 10.0.0.0/8))",
            ),
            (
                json!({"when": [{"key": "request.auth.claims[role]", "values": ["x"], "notValues": ["y"]}]}),
                "when request.auth.claims[role] is x and request.auth.claims[role] is not y",
            ),
            (json!({"to": [{"operation": {"paths": ["/a/{*}/b"]}}]}), "when the path is like /a/{*}/b"),
        ];
        for (rule, want) in cases {
            assert_eq!(said(rule), want);
        }
    }
}
