//! Which endpoints of a Service take connections: traffic policies, hints, affinity, and the other doors to pods.

use super::super::fixtures::*;
use super::super::state::State;
use super::{apply, cluster, delete};
use cinch_control::v1::record::Kind;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

/// A pod of `node` with an address.
fn on(node: &str, name: &str, ip: &str) -> Pod {
    pod(name).set("/spec/nodeName", json!(node)).ip(ip).build()
}

/// Pods `a` and `b` on `node1`, `c` on `node2`, in zones of their own; who asks is `asker` on `node1`.
fn world(service_spec: Value, endpoints: Value) -> State {
    let pods = vec![
        on("node1", "a", "10.1.0.1"),
        on("node1", "b", "10.1.0.2"),
        on("node2", "c", "10.1.1.3"),
        on("node1", "asker", "10.1.0.9"),
        on("node2", "far", "10.1.1.9"),
    ];
    let mut spec = json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"]});
    for (key, value) in service_spec.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let mut state = cluster(
        pods,
        vec![service_with("web", spec, json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}))],
        vec![slice("web-1", "web", endpoints)],
    );
    let mut other: Node = node("node2", "10.240.0.12", "10.1.1.0/24");
    other.metadata.labels.as_mut().unwrap().insert("topology.kubernetes.io/zone".into(), "zone-b".into());
    apply(&mut state, other);
    state
}

/// An endpoint on a node, with its conditions and hints.
fn end(ip: &str, pod: &str, node: &str, more: Value) -> Value {
    let mut value = endpoint(ip, pod, true);
    value["nodeName"] = json!(node);
    for (key, field) in more.as_object().unwrap() {
        value[key] = field.clone();
    }
    value
}

fn all_three(of: impl Fn(&str) -> Value) -> Value {
    json!([
        end("10.1.0.1", "a", "node1", of("a")),
        end("10.1.0.2", "b", "node1", of("b")),
        end("10.1.1.3", "c", "node2", of("c")),
    ])
}

/// The pods that take new connections.
fn serving(state: &State, asker: &str, to: &str) -> Vec<String> {
    let all = endpoints(&state.record(asker, at(to)));
    let ready = all.iter().filter(|line| !line.ends_with('!'));
    ready.map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect()
}

fn draining() -> Value {
    json!({"ready": false, "serving": true, "terminating": true})
}

#[test]
fn a_local_traffic_policy_serves_a_pod_from_its_own_node_or_not_at_all() {
    let local = json!({"internalTrafficPolicy": "Local", "type": "LoadBalancer",
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    let state = world(local.clone(), all_three(|_| json!({})));
    assert_eq!(serving(&state, "asker-uid", "10.96.0.10:80"), ["a", "b"]);
    assert_eq!(serving(&state, "far-uid", "10.96.0.10:80"), ["c"]);
    // The others are named all the same: that some of a Service are meshed forbids plaintext to it.
    assert_eq!(endpoints(&state.record("far-uid", at("10.96.0.10:80"))).len(), 3);
    // Where it runs is not known.
    assert!(serving(&state, "nobody-uid", "10.96.0.10:80").is_empty());
    // The policy is for the ClusterIP alone.
    for to in ["203.0.113.9:80", "10.240.0.12:30080"] {
        assert_eq!(serving(&state, "far-uid", to), ["a", "b", "c"], "{to}");
    }
    // Those of the own node that end still serve rather than nobody.
    let ending = all_three(|pod| match pod {
        "c" => json!({}),
        _ => json!({"conditions": draining()}),
    });
    let state = world(local.clone(), ending);
    assert_eq!(serving(&state, "asker-uid", "10.96.0.10:80"), ["a", "b"]);
    assert_eq!(serving(&state, "far-uid", "10.96.0.10:80"), ["c"]);
    let elsewhere = json!([end("10.1.1.3", "c", "node2", json!({}))]);
    let record = world(local, elsewhere).record("asker-uid", at("10.96.0.10:80"));
    assert_eq!((kind(&record), endpoints(&record)), (Kind::Endpoints, vec!["10.1.1.3:8080 c !".to_owned()]));
}

#[test]
fn hints_keep_a_pod_to_its_zone_or_node_when_every_endpoint_has_some() {
    let zones = |zone: &str| json!({"hints": {"forZones": [{"name": zone}]}});
    let by_zone = |pod: &str| zones(if pod == "c" { "zone-b" } else { "zone-a" });
    let nodes = |pod: &str| {
        let mut hints = by_zone(pod);
        hints["hints"]["forNodes"] = json!([{"name": if pod == "c" { "node2" } else { "node1" }}]);
        hints
    };
    let all = vec!["a", "b", "c"];
    let cases: Vec<(&str, Value, Vec<&str>, Vec<&str>)> = vec![
        ("by zone", all_three(by_zone), vec!["a", "b"], vec!["c"]),
        ("by node", all_three(nodes), vec!["a", "b"], vec!["c"]),
        (
            "one has none",
            all_three(|pod| if pod == "b" { json!({}) } else { by_zone(pod) }),
            all.clone(),
            all.clone(),
        ),
        ("none for this zone", all_three(|_| zones("zone-b")), all.clone(), all.clone()),
        (
            "one that is not ready has none",
            all_three(|pod| match pod {
                "b" => json!({"conditions": {"ready": false}}),
                _ => by_zone(pod),
            }),
            vec!["a"],
            vec!["c"],
        ),
        (
            "nothing is ready, some ends",
            all_three(|pod| {
                let mut hinted = by_zone(pod);
                hinted["conditions"] = if pod == "c" { draining() } else { json!({"ready": false}) };
                hinted
            }),
            vec!["c"],
            vec!["c"],
        ),
    ];
    for (case, endpoints, near, far) in cases {
        let state = world(json!({}), endpoints);
        assert_eq!(serving(&state, "asker-uid", "10.96.0.10:80"), near, "{case}");
        assert_eq!(serving(&state, "far-uid", "10.96.0.10:80"), far, "{case}");
    }
    // Without a zone of its own nothing is near.
    let state = world(json!({}), all_three(by_zone));
    assert_eq!(serving(&state, "nobody-uid", "10.96.0.10:80"), all);
}

#[test]
fn affinity_comes_with_its_time_from_every_address_of_the_service() {
    let sticky = |config: Value| {
        json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config, "type": "LoadBalancer",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}]})
    };
    for (spec, seconds) in [
        (sticky(json!({"clientIP": {"timeoutSeconds": 60}})), 60),
        (sticky(json!(null)), 10_800),
        (json!({"sessionAffinity": "None"}), 0),
        (json!({}), 0),
    ] {
        let state = world(spec.clone(), all_three(|_| json!({})));
        let of = |to: &str| state.record("asker-uid", at(to)).affinity_seconds;
        assert_eq!(of("10.96.0.10:80"), seconds, "{spec}");
        assert_eq!(of("203.0.113.9:80"), seconds, "{spec}");
        assert_eq!(of("10.1.0.1:8080"), 0, "a pod is only itself");
    }
    let state = world(sticky(json!(null)), all_three(|_| json!({})));
    assert_eq!(state.record("asker-uid", at("10.240.0.11:30080")).affinity_seconds, 10_800);
    let other = world(json!({}), all_three(|_| json!({}))).record("asker-uid", at("10.96.0.10:80"));
    assert_ne!(state.record("asker-uid", at("10.96.0.10:80")).version, other.version, "proxies hear of it");
}

#[test]
fn a_host_port_leads_to_the_pod_that_asked_for_it() {
    let web = |name: &str, node: &str, ip: &str, port: Value| {
        let containers = json!([{"name": "app", "ports": [port]}]);
        pod(name).set("/spec/nodeName", json!(node)).set("/spec/containers", containers).ip(ip)
    };
    let port = json!({"containerPort": 8080, "hostPort": 18080});
    let on_one = json!({"containerPort": 8080, "hostPort": 18080, "hostIP": "10.240.0.12"});
    let mut state = cluster(
        vec![
            web("here", "node1", "10.1.0.5", port.clone()).build(),
            web("there", "node2", "10.1.1.5", on_one).build(),
            web("udp", "node1", "10.1.0.6", json!({"containerPort": 53, "hostPort": 53, "protocol": "UDP"}))
                .build(),
            web("plain", "node1", "10.1.0.7", json!({"containerPort": 81, "hostPort": 81}))
                .unmeshed()
                .build(),
            web("host", "node1", "10.240.0.11", json!({"containerPort": 82, "hostPort": 82}))
                .host_network()
                .build(),
        ],
        vec![],
        vec![],
    );
    for (to, want) in [
        ("10.240.0.11:18080", vec!["10.1.0.5:8080 here"]),
        // The gateway is an address of the node too.
        ("10.1.0.1:18080", vec!["10.1.0.5:8080 here"]),
        ("10.240.0.12:18080", vec!["10.1.1.5:8080 there"]),
        ("10.240.0.11:81", vec!["10.1.0.7:81 -"]),
    ] {
        let record = state.record(ASKER, at(to));
        assert_eq!(
            (kind(&record), endpoints(&record)),
            (Kind::Endpoints, want.iter().map(|l| (*l).to_owned()).collect()),
            "{to}"
        );
    }
    // Another address than the one that was asked for, another protocol, the node's own network, another port.
    for to in ["10.1.1.1:18080", "10.240.0.11:53", "10.240.0.11:82", "10.240.0.11:8080"] {
        assert!(endpoints(&state.record(ASKER, at(to))).is_empty(), "{to}");
    }
    // A successor takes the port over; the last that goes leaves the node's own.
    apply(&mut state, web("here", "node1", "10.1.0.5", port.clone()).terminating().build());
    apply(&mut state, web("next", "node1", "10.1.0.8", port.clone()).build());
    assert_eq!(endpoints(&state.record(ASKER, at("10.240.0.11:18080"))), ["10.1.0.8:8080 next"]);
    delete(&mut state, web("next", "node1", "10.1.0.8", port.clone()).build());
    assert_eq!(endpoints(&state.record(ASKER, at("10.240.0.11:18080"))), ["10.1.0.5:8080 here"]);
    apply(&mut state, web("here", "node1", "10.1.0.5", port).phase("Succeeded").build());
    assert_eq!(kind(&state.record(ASKER, at("10.240.0.11:18080"))), Kind::PassThrough);
}

/// A pod of `node1` whose init containers, one of them a native sidecar, ask for the node's ports 9100 and 9101.
fn asks_in_init(name: &str) -> PodBuilder {
    let ports = |port: u16| json!([{"containerPort": 8080, "hostPort": port}]);
    pod(name).set(
        "/spec/initContainers",
        json!([{"name": "a", "ports": ports(9100)}, {"name": "b", "restartPolicy": "Always", "ports": ports(9101)}]),
    )
}

#[test]
fn init_containers_draw_no_traffic_of_their_node() {
    // The kubelet maps the ports of `spec.containers` alone.
    let state = cluster(vec![asks_in_init("thief").ip("10.1.0.5").build()], vec![], vec![]);
    for to in ["10.240.0.11:9100", "10.1.0.1:9100", "10.240.0.11:9101"] {
        assert!(endpoints(&state.record(ASKER, at(to))).is_empty(), "{to}");
    }
    assert_eq!(kind(&state.record(ASKER, at("10.240.0.11:9100"))), Kind::PassThrough);
}

#[test]
fn a_pod_without_an_address_does_not_hide_the_one_behind_a_host_port() {
    let ports = json!([{"name": "app", "ports": [{"containerPort": 8080, "hostPort": 9100}]}]);
    let real = || pod("real").set("/spec/containers", ports.clone()).ip("10.1.0.5").build();
    let newer = || pod("stuck").set("/spec/containers", ports.clone()).created(200).phase("Pending");
    let stuck = [
        ("in an init container", asks_in_init("stuck").created(200).phase("Pending").build()),
        ("without an address", newer().build()),
        ("of the other family", newer().ip("fd00::7").build()),
    ];
    for (case, stuck) in stuck {
        let state = cluster(vec![real(), stuck], vec![], vec![]);
        assert_eq!(endpoints(&state.record(ASKER, at("10.240.0.11:9100"))), ["10.1.0.5:8080 real"], "{case}");
    }
}

#[test]
fn names_and_services_without_selector_are_what_their_addresses_are() {
    let alias = service_with(
        "alias",
        json!({"type": "ExternalName", "externalName": "elsewhere.example", "clusterIP": "10.96.0.20",
            "clusterIPs": ["10.96.0.20"]}),
        json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.20"}]}}),
    );
    let headless = service_with("headless", json!({"clusterIP": "None", "clusterIPs": ["None"]}), json!({}));
    let state = cluster(
        vec![pod("a").ip("10.1.0.1").build()],
        vec![alias, headless, service("by-hand", "10.96.0.30")],
        vec![
            slice("headless-1", "headless", json!([endpoint("10.1.0.1", "a", true)])),
            slice(
                "by-hand-1",
                "by-hand",
                json!([{"addresses": ["10.1.0.1"]}, {"addresses": ["198.51.100.7"]}]),
            ),
        ],
    );
    // An alias has no address of its own, whatever it says.
    for to in ["10.96.0.20:80", "203.0.113.20:80"] {
        assert_eq!(kind(&state.record(ASKER, at(to))), Kind::Unknown, "{to}");
    }
    // DNS answers with the pods.
    assert_eq!(endpoints(&state.record(ASKER, at("10.1.0.1:8080"))), ["10.1.0.1:8080 a"]);
    // Addresses that somebody wrote: a pod is known by them, what is outside stays outside.
    let record = state.record(ASKER, at("10.96.0.30:80"));
    assert_eq!(endpoints(&record), ["10.1.0.1:8080 a", "198.51.100.7:8080 -"]);
}

#[test]
fn a_service_of_two_families_is_served_in_each_by_its_own_addresses() {
    let ips = json!([{"ip": "10.1.0.1"}, {"ip": "fd00:1::1"}]);
    let both = json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:96::10"],
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    let mut v6 = slice("web-6", "web", json!([endpoint("fd00:1::1", "a", true)]));
    v6.address_type = "IPv6".into();
    let v4 = slice("web-4", "web", json!([endpoint("10.1.0.1", "a", true)]));
    let mut state = cluster(
        vec![pod("a").set("/status/podIPs", ips).build()],
        vec![service_with("web", both, json!({"loadBalancer": {"ingress": [{"ip": "2001:db8::9"}]}}))],
        vec![v4, v6],
    );
    let mut node = node("node1", "10.240.0.11", "10.1.0.0/24");
    let addresses = json!([{"type": "InternalIP", "address": "10.240.0.11"}, {"type": "InternalIP", "address": "fd00:240::11"}]);
    node.status.as_mut().unwrap().addresses = serde_json::from_value(addresses).unwrap();
    apply(&mut state, node);
    for to in ["10.96.0.10:80", "10.240.0.11:30080"] {
        assert_eq!(endpoints(&state.record(ASKER, at(to))), ["10.1.0.1:8080 a"], "{to}");
    }
    for to in ["[fd00:96::10]:80", "[fd00:240::11]:30080", "[2001:db8::9]:80", "[fd00:1::1]:8080"] {
        assert_eq!(endpoints(&state.record(ASKER, at(to))), ["[fd00:1::1]:8080 a"], "{to}");
    }
}
