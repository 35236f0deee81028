//! What stands behind an address.

use super::super::fixtures::*;
use super::{apply, cluster, delete};
use cinch_control::v1;
use cinch_control::v1::record::Kind;
use serde_json::{Value, json};

#[test]
fn an_endpoint_says_what_is_needed_to_reach_it() {
    let pods = vec![
        pod("web").ip("10.1.0.5").build(),
        pod("client").ip("10.1.0.6").unmeshed().namespace("old").build(),
    ];
    let mut state = cluster(pods, vec![], vec![]);
    let record = state.record(ASKER, at("10.1.0.5:8080"));
    let endpoint = &record.endpoints[0];
    assert_eq!(endpoint.identity, "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((endpoint.mode(), endpoint.zone.as_str()), (v1::Mode::Permissive, "zone-a"));
    assert_eq!(endpoints(&state.record(ASKER, at("10.1.0.6:80"))), ["10.1.0.6:80 -"]);
    // The lock changes the mode and with it the version; a pod that is not ready is dialled all the same.
    apply(&mut state, namespace("shop", json!({"cinch.dev/mesh": "enabled", "cinch.dev/mode": "STRICT"})));
    apply(&mut state, pod("web").ip("10.1.0.5").set("/status/conditions", json!([])).build());
    let locked = state.record(ASKER, at("10.1.0.5:8080"));
    assert_eq!((locked.endpoints[0].mode(), locked.endpoints[0].ready), (v1::Mode::Strict, true));
    assert_ne!(locked.version, record.version);
    assert_eq!(locked.version, state.record(ASKER, at("10.1.0.5:8080")).version);
}

#[test]
fn a_service_leads_to_the_endpoints_that_serve() {
    let pods = || vec![pod("a").ip("10.1.0.1").build(), pod("b").ip("10.1.0.2").unmeshed().build()];
    let draining = |ip: &str, pod: &str, serving: bool| {
        let mut value = endpoint(ip, pod, false);
        value["conditions"] = json!({"ready": false, "serving": serving, "terminating": true});
        value
    };
    let (a, b) = (endpoint("10.1.0.1", "a", true), endpoint("10.1.0.2", "b", true));
    let cases: Vec<(&str, Vec<Value>, Vec<&str>)> = vec![
        ("both", vec![a.clone(), b.clone()], vec!["10.1.0.1:8080 a", "10.1.0.2:8080 -"]),
        ("none", vec![], vec![]),
        (
            "one is not ready",
            vec![a.clone(), endpoint("10.1.0.2", "b", false)],
            vec!["10.1.0.1:8080 a", "10.1.0.2:8080 - !"],
        ),
        ("ready by default", vec![json!({"addresses": ["10.1.0.1"]})], vec!["10.1.0.1:8080 a"]),
        (
            "terminating beside ready",
            vec![a.clone(), draining("10.1.0.2", "b", true)],
            vec!["10.1.0.1:8080 a", "10.1.0.2:8080 - !"],
        ),
        ("only terminating", vec![draining("10.1.0.1", "a", true)], vec!["10.1.0.1:8080 a"]),
        (
            "only terminating, one serves",
            vec![draining("10.1.0.1", "a", true), draining("10.1.0.2", "b", false)],
            vec!["10.1.0.1:8080 a", "10.1.0.2:8080 - !"],
        ),
        (
            "a pod that is not (any more) known",
            vec![a.clone(), endpoint("10.1.0.9", "gone", true)],
            vec!["10.1.0.1:8080 a"],
        ),
        ("without reference, in the pods' range", vec![json!({"addresses": ["10.1.0.9"]})], vec![]),
        (
            "without reference, outside",
            vec![json!({"addresses": ["192.168.5.5"]})],
            vec!["192.168.5.5:8080 -"],
        ),
        (
            "without reference, a node",
            vec![json!({"addresses": ["10.240.0.11"]})],
            vec!["10.240.0.11:8080 -"],
        ),
        (
            "without reference, a meshed pod",
            vec![json!({"addresses": ["10.1.0.1"]})],
            vec!["10.1.0.1:8080 a"],
        ),
        ("the reference lies", vec![endpoint("10.1.0.1", "b", true)], vec!["10.1.0.1:8080 a"]),
        ("other family", vec![json!({"addresses": ["fd00::1"]})], vec![]),
    ];
    for (case, endpoint_list, want) in cases {
        let state = cluster(
            pods(),
            vec![service("web", "10.96.0.10")],
            vec![slice("web-1", "web", json!(endpoint_list))],
        );
        let record = state.record(ASKER, at("10.96.0.10:80"));
        assert_eq!(kind(&record), Kind::Endpoints, "{case}");
        assert_eq!(endpoints(&record), want, "{case}");
    }
}

#[test]
fn pods_that_have_ended_or_lost_their_address_are_no_endpoints() {
    let web = |endpoint: Value| vec![slice("web-1", "web", json!([endpoint]))];
    let services = || vec![service("web", "10.96.0.10")];
    let ended = cluster(
        vec![pod("a").ip("10.1.0.1").phase("Succeeded").build()],
        services(),
        web(endpoint("10.1.0.1", "a", true)),
    );
    assert!(endpoints(&ended.record(ASKER, at("10.96.0.10:80"))).is_empty());
    // The slice is stale: its address belongs to a newer pod.
    let pods =
        vec![pod("a").ip("10.1.0.1").terminating().build(), pod("thief").ip("10.1.0.1").created(200).build()];
    let reused = cluster(pods, services(), web(endpoint("10.1.0.1", "a", true)));
    assert!(endpoints(&reused.record(ASKER, at("10.96.0.10:80"))).is_empty());
    // The slice is ahead of the pod's own event: the identity is known from the spec.
    let ahead =
        cluster(vec![pod("a").phase("Pending").build()], services(), web(endpoint("10.1.0.1", "a", true)));
    assert_eq!(endpoints(&ahead.record(ASKER, at("10.96.0.10:80"))), ["10.1.0.1:8080 a"]);
    // A pod on the node's network is not meshed, whatever its spec holds.
    let host = vec![pod("a").ip("10.240.0.11").host_network().build()];
    let host = cluster(host, services(), web(endpoint("10.240.0.11", "a", true)));
    assert_eq!(endpoints(&host.record(ASKER, at("10.96.0.10:80"))), ["10.240.0.11:8080 -"]);
}

#[test]
fn slices_are_joined_by_port_name_and_without_doubles() {
    let mut admin = slice("web-2", "web", json!([endpoint("10.1.0.1", "a", true)]));
    admin.ports.as_mut().unwrap()[0].name = Some("admin".into());
    let slices = vec![
        slice("web-1", "web", json!([endpoint("10.1.0.1", "a", false)])),
        slice("web-3", "web", json!([endpoint("10.1.0.1", "a", true)])),
        slice("else-1", "else", json!([endpoint("10.1.0.1", "a", true)])),
        admin,
    ];
    let mut state =
        cluster(vec![pod("a").ip("10.1.0.1").build()], vec![service("web", "10.96.0.10")], slices);
    assert_eq!(endpoints(&state.record(ASKER, at("10.96.0.10:80"))), ["10.1.0.1:8080 a"]);
    // A slice that moves to another Service leaves this one.
    apply(&mut state, slice("web-3", "else", json!([endpoint("10.1.0.1", "a", true)])));
    assert_eq!(endpoints(&state.record(ASKER, at("10.96.0.10:80"))), ["10.1.0.1:8080 a !"]);
    delete(&mut state, slice("web-1", "web", json!([])));
    assert!(endpoints(&state.record(ASKER, at("10.96.0.10:80"))).is_empty());
    delete(&mut state, service("web", "10.96.0.10"));
    assert_eq!(kind(&state.record(ASKER, at("10.96.0.10:80"))), Kind::Unknown);
}

#[test]
fn addresses_mean_what_kube_proxy_makes_of_them() {
    let node_port = json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "type": "LoadBalancer",
        "externalIPs": ["10.1.0.1", "203.0.113.7"], "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    let balancer =
        |ip: &str, mode: Option<&str>| json!({"loadBalancer": {"ingress": [{"ip": ip, "ipMode": mode}]}});
    let services = |status: Value| vec![service_with("web", node_port.clone(), status)];
    let slices = || vec![slice("web-1", "web", json!([endpoint("10.1.0.2", "b", true)]))];
    let pods = || vec![pod("a").ip("10.1.0.1").build(), pod("b").ip("10.1.0.2").build()];
    let vip = balancer("203.0.113.9", None);
    let to_b = vec!["10.1.0.2:8080 b"];
    let cases: Vec<(&str, &str, Value, Kind, Vec<&str>)> = vec![
        ("ClusterIP", "10.96.0.10:80", vip.clone(), Kind::Endpoints, to_b.clone()),
        ("a port that is not declared", "10.96.0.10:81", vip.clone(), Kind::Endpoints, vec![]),
        ("node port", "10.240.0.12:30080", vip.clone(), Kind::Endpoints, to_b.clone()),
        ("node", "10.240.0.12:22", vip.clone(), Kind::PassThrough, vec![]),
        ("the pods' gateway", "10.1.0.1:22", vip.clone(), Kind::Endpoints, vec!["10.1.0.1:22 a"]),
        ("gateway of the other node", "10.1.1.1:22", vip.clone(), Kind::Unknown, vec![]),
        ("node port at the gateway", "10.1.1.1:30080", vip.clone(), Kind::Endpoints, to_b.clone()),
        ("load balancer", "203.0.113.9:80", vip.clone(), Kind::Endpoints, to_b),
        ("load balancer, other port", "203.0.113.9:81", vip.clone(), Kind::PassThrough, vec![]),
        (
            "balancer that wants the traffic itself",
            "203.0.113.9:80",
            balancer("203.0.113.9", Some("Proxy")),
            Kind::Unknown,
            vec![],
        ),
        ("external IPs draw nothing", "203.0.113.7:80", vip.clone(), Kind::Unknown, vec![]),
        (
            "a balancer can't take a pod's address",
            "10.1.0.1:80",
            balancer("10.1.0.1", None),
            Kind::Endpoints,
            vec!["10.1.0.1:80 a"],
        ),
        ("nor a node's", "10.240.0.11:80", balancer("10.240.0.11", None), Kind::PassThrough, vec![]),
        ("elsewhere", "198.51.100.1:443", vip, Kind::Unknown, vec![]),
    ];
    for (case, to, status, want_kind, want) in cases {
        let record = cluster(pods(), services(status), slices()).record(ASKER, at(to));
        assert_eq!(
            (kind(&record), endpoints(&record)),
            (want_kind, want.into_iter().map(str::to_owned).collect()),
            "{case}"
        );
    }
}

#[test]
fn the_older_service_keeps_an_address() {
    let grab = service_with(
        "grab",
        json!({"clusterIP": "10.96.0.11", "clusterIPs": ["10.96.0.11"]}),
        json!({"loadBalancer": {"ingress": [{"ip": "10.96.0.10"}]}}),
    );
    let mut younger = service("young", "10.96.0.10");
    younger.metadata.creation_timestamp = pod("x").created(500).build().metadata.creation_timestamp;
    let slices = vec![
        slice("web-1", "web", json!([endpoint("10.1.0.1", "a", true)])),
        slice("grab-1", "grab", json!([])),
    ];
    let state = cluster(
        vec![pod("a").ip("10.1.0.1").build()],
        vec![younger, grab, service("web", "10.96.0.10")],
        slices,
    );
    assert_eq!(endpoints(&state.record(ASKER, at("10.96.0.10:80"))), ["10.1.0.1:8080 a"]);
}
