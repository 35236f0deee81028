//! The review server over loopback with a real TLS client: good reviews, waiting, and everything malformed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use bytes::Bytes;
use cinch_reason::Reason;
use cinch_webhook::certificate::Serving;
use cinch_webhook::intake::LARGEST_BODY;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use support::{NAME, Server, certificate, client, send};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What the API server waits for an answer, less what it needs itself: its time-out is 3 s.
const API_SERVER_WAITS: Duration = Duration::from_millis(2900);

fn review(change: impl FnOnce(&mut Value)) -> Value {
    let mut review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "0a1b", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
        "namespace": "shop", "dryRun": false, "object": {
            "metadata": {"generateName": "db-", "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "u", "controller": true}]},
            "spec": {"containers": [{"name": "db", "image": "db:1"}]}}}});
    change(&mut review["request"]);
    review
}

#[tokio::test]
async fn a_pod_is_injected() {
    let server = Server::start().await;
    server.account_appears();
    let response = server.review(&review(|_| {})).await;
    assert_eq!((&response["uid"], &response["allowed"]), (&json!("0a1b"), &json!(true)));
    assert_eq!(response["patchType"], "JSONPatch");
    use base64::Engine as _;
    let patch =
        base64::engine::general_purpose::STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut pod = review(|_| {})["request"]["object"].clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    assert_eq!(pod["spec"]["serviceAccountName"], "db-statefulset");
    assert_eq!(pod["spec"]["initContainers"][0]["name"], "cinch-proxy");
    assert_eq!(server.state.metrics.reviews_with("injected", Reason::Injected), 1);
}

#[tokio::test]
async fn a_pod_that_opts_out_is_allowed_with_a_warning() {
    let server = Server::start().await;
    let review = review(|r| r["object"]["metadata"]["labels"] = json!({"cinch.dev/inject": "disabled"}));
    let response = server.review(&review).await;
    assert_eq!(response["allowed"], true);
    assert!(response["warnings"][0].as_str().unwrap().starts_with("OptedOut: "));
    assert_eq!(response["auditAnnotations"]["outcome"], "OptedOut");
}

#[tokio::test]
async fn an_account_that_appears_in_time_is_waited_for() {
    let server = Server::start().await;
    let body = review(|_| {});
    let (response, ()) = tokio::join!(server.review(&body), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.account_appears();
    });
    assert_eq!(response["allowed"], true);
}

#[tokio::test]
async fn an_account_that_does_not_appear_is_a_refusal_in_time_that_says_so() {
    let server = Server::start().await;
    let mut soonest = Duration::MAX;
    // A machine that has much to do may be late; a webhook that waits for too long always is.
    for _ in 0..3 {
        let mut open = server.connect().await;
        let began = std::time::Instant::now();
        let response = send(&mut open, review(|_| {}).to_string()).await;
        soonest = soonest.min(began.elapsed());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let response = serde_json::from_slice::<Value>(&body).unwrap()["response"].clone();
        assert_eq!(response["allowed"], false);
        let message = response["status"]["message"].as_str().unwrap();
        assert!(
            message.starts_with("ServiceAccountPending: ") && message.contains("db-statefulset"),
            "{message}"
        );
        if soonest < API_SERVER_WAITS {
            break;
        }
    }
    assert!(soonest < API_SERVER_WAITS, "{soonest:?}");
    let dry = server.review(&review(|r| r["dryRun"] = json!(true))).await;
    assert_eq!(dry["allowed"], true, "a dry run does not wait");
    assert!(dry["warnings"][0].as_str().unwrap().starts_with("ServiceAccountPending: "));
}

#[tokio::test]
async fn what_is_malformed_is_named_counted_and_survived() {
    let server = Server::start().await;
    server.account_appears();
    let nested = format!("{}{}", "[".repeat(150_000), "]".repeat(150_000));
    let cases: Vec<(&str, String)> = vec![
        ("empty", String::new()),
        ("not JSON", "pod".into()),
        ("deep", nested),
        ("null", "null".into()),
        ("no request", json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}).to_string()),
        ("no object", review(|r| r["object"] = Value::Null).to_string()),
        ("wrong kind", review(|r| r["kind"]["kind"] = json!("Service")).to_string()),
        (
            "other version",
            json!({"apiVersion": "admission.k8s.io/v2", "kind": "AdmissionReview"}).to_string(),
        ),
        ("object is text", review(|r| r["object"] = json!("pod")).to_string()),
        ("no spec", review(|r| r["object"] = json!({"metadata": {}})).to_string()),
        ("containers are text", review(|r| r["object"]["spec"]["containers"] = json!("x")).to_string()),
    ];
    let count = cases.len() as u64;
    for (case, body) in cases {
        let (status, text) = server.post(body).await;
        assert_eq!(status, 400, "{case}: {text}");
        assert!(text.starts_with("MalformedReview: "), "{case}: {text}");
    }
    assert_eq!(server.state.metrics.reviews_with("malformed", Reason::MalformedReview), count);
    let (status, text) = server.post(vec![b' '; LARGEST_BODY + 1]).await;
    assert_eq!(status, 413, "{text}");
    assert_eq!(server.review(&review(|_| {})).await["allowed"], true, "and the next review is answered");
}

/// As API servers write it: what identifies the review comes first.
fn as_sent(review: &Value) -> String {
    let mut request = review["request"].clone();
    let uid = request.as_object_mut().unwrap().remove("uid").unwrap();
    let kind = r#""kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1""#;
    format!(r#"{{{kind},"request":{{"uid":{uid},{}}}"#, &request.to_string()[1..])
}

#[tokio::test]
async fn a_pod_that_its_user_made_too_large_is_refused_with_a_reason_and_not_let_in() {
    let server = Server::start().await;
    server.account_appears();
    // An API server lets a pod in whose webhook does not answer with a review.
    let many: Vec<Value> = (0..60_000).map(|n| json!({"name": n.to_string(), "value": ""})).collect();
    let escaped = review(|r| r["object"]["metadata"]["annotations"] = json!({"x": "a".repeat(LARGEST_BODY)}));
    let values = review(|r| r["object"]["spec"]["containers"][0]["env"] = json!(many));
    let deep = review(|r| r["object"]["metadata"]["managedFields"] = json!("DEEP"));
    let deep =
        as_sent(&deep).replace(r#""DEEP""#, &format!("{}1{}", r#"{"f:a":"#.repeat(200), "}".repeat(200)));
    for (case, body, want) in [
        ("bytes", as_sent(&escaped), "more than 4194304 bytes"),
        ("values", as_sent(&values), "more values"),
        ("depth", deep, "recursion limit"),
    ] {
        let (status, text) = server.post(body).await;
        assert_eq!(status, 200, "{case}: {text}");
        let response = serde_json::from_str::<Value>(&text).unwrap()["response"].clone();
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("0a1b"), &json!(false)), "{case}");
        let message = response["status"]["message"].as_str().unwrap();
        assert!(message.starts_with("ObjectTooLarge: ") && message.contains(want), "{case}: {message}");
    }
    assert_eq!(server.state.metrics.reviews_with("refused", Reason::ObjectTooLarge), 3);
}

#[tokio::test]
async fn a_pod_with_a_table_of_commas_in_a_text_is_injected_as_any_other() {
    let server = Server::start().await;
    server.account_appears();
    let table = "a,[{\"".repeat(50_000);
    let review = review(|r| {
        r["object"]["metadata"]["annotations"] = json!({ "csv": table.as_str() });
        r["object"]["spec"]["containers"][0]["env"] = json!([{"name": "CSV", "value": table.as_str()}]);
    });
    let response = server.review(&review).await;
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
}

#[tokio::test]
async fn large_reviews_in_flight_are_refused_more_and_keep_no_common_pod_out() {
    let server = Server::start().await;
    server.account_appears();
    // Of the same address as the reviews below: an API server relays what all its users wrote.
    let mut held = Vec::new();
    loop {
        let mut charges = server.state.budget.charges(server.address.ip());
        if charges.add(8 << 20).await.is_err() {
            break;
        }
        held.push(charges);
    }
    for _ in 0..20 {
        assert_eq!(server.review(&review(|_| {})).await["allowed"], true);
    }
    let large =
        review(|r| r["object"]["metadata"]["annotations"] = json!({"x": "a".repeat(LARGEST_BODY / 2)}));
    let refused = server.post(as_sent(&large)).await;
    assert!(refused.0 == 200 && refused.1.contains("Overloaded: "), "{refused:?}");
    drop(held);
    assert!(server.post(as_sent(&large)).await.1.contains("JSONPatch"));
}

#[tokio::test]
async fn a_head_that_does_not_end_is_not_kept() {
    let server = Server::start().await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from(NAME).unwrap();
    let mut stream = TlsConnector::from(Arc::clone(&server.tls)).connect(name, stream).await.unwrap();
    let head = format!("POST /mutate HTTP/1.1\r\nx: {}", "a".repeat(16 << 10));
    stream.write_all(&head.as_bytes()[..16 << 10]).await.unwrap();
    let mut answer = [0; 64];
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer[..read.expect("it is kept").unwrap()]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn a_body_of_more_values_than_any_object_has_is_refused_before_it_is_parsed() {
    let server = Server::start().await;
    server.account_appears();
    let dense = |count: usize| format!("[{}0]", "0,".repeat(count));
    let (status, text) = server.post(dense(300_000)).await;
    assert_eq!((status, text.contains("values")), (413, true), "{text}");
    // Far more than a pod has, and still read.
    let large = review(|r| r["object"]["metadata"]["annotations"]["x"] = json!(vec![0; 100_000]));
    assert_ne!(server.post(large.to_string()).await.0, 413);
    assert_eq!(server.review(&review(|_| {})).await["allowed"], true);
}

#[tokio::test]
async fn bodies_that_are_promised_and_do_not_come_take_nothing_from_others() {
    let server = Server::start().await;
    server.account_appears();
    let mut held = Vec::new();
    for _ in 0..40 {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let mut stream = TlsConnector::from(Arc::clone(&server.tls)).connect(name, stream).await.unwrap();
        let head = format!("POST /mutate HTTP/1.1\r\nhost: x\r\ncontent-length: {LARGEST_BODY}\r\n\r\n{{");
        stream.write_all(head.as_bytes()).await.unwrap();
        held.push(stream);
    }
    assert_eq!(server.review(&review(|_| {})).await["allowed"], true);
    let mut answer = [0; 64];
    let read = held[0].read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 408"), "who does not send is told: {answer}");
}

#[tokio::test]
async fn a_body_without_length_is_bounded_too() {
    let server = Server::start().await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from(NAME).unwrap();
    let mut stream = TlsConnector::from(Arc::clone(&server.tls)).connect(name, stream).await.unwrap();
    stream
        .write_all(b"POST /mutate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        .await
        .unwrap();
    let chunk = [b"100000\r\n".to_vec(), vec![b' '; 0x0010_0000], b"\r\n".to_vec()].concat();
    for _ in 0..=(LARGEST_BODY >> 20) {
        if stream.write_all(&chunk).await.is_err() {
            break;
        }
    }
    let mut head = [0; 64];
    let read = stream.read(&mut head).await.unwrap();
    assert!(String::from_utf8_lossy(&head[..read]).starts_with("HTTP/1.1 413"));
}

#[tokio::test]
async fn other_paths_and_methods_are_answered() {
    let server = Server::start().await;
    for (method, path, want) in [("GET", "/mutate", 405), ("PUT", "/validate", 405), ("POST", "/", 404)] {
        let request = Request::builder().method(method).uri(path).header("host", NAME);
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let response = server.connect().await.send_request(request).await.unwrap();
        assert_eq!(response.status(), want, "{method} {path}");
    }
}

#[tokio::test]
async fn garbage_instead_of_tls_harms_nobody() {
    let server = Server::start().await;
    server.account_appears();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert_eq!(server.review(&review(|_| {})).await["allowed"], true);
    assert!(server.state.metrics.text().contains("cinch_webhook_handshake_failures_total 1"));
}

#[tokio::test]
async fn a_new_certificate_is_served_to_new_connections_while_old_ones_go_on() {
    let mut server = Server::start().await;
    server.account_appears();
    let mut old = server.connect().await;
    let (secret, root) = certificate();
    server.state.serve_with(Serving::from_secret(&secret).unwrap());
    server.tls = client(root);
    assert_eq!(server.review(&review(|_| {})).await["allowed"], true);
    assert_eq!(send(&mut old, review(|_| {}).to_string()).await.status(), 200);
}

#[tokio::test]
async fn while_draining_answers_close_their_connections_and_none_is_lost() {
    let server = Server::start().await;
    server.account_appears();
    let mut open = server.connect().await;
    assert!(!send(&mut open, review(|_| {}).to_string()).await.headers().contains_key("connection"));
    server.state.draining.cancel();
    assert_eq!(server.state.not_ready().as_deref(), Some("draining"));
    open.ready().await.unwrap();
    let response = send(&mut open, review(|_| {}).to_string()).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["connection"]),
        (200, &"close".parse().unwrap())
    );
    let waiting = review(|r| r["object"]["metadata"]["ownerReferences"][0]["name"] = json!("late"));
    let (late, ()) = tokio::join!(server.review(&waiting), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.stop.cancel();
    });
    assert_eq!(late["allowed"], false, "a review in flight is answered after the listener is closed");
    tokio::time::timeout(Duration::from_secs(60), server.task).await.unwrap().unwrap();
}

#[test]
fn a_secret_that_can_not_serve_is_named() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    type Change = fn(&mut Secret);
    let cases: &[(&str, Change)] = &[
        ("tls.crt", |s| drop(s.data.as_mut().unwrap().remove("tls.crt"))),
        ("tls.key", |s| drop(s.data.as_mut().unwrap().remove("tls.key"))),
        ("probe.key", |s| drop(s.data.as_mut().unwrap().remove("probe.key"))),
        ("32 bytes", |s| drop(s.data.as_mut().unwrap().insert("probe.key".into(), ByteString(vec![1; 31])))),
        ("tls.key", |s| drop(s.data.as_mut().unwrap().insert("tls.key".into(), ByteString(b"x".to_vec())))),
        ("can't be served", |s| {
            let other = certificate().0.data.unwrap().remove("tls.key").unwrap();
            s.data.as_mut().unwrap().insert("tls.key".into(), other);
        }),
    ];
    for (want, change) in cases {
        let (mut secret, _) = certificate();
        change(&mut secret);
        let error = Serving::from_secret(&secret).err().unwrap().to_string();
        assert!(error.contains(want), "{want}: {error}");
    }
}
