//! Lines in, lines out: the contract that other programs rely on.

use super::*;

mod contract;
mod signed;

fn run(input: &str) -> Vec<Value> {
    let mut output = Vec::new();
    answer_all(input.as_bytes(), &mut output).unwrap();
    let text = String::from_utf8(output).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn one(case: Value) -> Value {
    run(&format!("{case}\n")).remove(0)
}

fn policy(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": "orders"}, "spec": spec})
}

fn authorize(policies: Vec<Value>, change: impl FnOnce(&mut Value)) -> Value {
    let mut case = json!({"op": "authorize", "policies": policies,
        "workload": {"namespace": "orders", "labels": {"app": "api"}, "serviceAccount": "api"},
        "request": {"protocol": "http", "peer": "spiffe://cluster.local/ns/shop/sa/web",
            "source": {"ip": "10.1.0.1", "port": 40000}, "remoteIp": null,
            "destination": {"ip": "10.1.0.2", "port": 8080}, "sni": null,
            "method": "GET", "path": "/a?b", "host": "api", "headers": [["x-team", "a"]], "claims": null}});
    change(&mut case);
    one(case)
}

fn allow_web() -> Value {
    policy(
        "AuthorizationPolicy",
        "web",
        json!({"rules": [
        {"from": [{"source": {"principals": ["cluster.local/ns/nobody/sa/x"]}}]},
        {"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/web"]}}]}]}),
    )
}

#[test]
fn an_allowed_request_has_every_field_of_the_contract() {
    assert_eq!(
        authorize(vec![allow_web()], |_| {}),
        json!({"decision": "allow", "status": 200, "policy": "orders/web", "rule": 1, "reason": "Allowed",
            "principal": null, "dryRun": [], "audit": [],
            "forward": {"path": "/a?b", "headers": [["x-team", "a"]]}})
    );
    let open = authorize(vec![], |_| {});
    assert_eq!(
        (&open["reason"], &open["policy"], &open["rule"]),
        (&json!("AllowedByDefault"), &Value::Null, &Value::Null)
    );
}

#[test]
fn a_denied_request_has_no_forward() {
    let denied = authorize(vec![allow_web()], |case| case["request"]["peer"] = Value::Null);
    assert_eq!(
        denied,
        json!({"decision": "deny", "status": 403, "policy": null, "rule": null, "reason": "NoAllowMatched",
            "principal": null, "dryRun": [], "audit": []})
    );
    let deny = |name: &str| policy("AuthorizationPolicy", name, json!({"action": "DENY", "rules": [{}]}));
    let denied = authorize(vec![deny("b"), deny("a")], |_| {});
    assert_eq!(
        (&denied["reason"], &denied["policy"], &denied["rule"]),
        (&json!("DeniedByPolicy"), &json!("orders/a"), &json!(0))
    );
}

#[test]
fn tcp_has_no_status_and_no_forward() {
    let tcp = authorize(vec![allow_web()], |case| {
        case["request"] = json!({"protocol": "tcp", "peer": "spiffe://cluster.local/ns/shop/sa/web",
            "source": {"ip": "10.1.0.1", "port": 4}, "destination": {"ip": "10.1.0.2", "port": 8080}});
    });
    assert_eq!((&tcp["decision"], &tcp["status"]), (&json!("allow"), &Value::Null));
    assert!(tcp.get("forward").is_none(), "{tcp}");
}

#[test]
fn an_invalid_policy_closes_and_what_is_no_policy_is_an_error() {
    let broken = policy("AuthorizationPolicy", "typo", json!({"action": "ALOW"}));
    let closed = authorize(vec![broken], |_| {});
    assert_eq!(
        (&closed["decision"], &closed["reason"], &closed["policy"]),
        (&json!("deny"), &json!("PolicyInvalid"), &json!("orders/typo"))
    );
    let error = authorize(vec![json!({"kind": "Pod"})], |_| {});
    assert!(error["error"].as_str().unwrap().starts_with("policies[0]: "), "{error}");
}

#[test]
fn dry_runs_and_audits_are_reported_and_change_nothing() {
    let mut dry = policy("AuthorizationPolicy", "dry", json!({"action": "DENY", "rules": [{}]}));
    dry["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    let audit = policy("AuthorizationPolicy", "audit", json!({"action": "AUDIT", "rules": [{}]}));
    let answer = authorize(vec![dry, audit], |_| {});
    assert_eq!(answer["decision"], "allow");
    assert_eq!(answer["dryRun"], json!([{"policy": "orders/dry", "action": "DENY", "matched": true}]));
    assert_eq!(answer["audit"], json!(["orders/audit"]));
}

#[test]
fn providers_answer_and_one_that_is_not_named_is_unreachable() {
    let custom = policy(
        "AuthorizationPolicy",
        "ask",
        json!({"action": "CUSTOM", "provider": {"name": "p"}, "rules": [{}]}),
    );
    for (providers, decision, reason) in [
        (json!({"p": "allow"}), "allow", "AllowedByDefault"),
        (json!({"p": "deny"}), "deny", "DeniedByProvider"),
        (json!({}), "deny", "DeniedByProvider"),
    ] {
        let answer = authorize(vec![custom.clone()], |case| case["providers"] = providers.clone());
        assert_eq!(
            (&answer["decision"], &answer["reason"]),
            (&json!(decision), &json!(reason)),
            "{providers}"
        );
    }
}

#[test]
fn claims_stand_for_a_verified_token() {
    let jwt = policy(
        "RequestAuthentication",
        "jwt",
        json!({"jwtRules": [{"issuer": "https://a", "jwksUri": "https://a/k",
        "spaceDelimitedClaims": ["groups"], "outputClaimToHeaders": [{"header": "x-sub", "claim": "sub"}]}]}),
    );
    let rule = policy(
        "AuthorizationPolicy",
        "jwt",
        json!({"rules": [{"from": [{"source": {"requestPrincipals": ["https://a/me"]}}],
        "when": [{"key": "request.auth.claims[groups]", "values": ["two"]}]}]}),
    );
    let answer = authorize(vec![jwt.clone(), rule.clone()], |case| {
        case["request"]["claims"] = json!({"iss": "https://a", "sub": "me", "groups": "one two"});
        case["request"]["headers"] = json!([["X-Sub", "forged"]]);
    });
    assert_eq!(
        (&answer["decision"], &answer["principal"]),
        (&json!("allow"), &json!("https://a/me")),
        "{answer}"
    );
    assert_eq!(answer["forward"]["headers"], json!([["x-sub", "me"]]));
    assert_eq!(authorize(vec![jwt.clone(), rule], |_| {})["reason"], "NoAllowMatched");
    let garbage =
        authorize(vec![jwt], |case| case["request"]["headers"] = json!([["authorization", "Bearer x.y.z"]]));
    assert_eq!((&garbage["status"], &garbage["reason"]), (&json!(401), &json!("TokenInvalid")));
}

#[test]
fn a_bad_path_is_a_400() {
    let answer = authorize(vec![], |case| case["request"]["path"] = json!("/a%00b"));
    assert_eq!((&answer["status"], &answer["reason"]), (&json!(400), &json!("BadRequest")));
    assert_eq!(
        one(json!({"op": "normalize", "mode": "BASE", "path": "/a%00"})),
        json!({"status": 400, "reason": "BadRequest"})
    );
}

#[test]
fn modes_paths_and_identities_are_told() {
    let strict = policy("PeerAuthentication", "strict", json!({"mtls": {"mode": "STRICT"}}));
    let port = policy(
        "PeerAuthentication",
        "port",
        json!({"selector": {"matchLabels": {"app": "api"}},
        "portLevelMtls": {"8080": {"mode": "DISABLE"}}}),
    );
    let mtls = json!({"op": "mtls", "policies": [strict, port], "ports": [8080, 9090],
        "workload": {"namespace": "orders", "labels": {"app": "api"}}});
    assert_eq!(one(mtls), json!({"mode": "STRICT", "ports": {"8080": "DISABLE", "9090": "STRICT"}}));
    assert_eq!(one(json!({"op": "mtls"})), json!({"mode": "PERMISSIVE", "ports": {}}));

    assert_eq!(one(json!({"op": "normalize", "mode": "BASE", "path": "/a/../b"})), json!({"path": "/b"}));
    assert_eq!(
        one(json!({"op": "normalize", "mode": "SAFE", "path": "/a%2fb//c"})),
        json!({"path": "/a%2fb//c", "readings": ["/a%2fb//c", "/a%2fb/c", "/a/b/c"]})
    );

    assert_eq!(
        one(json!({"op": "spiffe", "spiffeId": "spiffe://td.example/ns/a/sa/b"})),
        json!({"trustDomain": "td.example", "path": "/ns/a/sa/b"})
    );
    assert_eq!(
        one(json!({"op": "spiffe", "spiffeId": "spiffe://td"})),
        json!({"trustDomain": "td", "path": ""})
    );
    assert!(one(json!({"op": "spiffe", "spiffeId": "http://td/a"}))["error"].is_string());
}

#[test]
fn validation_is_admissions() {
    let good = policy("AuthorizationPolicy", "a", json!({}));
    assert_eq!(one(json!({"op": "validate", "object": good}))["valid"], true);
    let bad = one(
        json!({"op": "validate", "object": policy("AuthorizationPolicy", "a", json!({"action": "DENY"}))}),
    );
    assert_eq!(bad["valid"], false);
    assert!(bad["errors"][0].as_str().unwrap().contains("spec.rules"), "{bad}");
    assert!(bad.get("warnings").is_none());
}

#[test]
fn ids_of_any_type_are_echoed_to_the_digit_also_with_errors() {
    for id in
        ["1", "\"a\"", "null", "[1, {\"b\": 2}]", "12345678901234567890123", "1.50", "{\"x\":  1}", "false"]
    {
        let mut output = Vec::new();
        let lines = format!("{{\"id\": {id}, \"op\": \"mtls\"}}\n{{\"op\": \"nonsense\", \"id\": {id}}}\n");
        answer_all(lines.as_bytes(), &mut output).unwrap();
        let text = String::from_utf8(output).unwrap();
        for line in text.lines() {
            assert!(line.starts_with(&format!("{{\"id\":{id},")), "{line}");
        }
        assert!(text.lines().nth(1).unwrap().contains("\"error\":"), "{text}");
    }
    assert!(one(json!({"op": "mtls"})).get("id").is_none());
}

#[test]
fn a_line_that_can_not_be_understood_is_an_error_and_the_run_goes_on() {
    let nested = "[".repeat(100_000);
    let long = format!("{{\"op\":\"mtls\",\"x\":\"{}\"}}", "y".repeat(lines::LONGEST));
    let bad = [
        "",
        "nonsense",
        "[]",
        "null",
        "{\"op\":7}",
        "{}",
        "{\"op\":\"authorize\"}",
        "{\"op\":\"normalize\"}",
        "{\"op\":\"authorize\",\"request\":{\"peer\":\"spiffe://\",\"source\":{\"ip\":\"10.0.0.1\"},\"destination\":{\"ip\":\"10.0.0.2\"}}}",
        "{\"op\":\"authorize\",\"request\":{\"source\":{\"ip\":\"nowhere\"},\"destination\":{\"ip\":\"10.0.0.2\"}}}",
        "{\"op\":\"mtls\",\"mesh\":{\"pathNormalization\":\"OFTEN\"}}",
        "{\"id\":1,\"id\":2,\"op\":\"mtls\"}",
        &nested,
        &long,
    ];
    let mut input = String::new();
    for line in bad {
        input.push_str(line);
        input.push_str("\n{\"op\":\"mtls\"}\n");
    }
    let answers = run(&input);
    assert_eq!(answers.len(), 2 * bad.len());
    for (index, pair) in answers.chunks(2).enumerate() {
        assert!(
            pair[0]["error"].is_string(),
            "{}: {}",
            bad[index].chars().take(80).collect::<String>(),
            pair[0]
        );
        assert_eq!(pair[1]["mode"], "PERMISSIVE");
    }
    let mut output = Vec::new();
    answer_all(&b"\xff\xfe\n{\"op\":\"mtls\"}"[..], &mut output).unwrap();
    assert_eq!(output.iter().filter(|byte| **byte == b'\n').count(), 2);
}

#[test]
fn answers_come_before_more_input_is_waited_for() {
    use std::io::{BufReader, Read};
    use std::sync::{Arc, Mutex};

    /// Gives one line at a time, and looks whether the answer to the one before is there.
    struct Patient {
        given: usize,
        written: Arc<Mutex<Vec<u8>>>,
    }
    impl Read for Patient {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let answered = self.written.lock().unwrap().iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(answered, self.given);
            if self.given == 3 {
                return Ok(0);
            }
            self.given += 1;
            let line = b"{\"op\":\"mtls\"}\n";
            into[..line.len()].copy_from_slice(line);
            Ok(line.len())
        }
    }
    struct Shared(Arc<Mutex<Vec<u8>>>);
    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let written = Arc::new(Mutex::new(Vec::new()));
    let input = BufReader::new(Patient { given: 0, written: Arc::clone(&written) });
    answer_all(input, Shared(written)).unwrap();
}
