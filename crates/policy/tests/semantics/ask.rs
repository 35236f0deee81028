//! Requests and connections, and what policies say to them.

use crate::naive::{Case, HttpCase};
use crate::setup::{compile, decide, mesh, object};
use cinch_policy::validate;
use serde_json::{Value, json};
use std::net::SocketAddr;

pub const WEB: &str = "spiffe://mesh.example/ns/shop/sa/web";

/// A GET of web for `/`, over mTLS, without headers or token.
pub fn get(target: &str) -> Case {
    Case {
        peer: Some(WEB.into()),
        source: "10.1.2.3".parse().unwrap(),
        remote: None,
        destination: SocketAddr::from(([10, 9, 9, 9], 8080)),
        sni: None,
        http: Some(HttpCase {
            method: "GET".into(),
            target: target.into(),
            host: Some("shop.example:8080".into()),
            headers: Vec::new(),
            claims: None,
        }),
    }
}

/// As [`get`], changed.
pub fn but(change: impl FnOnce(&mut Case, &mut HttpCase)) -> Case {
    let mut case = get("/");
    let mut http = case.http.take().unwrap();
    change(&mut case, &mut http);
    case.http = Some(http);
    case
}

pub fn of_peer(peer: &str) -> Case {
    Case { peer: Some(peer.into()), ..get("/") }
}

pub fn plaintext() -> Case {
    Case { peer: None, ..get("/") }
}

pub fn with_headers(headers: &[(&str, &str)]) -> Case {
    but(|_, http| {
        http.headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    })
}

pub fn with_claims(claims: Value) -> Case {
    but(|_, http| http.claims = Some(claims))
}

/// The same connection, carrying something else than HTTP.
pub fn tcp() -> Case {
    Case { http: None, ..get("/") }
}

pub fn reason(objects: &[Value], case: &Case) -> &'static str {
    decide(&compile(objects), case).reason.as_str()
}

pub fn allow(rules: Value) -> Value {
    object("allow", json!({"action": "ALLOW", "rules": rules}))
}

pub fn deny(rules: Value) -> Value {
    object("deny", json!({"action": "DENY", "rules": rules}))
}

/// A CUSTOM policy; of the providers `yes` allows, `no` denies, others can't be reached.
pub fn custom(provider: &str, rules: Value) -> Value {
    object("custom", json!({"action": "CUSTOM", "provider": {"name": provider}, "rules": rules}))
}

pub fn source(field: &str, values: &[&str]) -> Value {
    json!({"from": [{"source": {field: values}}]})
}

pub fn operation(field: &str, values: &[&str]) -> Value {
    json!({"to": [{"operation": {field: values}}]})
}

pub fn when(key: &str, values: &[&str]) -> Value {
    json!({"when": [{"key": key, "values": values}]})
}

/// Whether a rule matches a request: as an ALLOW it lets the request pass, as a DENY it refuses it.
pub fn matches(rule: &Value, case: &Case) -> bool {
    let (allowing, denying) = (allow(json!([rule])), deny(json!([rule])));
    let yes = reason(&[allowing], case) == "Allowed";
    assert_eq!(reason(&[denying], case) == "DeniedByPolicy", yes, "as ALLOW and as DENY: {rule}");
    yes
}

/// Asserts for each value whether a rule made of it matches.
pub fn each(rule: impl Fn(&[&str]) -> Value, case: &Case, expected: &[(&str, bool)]) {
    for (value, expected) in expected {
        assert_eq!(matches(&rule(&[value]), case), *expected, "{}", rule(&[value]));
    }
}

/// As [`each`], for a field of `source` or `operation` and its negation, which must say the contrary.
pub fn field(field: &str, case: &Case, expected: &[(&str, bool)]) {
    let of_source = field.to_lowercase().contains("principals")
        || ["namespaces", "serviceAccounts", "trustDomains", "ipBlocks", "remoteIpBlocks"].contains(&field);
    let rule = |name: &str, values: &[&str]| match of_source {
        true => source(name, values),
        false => operation(name, values),
    };
    each(|values| rule(field, values), case, expected);
    let negated = format!("not{}{}", field[..1].to_uppercase(), &field[1..]);
    for (value, expected) in expected {
        assert_eq!(matches(&rule(&negated, &[value]), case), !expected, "{negated} {value}");
    }
}

/// As [`each`], for a `when` key with `values` and with `notValues`.
pub fn key(key: &str, case: &Case, expected: &[(&str, bool)]) {
    each(|values| when(key, values), case, expected);
    for (value, expected) in expected {
        let negated = json!({"when": [{"key": key, "notValues": [value]}]});
        assert_eq!(matches(&negated, case), !expected, "{negated}");
    }
}

/// What admission refuses about an object, and that the engine closes what such an object selects.
pub fn refused(object: &Value) -> Vec<String> {
    let errors = validate(object, &mesh()).errors;
    assert!(!errors.is_empty(), "{object} is accepted");
    errors
}

/// Asserts that admission names `field`, and that the object closes when it is there nevertheless.
pub fn refused_at(object: &Value, field: &str) {
    let errors = refused(object);
    assert!(errors.iter().any(|error| error.starts_with(field)), "{field}: {errors:#?}");
    assert_eq!(reason(std::slice::from_ref(object), &get("/")), "PolicyInvalid", "{object}");
}

pub fn accepted(object: &Value) -> Vec<String> {
    let validation = validate(object, &mesh());
    assert_eq!(validation.errors, Vec::<String>::new(), "{object}");
    validation.warnings
}
