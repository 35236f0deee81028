//! Forms of a spec, how a rule joins its parts, and limits.

use crate::ask::{accepted, allow, get, matches, operation, reason, refused, refused_at, source, tcp};
use crate::setup::object;
use serde_json::{Value, json};

#[test]
fn an_empty_spec_denies_everything_on_what_it_selects() {
    for spec in [json!({}), json!({"action": "ALLOW"}), json!({"rules": []}), Value::Null] {
        for case in [get("/"), tcp()] {
            assert_eq!(reason(&[object("p", spec.clone())], &case), "NoAllowMatched", "{spec}");
        }
        let warnings = accepted(&object("p", spec));
        assert!(warnings.iter().any(|warning| warning.contains("denies everything")), "{warnings:?}");
    }
}

#[test]
fn a_rule_of_nothing_matches_everything() {
    for case in [get("/"), tcp()] {
        assert_eq!(reason(&[object("p", json!({"rules": [{}]}))], &case), "Allowed");
        assert_eq!(reason(&[object("p", json!({"action": "DENY", "rules": [{}]}))], &case), "DeniedByPolicy");
    }
}

#[test]
fn deny_audit_and_custom_without_rules_are_refused_and_never_match() {
    for rules in [json!(null), json!([])] {
        for spec in [
            json!({"action": "DENY", "rules": rules}),
            json!({"action": "AUDIT", "rules": rules}),
            json!({"action": "CUSTOM", "provider": {"name": "no"}, "rules": rules}),
        ] {
            let policy = object("p", spec);
            assert!(refused(&policy).iter().any(|error| error.starts_with("spec.rules: ")), "{policy}");
            assert_eq!(reason(&[policy], &get("/")), "AllowedByDefault");
        }
    }
}

#[test]
fn absent_parts_do_not_constrain_and_empty_ones_are_refused() {
    let cases = [
        (json!({"from": []}), "spec.rules[0].from: "),
        (json!({"to": []}), "spec.rules[0].to: "),
        (json!({"when": []}), "spec.rules[0].when: "),
        (json!({"from": [{"source": {}}]}), "spec.rules[0].from[0].source: "),
        (json!({"to": [{"operation": {}}]}), "spec.rules[0].to[0].operation: "),
        (json!({"from": [{"source": {"principals": []}}]}), "spec.rules[0].from[0].source: "),
    ];
    for (rule, field) in cases {
        refused_at(&allow(json!([rule])), field);
    }
    assert!(matches(&source("ipBlocks", &["10.0.0.0/8"]), &get("/")), "neither to nor when");
    assert!(matches(&operation("methods", &["GET"]), &get("/")), "neither from nor when");
}

#[test]
fn a_rule_is_any_from_and_any_to_and_all_when() {
    let rule = |from: [&str; 2], to: [&str; 2], when: [&str; 2]| {
        json!({
            "from": [{"source": {"namespaces": [from[0]]}}, {"source": {"namespaces": [from[1]]}}],
            "to": [{"operation": {"methods": [to[0]]}}, {"operation": {"methods": [to[1]]}}],
            "when": [{"key": "destination.port", "values": [when[0]]}, {"key": "destination.port", "values": [when[1]]}],
        })
    };
    let both = ["8080", "8080"];
    let cases = [
        (rule(["shop", "x"], ["GET", "X"], both), true),
        (rule(["x", "shop"], ["X", "GET"], both), true),
        (rule(["x", "y"], ["GET", "GET"], both), false),
        (rule(["shop", "shop"], ["X", "Y"], both), false),
        (rule(["shop", "shop"], ["GET", "GET"], ["8080", "1"]), false),
    ];
    for (rule, expected) in cases {
        assert_eq!(matches(&rule, &get("/")), expected, "{rule}");
    }
}

#[test]
fn a_source_or_operation_is_all_of_its_fields_and_a_field_any_of_its_values() {
    assert!(matches(&source("namespaces", &["x", "shop"]), &get("/")));
    assert!(!matches(&source("namespaces", &["x", "y"]), &get("/")));
    let cases = [("shop", "10.0.0.0/8", true), ("x", "10.0.0.0/8", false), ("shop", "11.0.0.0/8", false)];
    for (namespace, block, expected) in cases {
        let rule = json!({"from": [{"source": {"namespaces": [namespace], "ipBlocks": [block]}}]});
        assert_eq!(matches(&rule, &get("/")), expected, "{rule}");
    }
    for (method, path, expected) in [("GET", "/a", true), ("PUT", "/a", false), ("GET", "/b", false)] {
        let rule = json!({"to": [{"operation": {"methods": [method], "paths": [path]}}]});
        assert_eq!(matches(&rule, &get("/a")), expected, "{rule}");
    }
}

#[test]
fn a_negated_field_holds_where_none_of_its_values_does() {
    assert!(matches(&operation("notMethods", &["PUT", "POST"]), &get("/")));
    assert!(!matches(&operation("notMethods", &["PUT", "GET"]), &get("/")));
    let both = json!({"to": [{"operation": {"paths": ["/a/*"], "notPaths": ["/a/b"]}}]});
    assert!(matches(&both, &get("/a/c")) && !matches(&both, &get("/a/b")));
}

#[test]
fn a_condition_needs_values_or_not_values_and_joins_both() {
    let condition = |fields: Value| {
        let mut condition = json!({"key": "source.ip"});
        condition.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"when": [condition]})
    };
    refused_at(&allow(json!([condition(json!({}))])), "spec.rules[0].when[0]: needs values or notValues");
    refused_at(&allow(json!([condition(json!({"values": []}))])), "spec.rules[0].when[0]: needs");
    let cases = [
        (json!({"values": ["11.0.0.0/8", "10.0.0.0/8"]}), true),
        (json!({"values": ["11.0.0.0/8"]}), false),
        (json!({"notValues": ["11.0.0.0/8"]}), true),
        (json!({"notValues": ["11.0.0.0/8", "10.0.0.0/8"]}), false),
        (json!({"values": ["10.0.0.0/8"], "notValues": ["10.1.2.4"]}), true),
        (json!({"values": ["10.0.0.0/8"], "notValues": ["10.1.2.3"]}), false),
    ];
    for (fields, expected) in cases {
        assert_eq!(matches(&condition(fields.clone()), &get("/")), expected, "{fields}");
    }
}

#[test]
fn unknown_keys_are_refused_with_their_name() {
    let keys = [
        "weather",
        "experimental.envoy.filters.network.mysql_proxy[a]",
        "destination.labels[app]",
        "destination.name",
        "destination.user",
        "destination.namespace",
        "request.headers[]",
        "request.headers[:path]",
        "request.auth.claims",
        "Source.Ip",
    ];
    for key in keys {
        let policy = allow(json!([crate::ask::when(key, &["a"])]));
        refused_at(&policy, "spec.rules[0].when[0].key: ");
        assert!(refused(&policy)[0].contains(&format!("{key:?}")), "{key}");
    }
}

#[test]
fn limits_are_istios() {
    let of_rules = |count| object("p", json!({"rules": vec![json!({}); count]}));
    let of_from = |count| allow(json!([{"from": vec![json!({"source": {"namespaces": ["a"]}}); count]}]));
    let of_targets =
        |count| object("p", json!({"targetRefs": vec![json!({"kind": "Gateway", "name": "g"}); count]}));
    let of_accounts = |count| allow(json!([source("serviceAccounts", &vec!["a"; count])]));
    let of_account =
        |length: usize| allow(json!([source("serviceAccounts", &["x".repeat(length).as_str()])]));
    let of_label =
        |length: usize| object("p", json!({"selector": {"matchLabels": {"a": "x".repeat(length)}}}));
    let of_jwt = |fields: Value| {
        let mut rule = json!({"issuer": "https://i.example"});
        rule.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let mut policy = object("p", json!({"jwtRules": [rule]}));
        policy["kind"] = json!("RequestAuthentication");
        policy
    };
    let of_uri = |length: usize| of_jwt(json!({"jwksUri": format!("https://k/{}", "x".repeat(length - 10))}));
    let of_claims = |count| of_jwt(json!({"spaceDelimitedClaims": vec!["a"; count]}));
    let cases = [
        (of_rules(512), of_rules(513), "spec.rules: "),
        (of_from(512), of_from(513), "spec.rules[0].from: "),
        (of_targets(16), of_targets(17), "spec.targetRefs: "),
        (of_accounts(16), of_accounts(17), "spec.rules[0].from[0].source.serviceAccounts: "),
        (of_account(320), of_account(321), "spec.rules[0].from[0].source.serviceAccounts[0]: "),
        (of_label(63), of_label(64), "spec.selector.matchLabels: "),
        (of_uri(2048), of_uri(2049), "spec.jwtRules[0].jwksUri: "),
        (of_claims(64), of_claims(65), "spec.jwtRules[0].spaceDelimitedClaims: "),
    ];
    for (most, more, field) in cases {
        accepted(&most);
        let errors = refused(&more);
        assert!(errors.iter().any(|error| error.starts_with(field)), "{field}: {errors:?}");
    }
}

#[test]
fn empty_strings_are_refused() {
    for field in
        ["principals", "namespaces", "serviceAccounts", "trustDomains", "ipBlocks", "requestPrincipals"]
    {
        refused_at(
            &allow(json!([source(field, &[""])])),
            &format!("spec.rules[0].from[0].source.{field}[0]: "),
        );
    }
    for field in ["hosts", "ports", "methods", "paths"] {
        refused_at(
            &allow(json!([operation(field, &[""])])),
            &format!("spec.rules[0].to[0].operation.{field}[0]: "),
        );
    }
    refused_at(
        &allow(json!([crate::ask::when("request.headers[a]", &[""])])),
        "spec.rules[0].when[0].values[0]: ",
    );
}
