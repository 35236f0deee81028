//! Connections that carry no HTTP, and what can be said before any was read.

use crate::ask::{accepted, allow, custom, deny, get, reason, tcp};
use crate::naive::Case;
use crate::setup::{answer, compile, connection, object};
use cinch_policy::Partial;
use serde_json::{Value, json};

/// A rule for port 8080 with each field that only a request can answer.
fn asking() -> Vec<Value> {
    let operation =
        |field: &str, value: &str| json!({"to": [{"operation": {"ports": ["8080"], field: [value]}}]});
    let with = |part: &str, value: Value| json!({"to": [{"operation": {"ports": ["8080"]}}], part: [value]});
    let mut all: Vec<Value> =
        [("hosts", "x"), ("methods", "X"), ("paths", "/x"), ("notHosts", "x"), ("notMethods", "X")]
            .into_iter()
            .chain([("notPaths", "/x"), ("paths", "/{*}")])
            .map(|(field, value)| operation(field, value))
            .collect();
    all.push(with("from", json!({"source": {"requestPrincipals": ["a/b"]}})));
    all.push(with("from", json!({"source": {"notRequestPrincipals": ["a/b"]}})));
    for key in [
        "request.headers[x]",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.claims[a]",
    ] {
        all.push(with("when", json!({"key": key, "values": ["a"]})));
        all.push(with("when", json!({"key": key, "notValues": ["a"]})));
    }
    all
}

fn elsewhere() -> Case {
    Case { destination: ([10, 9, 9, 9], 9090).into(), ..tcp() }
}

#[test]
fn an_allow_rule_that_asks_for_http_is_dropped_whole() {
    for rule in asking() {
        assert_eq!(reason(&[allow(json!([rule]))], &tcp()), "NoAllowMatched", "{rule}");
    }
    let beside = json!({"to": [{"operation": {"ports": ["8080"]}}, {"operation": {"methods": ["GET"]}}]});
    assert_eq!(reason(&[allow(json!([beside]))], &tcp()), "NoAllowMatched", "also where an alternative asks");
    let other = json!({"to": [{"operation": {"ports": ["8080"]}}]});
    assert_eq!(reason(&[allow(json!([asking()[0], other]))], &tcp()), "Allowed", "other rules stand");
}

#[test]
fn in_other_actions_only_the_condition_is_dropped_so_the_rule_widens() {
    for rule in asking() {
        assert_eq!(reason(&[deny(json!([rule]))], &tcp()), "DeniedByPolicy", "{rule}");
        assert_eq!(reason(&[deny(json!([rule]))], &elsewhere()), "AllowedByDefault", "{rule}");
        let audit = compile(&[object("audit", json!({"action": "AUDIT", "rules": [rule]}))]);
        assert_eq!(audit.report_tcp(&connection(&tcp()), &answer).audit.len(), 1, "{rule}");
        assert_eq!(audit.report_tcp(&connection(&elsewhere()), &answer).audit.len(), 0, "{rule}");
        if !rule.to_string().contains("equestPrincipals") && !rule.to_string().contains("request.auth") {
            assert_eq!(reason(&[custom("no", json!([rule]))], &tcp()), "DeniedByProvider", "{rule}");
            assert_eq!(reason(&[custom("no", json!([rule]))], &elsewhere()), "AllowedByDefault", "{rule}");
        }
    }
}

#[test]
fn a_deny_rule_that_widens_and_names_no_port_is_warned_of() {
    let is_warned =
        |rule: &Value| accepted(&deny(json!([rule]))).iter().any(|said| said.contains("so it is wider"));
    for rule in asking() {
        assert!(!is_warned(&rule), "{rule}");
        let mut portless = rule.clone();
        let operation = portless["to"][0]["operation"].as_object_mut().unwrap();
        operation.remove("ports");
        if operation.is_empty() {
            portless.as_object_mut().unwrap().remove("to");
        }
        assert!(is_warned(&portless), "{portless}");
    }
}

#[test]
fn what_a_connection_tells_is_decided_at_its_open() {
    let l4 = json!({"from": [{"source": {"namespaces": ["shop"]}}]});
    let not_l4 = json!({"from": [{"source": {"namespaces": ["bank"]}}]});
    let http = json!({"to": [{"operation": {"methods": ["GET"]}}]});
    let l4_and_http =
        json!({"from": [{"source": {"namespaces": ["bank"]}}], "to": [{"operation": {"methods": ["GET"]}}]});
    let cases: [(&str, Vec<Value>, &str); 13] = [
        ("nothing", vec![], "allow"),
        ("ALLOW that matches", vec![allow(json!([l4]))], "allow"),
        ("ALLOW that does not", vec![allow(json!([not_l4]))], "deny"),
        ("ALLOW that asks for HTTP", vec![allow(json!([http]))], "http"),
        ("ALLOW that asks for HTTP of others", vec![allow(json!([l4_and_http]))], "deny"),
        ("ALLOW of one kind or the other", vec![allow(json!([http, l4]))], "allow"),
        ("DENY that matches", vec![deny(json!([l4]))], "deny"),
        ("DENY that does not", vec![deny(json!([not_l4]))], "allow"),
        ("DENY that asks for HTTP", vec![deny(json!([http]))], "http"),
        ("DENY that asks for HTTP of others", vec![deny(json!([l4_and_http]))], "allow"),
        (
            "DENY that asks, and no ALLOW that could match",
            vec![deny(json!([http])), allow(json!([not_l4]))],
            "deny",
        ),
        ("CUSTOM that could match", vec![custom("yes", json!([{}]))], "http"),
        (
            "CUSTOM that could not",
            vec![custom("no", json!([{"to": [{"operation": {"ports": ["1"]}}]}]))],
            "allow",
        ),
    ];
    for (name, objects, expected) in cases {
        let policies = compile(&objects);
        let said = match policies.connection(&connection(&get("/"))) {
            Partial::Allow(_) => "allow",
            Partial::Deny(_) => "deny",
            Partial::NeedsHttp => "http",
        };
        assert_eq!(said, expected, "{name}");
    }
}
