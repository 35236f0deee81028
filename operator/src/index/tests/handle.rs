//! The handle around the state: generations, and the second look at addresses that nobody has told of. The
//! API server is a mock that answers lists.

use super::super::Index;
use super::super::fixtures::*;
use super::super::keyed::Table;
use super::super::state::State;
use cinch_control::v1::record::Kind;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::client::Body;
use kube::core::PartialObjectMeta;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

fn synced() -> Index {
    let index = Index::new(settings());
    index.update(|state| {
        no_policies(state);
        list::<Namespace>(state, vec![namespace("shop", json!({}))]);
        list::<Node>(state, vec![node("node1", "10.240.0.11", "10.1.0.0/24")]);
        list::<ServiceCIDR>(state, vec![]);
        list::<PartialObjectMeta<ReplicaSet>>(state, vec![]);
        list::<PartialObjectMeta<Job>>(state, vec![]);
        list::<Pod>(state, vec![]);
        list::<Service>(state, vec![]);
        list::<EndpointSlice>(state, vec![])
    });
    assert!(index.synced());
    index
}

fn apply_pod(index: &Index, name: &str, ip: &str) {
    index.update(|state: &mut State| Table::<Pod>::apply(state, &pod(name).ip(ip).build()));
}

/// An API server that answers each list with `items` of pods, or with an error; what was asked is kept.
fn api_server(index: &Index, status: u16, pods: usize) -> Arc<Mutex<Vec<String>>> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let told = asked.clone();
    let service = tower::service_fn(move |request: hyper::Request<Body>| {
        let uri = request.uri().to_string();
        let items = if uri.contains("/pods") { pods } else { 0 };
        let item = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "x"}});
        let body: Value = match status {
            200 => {
                json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {},
                    "items": vec![item; items]})
            }
            _ => {
                json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "code": status, "message": "no"})
            }
        };
        told.lock().push(uri);
        let body = Body::from(serde_json::to_vec(&body).unwrap());
        std::future::ready(hyper::Response::builder().status(status).body(body))
    });
    assert!(index.shared.client.set(kube::Client::new(service, "default")).is_ok());
    asked
}

#[test]
fn the_generation_grows_only_when_something_changed() {
    let index = synced();
    let mut changes = index.changes();
    let before = *changes.borrow_and_update();
    let mesh = index.mesh();
    apply_pod(&index, "web", "172.16.0.9");
    assert!(changes.has_changed().unwrap());
    assert_eq!(*changes.borrow_and_update(), before + 1);
    assert_ne!(index.mesh(), mesh, "the mesh is made anew for the generation");
    apply_pod(&index, "web", "172.16.0.9");
    assert!(!changes.has_changed().unwrap());
}

#[tokio::test]
async fn what_no_watcher_told_is_unknown_only_after_a_consistent_read() {
    let index = synced();
    assert_eq!(
        index.resolve(ASKER, at("10.1.0.5:80")).await.kind(),
        Kind::Unspecified,
        "nobody can be asked"
    );
    assert_eq!(
        index.resolve(ASKER, at("203.0.113.1:80")).await.kind(),
        Kind::Unknown,
        "outside, nobody need be"
    );
    let asked = api_server(&index, 200, 0);
    assert_eq!(index.resolve(ASKER, at("10.1.0.5:80")).await.kind(), Kind::Unknown);
    assert_eq!(
        index.resolve(ASKER, at("10.1.0.5:443")).await.kind(),
        Kind::Unknown,
        "the answer holds for a moment"
    );
    let asked = asked.lock();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(
        asked[0].contains("status.podIP%3D10.1.0.5") && asked[1].contains("spec.clusterIP%3D10.1.0.5"),
        "{asked:?}"
    );
    assert!(
        asked.iter().all(|uri| !uri.contains("resourceVersion=")),
        "a consistent read names no version: {asked:?}"
    );
}

#[tokio::test]
async fn a_pod_that_exists_is_waited_for() {
    let index = synced();
    api_server(&index, 200, 1);
    let (answer, ()) = tokio::join!(index.resolve(ASKER, at("10.1.0.5:80")), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        apply_pod(&index, "web", "10.1.0.5");
    });
    assert_eq!(endpoints(&answer), ["10.1.0.5:80 web"]);
    assert_eq!(
        index.resolve(ASKER, at("10.1.0.6:80")).await.kind(),
        Kind::Unspecified,
        "the watcher did not tell in time"
    );
}

#[tokio::test]
async fn an_api_server_that_fails_makes_nothing_unknown() {
    let index = synced();
    api_server(&index, 500, 0);
    assert_eq!(index.resolve(ASKER, at("10.1.0.5:80")).await.kind(), Kind::Unspecified);
}

#[tokio::test]
async fn a_second_address_is_never_unknown_by_a_read_that_can_not_show_it() {
    let index = synced();
    index.update(|state| {
        let mut node = node("node1", "10.240.0.11", "10.1.0.0/24");
        let both = vec!["10.1.0.0/24".to_owned(), "fd00:1::/64".to_owned()];
        node.spec.as_mut().unwrap().pod_cidrs = Some(both);
        let cidrs = json!({"metadata": {"name": "x"}, "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112"]}});
        let cidrs: ServiceCIDR = serde_json::from_value(cidrs).unwrap();
        Table::<Node>::apply(state, &node) | Table::<ServiceCIDR>::apply(state, &cidrs)
    });
    api_server(&index, 200, 0);
    for (address, kind) in [
        ("[fd00:1::5]:80", Kind::Unspecified),
        ("[fd00:96::5]:80", Kind::Unspecified),
        // A Service's first address may be of the other family.
        ("10.96.0.5:80", Kind::Unspecified),
        ("10.1.0.5:80", Kind::Unknown),
        ("[2001:db8::1]:80", Kind::Unknown),
    ] {
        assert_eq!(index.resolve(ASKER, at(address)).await.kind(), kind, "{address}");
    }
}

#[tokio::test]
async fn a_pod_that_dials_all_addresses_does_not_have_the_api_server_asked_for_each() {
    let index = synced();
    let asked = api_server(&index, 200, 0);
    let dialled = |from: u8, by: &'static str| {
        let index = index.clone();
        async move {
            let mut unknown = 0;
            for last in from..from + 100 {
                let to = format!("10.1.0.{last}:80").parse().unwrap();
                unknown += usize::from(index.resolve(by, to).await.kind() == Kind::Unknown);
            }
            unknown
        }
    };
    let answered = dialled(10, "walker").await;
    assert!((32..100).contains(&answered), "{answered}");
    assert_eq!(asked.lock().len(), 2 * answered, "a list of pods and one of Services each");
    let other = index.resolve("other", "10.1.0.250:80".parse().unwrap()).await;
    assert_eq!(other.kind(), Kind::Unknown, "nobody else waits");
}
