//! The order of actions, and what each does.

use crate::ask::{allow, custom, deny, get, operation, reason, refused_at, source, tcp, when, with_claims};
use crate::setup::{answer, compile, object, with_request};
use cinch_policy::{Answer, Token};
use serde_json::json;
use std::cell::Cell;

#[test]
fn a_custom_policy_that_matches_denies_unless_its_provider_says_allow() {
    for case in [get("/"), tcp()] {
        for (provider, expected) in
            [("yes", "AllowedByDefault"), ("no", "DeniedByProvider"), ("absent", "DeniedByProvider")]
        {
            assert_eq!(reason(&[custom(provider, json!([{}]))], &case), expected, "{provider}");
        }
    }
    let elsewhere = custom("no", json!([operation("paths", &["/other"])]));
    assert_eq!(reason(&[elsewhere], &get("/")), "AllowedByDefault", "it does not match");
}

#[test]
fn custom_comes_before_deny_and_deny_before_allow() {
    let all = || json!([{}]);
    assert_eq!(reason(&[allow(all()), deny(all()), custom("no", all())], &get("/")), "DeniedByProvider");
    assert_eq!(reason(&[allow(all()), deny(all()), custom("yes", all())], &get("/")), "DeniedByPolicy");
    assert_eq!(reason(&[allow(all()), custom("yes", all())], &get("/")), "Allowed");
}

#[test]
fn custom_comes_before_tokens() {
    let policies = compile(&[custom("no", json!([{}]))]);
    with_request(&get("/"), |request| {
        assert!(policies.custom(request, &answer).is_some_and(|decision| !decision.is_allowed()));
    });
    let asked = Cell::new(0);
    let elsewhere = compile(&[custom("no", json!([operation("methods", &["POST"])]))]);
    let counting = |_: &str| {
        asked.set(asked.get() + 1);
        Answer::Deny
    };
    with_request(&get("/"), |request| assert!(elsewhere.custom(request, &counting).is_none()));
    assert_eq!(asked.get(), 0, "a provider is asked only when its policy matches");
}

#[test]
fn custom_may_not_use_identities() {
    let fields = [
        ("principals", "a"),
        ("requestPrincipals", "a/b"),
        ("namespaces", "a"),
        ("serviceAccounts", "a"),
        ("trustDomains", "a"),
        ("notPrincipals", "a"),
        ("notRequestPrincipals", "a/b"),
        ("notNamespaces", "a"),
        ("notServiceAccounts", "a"),
        ("notTrustDomains", "a"),
    ];
    for (field, value) in fields {
        let policy = custom("yes", json!([source(field, &[value])]));
        refused_at(
            &policy,
            &format!("spec.rules[0].from[0].source.{field}: can not be used with action CUSTOM"),
        );
    }
    let keys = [
        "source.namespace",
        "source.serviceAccount",
        "source.trustDomain",
        "source.principal",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.claims[a]",
    ];
    for key in keys {
        let policy = custom("yes", json!([when(key, &["a"])]));
        refused_at(&policy, "spec.rules[0].when[0].values: can not be used with action CUSTOM");
    }
    let others = json!([{
        "from": [{"source": {"ipBlocks": ["10.0.0.0/8"], "remoteIpBlocks": ["10.0.0.0/8"]}}],
        "to": [{"operation": {"hosts": ["*"], "paths": ["/"], "methods": ["GET"], "ports": ["8080"]}}],
        "when": [{"key": "request.headers[x]", "notValues": ["y"]}, {"key": "source.ip", "values": ["10.0.0.0/8"]}],
    }]);
    assert_eq!(reason(&[custom("no", others)], &get("/")), "DeniedByProvider", "all others may be used");
}

#[test]
fn any_deny_that_matches_denies() {
    let one = object("a", json!({"action": "DENY", "rules": [operation("methods", &["POST"])]}));
    let other = object(
        "b",
        json!({"action": "DENY", "rules": [operation("ports", &["1"]), operation("methods", &["GET"])]}),
    );
    assert_eq!(reason(&[one.clone(), other, allow(json!([{}]))], &get("/")), "DeniedByPolicy");
    assert_eq!(reason(&[one, allow(json!([{}]))], &get("/")), "Allowed");
}

#[test]
fn without_an_allow_policy_everything_is_allowed() {
    assert_eq!(reason(&[], &get("/")), "AllowedByDefault");
    assert_eq!(reason(&[deny(json!([operation("methods", &["POST"])]))], &get("/")), "AllowedByDefault");
}

#[test]
fn any_allow_that_matches_allows_and_with_none_it_is_denied() {
    let never = object("a", json!({"rules": [operation("methods", &["POST"])]}));
    let ever = object("b", json!({"rules": [operation("methods", &["GET"])]}));
    assert_eq!(reason(&[never.clone(), ever], &get("/")), "Allowed");
    assert_eq!(reason(&[never], &get("/")), "NoAllowMatched");
}

#[test]
fn audit_never_changes_the_result_and_is_reported() {
    let audit = object("audit", json!({"action": "AUDIT", "rules": [{}]}));
    for others in [vec![], vec![allow(json!([{}]))], vec![deny(json!([{}]))], vec![object("none", json!({}))]]
    {
        let mut with = others.clone();
        with.push(audit.clone());
        assert_eq!(reason(&with, &get("/")), reason(&others, &get("/")));
        let policies = compile(&with);
        with_request(&get("/"), |request| {
            let audited = policies.report(request, &answer).audit;
            assert_eq!(audited.iter().map(|name| &***name).collect::<Vec<_>>(), ["shop/audit"]);
        });
    }
}

#[test]
fn the_token_of_a_request_counts_for_deny_and_allow() {
    let needs = allow(json!([source("requestPrincipals", &["*"])]));
    let policies = compile(&[needs]);
    let claims = json!({"iss": "i", "sub": "s"});
    with_request(&get("/"), |request| {
        assert!(!policies.authorize(request).is_allowed());
        let token = Some(Token { claims: &claims, space_delimited: &[] });
        assert!(policies.authorize(&cinch_policy::Request { token, ..*request }).is_allowed());
    });
    let refuses = deny(json!([source("requestPrincipals", &["i/s"])]));
    assert_eq!(reason(&[refuses], &with_claims(claims)), "DeniedByPolicy");
}
