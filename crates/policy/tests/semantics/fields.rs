//! Each field and each `when` key.

use crate::ask::{
    accepted, allow, but, deny, field, get, key, matches, of_peer, plaintext, reason, refused_at, source,
    tcp, with_claims,
};
use crate::setup::{compile, decide, object};
use serde_json::json;

#[test]
fn principals_are_the_peers_id_without_its_scheme() {
    let cases = [
        ("mesh.example/ns/shop/sa/web", true),
        ("mesh.example/ns/shop/sa/we", false),
        ("*", true),
        ("mesh.example/*", true),
        ("mesh.example/ns/sh*", true),
        ("example/*", false),
        ("*/ns/shop/sa/web", true),
        ("*/sa/web", true),
        ("*b", true),
        ("*/ns/shop/*", false),
    ];
    field("principals", &get("/"), &cases);
    key("source.principal", &get("/"), &cases);
    refused_at(
        &allow(json!([source("principals", &["spiffe://mesh.example/ns/shop/sa/web"])])),
        "spec.rules[0].from[0].source.principals[0]: ",
    );
}

#[test]
fn namespaces_are_the_ns_part_of_any_trust_domain() {
    let cases = [
        ("shop", true),
        ("sho", false),
        ("s*", true),
        ("*p", true),
        ("s*p", true),
        ("s*o*", true),
        ("*", true),
        ("x*p", false),
        ("sa", false),
    ];
    for peer in ["spiffe://mesh.example/ns/shop/sa/web", "spiffe://other.org/ns/shop/sa/x"] {
        field("namespaces", &of_peer(peer), &cases);
        key("source.namespace", &of_peer(peer), &cases);
    }
    field("namespaces", &of_peer("spiffe://mesh.example/spire/agent"), &[("*", false), ("spire", false)]);
}

#[test]
fn service_accounts_are_of_the_policys_namespace_unless_they_say() {
    let cases = [("web", true), ("shop/web", true), ("bank/web", false), ("we", false)];
    field("serviceAccounts", &get("/"), &cases);
    key("source.serviceAccount", &get("/"), &cases);
    field("serviceAccounts", &of_peer("spiffe://other.org/ns/shop/sa/web"), &[("web", true)]);
    let root = |account: &str| object("mesh/p", json!({"rules": [source("serviceAccounts", &[account])]}));
    assert_eq!(reason(&[root("web")], &get("/")), "NoAllowMatched");
    assert_eq!(reason(&[root("web")], &of_peer("spiffe://mesh.example/ns/mesh/sa/web")), "Allowed");
    assert_eq!(reason(&[root("shop/web")], &get("/")), "Allowed");
    for wildcard in ["*", "web*", "shop/*", "*/web", "a/b/c", "/web", "shop/"] {
        let policy = allow(json!([source("serviceAccounts", &[wildcard])]));
        refused_at(&policy, "spec.rules[0].from[0].source.serviceAccounts[0]: ");
    }
}

#[test]
fn service_accounts_stand_without_principals_and_namespaces() {
    for other in ["principals", "notPrincipals", "namespaces", "notNamespaces"] {
        for accounts in ["serviceAccounts", "notServiceAccounts"] {
            let rule = json!({"from": [{"source": {accounts: ["a"], other: ["b"]}}]});
            refused_at(&allow(json!([rule])), &format!("spec.rules[0].from[0].source.{accounts}: "));
        }
    }
    accepted(&allow(
        json!([{"from": [{"source": {"serviceAccounts": ["a"]}}, {"source": {"namespaces": ["b"]}}]}]),
    ));
}

#[test]
fn trust_domains_are_exact_prefix_suffix_or_present() {
    let cases = [
        ("mesh.example", true),
        ("mesh", false),
        ("mesh*", true),
        ("*.example", true),
        ("*", true),
        ("other.org", false),
    ];
    field("trustDomains", &get("/"), &cases);
    key("source.trustDomain", &get("/"), &cases);
    let policy = allow(json!([source("trustDomains", &["mesh.example/ns/shop"])]));
    refused_at(&policy, "spec.rules[0].from[0].source.trustDomains[0]: ");
}

#[test]
fn aliases_and_cluster_local_stand_for_our_trust_domain() {
    let ours = ["mesh.example", "old.mesh"];
    for peer in ours {
        let case = of_peer(&format!("spiffe://{peer}/ns/shop/sa/web"));
        let cases = [
            ("mesh.example/ns/shop/sa/web", true),
            ("old.mesh/ns/shop/sa/web", true),
            ("cluster.local/ns/shop/sa/web", true),
            ("cluster.local/ns/shop/sa/*", true),
            ("other.org/ns/shop/sa/web", false),
            // Not of five parts: taken as it stands.
            ("cluster.local/ns/shop/*", false),
            ("cluster.local/*", false),
        ];
        field("principals", &case, &cases);
        field("trustDomains", &case, &[("mesh.example", true), ("old.mesh", true), ("cluster.local", true)]);
    }
    let foreign = of_peer("spiffe://other.org/ns/shop/sa/web");
    field(
        "principals",
        &foreign,
        &[("mesh.example/ns/shop/sa/web", false), ("cluster.local/ns/shop/sa/web", false)],
    );
    field("trustDomains", &foreign, &[("cluster.local", false), ("other.org", true)]);
    let literal = of_peer("spiffe://cluster.local/ns/shop/sa/web");
    field("principals", &literal, &[("cluster.local/ns/shop/sa/web", false)]);
}

#[test]
fn request_principals_are_issuer_and_subject_split_at_the_last_slash() {
    let cases = [
        ("https://a.example/bob", true),
        ("https://a.example/*", true),
        ("*", true),
        ("*bob", true),
        ("*ob", true),
        ("*alice", false),
        ("https*", true),
        ("issuer*", false),
        ("*/bob", true),
        ("*.example/bob", true),
        ("https://a*", false),
        ("https://*", false),
        ("bob", false),
        ("https://a.example", false),
    ];
    let case = with_claims(json!({"iss": "https://a.example", "sub": "bob"}));
    field("requestPrincipals", &case, &cases);
    key("request.auth.principal", &case, &cases);
    let warnings = accepted(&allow(json!([source("requestPrincipals", &["https://a*"])])));
    assert!(warnings.iter().any(|warning| warning.contains("split at its last slash")), "{warnings:?}");
}

#[test]
fn a_request_principal_needs_both_strings() {
    let none = [("*", false), ("*bob", false), ("https*", false), ("https://a.example/bob", false)];
    for claims in [
        json!({"iss": "https://a.example"}),
        json!({"sub": "bob"}),
        json!({"iss": 7, "sub": "bob"}),
        json!({"iss": "https://a.example", "sub": ["bob"]}),
        json!({"iss": "", "sub": ""}),
    ] {
        field("requestPrincipals", &with_claims(claims), &none);
    }
    field("requestPrincipals", &get("/"), &none);
}

#[test]
fn ip_blocks_are_of_the_direct_connection() {
    let cases = [
        ("10.1.2.3", true),
        ("10.1.2.3/32", true),
        ("10.1.0.0/16", true),
        ("10.1.99.99/16", true),
        ("0.0.0.0/0", true),
        ("10.1.2.4", false),
        ("10.2.0.0/16", false),
        ("::/0", false),
    ];
    field("ipBlocks", &get("/"), &cases);
    key("source.ip", &get("/"), &cases);
    let mapped = but(|case, _| case.source = "::ffff:10.1.2.3".parse().unwrap());
    field("ipBlocks", &mapped, &[("10.1.2.3", true), ("::/0", false), ("::ffff:10.1.2.3", true)]);
    let v6 = but(|case, _| case.source = "2001:db8::1".parse().unwrap());
    field("ipBlocks", &v6, &[("2001:db8::/32", true), ("::/0", true), ("0.0.0.0/0", false)]);
    for bad in ["10.0.0.0/33", "10.0.0", "host", "*"] {
        refused_at(&allow(json!([source("ipBlocks", &[bad])])), "spec.rules[0].from[0].source.ipBlocks[0]: ");
    }
}

#[test]
fn remote_ip_is_the_connections_address_unless_trusted_proxies_say_safer() {
    let forged = but(|_, http| http.headers = vec![("X-Forwarded-For".into(), "192.0.2.1".into())]);
    field("remoteIpBlocks", &forged, &[("192.0.2.1", false), ("10.1.2.3", true)]);
    let told = but(|case, _| case.remote = Some("192.0.2.1".parse().unwrap()));
    field("remoteIpBlocks", &told, &[("192.0.2.0/24", true), ("10.1.2.3", false)]);
    key("remote.ip", &told, &[("192.0.2.0/24", true), ("10.1.2.3", false)]);
    field("ipBlocks", &told, &[("10.1.2.3", true)]);
}

#[test]
fn hosts_are_as_sent_with_their_port() {
    let cases = [
        ("shop.example:8080", true),
        ("shop.example", false),
        ("shop.example:*", true),
        ("*:8080", true),
        ("*.example", false),
        ("*", true),
    ];
    field("hosts", &get("/"), &cases);
    field("hosts", &but(|_, http| http.host = None), &[("*", false), ("shop.example", false)]);
}

#[test]
fn ports_are_the_workloads() {
    let cases = [("8080", true), ("80", false)];
    field("ports", &get("/"), &cases);
    key("destination.port", &get("/"), &cases);
    for bad in ["0", "65536", "http", "80-90", "*", "+80"] {
        let policy = allow(json!([crate::ask::operation("ports", &[bad])]));
        refused_at(&policy, "spec.rules[0].to[0].operation.ports[0]: ");
    }
}

#[test]
fn grpc_is_post_to_service_and_method() {
    let case = but(|_, http| {
        http.method = "POST".into();
        http.target = "/pkg.Service/Method".into();
    });
    field("methods", &case, &[("POST", true), ("GET", false)]);
    field(
        "paths",
        &case,
        &[("/pkg.Service/Method", true), ("/pkg.Service/*", true), ("/pkg.Other/*", false)],
    );
}

#[test]
fn claims_are_strings_or_members_of_lists_however_deep() {
    let case = with_claims(json!({
        "aud": ["one", "two"], "azp": "app", "role": "admin", "groups": ["staff", "on call", 7],
        "deep": {"er": {"id": "x", "list": ["y"]}}, "count": 3, "yes": true, "nothing": null, "a.b": "dotted",
    }));
    key(
        "request.auth.audiences",
        &case,
        &[("two", true), ("t*", true), ("three", false), ("one,two", false)],
    );
    key("request.auth.audiences", &with_claims(json!({"aud": "one"})), &[("one", true), ("two", false)]);
    key("request.auth.presenter", &case, &[("app", true), ("ap", false), ("*", true)]);
    let claims = [
        ("role", "admin", true),
        ("role", "adm*", true),
        ("role", "user", false),
        ("groups", "staff", true),
        ("groups", "on call", true),
        ("groups", "call", false),
        ("groups", "7", false),
        ("deep][er][id", "x", true),
        ("deep][er][list", "y", true),
        ("deep][er", "*", false),
        ("deep", "*", false),
        ("count", "3", false),
        ("yes", "true", false),
        ("nothing", "*", false),
        ("a.b", "dotted", true),
        ("missing", "*", false),
        ("role][x", "*", false),
    ];
    for (claim, value, expected) in claims {
        key(&format!("request.auth.claims[{claim}]"), &case, &[(value, expected)]);
    }
    key("request.auth.claims[role]", &get("/"), &[("*", false)]);
}

#[test]
fn scope_and_permission_and_declared_claims_are_split_at_spaces() {
    let claims =
        json!({"scope": "read write", "permission": "a  b", "roles": "x y", "deep": {"scope": "p q"}});
    let case = with_claims(claims.clone());
    let split = [("read", true), ("write", true), ("read write", false), ("wr*", true), ("ead", false)];
    key("request.auth.claims[scope]", &case, &split);
    key("request.auth.claims[permission]", &case, &[("b", true), ("a  b", false)]);
    key("request.auth.claims[roles]", &case, &[("x y", true), ("x", false)]);
    key("request.auth.claims[deep][scope]", &case, &[("p q", true), ("p", false)]);
    let policies = compile(&[allow(json!([crate::ask::when("request.auth.claims[roles]", &["x"])]))]);
    crate::setup::with_request(&get("/"), |request| {
        let declared = ["roles".to_owned()];
        let token = Some(cinch_policy::Token { claims: &claims, space_delimited: &declared });
        assert!(policies.authorize(&cinch_policy::Request { token, ..*request }).is_allowed());
    });
}

#[test]
fn destination_ip_is_the_workloads_address_and_sni_the_server_name() {
    key("destination.ip", &get("/"), &[("10.9.9.9", true), ("10.9.0.0/16", true), ("10.1.2.3", false)]);
    let case = but(|case, _| case.sni = Some("shop.example".into()));
    let names = [("shop.example", true), ("*.example", true), ("shop*", true), ("*", true), ("other", false)];
    key("connection.sni", &case, &names);
    key("connection.sni", &get("/"), &[("*", false)]);
}

#[test]
fn without_a_peer_certificate_positive_fields_fail_and_negative_ones_hold() {
    for (name, value) in [
        ("principals", "*"),
        ("namespaces", "*"),
        ("serviceAccounts", "web"),
        ("trustDomains", "*"),
        ("requestPrincipals", "*"),
    ] {
        field(name, &plaintext(), &[(value, false)]);
    }
}

#[test]
fn deny_of_those_without_a_principal_means_deny_plaintext() {
    let policy = deny(json!([source("notPrincipals", &["*"])]));
    for (case, expected) in [
        (plaintext(), "DeniedByPolicy"),
        (get("/"), "AllowedByDefault"),
        (crate::naive::Case { peer: None, ..tcp() }, "DeniedByPolicy"),
        (tcp(), "AllowedByDefault"),
    ] {
        assert_eq!(reason(std::slice::from_ref(&policy), &case), expected);
    }
}

#[test]
fn the_policy_named_is_the_lowest_and_the_rule_its_first() {
    let two =
        |name: &str| object(name, json!({"rules": [crate::ask::operation("methods", &["PUT"]), {}, {}]}));
    let policies = compile(&[two("shop/b"), two("mesh/z"), two("shop/a")]);
    let decision = decide(&policies, &get("/"));
    assert_eq!((decision.policy.map(|name| &**name), decision.rule), (Some("mesh/z"), Some(1)));
    assert!(matches(&json!({}), &get("/")));
}
