//! Reviews of policies over loopback with a real TLS client: what is accepted, refused and passed over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use cinch_reason::Reason;
use serde_json::{Value, json};
use support::Server;

const VALIDATE: &str = "/validate?timeout=5s";

fn policy(kind: &str, spec: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": "p"}, "spec": spec})
}

fn review(object: &Value) -> Value {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "0a1b", "kind": {"group": "security.istio.io", "version": "v1", "kind": object["kind"]},
        "operation": "CREATE", "namespace": "shop", "dryRun": false, "object": object}})
}

async fn ask(server: &Server, review: &Value) -> Value {
    let (status, body) = server.post_to(VALIDATE, review.to_string()).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["response"].clone()
}

fn message(response: &Value) -> &str {
    response["status"]["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_policy_from_a_guide_is_accepted() {
    let server = Server::start().await;
    let cases = [
        policy("PeerAuthentication", json!({"mtls": {"mode": "STRICT"}})),
        policy("AuthorizationPolicy", json!({})),
        policy(
            "AuthorizationPolicy",
            json!({"action": "DENY", "rules": [{"from": [{"source": {"notPrincipals": ["*"]}}]}]}),
        ),
        policy(
            "RequestAuthentication",
            json!({"jwtRules": [{"issuer": "https://a.example/", "jwksUri": "https://a.example/keys"}]}),
        ),
    ];
    let count = cases.len() as u64;
    for object in cases {
        let response = ask(&server, &review(&object)).await;
        assert_eq!(
            (&response["uid"], &response["allowed"]),
            (&json!("0a1b"), &json!(true)),
            "{object}: {response}"
        );
        assert_eq!(response["auditAnnotations"]["outcome"], "PolicyAccepted");
        assert!(response.get("patch").is_none());
    }
    assert_eq!(server.state.metrics.reviews_with("accepted", Reason::PolicyAccepted), count);
}

#[tokio::test]
async fn a_mistake_is_refused_with_its_field() {
    let server = Server::start().await;
    let cases = [
        ("action", policy("AuthorizationPolicy", json!({"action": "ALOW", "rules": [{}]}))),
        ("rules", policy("AuthorizationPolicy", json!({"action": "DENY"}))),
        (
            "spiffe://",
            policy(
                "AuthorizationPolicy",
                json!({"rules": [{"from": [{"source": {"principals": ["spiffe://a/ns/b/sa/c"]}}]}]}),
            ),
        ),
        (
            "operation",
            policy(
                "AuthorizationPolicy",
                json!({"rules": [{"from": [{"operation": {"methods": ["GET"]}}]}]}),
            ),
        ),
        ("portLevelMtls", policy("PeerAuthentication", json!({"portLevelMtls": {"80": {"mode": "STRICT"}}}))),
    ];
    let count = cases.len() as u64;
    for (field, object) in cases {
        let response = ask(&server, &review(&object)).await;
        assert_eq!(response["allowed"], false, "{field}");
        assert_eq!(response["status"]["code"], 403);
        let message = message(&response);
        assert!(message.starts_with("PolicyRefused: ") && message.contains(field), "{field}: {message}");
    }
    assert_eq!(server.state.metrics.reviews_with("refused", Reason::PolicyRefused), count);
}

#[tokio::test]
async fn an_update_is_refused_for_what_it_changes_only() {
    let server = Server::start().await;
    let broken = policy("AuthorizationPolicy", json!({"action": "DENY"}));
    let mut update = review(&broken);
    update["request"]["operation"] = json!("UPDATE");
    update["request"]["oldObject"] = policy("AuthorizationPolicy", json!({}));
    assert_eq!(ask(&server, &update).await["allowed"], false);

    update["request"]["oldObject"] = broken.clone();
    update["request"]["object"]["metadata"]["labels"] = json!({"team": "a"});
    let response = ask(&server, &update).await;
    assert_eq!(response["allowed"], true, "a label on what is broken already: {response}");
    assert!(response["warnings"][0].as_str().unwrap().starts_with("PolicyInvalid: "));

    let mut ending = review(&broken);
    ending["request"]["operation"] = json!("UPDATE");
    ending["request"]["oldObject"] = policy("AuthorizationPolicy", json!({}));
    ending["request"]["object"]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(ask(&server, &ending).await["allowed"], true, "its finalizers must go");
}

#[tokio::test]
async fn what_is_no_review_of_a_policy_is_named_and_survived() {
    let server = Server::start().await;
    let good = policy("AuthorizationPolicy", json!({}));
    let changed = |change: fn(&mut Value)| {
        let mut review = review(&good);
        change(&mut review["request"]);
        review.to_string()
    };
    let nested = format!("{}{}", "[".repeat(150_000), "]".repeat(150_000));
    let cases = [
        ("empty", String::new()),
        ("deep", nested),
        ("a pod", changed(|r| r["kind"] = json!({"group": "", "version": "v1", "kind": "Pod"}))),
        ("a deletion", changed(|r| r["operation"] = json!("DELETE"))),
        ("a status", changed(|r| r["subResource"] = json!("status"))),
        ("no object", changed(|r| r["object"] = Value::Null)),
        ("object is text", changed(|r| r["object"] = json!("policy"))),
        ("no namespace", changed(|r| r["namespace"] = json!(""))),
        ("no uid", changed(|r| r["uid"] = json!(""))),
    ];
    for (case, body) in cases {
        let (status, text) = server.post_to(VALIDATE, body).await;
        assert_eq!(status, 400, "{case}: {text}");
        assert!(text.starts_with("MalformedReview: "), "{case}: {text}");
    }
    let strange =
        [json!({}), json!([]), json!(7), json!({"rules": "x"}), json!({"selector": []}), Value::Null];
    for spec in strange {
        let (status, text) =
            server.post_to(VALIDATE, review(&policy("AuthorizationPolicy", spec)).to_string()).await;
        assert_eq!(status, 200, "{text}");
    }
    assert_eq!(ask(&server, &review(&good)).await["allowed"], true);
}
