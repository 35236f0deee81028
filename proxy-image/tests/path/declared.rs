//! Ports that are declared to speak HTTP: read from the first byte, whether or not a policy needs it.

use crate::mesh::*;
use crate::web::*;
use cinch_control::v1;
use cinch_policy::Mode;
use cinch_proxy::workload_policy::{Target, receive};
use serde_json::{Value, json};
use std::io::ErrorKind;

/// Puts policies in force on api, whose app's port is declared to speak `protocol`.
async fn declare(mesh: &Mesh, version: u64, protocol: v1::Protocol, policies: &[(&str, Value)]) {
    let declared = vec![v1::DeclaredPort { port: port(&mesh.api).into(), protocol: protocol.into() }];
    let message = v1::WorkloadPolicy {
        version,
        mode: v1::Mode::Permissive as i32,
        policies: policies.iter().map(|(name, spec)| policy_of(name, spec)).collect(),
        mesh: Some(v1::MeshSettings { root_namespace: "mesh".into(), ..v1::MeshSettings::default() }),
        declared,
        ..v1::WorkloadPolicy::default()
    };
    let target = Target { namespace: "shop".into(), trust_domain: "cluster.local".into() };
    let received = receive(message, &target);
    assert_eq!(received.nack, "");
    put_received(&mesh.api, received).await;
}

/// Lines of api's metrics that hold all of `words`.
fn counted(mesh: &Mesh, words: &[&str]) -> Vec<String> {
    let mut registry = prometheus_client::registry::Registry::default();
    mesh.api.ctx.metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let lines = text.lines().filter(|line| words.iter().all(|word| line.contains(word)));
    lines.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_declared_port_counts_requests_and_takes_nothing_else_though_no_policy_asks() {
    for over in BOTH {
        for protocol in [v1::Protocol::Http, v1::Protocol::Http2, v1::Protocol::Grpc] {
            let mesh = Mesh::start(Mode::Permissive).await;
            let heard = web(&mesh.api).await;
            declare(&mesh, 2, protocol, &[]).await;
            let mut client = connect(&mesh, over).await;
            assert_eq!(client.ask("GET /any").await.status, 200, "{over:?} {protocol:?}");
            assert_eq!(client.ask("POST //as%00it/is").await.status, 200, "nothing is normalised");
            eventually("the requests to be counted", || {
                counted(&mesh, &["requests_total{"]).iter().any(|line| line.ends_with(" 2"))
            })
            .await;
            let mut other = connect(&mesh, over).await;
            other.send("\u{1}\u{2}\u{3} not HTTP at all\r\n\r\n").await;
            assert_eq!(other.rest().await.1, Some(ErrorKind::ConnectionReset), "{over:?} {protocol:?}");
            assert_eq!(lines(&heard), ["GET /any HTTP/1.1", "POST //as%00it/is HTTP/1.1"]);
        }
    }
}

#[tokio::test]
async fn what_was_open_when_its_port_was_declared_goes_on_as_it_is() {
    let mesh = Mesh::with_echo(Mode::Permissive).await;
    let mut open = mesh.dial().await;
    assert_eq!(exchange(&mut open, b"\0before").await.unwrap(), b"\0before");
    declare(&mesh, 2, v1::Protocol::Http, &[]).await;
    assert_eq!(exchange(&mut open, b"\0after").await.unwrap(), b"\0after");
    // New ones are read; where the declaration is taken back, they are not.
    assert_refuses(&mut mesh.dial().await, b"\0new").await;
    put_received(&mesh.api, received(3, Vec::new())).await;
    assert_eq!(exchange(&mut mesh.dial().await, b"\0again").await.unwrap(), b"\0again");
}

#[tokio::test]
async fn a_dry_run_of_requests_is_reported_on_a_declared_port_and_changes_nothing() {
    let deny = json!({"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/admin"]}}]}]});
    let mesh = Mesh::start(Mode::Permissive).await;
    let heard = web(&mesh.api).await;
    declare(&mesh, 2, v1::Protocol::Http, &[("shop/dry", deny.clone())]).await;
    let mut client = connect(&mesh, Over::Tunnel).await;
    for path in ["/admin", "/other", "/a%00b", "/x/../y"] {
        assert_eq!(client.ask(&format!("GET {path}")).await.status, 200, "{path}");
    }
    assert_eq!(lines(&heard)[2..], ["GET /a%00b HTTP/1.1", "GET /x/../y HTTP/1.1"]);
    let reported = || counted(&mesh, &["policy_reports_total{", "shop/dry"]);
    assert!(reported().iter().any(|line| line.ends_with(" 1")), "{:?}", reported());
    // A port that is not declared is not read, and so nothing is said of it.
    let mesh = Mesh::with_echo(Mode::Permissive).await;
    let elsewhere = vec![v1::DeclaredPort { port: 1, protocol: v1::Protocol::Http.into() }];
    let message = v1::WorkloadPolicy {
        version: 2,
        mode: v1::Mode::Permissive as i32,
        policies: vec![policy_of("shop/dry", &deny)],
        declared: elsewhere,
        ..v1::WorkloadPolicy::default()
    };
    let target = Target { namespace: "shop".into(), trust_domain: "cluster.local".into() };
    put_received(&mesh.api, receive(message, &target)).await;
    assert_eq!(exchange(&mut mesh.dial().await, b"\0bytes").await.unwrap(), b"\0bytes");
    assert_eq!(counted(&mesh, &["policy_reports_total{"]), Vec::<String>::new());
}
