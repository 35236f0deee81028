//! The index as a whole, on events as a watch brings them.

mod handle;
mod policies;
mod protocols;
mod record;
mod relisting;
mod traffic;
mod watching;

use super::fixtures::*;
use super::keyed::{Feed, Table};
use super::model::{Phase, SourceName};
use super::sidecar;
use super::state::State;
use cinch_control::v1;
use cinch_control::v1::record::Kind;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A synced state: two nodes, `shop` enrolled, `old` not, one ServiceCIDR, and these objects.
fn cluster(pods: Vec<Pod>, services: Vec<Service>, slices: Vec<EndpointSlice>) -> State {
    let mut state = empty_state();
    list::<Namespace>(
        &mut state,
        vec![namespace("shop", json!({"cinch.dev/mesh": "enabled"})), namespace("old", json!({}))],
    );
    list::<Node>(
        &mut state,
        vec![node("node1", "10.240.0.11", "10.1.0.0/24"), node("node2", "10.240.0.12", "10.1.1.0/24")],
    );
    list::<ServiceCIDR>(
        &mut state,
        vec![
            serde_json::from_value(
                json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}),
            )
            .unwrap(),
        ],
    );
    list::<PartialObjectMeta<ReplicaSet>>(&mut state, vec![]);
    list::<PartialObjectMeta<Job>>(&mut state, vec![]);
    list(&mut state, pods);
    list(&mut state, services);
    assert!(!state.synced(), "EndpointSlices are still to come");
    list(&mut state, slices);
    assert!(state.synced());
    state
}

fn apply<K>(state: &mut State, object: K) -> bool
where
    State: Table<K>,
{
    Feed::default().event(state, Event::Apply(object))
}

fn delete<K>(state: &mut State, object: K) -> bool
where
    State: Table<K>,
{
    Feed::default().event(state, Event::Delete(object))
}

fn meta<K>(name: &str, owner: Option<(&str, &str, &str)>, second: u64) -> PartialObjectMeta<K> {
    let owners: Vec<Value> = owner
        .into_iter()
        .map(|(api, kind, name)| json!({"apiVersion": api, "kind": kind, "name": name, "uid": format!("{name}-{kind}"), "controller": true}))
        .collect();
    let meta = json!({"metadata": {"namespace": "shop", "name": name, "uid": format!("{name}-uid"), "ownerReferences": owners,
        "creationTimestamp": format!("1970-01-01T00:00:{second:02}Z")}});
    let PartialObjectMeta::<Pod> { metadata, .. } = serde_json::from_value(meta).unwrap();
    PartialObjectMeta { types: None, metadata, _phantom: std::marker::PhantomData }
}

#[test]
fn the_pod_behind_an_address_is_the_live_one() {
    let a = |name: &str| pod(name).ip("10.1.0.5");
    let cases: Vec<(&str, Vec<super::fixtures::PodBuilder>, Option<&str>)> = vec![
        ("one pod", vec![a("web")], Some("web")),
        ("pending with an address", vec![a("web").phase("Pending")], Some("web")),
        ("no address yet", vec![pod("web").phase("Pending")], None),
        ("succeeded", vec![a("web").phase("Succeeded")], None),
        ("failed", vec![a("web").phase("Failed")], None),
        ("terminating", vec![a("web").terminating()], Some("web")),
        ("host network", vec![a("web").host_network()], None),
        (
            "reused after success",
            vec![a("job").phase("Succeeded").created(200), a("web").created(100)],
            Some("web"),
        ),
        ("the newest", vec![a("new").created(200), a("old").created(100)], Some("new")),
        (
            "rather not the terminating",
            vec![a("going").created(200).terminating(), a("stays").created(100)],
            Some("stays"),
        ),
        ("same age: the last that came", vec![a("first"), a("second")], Some("second")),
    ];
    for (case, pods, want) in cases {
        let state = cluster(pods.into_iter().map(PodBuilder::build).collect(), vec![], vec![]);
        assert_eq!(state.pod_by_ip(ip("10.1.0.5")).as_deref().map(|pod| &*pod.name), want, "{case}");
        let record = state.record(ASKER, at("10.1.0.5:8080"));
        let want: Vec<String> = want.map(|name| format!("10.1.0.5:8080 {name}")).into_iter().collect();
        assert_eq!(endpoints(&record), want, "{case}");
        assert_eq!(kind(&record), if want.is_empty() { Kind::Unknown } else { Kind::Endpoints }, "{case}");
    }
}

#[test]
fn an_address_comes_and_goes_with_its_pod() {
    let mut state = cluster(vec![pod("web").build()], vec![], vec![]);
    assert_eq!(state.pod("web-uid").unwrap().ips, Vec::<std::net::IpAddr>::new());
    assert!(apply(&mut state, pod("web").ip("10.1.0.5").build()));
    assert!(!apply(&mut state, pod("web").ip("10.1.0.5").build()), "nothing new");
    assert!(state.pod_by_ip(ip("10.1.0.5")).is_some());
    // The sandbox was made anew, with another address.
    assert!(apply(&mut state, pod("web").ip("10.1.0.6").build()));
    assert!(state.pod_by_ip(ip("10.1.0.5")).is_none());
    assert!(delete(&mut state, pod("web").ip("10.1.0.6").build()));
    assert!(state.pod_by_ip(ip("10.1.0.6")).is_none() && state.pods_in("shop").is_empty());
    // The same name, another pod: the late deletion of the first must not take it away.
    apply(&mut state, pod("db-0").ip("10.1.0.7").build());
    apply(&mut state, pod("db-0").uid("second").ip("10.1.0.8").build());
    delete(&mut state, pod("db-0").ip("10.1.0.7").build());
    assert_eq!(state.pods_in("shop").iter().map(|pod| pod.uid.to_string()).collect::<Vec<_>>(), ["second"]);
}

#[test]
fn a_relist_drops_what_it_did_not_name_also_after_a_broken_one() {
    let mut state =
        cluster(vec![pod("a").ip("10.1.0.3").build(), pod("b").ip("10.1.0.2").build()], vec![], vec![]);
    let mut feed = Feed::default();
    feed.event::<Pod, _>(&mut state, Event::Init);
    feed.event(&mut state, Event::InitApply(pod("a").ip("10.1.0.3").build()));
    // The list breaks off; nothing is dropped, and the next one counts alone.
    feed.event::<Pod, _>(&mut state, Event::Init);
    assert_eq!(state.pods_in("shop").len(), 2);
    feed.event(&mut state, Event::InitApply(pod("b").ip("10.1.0.2").build()));
    assert!(feed.event::<Pod, _>(&mut state, Event::InitDone));
    assert_eq!(state.pods_in("shop").iter().map(|pod| pod.name.to_string()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(kind(&state.record(ASKER, at("10.1.0.3:80"))), Kind::Unknown);
    assert!(state.synced());
}

#[test]
fn nothing_is_unknown_before_everything_was_listed() {
    let mut state = empty_state();
    list(&mut state, vec![pod("web").ip("10.1.0.5").build()]);
    for to in ["10.1.0.5:80", "10.1.0.6:80", "10.96.0.1:443"] {
        assert_eq!(kind(&state.record(ASKER, at(to))), Kind::Unspecified, "{to}");
    }
}

#[test]
fn a_pod_is_named_after_the_workload_that_people_know() {
    let rs = |name: &str| pod("p").owner("apps/v1", "ReplicaSet", name);
    let deployment = || meta::<ReplicaSet>("web-7d9f", Some(("apps/v1", "Deployment", "web")), 30);
    type Case = (&'static str, PodBuilder, Option<PartialObjectMeta<ReplicaSet>>, &'static str, u64);
    let cases: Vec<Case> = vec![
        ("deployment", rs("web-7d9f"), Some(deployment()), "Deployment web", 30_000),
        ("by the hash", rs("web-7d9f").label("pod-template-hash", "7d9f"), None, "Deployment web", 100_000),
        (
            "rollout by the hash",
            rs("web-7d9f").label("rollouts-pod-template-hash", "7d9f"),
            None,
            "Rollout web",
            100_000,
        ),
        (
            "rollout",
            rs("r-1"),
            Some(meta("r-1", Some(("argoproj.io/v1alpha1", "Rollout", "r")), 30)),
            "Rollout r",
            30_000,
        ),
        ("a ReplicaSet of its own", rs("own"), Some(meta("own", None, 30)), "ReplicaSet own", 30_000),
        ("unknown ReplicaSet", rs("own"), None, "ReplicaSet own", 100_000),
        ("stateful set", pod("p").owner("apps/v1", "StatefulSet", "db"), None, "StatefulSet db", 100_000),
        ("daemon set", pod("p").owner("apps/v1", "DaemonSet", "log"), None, "DaemonSet log", 100_000),
        ("bare", pod("p"), None, "Pod p", 100_000),
        (
            "a controller of somebody",
            pod("p").owner("example.com/v1", "Thing", "t"),
            None,
            "Thing t",
            100_000,
        ),
    ];
    for (case, builder, replica_set, want, created) in cases {
        let mut state = cluster(vec![], vec![], vec![]);
        if let Some(replica_set) = replica_set {
            apply(&mut state, replica_set);
        }
        apply(&mut state, builder.build());
        let pod = state.pod("p-uid").unwrap();
        assert_eq!(format!("{} {}", pod.workload.kind, pod.workload.name), want, "{case}");
        assert_eq!(pod.workload_created_unix_ms, created, "{case}");
    }
}

#[test]
fn owners_may_come_after_their_pods_and_go_before_them() {
    let job_pod = || pod("p").owner("batch/v1", "Job", "nightly-1").build();
    let mut state = cluster(vec![job_pod()], vec![], vec![]);
    let workload = |state: &State| state.pod("p-uid").unwrap().workload.to_string();
    assert_eq!(workload(&state), "shop/nightly-1");
    assert!(apply(&mut state, meta::<Job>("nightly-1", Some(("batch/v1", "CronJob", "nightly")), 30)));
    assert_eq!(workload(&state), "shop/nightly");
    delete(&mut state, meta::<Job>("nightly-1", Some(("batch/v1", "CronJob", "nightly")), 30));
    apply(&mut state, pod("p").owner("batch/v1", "Job", "nightly-1").terminating().build());
    assert_eq!(workload(&state), "shop/nightly");
}

#[test]
fn a_source_is_named_as_who_holds_or_lately_held_the_address() {
    let client = || pod("client").namespace("old").ip("10.1.0.9").unmeshed();
    let mut state =
        cluster(vec![client().build(), pod("done").ip("10.1.0.8").phase("Failed").build()], vec![], vec![]);
    let now = Instant::now();
    let name = |state: &State, text: &str, at: Instant| state.source(ip(text), at).to_string();
    for (address, want) in [
        ("10.1.0.9", "old/client"),
        ("10.1.0.8", "shop/done"),
        ("10.240.0.11", "node node1"),
        ("10.1.0.1", "node node1"),
        ("10.1.1.1", "node node2"),
        ("10.1.0.77", "10.1.0.77"),
        ("203.0.113.1", "203.0.113.1"),
    ] {
        assert_eq!(name(&state, address, now), want, "{address}");
    }
    delete(&mut state, client().build());
    assert_eq!(name(&state, "10.1.0.9", now), "old/client");
    assert_eq!(name(&state, "10.1.0.9", now + Duration::from_secs(700)), "10.1.0.9");
    apply(&mut state, pod("other").ip("10.1.0.9").build());
    assert_eq!(name(&state, "10.1.0.9", now), "shop/other");
}

#[test]
fn addresses_of_hosts_are_nodes_also_by_their_pods_word() {
    let on_host = || pod("web").ip("10.1.0.5").set("/status/hostIPs", json!([{"ip": "10.9.9.9"}]));
    let mut state = cluster(vec![on_host().build()], vec![], vec![]);
    assert_eq!(state.source(ip("10.9.9.9"), Instant::now()), SourceName::Node("node1".into()));
    assert_eq!(kind(&state.record(ASKER, at("10.9.9.9:80"))), Kind::PassThrough);
    apply(&mut state, on_host().phase("Failed").build());
    assert_eq!(kind(&state.record(ASKER, at("10.9.9.9:80"))), Kind::PassThrough);
    delete(&mut state, on_host().build());
    assert_eq!(kind(&state.record(ASKER, at("10.9.9.9:80"))), Kind::Unknown);
}

fn cidrs(state: &State) -> Vec<String> {
    let cidr = |cidr: &v1::Cidr| {
        let ip = std::net::IpAddr::from(<[u8; 4]>::try_from(&cidr.address[..]).unwrap());
        format!("{ip}/{}", cidr.prefix_length)
    };
    state.mesh().cidrs.iter().map(cidr).collect()
}

#[test]
fn the_mesh_is_all_that_may_be_a_pod_a_service_or_a_node() {
    let mut state = cluster(vec![], vec![], vec![]);
    let base = ["10.1.0.0/23", "10.96.0.0/16", "10.240.0.11/32", "10.240.0.12/32"];
    assert_eq!(cidrs(&state), base);
    let version = state.mesh().version;
    apply(&mut state, pod("in").ip("10.1.0.5").build());
    assert_eq!(state.mesh().version, version, "an address inside changes nothing");
    apply(&mut state, pod("out").ip("172.16.0.9").build());
    let vip = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}, {"ip": "127.0.0.1"}, {"ip": "224.0.0.1"}]}});
    apply(&mut state, service_with("web", json!({}), vip));
    let want: Vec<&str> = base.into_iter().chain(["172.16.0.9/32", "203.0.113.9/32"]).collect();
    assert_eq!(cidrs(&state), want);
    assert_ne!(state.mesh().version, version);
    state.settings.mesh_cidrs = vec!["172.16.3.4/12".parse().unwrap()];
    assert!(cidrs(&state).contains(&"172.16.0.0/12".to_owned()));
    assert!(!cidrs(&state).contains(&"172.16.0.9/32".to_owned()));
}

#[test]
fn a_workload_policy_follows_the_lock_and_its_version_the_content() {
    let mut state = cluster(vec![pod("web").build(), pod("lost").namespace("gone").build()], vec![], vec![]);
    let open = state.workload_policy("web-uid").unwrap();
    assert_eq!((open.mode(), open.locked), (v1::Mode::Permissive, false));
    assert_ne!(open.version, 0);
    apply(&mut state, namespace("shop", json!({"cinch.dev/mesh": "enabled", "cinch.dev/mode": "STRICT"})));
    let locked = state.workload_policy("web-uid").unwrap();
    assert_eq!((locked.mode(), locked.locked), (v1::Mode::Strict, true));
    assert_ne!(open.version, locked.version);
    apply(&mut state, namespace("shop", json!({"cinch.dev/mesh": "enabled"})));
    assert_eq!(state.workload_policy("web-uid").unwrap(), open, "the same content has the same version");
    assert!(state.workload_policy("lost-uid").is_none() && state.workload_policy("nobody").is_none());
}

#[test]
fn a_namespace_is_read_from_its_labels() {
    let mut state = cluster(vec![], vec![], vec![]);
    let all = json!({"cinch.dev/mesh": "enabled", "cinch.dev/injection": "required", "cinch.dev/mode": "STRICT",
        "cinch.dev/host-network": "allowed"});
    apply(&mut state, namespace("full", all));
    let full = state.namespace("full").unwrap();
    assert!(full.enrolled && full.injection_required && full.locked && full.host_network_allowed);
    let odd = json!({"cinch.dev/mesh": "true", "cinch.dev/injection": "yes", "cinch.dev/mode": "strict"});
    apply(&mut state, namespace("odd", odd));
    let odd = state.namespace("odd").unwrap();
    assert!(!odd.enrolled && !odd.injection_required && !odd.locked && !odd.host_network_allowed);
    assert_eq!(state.enrolled(), ["full", "shop"]);
    let mut going = namespace("full", json!({"cinch.dev/mesh": "enabled"}));
    going.metadata.deletion_timestamp = pod("x").terminating().build().metadata.deletion_timestamp;
    apply(&mut state, going);
    assert_eq!(state.enrolled(), ["shop"]);
}

#[test]
fn a_pod_tells_whether_it_was_injected_for_the_node_agent() {
    let ours = sidecar::containers(IMAGE);
    let mut proxy = ours[1].clone();
    proxy["env"] = json!([{"name": "CINCH_REDIRECT", "value": "agent"}]);
    proxy["volumeMounts"] = json!([{"name": "cinch-agent", "mountPath": "/var/run/cinch/agent"}]);
    let volumes = json!([{"name": "cinch-agent", "csi": {"driver": "node.cinch.dev"}}]);
    let init = json!([proxy, {"name": "warm-up"}]);
    let agent = pod("agent").set("/spec/initContainers", init.clone()).set("/spec/volumes", volumes.clone());
    let without_volume = pod("bare").set("/spec/initContainers", init);
    let with_our_name = json!([proxy, {"name": sidecar::INIT}]);
    let look_alike = pod("odd").set("/spec/initContainers", with_our_name).set("/spec/volumes", volumes);
    for (built, want) in [
        (agent, (true, true)),
        (without_volume, (false, false)),
        (look_alike, (false, false)),
        (pod("init"), (true, false)),
        (pod("plain").unmeshed(), (false, false)),
    ] {
        let state = cluster(vec![built.uid("x").build()], vec![], vec![]);
        let found = state.pod("x").unwrap();
        assert_eq!((found.injected, found.by_agent), want, "{}", found.name);
    }
}

#[test]
fn a_sidecar_has_started_when_the_app_may_have_run() {
    let proxy = |started: bool, restarts: u32| json!([{"name": "cinch-proxy", "started": started, "restartCount": restarts}]);
    let init = "/status/initContainerStatuses";
    let app = |state: Value| json!([{"name": "app", "restartCount": 0, "state": state}]);
    let containers = "/status/containerStatuses";
    let cases = [
        ("nothing yet", pod("p"), false),
        ("starting", pod("p").set(init, proxy(false, 0)), false),
        ("started", pod("p").set(init, proxy(true, 0)), true),
        ("restarting", pod("p").set(init, proxy(false, 1)), true),
        ("the app waits", pod("p").set(containers, app(json!({"waiting": {}}))), false),
        ("the app runs", pod("p").set(containers, app(json!({"running": {}}))), true),
        ("the app has ended", pod("p").set(containers, app(json!({"terminated": {"exitCode": 0}}))), true),
    ];
    for (case, builder, want) in cases {
        let state = cluster(vec![builder.build()], vec![], vec![]);
        assert_eq!(state.pod("p-uid").unwrap().started, want, "{case}");
    }
}

#[test]
fn pods_follow_their_nodes_health() {
    let mut state = cluster(vec![pod("web").phase("Pending").build()], vec![], vec![]);
    assert!(state.pod("web-uid").unwrap().node_ready);
    assert_eq!(state.pod("web-uid").unwrap().phase, Phase::Pending);
    let mut sick = node("node1", "10.240.0.11", "10.1.0.0/24");
    sick.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].status = "Unknown".into();
    assert!(apply(&mut state, sick));
    assert!(!state.pod("web-uid").unwrap().node_ready);
    apply(&mut state, node("node1", "10.240.0.11", "10.1.0.0/24"));
    assert!(state.pod("web-uid").unwrap().node_ready);
    delete(&mut state, node("node1", "10.240.0.11", "10.1.0.0/24"));
    assert!(!state.pod("web-uid").unwrap().node_ready);
}
