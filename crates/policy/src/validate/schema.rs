//! The shape of each spec as a table, and the walk that names everything which doesn't fit it with its path.

use super::hints;
use crate::error::PolicyError;
use serde_json::Value;

/// What a value may be.
#[derive(Debug)]
pub(crate) enum Shape {
    /// An object with these fields, all of which may be left out.
    Fields(&'static [(&'static str, Shape)]),
    /// As `Fields`, where the first fields (so many) must be there.
    Required(usize, &'static [(&'static str, Shape)]),
    /// An object with any keys.
    Keyed(&'static Shape),
    List(&'static Shape),
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    Flag,
}

const TEXTS: Shape = Shape::List(&Shape::Text);

const SELECTOR: Shape = Shape::Fields(&[("matchLabels", Shape::Keyed(&Shape::Text))]);

const TARGET: Shape = Shape::Required(
    2,
    &[("kind", Shape::Text), ("name", Shape::Text), ("group", Shape::Text), ("namespace", Shape::Text)],
);

const TARGETS: Shape = Shape::List(&TARGET);

const MTLS: Shape = Shape::Fields(&[("mode", Shape::Word(&["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]))]);

/// `spec` of a PeerAuthentication.
pub(crate) const PEER_AUTHENTICATION: Shape =
    Shape::Fields(&[("selector", SELECTOR), ("mtls", MTLS), ("portLevelMtls", Shape::Keyed(&MTLS))]);

const SOURCE: Shape = Shape::Fields(&[
    ("principals", TEXTS),
    ("notPrincipals", TEXTS),
    ("requestPrincipals", TEXTS),
    ("notRequestPrincipals", TEXTS),
    ("namespaces", TEXTS),
    ("notNamespaces", TEXTS),
    ("serviceAccounts", TEXTS),
    ("notServiceAccounts", TEXTS),
    ("trustDomains", TEXTS),
    ("notTrustDomains", TEXTS),
    ("ipBlocks", TEXTS),
    ("notIpBlocks", TEXTS),
    ("remoteIpBlocks", TEXTS),
    ("notRemoteIpBlocks", TEXTS),
]);

const OPERATION: Shape = Shape::Fields(&[
    ("hosts", TEXTS),
    ("notHosts", TEXTS),
    ("ports", TEXTS),
    ("notPorts", TEXTS),
    ("methods", TEXTS),
    ("notMethods", TEXTS),
    ("paths", TEXTS),
    ("notPaths", TEXTS),
]);

const RULE: Shape = Shape::Fields(&[
    ("from", Shape::List(&Shape::Required(1, &[("source", SOURCE)]))),
    ("to", Shape::List(&Shape::Required(1, &[("operation", OPERATION)]))),
    (
        "when",
        Shape::List(&Shape::Required(1, &[("key", Shape::Text), ("values", TEXTS), ("notValues", TEXTS)])),
    ),
]);

/// `spec` of an AuthorizationPolicy.
pub(crate) const AUTHORIZATION_POLICY: Shape = Shape::Fields(&[
    ("selector", SELECTOR),
    ("targetRef", TARGET),
    ("targetRefs", TARGETS),
    ("action", Shape::Word(&["ALLOW", "DENY", "AUDIT", "CUSTOM"])),
    ("rules", Shape::List(&RULE)),
    ("provider", Shape::Fields(&[("name", Shape::Text)])),
]);

const JWT_RULE: Shape = Shape::Fields(&[
    ("issuer", Shape::Text),
    ("audiences", TEXTS),
    ("jwksUri", Shape::Text),
    ("jwks_uri", Shape::Text),
    ("jwks", Shape::Text),
    ("fromHeaders", Shape::List(&Shape::Required(1, &[("name", Shape::Text), ("prefix", Shape::Text)]))),
    ("fromParams", TEXTS),
    ("fromCookies", TEXTS),
    ("outputPayloadToHeader", Shape::Text),
    (
        "outputClaimToHeaders",
        Shape::List(&Shape::Required(2, &[("header", Shape::Text), ("claim", Shape::Text)])),
    ),
    ("forwardOriginalToken", Shape::Flag),
    ("timeout", Shape::Text),
    ("spaceDelimitedClaims", TEXTS),
]);

/// `spec` of a RequestAuthentication.
pub(crate) const REQUEST_AUTHENTICATION: Shape = Shape::Fields(&[
    ("selector", SELECTOR),
    ("targetRef", TARGET),
    ("targetRefs", TARGETS),
    ("jwtRules", Shape::List(&JWT_RULE)),
]);

/// Everything in `value` that doesn't fit `shape`; `path` is where the value stands. Nothing at all fits.
pub(crate) fn check(value: &Value, shape: &Shape, path: &str) -> Vec<PolicyError> {
    let mut faults = Vec::new();
    if !value.is_null() {
        walk(value, shape, path, &mut faults);
    }
    faults
}

fn walk(value: &Value, shape: &Shape, path: &str, faults: &mut Vec<PolicyError>) {
    match (shape, value) {
        (Shape::Fields(fields), Value::Object(_)) => walk_fields(value, fields, 0, path, faults),
        (Shape::Required(first, fields), Value::Object(_)) => {
            walk_fields(value, fields, *first, path, faults);
        }
        (Shape::Keyed(inner), Value::Object(entries)) => {
            for (key, value) in entries {
                walk(value, inner, &format!("{path}[{key:?}]"), faults);
            }
        }
        (Shape::List(inner), Value::Array(members)) => {
            for (index, value) in members.iter().enumerate() {
                walk(value, inner, &format!("{path}[{index}]"), faults);
            }
        }
        (Shape::Word(words), Value::String(word)) if !words.contains(&word.as_str()) => {
            faults.push(PolicyError::unknown(path, hints::word(word, words)));
        }
        (Shape::Text | Shape::Word(_), Value::String(_)) | (Shape::Flag, Value::Bool(_)) => {}
        (shape, value) => faults.push(PolicyError::value(path, mismatch(shape, value))),
    }
}

fn walk_fields(
    value: &Value,
    fields: &'static [(&'static str, Shape)],
    required: usize,
    path: &str,
    faults: &mut Vec<PolicyError>,
) {
    let known: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let mut strange = false;
    for (name, value) in value.as_object().into_iter().flatten() {
        match fields.iter().find(|(known, _)| known == name) {
            Some((_, shape)) => walk(value, shape, &format!("{path}.{name}"), faults),
            None => {
                strange = true;
                faults
                    .push(PolicyError::unknown(format!("{path}.{name}"), hints::unknown(path, name, &known)));
            }
        }
    }
    // What is missing is said only where nothing strange stands in its place.
    for (name, _) in fields.iter().take(required).filter(|(name, _)| value.get(name).is_none() && !strange) {
        faults.push(PolicyError::value(format!("{path}.{name}"), format!("is missing; write `{name}: …`")));
    }
}

fn mismatch(shape: &Shape, value: &Value) -> String {
    let wanted = match shape {
        Shape::Fields(_) | Shape::Required(..) | Shape::Keyed(_) => "an object",
        Shape::List(_) => "a list",
        Shape::Text | Shape::Word(_) => "a string",
        Shape::Flag => "true or false",
    };
    match (shape, value) {
        (Shape::Text, Value::Number(_) | Value::Bool(_)) => {
            format!("must be a string; put it in quotes: \"{value}\"")
        }
        (Shape::List(_), Value::String(text)) => format!("must be a list; write [{text:?}]"),
        (Shape::Fields([(name, Shape::Text | Shape::Word(_))]), Value::String(text)) => {
            format!("must be an object; write {{{name}: {text}}}")
        }
        (Shape::List(_), Value::Object(_)) => "must be a list; begin its first member with a dash".to_owned(),
        _ => format!("must be {wanted}, not {}", kind(value)),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
