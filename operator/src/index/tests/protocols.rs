//! What ports are declared to speak, from objects to what a pod's proxy is told.

use super::super::fixtures::*;
use super::super::state::State;
use super::{apply, cluster, delete};
use crate::index::policies::PolicyKind;
use cinch_control::v1;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use std::sync::Arc;

/// `web` at 10.1.0.5 with these container ports, behind Services that each lead to its port 8080.
fn world(container_ports: Value, services: &[Value]) -> State {
    let containers = json!([{"name": "app", "ports": container_ports}]);
    let web = pod("web").set("/spec/containers", containers).ip("10.1.0.5").build();
    let mut made = Vec::new();
    let mut slices = Vec::new();
    for (number, port) in services.iter().enumerate() {
        let name = format!("s{number}");
        made.push(with_port(&name, port));
        let mut slice = slice(&format!("{name}-1"), &name, json!([endpoint("10.1.0.5", "web", true)]));
        slice.ports.as_mut().unwrap()[0].name = port["name"].as_str().map(str::to_owned);
        slices.push(slice);
    }
    cluster(vec![web], made, slices)
}

fn with_port(name: &str, port: &Value) -> Service {
    let mut port = port.clone();
    port["port"] = json!(80);
    service_with(name, json!({"clusterIP": "None", "ports": [port]}), json!({}))
}

type Declared = Vec<(u32, v1::Protocol)>;

fn declared(state: &State) -> Declared {
    let policy = state.workload_policy("web-uid").unwrap();
    policy.declared.iter().map(|port| (port.port, port.protocol())).collect()
}

#[test]
fn a_port_is_what_its_service_says_or_else_its_name_or_else_its_containers() {
    use v1::Protocol::{Grpc, Http, Http2};
    let named = |name: &str| json!([{"name": name, "containerPort": 8080}]);
    let cases: Vec<(&str, Value, Vec<Value>, Declared)> = vec![
        ("nothing is said", json!([{"containerPort": 8080}]), vec![json!({"name": "web"})], vec![]),
        ("no Service", named("http-web"), vec![], vec![(8080, Http)]),
        ("the Service's name", json!([]), vec![json!({"name": "grpc-api"})], vec![(8080, Grpc)]),
        (
            "its word before its name",
            named("http"),
            vec![json!({"name": "http", "appProtocol": "kubernetes.io/h2c"})],
            vec![(8080, Http2)],
        ),
        ("its name before the container's", named("http"), vec![json!({"name": "tcp-raw"})], vec![]),
        (
            "a word that we don't know",
            named("http"),
            vec![json!({"name": "http", "appProtocol": "example.com/own"})],
            vec![],
        ),
        (
            "a name without a word leaves it to the container",
            named("http"),
            vec![json!({"name": "web"})],
            vec![(8080, Http)],
        ),
        (
            "two that agree",
            json!([]),
            vec![json!({"name": "http"}), json!({"name": "http-b"}), json!({"name": "other"})],
            vec![(8080, Http)],
        ),
        ("two that don't", json!([]), vec![json!({"name": "http"}), json!({"name": "tcp"})], vec![]),
        (
            "several ports",
            json!([{"name": "grpc", "containerPort": 9090}, {"name": "http-metrics", "containerPort": 9091},
                {"name": "http3", "containerPort": 443, "protocol": "UDP"}]),
            vec![json!({"name": "http"})],
            vec![(8080, Http), (9090, Grpc), (9091, Http)],
        ),
    ];
    for (case, container_ports, services, want) in cases {
        assert_eq!(declared(&world(container_ports, &services)), want, "{case}");
    }
}

#[test]
fn a_declaration_that_changes_makes_another_version_and_one_that_does_not_makes_none() {
    let mut state = world(json!([]), &[json!({"name": "http"})]);
    let version = |state: &State| state.workload_policy("web-uid").unwrap().version;
    let first = version(&state);
    assert_eq!(declared(&state).len(), 1);
    // Another Service that says the same.
    apply(&mut state, with_port("s9", &json!({"name": "http"})));
    assert_eq!(version(&state), first);
    apply(&mut state, with_port("s0", &json!({"name": "http", "appProtocol": "tcp"})));
    assert!(declared(&state).is_empty());
    assert_ne!(version(&state), first);
    let undeclared = version(&state);
    apply(&mut state, with_port("s0", &json!({"name": "http"})));
    assert_eq!(version(&state), first);
    // The Service goes; its slice stays for a moment and says nothing alone.
    delete(&mut state, with_port("s0", &json!({"name": "http"})));
    assert_eq!(version(&state), undeclared);
}

#[test]
fn a_slice_of_another_namespace_declares_nothing_and_one_that_is_gone_neither() {
    let mut state = world(json!([]), &[json!({"name": "http"})]);
    let mut foreign = slice("evil-1", "evil", json!([endpoint("10.1.0.5", "web", true)]));
    foreign.metadata.namespace = Some("old".into());
    foreign.ports.as_mut().unwrap()[0].name = Some("tcp".into());
    let mut service = with_port("evil", &json!({"name": "tcp"}));
    service.metadata.namespace = Some("old".into());
    apply(&mut state, service);
    apply(&mut state, foreign);
    assert_eq!(declared(&state).len(), 1, "what is declared elsewhere is not asked");
    delete(&mut state, slice("s0-1", "s0", json!([])));
    assert!(declared(&state).is_empty());
}

#[test]
fn a_port_of_something_else_is_told_where_tokens_are_looked_for_and_nobody_says_otherwise() {
    use v1::Protocol::{Http, Tcp};
    let container = json!([{"name": "redis", "containerPort": 6379}, {"name": "web", "containerPort": 9090}]);
    let cases: Vec<(&str, Vec<Value>, Declared)> = vec![
        ("the container alone", vec![], vec![(6379, Tcp)]),
        ("one Service", vec![json!({"name": "tcp"})], vec![(6379, Tcp), (8080, Tcp)]),
        ("an unknown word", vec![json!({"appProtocol": "example.com/own"})], vec![(6379, Tcp), (8080, Tcp)]),
        ("HTTP", vec![json!({"name": "http"})], vec![(6379, Tcp), (8080, Http)]),
        (
            "two that do not agree",
            vec![json!({"name": "tcp"}), json!({"name": "http"}), json!({"name": "tcp-b"})],
            vec![(6379, Tcp)],
        ),
    ];
    for (case, services, want) in cases {
        let mut state = world(container.clone(), &services);
        assert!(declared(&state).iter().all(|(_, protocol)| *protocol != Tcp), "{case}: nobody asks");
        let tokens = PolicyKind::RequestAuthentication;
        let rules = json!({"jwtRules": [{"issuer": "https://a.example"}]});
        super::policies::put(&mut state, tokens, super::policies::object(tokens, "tokens", rules));
        assert_eq!(declared(&state), want, "{case}");
    }
}

#[test]
fn pods_that_enforce_and_speak_the_same_share_one_message() {
    let with = |name: &str, ip: &str, port: &str| {
        let containers = json!([{"name": "app", "ports": [{"name": port, "containerPort": 8080}]}]);
        pod(name).set("/spec/containers", containers).ip(ip).build()
    };
    let pods = vec![
        with("web", "10.1.0.5", "http"),
        with("twin", "10.1.0.6", "http"),
        with("other", "10.1.0.7", "grpc"),
    ];
    let state = cluster(pods, vec![], vec![]);
    let of = |name: &str| state.workload_policy(&format!("{name}-uid")).unwrap();
    assert!(Arc::ptr_eq(&of("web"), &of("twin")));
    assert_ne!(of("web").version, of("other").version);
    assert_eq!(of("web").policies, of("other").policies);
}
