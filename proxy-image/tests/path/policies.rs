//! Policies on the data path, as the control plane sends them: tunnels and plaintext alike, at the opening and on
//! live connections, by port; what is counted, and when a policy counts as in force.

use crate::mesh::*;
use cinch_control::v1;
use cinch_policy::Mode;
use cinch_proxy::context::InboundPolicy;
use cinch_proxy::workload_policy::{Target, receive};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What the proxy makes of these policies, each with its name and spec.
fn policies(version: u64, mode: v1::Mode, policies: &[(&str, Value)]) -> InboundPolicy {
    let wire = |(name, spec): &(&str, Value)| v1::Policy {
        name: (*name).to_owned(),
        action: spec["action"].as_str().unwrap().to_owned(),
        dry_run: name.ends_with("dry"),
        body: spec.to_string().into_bytes().into(),
        ..v1::Policy::default()
    };
    let message = v1::WorkloadPolicy {
        version,
        mode: mode as i32,
        policies: policies.iter().map(wire).collect(),
        mesh: Some(v1::MeshSettings { root_namespace: "mesh".into(), ..v1::MeshSettings::default() }),
        ..v1::WorkloadPolicy::default()
    };
    let target = Target { namespace: "shop".into(), trust_domain: "cluster.local".into() };
    let received = receive(message, &target);
    assert_eq!(received.nack, "");
    received
}

fn from(action: &str, principal: &str) -> Value {
    json!({"action": action, "rules": [{"from": [{"source": {"principals": [principal]}}]}]})
}

const WEB_ONLY: &str = "cluster.local/ns/shop/sa/web";

fn put(pod: &Pod, policy: InboundPolicy) {
    pod.policy.send_replace(Some(Arc::new(policy)));
}

#[tokio::test]
async fn a_denied_principal_is_refused_over_its_tunnel_and_named_in_the_count() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    let two_rules = json!({"action": "DENY", "rules": [
        {"from": [{"source": {"namespaces": ["legacy"]}}]},
        {"from": [{"source": {"principals": [WEB_ONLY]}}]},
    ]});
    put(&mesh.api, policies(2, v1::Mode::Strict, &[("shop/no-web", two_rules)]));
    assert_refuses(&mut mesh.dial().await, b"denied").await;
    let of_policy = "policy_denials_total{policy=\"shop/no-web\",rule=\"1\"}";
    assert_eq!(mesh.api.metric(of_policy), Some(1));
    let denied = "policy_decisions_total{decision=\"deny\",reason=\"DeniedByPolicy\"}";
    assert_eq!(mesh.api.metric(denied), Some(1));
    put(&mesh.api, policies(3, v1::Mode::Strict, &[("shop/web", from("ALLOW", WEB_ONLY))]));
    assert_eq!(exchange(&mut mesh.dial().await, b"now").await.unwrap(), b"now");
    let allowed = "policy_decisions_total{decision=\"allow\",reason=\"Allowed\"}";
    assert_eq!(mesh.api.metric(allowed), Some(1));
}

#[tokio::test]
async fn a_policy_that_asks_for_a_principal_lets_the_tunnel_in_and_plaintext_not() {
    let mesh = Mesh::with_echo(Mode::Permissive).await;
    put(&mesh.api, policies(2, v1::Mode::Permissive, &[("shop/web", from("ALLOW", WEB_ONLY))]));
    assert_eq!(exchange(&mut mesh.dial().await, b"web").await.unwrap(), b"web");
    let mut plain = TcpStream::connect(mesh.api.inbound).await.unwrap();
    assert_refuses(&mut plain, b"who am I").await;
    assert_eq!((mesh.api.totals().denied, mesh.api.totals().served), (1, 0));
}

#[tokio::test]
async fn strict_tells_which_plaintext_only_the_mode_refused() {
    let cases = [
        ("anybody may", v1::Mode::Strict, json!({"action": "ALLOW", "rules": [{}]}), true),
        ("only who is known may", v1::Mode::Strict, from("ALLOW", WEB_ONLY), false),
        ("not by the mode", v1::Mode::Permissive, from("ALLOW", WEB_ONLY), false),
    ];
    for (case, mode, spec, by_mode) in cases {
        let mesh = Mesh::with_echo(Mode::Strict).await;
        put(&mesh.api, policies(2, mode, &[("shop/p", spec)]));
        assert_refuses(&mut TcpStream::connect(mesh.api.inbound).await.unwrap(), b"who am I").await;
        eventually("it is counted", || mesh.api.totals().denied == 1).await;
        let source = mesh.api.ctx.evidence.report(1, false).sources[0].clone();
        assert_ne!(source.last_denied_age_ms, u64::MAX, "{case}");
        assert_eq!(source.last_denied_by_mode_age_ms.is_some_and(|age| age < u64::MAX), by_mode, "{case}");
    }
}

/// An app that keeps what it hears.
async fn listening(pod: &Pod) -> Arc<Mutex<Vec<u8>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let keeping = heard.clone();
    let app = app(API_IP, move |mut stream| {
        let keeping = keeping.clone();
        async move {
            let mut buffer = [0; 64];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                keeping.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        }
    });
    pod.set_app(app.await);
    heard
}

#[tokio::test]
async fn a_tightened_policy_cuts_open_tunnels_and_plaintext_before_it_counts_as_in_force() {
    let mesh = Mesh::start(Mode::Permissive).await;
    let heard = listening(&mesh.api).await;
    let mut judged = mesh.api.ctx.live.judged();
    let (mut tunnel, mut plain) = (mesh.dial().await, TcpStream::connect(mesh.api.inbound).await.unwrap());
    tunnel.write_all(b"t").await.unwrap();
    plain.write_all(b"p").await.unwrap();
    eventually("both are open", || heard.lock().unwrap().len() == 2).await;
    put(&mesh.api, policies(2, v1::Mode::Permissive, &[("shop/closed", json!({"action": "ALLOW"}))]));
    within(judged.wait_for(|version| *version == 2)).await.unwrap();
    // Words that come from now on must not reach the app.
    assert_refuses(&mut tunnel, b"late").await;
    assert_refuses(&mut plain, b"late").await;
    assert_eq!(heard.lock().unwrap().len(), 2, "the app heard something after the policy was in force");
    let cut = "connections_cut_total{direction=\"inbound\",reason=\"NoAllowMatched\"}";
    assert_eq!(mesh.api.metric(cut), Some(2));
}

#[tokio::test]
async fn a_policy_that_lets_them_be_leaves_open_connections_alone() {
    let mesh = Mesh::with_echo(Mode::Permissive).await;
    let (mut tunnel, mut plain) = (mesh.dial().await, TcpStream::connect(mesh.api.inbound).await.unwrap());
    exchange(&mut tunnel, b"one").await.unwrap();
    exchange(&mut plain, b"one").await.unwrap();
    let mut judged = mesh.api.ctx.live.judged();
    let other = from("DENY", "cluster.local/ns/shop/sa/other");
    put(&mesh.api, policies(2, v1::Mode::Permissive, &[("shop/no-other", other)]));
    within(judged.wait_for(|version| *version == 2)).await.unwrap();
    assert_eq!(exchange(&mut tunnel, b"two").await.unwrap(), b"two");
    assert_eq!(exchange(&mut plain, b"two").await.unwrap(), b"two");
}

#[tokio::test]
async fn a_strict_a_permissive_and_a_disabled_port_stand_side_by_side() {
    let mesh = Mesh::with_echo(Mode::Permissive).await;
    let port = mesh.api.app.lock().unwrap().port();
    // The mode of the app's port, whether plaintext is served, and whether a tunnel is.
    // DISABLE comes first: a tunnel that stands already would outlive it.
    for (mode, plaintext, tunnelled) in [
        (v1::Mode::Disable, true, false),
        (v1::Mode::Strict, false, true),
        (v1::Mode::Permissive, true, true),
    ] {
        let ports = vec![
            v1::PortMode { port: u32::from(port), mode: mode as i32 },
            v1::PortMode { port: u32::from(port ^ 1), mode: v1::Mode::Permissive as i32 },
        ];
        let workload = if mode == v1::Mode::Disable { v1::Mode::Strict } else { v1::Mode::Disable };
        let message = v1::WorkloadPolicy { version: 2, mode: workload as i32, ports, ..Default::default() };
        let target = Target { namespace: "shop".into(), trust_domain: "cluster.local".into() };
        put(&mesh.api, receive(message, &target));
        let mut plain = TcpStream::connect(mesh.api.inbound).await.unwrap();
        match plaintext {
            true => assert_eq!(exchange(&mut plain, b"plain").await.unwrap(), b"plain", "{mode:?}"),
            false => assert_refuses(&mut plain, b"plain").await,
        }
        // The app would answer a ClientHello with its own bytes: no tunnel comes of that.
        let mut tunnel = mesh.dial().await;
        match tunnelled {
            true => assert_eq!(exchange(&mut tunnel, b"tunnel").await.unwrap(), b"tunnel", "{mode:?}"),
            false => assert_refuses(&mut tunnel, b"tunnel").await,
        }
    }
}

#[tokio::test]
async fn audits_and_dry_runs_are_counted_and_refuse_nobody() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    let all = [
        ("shop/watch", json!({"action": "AUDIT", "rules": [{}]})),
        ("shop/dry", json!({"action": "DENY", "rules": [{}]})),
    ];
    put(&mesh.api, policies(2, v1::Mode::Strict, &all));
    assert_eq!(exchange(&mut mesh.dial().await, b"still").await.unwrap(), b"still");
    for line in [
        "policy_reports_total{policy=\"shop/watch\",rule=\"audit\"}",
        "policy_reports_total{policy=\"shop/dry\",rule=\"dry-run\"}",
        "policy_would_deny_total{reason=\"DeniedByPolicy\"}",
        "policy_decisions_total{decision=\"allow\",reason=\"AllowedByDefault\"}",
    ] {
        assert_eq!(mesh.api.metric(line), Some(1), "{line}");
    }
}
