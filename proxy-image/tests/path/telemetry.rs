//! What requests and connections leave behind: lines of the access log, and metrics by Istio's names.

use crate::mesh::*;
use crate::web::*;
use bytes::Bytes;
use cinch_policy::Mode;
use http::{HeaderMap, Request, Response};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// The lines of `pod` once there are `count` of them.
async fn told(pod: &Pod, count: usize) -> Vec<Value> {
    eventually(&format!("{count} lines: {}", pod.log.text()), || pod.log.lines().len() >= count).await;
    // One more would come at once.
    pass(std::time::Duration::from_millis(50)).await;
    let lines = pod.log.lines();
    assert_eq!(lines.len(), count, "{}", pod.log.text());
    lines
}

/// The value of the first metric of `name` whose labels hold all of these.
fn istio(pod: &Pod, name: &str, labels: &[&str]) -> Option<f64> {
    let mut registry = prometheus_client::registry::Registry::with_prefix("istio");
    pod.ctx.metrics.telemetry.register_istio(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let start = format!("istio_{name}{{");
    let mut found = text.lines().filter(|line| line.starts_with(&start));
    let line = found.find(|line| labels.iter().all(|label| line.contains(label)))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn public_only() -> Value {
    json!({"action": "ALLOW", "rules": [
        {"to": [{"operation": {"methods": ["PUT"]}}]},
        {"to": [{"operation": {"paths": ["/public*", "/poll", "/reset", "/chunked", "/ws"]}}]},
    ]})
}

async fn start(policy: Value) -> Mesh {
    let mesh = Mesh::start(Mode::Permissive).await;
    web(&mesh.api).await;
    put(&mesh.api, 2, &[("shop/http", policy)]).await;
    mesh
}

/// Checks that `line` holds all of `expected`, and says what else it holds.
fn assert_tells(line: &Value, expected: Value) {
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(line.get(key), Some(value), "{key} of {line}");
    }
}

#[tokio::test]
async fn a_line_tells_each_field_of_a_request_and_no_secret() {
    for over in BOTH {
        let mesh = start(public_only()).await;
        let mut client = connect(&mesh, over).await;
        client
            .send(
                "POST /public/a?token=s3cret HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: te\"st\x1b\r\n\
                 X-Request-Id: 4711\r\nAuthorization: Bearer s3cret\r\nCookie: s3cret\r\nContent-Length: 5\r\n\r\n\
                 hello",
            )
            .await;
        // A control in a field is no HTTP: the filter refuses it.
        assert_eq!(client.answer().await.status, 400, "{over:?}");
        let mut client = connect(&mesh, over).await;
        client
            .send(
                "POST /public/a?token=s3cret HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: te\"st\\ü\r\n\
                 X-Request-Id: 4711\r\nAuthorization: Bearer s3cret\r\nCookie: s3cret\r\nContent-Length: 5\r\n\r\n\
                 hello",
            )
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 200, "{over:?}");
        let lines = told(&mesh.api, 2).await;
        let app = mesh.api.app.lock().unwrap().to_string();
        let (principal, security) = match over {
            Over::Tunnel => (json!(WEB), "mutual_tls"),
            Over::Plaintext => (Value::Null, "none"),
        };
        assert_tells(
            &lines[0],
            json!({"response_code": 400, "decision": "deny", "reason": "BadRequest", "response_flags": "DPE"}),
        );
        assert_tells(
            &lines[1],
            json!({
                "method": "POST", "path": "/public/a", "protocol": "HTTP/1.1", "authority": "shop.example",
                "user_agent": "te\"st\\ü", "request_id": "4711", "response_code": 200, "response_flags": "-",
                "bytes_received": 5, "bytes_sent": answer.body.len(), "reporter": "destination",
                "downstream_local_address": app, "upstream_host": app, "destination_principal": API,
                "connection_security_policy": security, "decision": "allow", "reason": "Allowed",
                "policy": "shop/http", "rule": 1,
            }),
        );
        assert_eq!(lines[1].get("source_principal").unwrap_or(&Value::Null), &principal);
        for key in ["start_time", "downstream_remote_address"] {
            assert!(lines[1][key].is_string(), "{key} of {}", lines[1]);
        }
        assert!(lines[1]["duration"].is_u64());
        assert!(!mesh.api.log.text().contains("s3cret"), "{}", mesh.api.log.text());
        assert!(mesh.api.log.text().is_ascii());
    }
}

#[tokio::test]
async fn requests_are_counted_and_measured_by_istios_names_and_labels() {
    for over in BOTH {
        let mesh = start(public_only()).await;
        let mut client = connect(&mesh, over).await;
        for _ in 0..3 {
            assert_eq!(client.ask("GET /public").await.status, 200);
        }
        assert_eq!(client.ask("GET /private").await.status, 403);
        told(&mesh.api, 4).await;
        let (source, security) = match over {
            Over::Tunnel => (
                "source_workload=\"web\",source_workload_namespace=\"shop\",source_canonical_service=\"web\",source_principal=\"spiffe://cluster.local/ns/shop/sa/web\"",
                "connection_security_policy=\"mutual_tls\"",
            ),
            Over::Plaintext => (
                "source_workload=\"unknown\",source_workload_namespace=\"unknown\",source_canonical_service=\"unknown\",source_principal=\"unknown\"",
                "connection_security_policy=\"none\"",
            ),
        };
        let destination = "destination_workload=\"api\",destination_workload_namespace=\"shop\",destination_canonical_service=\"api\",destination_principal=\"spiffe://cluster.local/ns/shop/sa/api\"";
        let of = ["reporter=\"destination\"", source, destination, security, "request_protocol=\"http\""];
        let with = |more: &[&'static str]| [&of[..], more].concat();
        let flags = "response_flags=\"-\",grpc_response_status=\"\"";
        assert_eq!(istio(&mesh.api, "requests_total", &with(&["response_code=\"200\"", flags])), Some(3.0));
        assert_eq!(istio(&mesh.api, "requests_total", &with(&["response_code=\"403\"", flags])), Some(1.0));
        for name in ["request_duration_milliseconds", "request_bytes", "response_bytes"] {
            assert_eq!(istio(&mesh.api, &format!("{name}_count"), &of), Some(4.0), "{name}");
            assert_eq!(
                istio(&mesh.api, &format!("{name}_bucket"), &with(&["le=\"+Inf\""])),
                Some(4.0),
                "{name}"
            );
        }
        assert!(istio(&mesh.api, "response_bytes_sum", &of).unwrap() > 0.0);
        assert_eq!(istio(&mesh.api, "request_bytes_sum", &of), Some(0.0));
        assert_eq!(istio(&mesh.api, "tcp_connections_opened_total", &[]), None, "what is HTTP is no TCP");
    }
}

#[tokio::test]
async fn a_denial_names_policy_and_rule_and_the_caller_learns_neither() {
    let rules = json!({"action": "DENY", "rules": [
        {"to": [{"operation": {"paths": ["/nowhere"]}}]},
        {"to": [{"operation": {"paths": ["/admin"]}}]},
    ]});
    let mesh = start(rules).await;
    let mut client = connect(&mesh, Over::Tunnel).await;
    let answer = client.ask("GET /admin?x=1").await;
    assert!(!answer.head.contains("shop/http") && answer.body == b"RBAC: access denied");
    let lines = told(&mesh.api, 1).await;
    assert_tells(
        &lines[0],
        json!({
            "method": "GET", "path": "/admin", "response_code": 403, "response_flags": "-", "decision": "deny",
            "reason": "DeniedByPolicy", "policy": "shop/http", "rule": 1, "source_principal": WEB,
            "response_code_details": "rbac_access_denied_matched_policy[ns[shop]-policy[http]-rule[1]]",
        }),
    );
}

#[tokio::test]
async fn bodies_are_counted_without_their_coding_and_upgraded_connections_as_what_they_carry() {
    let mesh = start(public_only()).await;
    let mut client = connect(&mesh, Over::Tunnel).await;
    assert_eq!(client.ask("GET /chunked").await.status, 200);
    let head = "PUT /public HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(format!("{head}3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")).await;
    assert_eq!(client.answer().await.status, 200);
    let lines = told(&mesh.api, 2).await;
    assert_tells(&lines[0], json!({"path": "/chunked", "bytes_received": 0, "bytes_sent": 7}));
    assert_tells(&lines[1], json!({"method": "PUT", "bytes_received": 7, "rule": 0}));
    let upgrade = "GET /ws HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.send(upgrade).await;
    assert_eq!(client.answer().await.status, 101);
    assert_eq!(exchange(client.0.get_mut(), b"echo").await.unwrap(), b"echo");
    client.0.get_mut().shutdown().await.unwrap();
    client.rest().await;
    let lines = told(&mesh.api, 3).await;
    assert_tells(
        &lines[2],
        json!({"path": "/ws", "response_code": 101, "bytes_received": 4, "bytes_sent": 4, "response_flags": "-"}),
    );
}

#[tokio::test]
async fn who_broke_off_is_told_by_a_flag() {
    for over in BOTH {
        let mesh = start(public_only()).await;
        let mut client = connect(&mesh, over).await;
        client.send("GET /reset HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        client.rest().await;
        let lines = told(&mesh.api, 1).await;
        assert_tells(
            &lines[0],
            json!({"path": "/reset", "response_code": 200, "response_flags": "UC", "bytes_sent": 4}),
        );
        let mut client = connect(&mesh, over).await;
        client.send("GET /poll HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        pass(std::time::Duration::from_millis(50)).await;
        reset(client.0.into_inner());
        let lines = told(&mesh.api, 2).await;
        assert_tells(&lines[1], json!({"path": "/poll", "response_code": 0, "response_flags": "DC"}));
        let of = ["response_code=\"0\"", "response_flags=\"DC\""];
        assert_eq!(istio(&mesh.api, "requests_total", &of), Some(1.0), "{over:?}");
    }
}

#[tokio::test]
async fn a_request_that_a_new_policy_cuts_is_told_as_denied_by_it() {
    let mesh = start(public_only()).await;
    let mut client = connect(&mesh, Over::Tunnel).await;
    client.send("GET /poll HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    pass(std::time::Duration::from_millis(50)).await;
    let no_polls = json!({"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/poll"]}}]}]});
    put(&mesh.api, 3, &[("shop/no-polls", no_polls)]).await;
    client.rest().await;
    let lines = told(&mesh.api, 1).await;
    let cut = json!({"path": "/poll", "decision": "deny", "reason": "DeniedByPolicy", "policy": "shop/no-polls", "rule": 0});
    assert_tells(&lines[0], cut);
}

#[tokio::test]
async fn a_tcp_connection_is_told_and_counted_at_both_of_its_ends() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    let mut client = mesh.dial().await;
    assert_eq!(exchange(&mut client, b"twelve bytes").await.unwrap(), b"twelve bytes");
    let of =
        ["request_protocol=\"tcp\"", "connection_security_policy=\"mutual_tls\"", "response_flags=\"-\""];
    assert_eq!(istio(&mesh.web, "tcp_connections_opened_total", &of), Some(1.0));
    assert_eq!(istio(&mesh.web, "tcp_connections_closed_total", &of), Some(0.0));
    client.shutdown().await.unwrap();
    to_end(&mut client).await;
    let ends = json!({
        "protocol": "TCP", "response_code": 0, "response_flags": "-", "bytes_received": 12, "bytes_sent": 12,
        "source_principal": WEB, "destination_principal": API, "connection_security_policy": "mutual_tls",
    });
    let app = mesh.api.app.lock().unwrap().to_string();
    for (pod, reporter, local) in
        [(&mesh.web, "source", SERVICE.to_string()), (&mesh.api, "destination", app)]
    {
        let lines = told(pod, 1).await;
        assert_tells(&lines[0], ends.clone());
        assert_tells(&lines[0], json!({"reporter": reporter, "downstream_local_address": local}));
        let reports = format!("reporter=\"{reporter}\"");
        let labels = [
            &of[..],
            &[
                &reports,
                "source_workload=\"web\",source_workload_namespace=\"shop\"",
                "source_principal=\"spiffe://cluster.local/ns/shop/sa/web\"",
                "destination_workload=\"api\",destination_workload_namespace=\"shop\"",
                "destination_principal=\"spiffe://cluster.local/ns/shop/sa/api\"",
            ],
        ]
        .concat();
        for (name, value) in [
            ("connections_opened", 1.0),
            ("connections_closed", 1.0),
            ("received_bytes", 12.0),
            ("sent_bytes", 12.0),
        ] {
            assert_eq!(istio(pod, &format!("tcp_{name}_total"), &labels), Some(value), "{reporter} {name}");
        }
    }
    assert_eq!(mesh.web.log.lines()[0]["upstream_host"], mesh.api.inbound.to_string());
}

#[tokio::test]
async fn plaintext_is_told_without_a_principal_and_refused_plaintext_as_a_denial() {
    let mesh = Mesh::with_echo(Mode::Permissive).await;
    let mut plain = TcpStream::connect(mesh.api.inbound).await.unwrap();
    assert_eq!(exchange(&mut plain, b"who").await.unwrap(), b"who");
    drop(plain);
    let lines = told(&mesh.api, 1).await;
    assert_tells(
        &lines[0],
        json!({"bytes_received": 3, "bytes_sent": 3, "connection_security_policy": "none"}),
    );
    assert_eq!(lines[0].get("source_principal"), None);
    let of = ["source_workload=\"unknown\"", "connection_security_policy=\"none\""];
    assert_eq!(istio(&mesh.api, "tcp_connections_opened_total", &of), Some(1.0));
    mesh.api.policy.send_replace(Some(std::sync::Arc::new(policy(Mode::Strict))));
    let mut refused = TcpStream::connect(mesh.api.inbound).await.unwrap();
    assert_refuses(&mut refused, b"GET / HTTP/1.1\r\n\r\n").await;
    let lines = told(&mesh.api, 2).await;
    assert_tells(&lines[1], json!({"protocol": "TCP", "decision": "deny", "reason": "StrictPlaintext"}));
}

#[tokio::test]
async fn an_open_connection_that_a_policy_cuts_is_told_with_what_it_carried() {
    let mesh = Mesh::with_echo(Mode::Permissive).await;
    let mut client = mesh.dial().await;
    exchange(&mut client, b"12345").await.unwrap();
    put(&mesh.api, 2, &[("shop/closed", json!({"action": "DENY", "rules": [{}]}))]).await;
    to_end(&mut client).await;
    let lines = told(&mesh.api, 1).await;
    assert_tells(
        &lines[0],
        json!({
            "decision": "deny", "reason": "DeniedByPolicy", "policy": "shop/closed", "rule": 0, "bytes_received": 5,
            "bytes_sent": 5, "source_principal": WEB,
            "connection_termination_details": "rbac_access_denied_matched_policy[ns[shop]-policy[closed]-rule[0]]",
        }),
    );
    let mut denied = mesh.dial().await;
    assert_refuses(&mut denied, b"denied").await;
    let lines = told(&mesh.api, 2).await;
    assert_tells(&lines[1], json!({"decision": "deny", "policy": "shop/closed", "bytes_received": 0}));
}

#[tokio::test]
async fn what_can_not_be_reached_is_an_error_at_both_ends() {
    let mesh = Mesh::start(Mode::Permissive).await;
    let mut client = mesh.dial().await;
    assert_refuses(&mut client, b"anybody").await;
    for (pod, reporter) in [(&mesh.web, "source"), (&mesh.api, "destination")] {
        let lines = told(pod, 1).await;
        let failed = json!({"reporter": reporter, "reason": "NoListener", "response_flags": "UF"});
        assert_tells(&lines[0], failed);
        assert_eq!(lines[0].get("decision"), None, "nobody decided that");
    }
}

/// An app of gRPC: each call ends with the status that its path says.
async fn calls(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let status = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let answer = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut stream = respond.send_response(answer, false).unwrap();
        stream.send_data(Bytes::from_static(b"eight by"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.parse().unwrap());
        stream.send_trailers(trailers).unwrap();
    }
}

#[tokio::test]
async fn calls_of_grpc_are_told_and_counted_with_their_own_status() {
    let mesh = Mesh::start(Mode::Permissive).await;
    mesh.api.set_app(app(API_IP, calls).await);
    let deny = json!({"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/shop.Cart/99"]}}]}]});
    put(&mesh.api, 2, &[("shop/http", deny)]).await;
    let (send, connection) = within(h2::client::handshake(mesh.dial().await)).await.unwrap();
    tokio::spawn(connection);
    for status in ["0", "14", "99"] {
        let request = Request::post(format!("http://shop/shop.Cart/{status}"));
        let request = request.header("content-type", "application/grpc+proto").body(()).unwrap();
        let mut send = within(send.clone().ready()).await.unwrap();
        let (answer, mut stream) = send.send_request(request, false).unwrap();
        let _ = stream.send_data(Bytes::from_static(b"five!"), true);
        let mut body = within(answer).await.unwrap().into_body();
        while let Some(Ok(piece)) = within(body.data()).await {
            let _ = body.flow_control().release_capacity(piece.len());
        }
    }
    let mut lines = told(&mesh.api, 3).await;
    lines.sort_by_key(|line| line["path"].as_str().unwrap().to_owned());
    let answered = json!({"protocol": "HTTP/2", "response_code": 200, "bytes_received": 5, "bytes_sent": 8});
    for (line, status) in lines.iter().zip([0, 14]) {
        assert_tells(line, answered.clone());
        assert_tells(line, json!({"grpc_status": status, "authority": "shop", "decision": "allow"}));
    }
    let refused =
        json!({"path": "/shop.Cart/99", "response_code": 200, "grpc_status": 7, "decision": "deny"});
    assert_tells(&lines[2], refused);
    for status in [0, 7, 14] {
        let of = ["request_protocol=\"grpc\"", &format!("grpc_response_status=\"{status}\"")];
        assert_eq!(istio(&mesh.api, "requests_total", &of), Some(1.0), "{status}");
    }
}

#[tokio::test]
async fn streams_that_were_reset_say_by_whom() {
    let mesh = Mesh::start(Mode::Permissive).await;
    mesh.api.set_app(app(API_IP, resetting).await);
    put(&mesh.api, 2, &[("shop/http", public_only())]).await;
    let (send, connection) = within(h2::client::handshake(mesh.dial().await)).await.unwrap();
    tokio::spawn(connection);
    let ask = |path: &str| Request::get(format!("http://shop/public/{path}")).body(()).unwrap();
    let mut ready = within(send.clone().ready()).await.unwrap();
    let (answer, _) = ready.send_request(ask("app"), true).unwrap();
    within(answer).await.unwrap_err();
    let (answer, mut stream) = ready.send_request(ask("client"), true).unwrap();
    pass(std::time::Duration::from_millis(50)).await;
    stream.send_reset(h2::Reason::CANCEL);
    drop(answer);
    let lines = told(&mesh.api, 2).await;
    assert_tells(&lines[0], json!({"path": "/public/app", "response_code": 0, "response_flags": "UR"}));
    assert_tells(&lines[1], json!({"path": "/public/client", "response_code": 0, "response_flags": "DR"}));
}

/// An app that resets what is for it and never answers the rest.
async fn resetting(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let mut kept = Vec::<(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>)>::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if request.uri().path().ends_with("/app") {
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
        } else {
            kept.push((request, respond));
        }
    }
}
