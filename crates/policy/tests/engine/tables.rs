//! The rules in words, line by line.

use super::naive::{Case, HttpCase};
use super::setup::{compile, connection, decide, mesh, object, workload};
use cinch_policy::{Decision, MeshConfig, Partial, PolicyObject, WorkloadPolicies};
use serde_json::{Value, json};
use std::net::SocketAddr;

const WEB: &str = "spiffe://mesh.example/ns/shop/sa/web";

fn get(target: &str) -> Case {
    Case {
        peer: Some(WEB.into()),
        source: "10.1.2.3".parse().unwrap(),
        remote: None,
        destination: SocketAddr::from(([10, 9, 9, 9], 8080)),
        sni: Some("shop.example".into()),
        http: Some(HttpCase {
            method: "GET".into(),
            target: target.into(),
            host: Some("Shop.example:8080".into()),
            headers: vec![
                ("X-Mark".into(), "a".into()),
                ("x-mark".into(), "b".into()),
                ("X-Empty".into(), String::new()),
            ],
            claims: Some(json!({
                "iss": "https://a.example", "sub": "bob", "aud": ["one", "two"], "azp": "app", "scope": "read write",
                "role": "admin", "groups": ["staff", "on call"], "deep": {"er": {"id": "x"}}, "count": 3,
            })),
        }),
    }
}

fn plain() -> Case {
    Case { peer: None, ..get("/") }
}

/// A connection of which nothing but its ends is known.
pub(super) fn tcp() -> Case {
    Case { http: None, ..get("/") }
}

fn source(fields: Value) -> Value {
    json!({"from": [{"source": fields}]})
}

fn operation(fields: Value) -> Value {
    json!({"to": [{"operation": fields}]})
}

fn when(key: &str, values: &[&str]) -> Value {
    json!({"when": [{"key": key, "values": values}]})
}

fn word(policies: &WorkloadPolicies, case: &Case) -> &'static str {
    decide(policies, case).reason.as_str()
}

/// Whether one ALLOW policy with this rule lets the case pass. A DENY with it must say the same.
fn matches(rule: &Value, case: &Case) -> bool {
    let allow = compile(&[object("p", json!({"rules": [rule]}))]);
    assert_eq!(allow.faults().collect::<Vec<_>>(), []);
    let deny = compile(&[object("p", json!({"action": "DENY", "rules": [rule]}))]);
    let allowed = decide(&allow, case).is_allowed();
    if case.http.is_some() {
        assert_eq!(decide(&deny, case).is_allowed(), !allowed, "{rule}");
    }
    allowed
}

#[test]
fn actions_join_in_their_order() {
    let all = || json!([{}]);
    let allow = || object("allow", json!({"rules": all()}));
    let deny = || object("deny", json!({"action": "DENY", "rules": all()}));
    let custom =
        |provider| object("ask", json!({"action": "CUSTOM", "provider": {"name": provider}, "rules": all()}));
    let cases: [(&str, Vec<Value>, &str); 14] = [
        ("nothing", vec![], "AllowedByDefault"),
        ("ALLOW without rules", vec![object("p", json!({}))], "NoAllowMatched"),
        ("ALLOW with an empty list of rules", vec![object("p", json!({"rules": []}))], "NoAllowMatched"),
        ("ALLOW of everything", vec![allow()], "Allowed"),
        ("any ALLOW is enough", vec![object("p", json!({})), allow()], "Allowed"),
        ("DENY before ALLOW", vec![allow(), deny()], "DeniedByPolicy"),
        (
            "DENY without rules never matches",
            vec![object("p", json!({"action": "DENY"}))],
            "AllowedByDefault",
        ),
        (
            "CUSTOM without rules never matches",
            vec![object("p", json!({"action": "CUSTOM", "provider": {"name": "no"}}))],
            "AllowedByDefault",
        ),
        (
            "AUDIT changes nothing",
            vec![object("p", json!({"action": "AUDIT", "rules": all()}))],
            "AllowedByDefault",
        ),
        ("CUSTOM before DENY", vec![deny(), custom("no")], "DeniedByProvider"),
        ("an unreachable provider refuses", vec![custom("gone")], "DeniedByProvider"),
        ("a provider's yes is no permission", vec![custom("yes"), deny()], "DeniedByPolicy"),
        ("a provider's yes stands in nobody's way", vec![custom("yes")], "AllowedByDefault"),
        ("what can't be used closes", vec![allow(), object("p", json!({"colour": "red"}))], "PolicyInvalid"),
    ];
    for (name, objects, expected) in cases {
        for case in [get("/"), tcp()] {
            assert_eq!(word(&compile(&objects), &case), expected, "{name}");
        }
    }
}

#[test]
fn sources_match() {
    let cases: [(Value, bool, bool); 31] = [
        // Field, with the certificate of web, without one.
        (json!({"principals": ["mesh.example/ns/shop/sa/web"]}), true, false),
        (json!({"principals": ["cluster.local/ns/shop/sa/web"]}), true, false),
        (json!({"principals": ["old.mesh/ns/shop/sa/web"]}), true, false),
        (json!({"principals": ["other.org/ns/shop/sa/web"]}), false, false),
        (json!({"principals": ["mesh.example/ns/shop/*"]}), true, false),
        (json!({"principals": ["cluster.local/ns/shop/*"]}), false, false),
        (json!({"principals": ["cluster.local/ns/shop/sa/*"]}), true, false),
        (json!({"principals": ["*/sa/web"]}), true, false),
        (json!({"principals": ["*"]}), true, false),
        (json!({"principals": ["*/ns/shop/*"]}), false, false),
        (json!({"notPrincipals": ["*"]}), false, true),
        (json!({"notPrincipals": ["mesh.example/ns/shop/sa/api"]}), true, true),
        (json!({"namespaces": ["shop"]}), true, false),
        (json!({"namespaces": ["s*p"]}), true, false),
        (json!({"namespaces": ["SHOP"]}), false, false),
        (json!({"notNamespaces": ["shop"]}), false, true),
        (json!({"serviceAccounts": ["web"]}), true, false),
        (json!({"serviceAccounts": ["shop/web"]}), true, false),
        (json!({"serviceAccounts": ["bank/web"]}), false, false),
        (json!({"notServiceAccounts": ["web"]}), false, true),
        (json!({"trustDomains": ["old.mesh"]}), true, false),
        (json!({"trustDomains": ["cluster.local"]}), true, false),
        (json!({"trustDomains": ["mesh*"]}), true, false),
        (json!({"notTrustDomains": ["other.org"]}), true, true),
        (json!({"ipBlocks": ["10.1.0.0/16"]}), true, true),
        (json!({"ipBlocks": ["10.1.2.3"]}), true, true),
        (json!({"ipBlocks": ["::/0"]}), false, false),
        (json!({"notIpBlocks": ["10.1.2.0/24"]}), false, false),
        (json!({"remoteIpBlocks": ["10.1.2.3/32"]}), true, true),
        (json!({"principals": ["*"], "ipBlocks": ["192.0.2.0/24"]}), false, false),
        (json!({"principals": ["nobody"], "notIpBlocks": ["192.0.2.0/24"]}), false, false),
    ];
    for (fields, with, without) in cases {
        assert_eq!(matches(&source(fields.clone()), &get("/")), with, "{fields}");
        assert_eq!(matches(&source(fields.clone()), &plain()), without, "{fields} without a certificate");
    }
    let proxied = Case { remote: Some("192.0.2.1".parse().unwrap()), ..get("/") };
    assert!(matches(&source(json!({"remoteIpBlocks": ["192.0.2.1"], "ipBlocks": ["10.1.2.3"]})), &proxied));
}

#[test]
fn request_principals_are_split_at_the_last_slash() {
    let cases = [
        ("https://a.example/bob", true),
        ("https://a.example/*", true),
        ("*", true),
        ("*bob", true),
        ("*ob", true),
        ("https*", true),
        ("https://a*", false),
        ("*/bob", true),
        ("*.example/bob", true),
        ("https://a.example/", false),
        ("bob", false),
    ];
    for (value, expected) in cases {
        assert_eq!(matches(&source(json!({"requestPrincipals": [value]})), &get("/")), expected, "{value}");
        assert_eq!(matches(&when("request.auth.principal", &[value]), &get("/")), expected, "{value}");
        let negated = source(json!({"notRequestPrincipals": [value]}));
        assert_eq!(matches(&negated, &get("/")), !expected, "not {value}");
    }
    let mut anonymous = get("/");
    anonymous.http.as_mut().unwrap().claims = None;
    assert!(!matches(&source(json!({"requestPrincipals": ["*"]})), &anonymous));
    assert!(matches(&source(json!({"notRequestPrincipals": ["*"]})), &anonymous));
}

#[test]
fn operations_match() {
    let cases: [(Value, &str, bool); 26] = [
        (json!({"ports": ["8080"]}), "/", true),
        (json!({"ports": ["80", "9090"]}), "/", false),
        (json!({"notPorts": ["8080"]}), "/", false),
        (json!({"methods": ["GET"]}), "/", true),
        (json!({"methods": ["get"]}), "/", false),
        (json!({"notMethods": ["P*"]}), "/", true),
        (json!({"hosts": ["shop.EXAMPLE:8080"]}), "/", true),
        (json!({"hosts": ["shop.example"]}), "/", false),
        (json!({"hosts": ["shop.*"]}), "/", true),
        (json!({"notHosts": ["*:8080"]}), "/", false),
        (json!({"paths": ["/api/*"]}), "/api/x?y=/", true),
        (json!({"paths": ["/api/*"]}), "/API/x", false),
        (json!({"paths": ["/api"]}), "/api/", false),
        (json!({"paths": ["*/x"]}), "/api/x#frag", true),
        (json!({"paths": ["/a*c"]}), "/abc", false),
        (json!({"paths": ["/a*c"]}), "/a*c", true),
        (json!({"paths": ["/api/{*}"]}), "/api/x", true),
        (json!({"paths": ["/api/{*}"]}), "/api/x/", false),
        (json!({"paths": ["/api/{**}"]}), "/api/", true),
        (json!({"paths": ["/api/{**}"]}), "/api", false),
        (json!({"paths": ["/api/{**}/cart"]}), "/api/a/b/cart", true),
        (json!({"paths": ["/api/{*}/{**}"]}), "/api/a/b", true),
        (json!({"notPaths": ["/healthz"]}), "/healthz", false),
        (json!({"notPaths": ["/healthz"], "methods": ["GET"]}), "/x", true),
        (json!({"paths": ["/a"], "methods": ["POST"]}), "/a", false),
        (json!({"paths": ["/pkg.Service/Method"]}), "/pkg.Service/Method", true),
    ];
    for (fields, target, expected) in cases {
        assert_eq!(matches(&operation(fields.clone()), &get(target)), expected, "{fields} on {target}");
    }
}

#[test]
fn templates_span_fewer_characters_where_they_allow() {
    let is = |action: &str, field: &str, target: &str| {
        let policies = compile(&[object(
            "p",
            json!({"action": action, "rules": [operation(json!({field: ["/a/{*}"]}))]}),
        )]);
        decide(&policies, &get(target)).reason.as_str()
    };
    assert_eq!(is("ALLOW", "paths", "/a/x"), "Allowed");
    assert_eq!(is("ALLOW", "paths", "/a/x=y"), "NoAllowMatched");
    assert_eq!(is("DENY", "paths", "/a/x=y"), "DeniedByPolicy");
    assert_eq!(is("ALLOW", "notPaths", "/a/x=y"), "NoAllowMatched");
    assert_eq!(is("DENY", "notPaths", "/a/x=y"), "DeniedByPolicy");
}

#[test]
fn conditions_match() {
    let cases: [(&str, &[&str], bool); 29] = [
        ("source.ip", &["10.0.0.0/8"], true),
        ("remote.ip", &["10.1.2.3"], true),
        ("destination.ip", &["10.9.0.0/16"], true),
        ("destination.port", &["8080"], true),
        ("connection.sni", &["*.example"], true),
        ("connection.sni", &["other"], false),
        ("source.principal", &["*/sa/web"], true),
        ("source.namespace", &["shop"], true),
        ("source.serviceAccount", &["web"], true),
        ("source.trustDomain", &["cluster.local"], true),
        ("request.headers[x-mark]", &["a,b"], true),
        ("request.headers[X-MARK]", &["a"], false),
        ("request.headers[x-mark]", &["a*"], true),
        ("request.headers[x-mark]", &["A,B"], false),
        ("request.headers[x-empty]", &["*"], true),
        ("request.headers[missing]", &["*"], false),
        ("request.headers[host]", &["Shop.example:8080"], true),
        ("request.auth.audiences", &["two"], true),
        ("request.auth.audiences", &["three"], false),
        ("request.auth.presenter", &["app"], true),
        ("request.auth.claims[role]", &["admin"], true),
        ("request.auth.claims[groups]", &["staff"], true),
        ("request.auth.claims[groups]", &["call"], false),
        ("request.auth.claims[scope]", &["write"], true),
        ("request.auth.claims[scope]", &["read write"], false),
        ("request.auth.claims[deep][er][id]", &["x"], true),
        ("request.auth.claims[deep][er]", &["*"], false),
        ("request.auth.claims[count]", &["3"], false),
        ("request.auth.claims[missing]", &["*"], false),
    ];
    for (key, values, expected) in cases {
        assert_eq!(matches(&when(key, values), &get("/")), expected, "{key} {values:?}");
        let negated = json!({"when": [{"key": key, "notValues": values}]});
        assert_eq!(matches(&negated, &get("/")), !expected, "{key} not {values:?}");
    }
    let both =
        json!({"when": [{"key": "request.auth.claims[role]", "values": ["a*"], "notValues": ["admin"]}]});
    assert!(!matches(&both, &get("/")));
}

#[test]
fn a_declared_claim_is_split_at_spaces() {
    let policies = compile(&[object("p", json!({"rules": [when("request.auth.claims[roles]", &["b"])]}))]);
    let claims = json!({"roles": "a b"});
    let judge = |space_delimited: &[String]| {
        super::setup::with_request(&get("/"), |request| {
            let token = Some(cinch_policy::Token { claims: &claims, space_delimited });
            policies.authorize(&cinch_policy::Request { token, ..*request }).is_allowed()
        })
    };
    assert!(judge(&["roles".to_owned()]));
    assert!(!judge(&[]));
}

#[test]
fn parts_of_a_rule_join() {
    let rule = json!({
        "from": [{"source": {"namespaces": ["bank"]}}, {"source": {"namespaces": ["shop"]}}],
        "to": [{"operation": {"ports": ["1"]}}, {"operation": {"ports": ["8080"]}}],
        "when": [{"key": "source.ip", "values": ["10.0.0.0/8"]}, {"key": "destination.port", "values": ["8080"]}],
    });
    assert!(matches(&rule, &get("/")));
    for (part, other) in
        [("/from/1/source/namespaces/0", "x"), ("/to/1/operation/ports/0", "2"), ("/when/1/values/0", "3")]
    {
        let mut broken = rule.clone();
        *broken.pointer_mut(part).unwrap() = json!(other);
        assert!(!matches(&broken, &get("/")), "{part}");
    }
}

#[test]
fn without_http_an_allow_rule_that_asks_for_it_is_dropped_and_others_widen() {
    let asking = [
        json!({"to": [{"operation": {"ports": ["8080"], "methods": ["POST"]}}]}),
        json!({"to": [{"operation": {"ports": ["8080"], "notPaths": ["/x"]}}]}),
        json!({"to": [{"operation": {"ports": ["8080"]}}], "from": [{"source": {"requestPrincipals": ["*"]}}]}),
        json!({"to": [{"operation": {"ports": ["8080"]}}], "when": [{"key": "request.headers[x]", "notValues": ["y"]}]}),
        json!({"to": [{"operation": {"ports": ["8080"]}}, {"operation": {"hosts": ["x"], "ports": ["8080"]}}]}),
    ];
    let elsewhere = Case { destination: SocketAddr::from(([10, 9, 9, 9], 9)), ..tcp() };
    for rule in asking {
        let of = |action: &str| {
            compile(&[object(
                "p",
                json!({"action": action, "rules": [rule], "provider": (action == "CUSTOM").then(|| json!({"name": "no"}))}),
            )])
        };
        assert_eq!(word(&of("ALLOW"), &tcp()), "NoAllowMatched", "{rule}");
        assert_eq!(word(&of("DENY"), &tcp()), "DeniedByPolicy", "{rule}");
        assert_eq!(word(&of("DENY"), &elsewhere), "AllowedByDefault", "{rule}");
        if !rule.to_string().contains("requestPrincipals") {
            assert_eq!(word(&of("CUSTOM"), &tcp()), "DeniedByProvider", "{rule}");
        }
        assert_eq!(
            of("AUDIT").report_tcp(&connection(&tcp()), &super::setup::answer).audit.len(),
            1,
            "{rule}"
        );
    }
}

#[test]
fn scope_is_own_and_root_namespace_and_live_labels() {
    let closed = |selector: Value| json!({"selector": {"matchLabels": selector}});
    let cases = [
        ("shop/p", json!({}), false),
        ("mesh/p", json!({}), false),
        ("bank/p", json!({}), true),
        ("shop/p", closed(json!({"app": "api"})), false),
        ("shop/p", closed(json!({"app": "web"})), true),
        ("shop/p", closed(json!({"app": "api", "tier": "x"})), true),
        ("mesh/p", closed(json!({"app": "api"})), false),
        ("mesh/p", closed(json!({"app": "web"})), true),
        ("shop/p", json!({"targetRefs": [{"kind": "Gateway", "name": "x"}]}), true),
        (
            "shop/p",
            json!({"targetRef": {"kind": "Gateway", "name": "x", "group": "gateway.networking.k8s.io"}}),
            true,
        ),
    ];
    for (name, spec, allowed) in cases {
        assert_eq!(
            decide(&compile(&[object(name, spec.clone())]), &get("/")).is_allowed(),
            allowed,
            "{name} {spec}"
        );
    }
    let account = source(json!({"serviceAccounts": ["web"]}));
    let root = compile(&[object("mesh/p", json!({"rules": [account]}))]);
    assert!(!decide(&root, &get("/")).is_allowed(), "a bare account is of the policy's own namespace");
}

#[test]
fn the_lowest_policy_and_its_first_matching_rule_are_named() {
    let two = |action: &str| json!({"action": action, "rules": [operation(json!({"ports": ["1"]})), {}, {}]});
    let named = |decision: Decision<'_>| (decision.policy.map(ToString::to_string), decision.rule);
    for action in ["ALLOW", "DENY"] {
        let policies = compile(&[
            object("shop/b", two(action)),
            object("shop/a", two(action)),
            object("mesh/z", two(action)),
        ]);
        assert_eq!(named(decide(&policies, &get("/"))), (Some("mesh/z".into()), Some(1)));
        assert_eq!(named(decide(&policies, &tcp())), (Some("mesh/z".into()), Some(1)));
    }
    let broken = compile(&[object("shop/y", json!({"x": 1})), object("shop/x", json!({"y": 1}))]);
    assert_eq!(named(decide(&broken, &get("/"))), (Some("shop/x".into()), None));
    let nothing = compile(&[object("shop/y", json!({}))]);
    assert_eq!(named(decide(&nothing, &get("/"))), (None, None));
}

#[test]
fn the_default_reads_paths_as_back_ends_do() {
    let deny = compile(&[object(
        "p",
        json!({"action": "DENY", "rules": [operation(json!({"paths": ["/admin*"]}))]}),
    )]);
    let allow = compile(&[object("p", json!({"rules": [operation(json!({"paths": ["/api/*"]}))]}))]);
    for target in [
        "/admin",
        "//admin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/x%2f..%2fadmin",
        "/x\\..\\admin",
        "/%61dmin",
    ] {
        assert_eq!(word(&deny, &get(target)), "DeniedByPolicy", "{target}");
    }
    assert_eq!(word(&deny, &get("/x/admin")), "AllowedByDefault");
    for (target, expected) in [
        ("/api/x", "Allowed"),
        ("/api/x%2Fy", "Allowed"),
        ("/api/..%2fadmin", "NoAllowMatched"),
        ("/api//x", "Allowed"),
        ("//api/x", "NoAllowMatched"),
    ] {
        assert_eq!(word(&allow, &get(target)), expected, "{target}");
    }
}

#[test]
fn a_miss_names_the_fields_that_failed() {
    let rules = json!([
        {"from": [{"source": {"namespaces": ["bank"]}}, {"source": {"ipBlocks": ["192.0.2.0/24"]}}]},
        {"from": [{"source": {"namespaces": ["shop"]}}], "to": [{"operation": {"methods": ["POST"], "ports": ["8080"]}}]},
    ]);
    let policies = compile(&[object("p", json!({"rules": rules}))]);
    let misses = super::setup::with_request(&get("/"), |request| {
        policies.misses(request).into_iter().map(|miss| (miss.rule, miss.fields)).collect::<Vec<_>>()
    });
    let expected = vec![
        (0, vec!["spec.rules[0].from[0].source.namespaces", "spec.rules[0].from[1].source.ipBlocks"]),
        (1, vec!["spec.rules[1].to[0].operation.methods"]),
    ];
    assert_eq!(misses, expected);
}

#[test]
fn plaintext_is_told_by_the_lack_of_a_principal() {
    let deny = compile(&[object(
        "p",
        json!({"action": "DENY", "rules": [source(json!({"notPrincipals": ["*"]}))]}),
    )]);
    assert_eq!(word(&deny, &plain()), "DeniedByPolicy");
    assert_eq!(word(&deny, &get("/")), "AllowedByDefault");
    assert!(matches!(deny.connection(&connection(&plain())), Partial::Deny(_)));
    assert!(matches!(deny.connection(&connection(&tcp())), Partial::Allow(_)));
}

#[test]
fn what_can_not_be_used_closes_only_what_it_selects() {
    let invalid = |selector: Value| object("p", json!({"selector": {"matchLabels": selector}, "ruels": []}));
    assert_eq!(word(&compile(&[invalid(json!({"app": "api"}))]), &get("/")), "PolicyInvalid");
    assert!(compile(&[invalid(json!({"app": "web"}))]).is_empty());
    let mut dry = object("p", json!({"ruels": []}));
    dry["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    let policies = compile(&[dry]);
    assert_eq!((word(&policies, &get("/")), policies.faults().count()), ("AllowedByDefault", 1));
    let tokens = json!({
        "apiVersion": "security.istio.io/v1beta1", "kind": "RequestAuthentication",
        "metadata": {"name": "r", "namespace": "shop"}, "spec": {"jwtRules": [{}]},
    });
    assert_eq!(word(&compile(&[tokens]), &get("/")), "PolicyInvalid");
}

#[test]
fn mutual_tls_is_part_of_a_workloads_policies() {
    let peer = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "d", "namespace": "mesh"},
        "spec": {"mtls": {"mode": "STRICT"}},
    });
    let policies = compile(&[peer]);
    assert_eq!(policies.mtls().mode(1).as_str(), "STRICT");
    assert!(policies.is_empty() && decide(&policies, &get("/")).is_allowed());
}

#[test]
fn aliases_count_only_where_they_are_configured() {
    let objects =
        [object("p", json!({"rules": [source(json!({"principals": ["old.mesh/ns/shop/sa/web"]}))]}))];
    let parsed: Vec<_> = objects.iter().map(|object| PolicyObject::parse(object).unwrap()).collect();
    let bare = MeshConfig { trust_domain_aliases: Vec::new(), ..mesh() };
    let policies = WorkloadPolicies::compile(&bare, &parsed, &workload());
    assert!(!decide(&policies, &get("/")).is_allowed());
}
