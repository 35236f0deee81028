//! The contract line by line: each input that it names changes what it should, each output has the form that it
//! gives.

use super::*;

/// The reason of a request by `peer` (a SPIFFE ID without its scheme) in a mesh with these settings.
fn reason_in(mesh: Value, policies: Vec<Value>, peer: Option<&str>, path: &str) -> Value {
    let answer = authorize(policies, |case| {
        case["mesh"] = mesh.clone();
        case["request"]["peer"] = json!(peer.map(|peer| format!("spiffe://{peer}")));
        case["request"]["path"] = json!(path);
    });
    answer["reason"].clone()
}

fn allow(source: Value) -> Value {
    policy("AuthorizationPolicy", "p", json!({"rules": [{"from": [{"source": source}]}]}))
}

fn deny_path(path: &str) -> Value {
    let rule = json!({"to": [{"operation": {"paths": [path]}}]});
    policy("AuthorizationPolicy", "p", json!({"action": "DENY", "rules": [rule]}))
}

#[test]
fn the_mesh_is_as_the_case_says_and_each_of_its_fields_may_be_left_out() {
    let web = || vec![allow(json!({"principals": ["corp.example/ns/shop/sa/web"]}))];
    let corp = json!({"trustDomain": "corp.example"});
    let aliased = json!({"trustDomain": "new.example", "trustDomainAliases": ["corp.example"]});
    let cases = [
        (json!({}), "corp.example/ns/shop/sa/web", "Allowed"),
        (json!(null), "cluster.local/ns/shop/sa/web", "NoAllowMatched"),
        (corp, "cluster.local/ns/shop/sa/web", "NoAllowMatched"),
        (aliased, "new.example/ns/shop/sa/web", "Allowed"),
    ];
    for (mesh, peer, want) in cases {
        assert_eq!(reason_in(mesh.clone(), web(), Some(peer), "/"), want, "{mesh} {peer}");
    }

    let mut of_root = policy("AuthorizationPolicy", "root", json!({"action": "DENY", "rules": [{}]}));
    of_root["metadata"]["namespace"] = json!("cinch-system");
    let peer = Some("cluster.local/ns/shop/sa/web");
    assert_eq!(reason_in(json!({}), vec![of_root.clone()], peer, "/"), "DeniedByPolicy");
    let elsewhere = json!({"rootNamespace": "istio-config"});
    assert_eq!(reason_in(elsewhere, vec![of_root], peer, "/"), "AllowedByDefault");

    for (mode, path, want) in [
        ("SAFE", "//admin", "DeniedByPolicy"),
        ("SAFE", "/a%2f..%2fadmin", "DeniedByPolicy"),
        ("BASE", "/a%2f..%2fadmin", "AllowedByDefault"),
        ("BASE", "//admin", "AllowedByDefault"),
        ("MERGE_SLASHES", "//admin", "DeniedByPolicy"),
        ("MERGE_SLASHES", "/%2fadmin", "AllowedByDefault"),
        ("DECODE_AND_MERGE_SLASHES", "/%2fadmin", "DeniedByPolicy"),
        ("NONE", "/./admin", "AllowedByDefault"),
    ] {
        let mesh = json!({"pathNormalization": mode});
        assert_eq!(reason_in(mesh, vec![deny_path("/admin")], peer, path), want, "{mode} {path}");
    }
    let strange = one(json!({"op": "mtls", "mesh": {"rootnamespace": "x"}}));
    assert!(strange["error"].as_str().unwrap().contains("rootnamespace"), "{strange}");
}

#[test]
fn labels_namespace_and_account_of_the_workload_say_what_selects_it() {
    let selecting = |app: &str| {
        let selector = json!({"matchLabels": {"app": app}});
        policy("AuthorizationPolicy", "p", json!({"action": "DENY", "selector": selector, "rules": [{}]}))
    };
    assert_eq!(authorize(vec![selecting("api")], |_| {})["reason"], "DeniedByPolicy");
    assert_eq!(authorize(vec![selecting("web")], |_| {})["reason"], "AllowedByDefault");
    let elsewhere = |case: &mut Value| case["workload"]["namespace"] = json!("elsewhere");
    assert_eq!(authorize(vec![selecting("api")], elsewhere)["reason"], "AllowedByDefault");
    assert_eq!(authorize(vec![], |case| case["workload"] = Value::Null)["reason"], "AllowedByDefault");
}

#[test]
fn older_objects_go_before_and_a_broken_one_is_strict() {
    let made = |name: &str, at: Value, spec: Value| {
        let mut object = policy("PeerAuthentication", name, spec);
        object["metadata"]["creationTimestamp"] = at;
        object
    };
    let mode = |policies: Vec<Value>| {
        one(json!({"op": "mtls", "policies": policies, "workload": {"namespace": "orders"}}))["mode"].clone()
    };
    let strict = |name, at| made(name, json!(at), json!({"mtls": {"mode": "STRICT"}}));
    let disable = |name, at| made(name, json!(at), json!({"mtls": {"mode": "DISABLE"}}));
    assert_eq!(
        mode(vec![strict("b", "2026-01-01T00:00:00Z"), disable("a", "2026-01-02T00:00:00Z")]),
        "STRICT"
    );
    assert_eq!(
        mode(vec![strict("b", "2026-01-03T00:00:00Z"), disable("a", "2026-01-02T00:00:00Z")]),
        "DISABLE"
    );
    assert_eq!(mode(vec![made("x", Value::Null, json!({"mtls": {"mode": "STRIKT"}}))]), "STRICT");
}

#[test]
fn authorize_does_not_apply_modes_and_mtls_knows_no_lock() {
    let strict = policy("PeerAuthentication", "strict", json!({"mtls": {"mode": "STRICT"}}));
    let answer = authorize(vec![strict], |case| case["request"]["peer"] = Value::Null);
    assert_eq!(answer["reason"], "AllowedByDefault");
    let permissive = policy("PeerAuthentication", "open", json!({"mtls": {"mode": "PERMISSIVE"}}));
    let mtls = one(json!({"op": "mtls", "policies": [permissive], "ports": [80],
        "workload": {"namespace": "orders", "labels": {"cinch.dev/mode": "STRICT"}}}));
    assert_eq!(mtls, json!({"mode": "PERMISSIVE", "ports": {"80": "PERMISSIVE"}}));
}

#[test]
fn of_several_policies_the_lowest_by_name_with_its_first_rule_is_named() {
    let rules = json!({"rules": [{"from": [{"source": {"namespaces": ["nobody"]}}]}, {}, {}]});
    let named = |name: &str| policy("AuthorizationPolicy", name, rules.clone());
    let mut of_root = named("z");
    of_root["metadata"]["namespace"] = json!("cinch-system");
    let forth = authorize(vec![named("b"), named("a"), of_root.clone()], |_| {});
    let back = authorize(vec![of_root, named("a"), named("b")], |_| {});
    assert_eq!(forth, back);
    assert_eq!((&forth["policy"], &forth["rule"]), (&json!("cinch-system/z"), &json!(1)));
}

#[test]
fn an_invalid_policy_of_any_kind_closes_what_it_selects_and_nothing_else() {
    let broken = |spec: Value| policy("RequestAuthentication", "jwt", spec);
    let closed = authorize(vec![broken(json!({"jwtRules": [{"isuer": "x"}]}))], |_| {});
    assert_eq!(
        closed,
        json!({"decision": "deny", "status": 403, "policy": "orders/jwt", "rule": null,
            "reason": "PolicyInvalid", "principal": null, "dryRun": [], "audit": []})
    );
    let selecting = json!({"selector": {"matchLabels": {"app": "web"}}, "action": "DENNY"});
    let other = policy("AuthorizationPolicy", "typo", selecting);
    assert_eq!(authorize(vec![other], |_| {})["reason"], "AllowedByDefault");
    let tcp = authorize(vec![broken(json!({"colour": "red"}))], |case| {
        case["request"] = json!({"protocol": "tcp", "source": {"ip": "10.1.0.1", "port": 4},
            "destination": {"ip": "10.1.0.2", "port": 8080}});
    });
    assert_eq!((&tcp["reason"], &tcp["status"]), (&json!("PolicyInvalid"), &Value::Null));
}

#[test]
fn every_field_of_a_request_can_decide() {
    let when = |key: &str, value: &str| {
        let rule = json!({"when": [{"key": key, "values": [value]}]});
        policy("AuthorizationPolicy", "p", json!({"rules": [rule]}))
    };
    let operation = |field: &str, value: &str| {
        let rule = json!({"to": [{"operation": {field: [value]}}]});
        policy("AuthorizationPolicy", "p", json!({"rules": [rule]}))
    };
    let set = |field: &'static str, value: Value| move |case: &mut Value| case["request"][field] = value;
    type Change = Box<dyn FnOnce(&mut Value)>;
    let cases: Vec<(Value, Change, &str)> = vec![
        (when("source.ip", "10.1.0.0/24"), Box::new(|_| {}), "Allowed"),
        (when("source.ip", "10.9.0.0/24"), Box::new(|_| {}), "NoAllowMatched"),
        (when("remote.ip", "10.1.0.1"), Box::new(|_| {}), "Allowed"),
        (when("remote.ip", "192.0.2.7"), Box::new(set("remoteIp", json!("192.0.2.7"))), "Allowed"),
        (when("destination.ip", "10.1.0.2"), Box::new(|_| {}), "Allowed"),
        (when("destination.port", "8080"), Box::new(|_| {}), "Allowed"),
        (when("connection.sni", "a.example"), Box::new(|_| {}), "NoAllowMatched"),
        (when("connection.sni", "a.example"), Box::new(set("sni", json!("a.example"))), "Allowed"),
        (when("request.headers[X-Team]", "a"), Box::new(|_| {}), "Allowed"),
        (when("request.headers[x-team]", "a"), Box::new(set("headers", json!([]))), "NoAllowMatched"),
        (operation("methods", "GET"), Box::new(|_| {}), "Allowed"),
        (operation("methods", "GET"), Box::new(set("method", json!("POST"))), "NoAllowMatched"),
        (operation("paths", "/a"), Box::new(|_| {}), "Allowed"),
        (operation("hosts", "API"), Box::new(|_| {}), "Allowed"),
        (operation("hosts", "api"), Box::new(set("host", json!("api:80"))), "NoAllowMatched"),
    ];
    for (number, (object, change, want)) in cases.into_iter().enumerate() {
        assert_eq!(authorize(vec![object], change)["reason"], want, "case {number}");
    }
}

#[test]
fn a_dry_run_of_allow_tells_whether_it_matched() {
    let dry = |namespace: &str| {
        let rule = json!({"from": [{"source": {"namespaces": [namespace]}}]});
        let mut object = policy("AuthorizationPolicy", namespace, json!({"rules": [rule]}));
        object["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
        object
    };
    let answer = authorize(vec![dry("shop"), dry("bank")], |_| {});
    assert_eq!(answer["reason"], "AllowedByDefault", "a dry run closes nothing");
    assert_eq!(
        answer["dryRun"],
        json!([{"policy": "orders/bank", "action": "ALLOW", "matched": false},
            {"policy": "orders/shop", "action": "ALLOW", "matched": true}])
    );
}

#[test]
fn each_mode_reads_a_path_its_own_way() {
    for (mode, path, want) in [
        ("NONE", "/a/./b//c", "/a/./b//c"),
        ("BASE", "/a/./b//c", "/a/b//c"),
        ("MERGE_SLASHES", "/a/./b//c", "/a/b/c"),
        ("MERGE_SLASHES", "/a%2fb", "/a%2fb"),
        ("DECODE_AND_MERGE_SLASHES", "/a%2F%5Cb", "/a/b"),
    ] {
        assert_eq!(
            one(json!({"op": "normalize", "mode": mode, "path": path})),
            json!({"path": want}),
            "{mode}"
        );
    }
    let of_mesh = one(json!({"op": "normalize", "mesh": {"pathNormalization": "BASE"}, "path": "/a/../b"}));
    assert_eq!(of_mesh, json!({"path": "/b"}));
    let plain = one(json!({"op": "normalize", "path": "/a"}));
    assert_eq!(plain, json!({"path": "/a", "readings": ["/a"]}), "SAFE is the default");
}

/// The documents by which admission's golden files are made.
#[test]
fn validate_answers_what_admission_does_word_for_word() {
    let admission = |object: &Value| cinch_policy::validate(object, &cinch_policy::MeshConfig::default());
    let mut seen = (0, 0);
    for text in [
        include_str!("../../../../../../webhook/tests/golden/cases.yaml"),
        include_str!("../../../../../policy/tests/engine/pasted.yaml"),
        include_str!("../../../../../policy/tests/engine/mistaken.yaml"),
    ] {
        for document in crate::documents::parse(text).unwrap() {
            let object = match document.get("case") {
                None => document,
                Some(_) => {
                    let mut object =
                        policy(document["kind"].as_str().unwrap(), "p", document["spec"].clone());
                    object["metadata"]["annotations"] = document["annotations"].clone();
                    object
                }
            };
            let want = admission(&object);
            let answer = one(json!({"op": "validate", "object": object}));
            if want.is_valid() {
                seen.0 += 1;
                assert_eq!(answer, json!({"valid": true, "warnings": want.warnings}));
            } else {
                seen.1 += 1;
                assert_eq!(answer, json!({"valid": false, "errors": want.errors}));
            }
        }
    }
    assert!(seen.0 > 20 && seen.1 > 40, "{seen:?}");
    let aliased = json!({"op": "validate", "mesh": {"trustDomain": "corp.example"},
        "object": allow(json!({"principals": ["corp.example/ns/a/sa/b"]}))});
    assert_eq!(one(aliased), json!({"valid": true, "warnings": []}), "the mesh of the case counts");
}

#[test]
fn spiffe_ids_are_taken_apart_or_refused() {
    for (id, domain, path) in [
        ("spiffe://cluster.local/ns/a/sa/b", "cluster.local", "/ns/a/sa/b"),
        ("spiffe://td.example/any/thing", "td.example", "/any/thing"),
    ] {
        let answer = one(json!({"op": "spiffe", "spiffeId": id}));
        assert_eq!(answer, json!({"trustDomain": domain, "path": path}), "{id}");
    }
    for bad in [
        "",
        "spiffe://",
        "https://a/b",
        "spiffe://A/b",
        "spiffe://a//b",
        "spiffe://a/b/",
        "spiffe://a/%2e",
        "spiffe://a/b?c",
    ] {
        assert!(one(json!({"op": "spiffe", "spiffeId": bad}))["error"].is_string(), "{bad}");
    }
}

#[test]
fn answers_come_in_the_order_of_the_lines() {
    let lines: String = (0..50).map(|id| format!("{{\"id\":{id},\"op\":\"mtls\"}}\n")).collect();
    let ids: Vec<u64> = run(&lines).iter().map(|answer| answer["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (0..50).collect::<Vec<_>>());
}
