//! A small mesh for tests of other rooms: the enrolled namespace `shop` with the meshed pod `web`, and policies.

use super::fixtures::{list, namespace, node, pod, settings};
use super::keyed::Feed;
use super::policies::{OfKind, PolicyKind};
use super::state::State;
use super::{Index, PodInfo};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use std::sync::Arc;

/// The mesh, with everything listed and no policies.
pub(crate) fn shop() -> Index {
    let index = Index::new(settings());
    index.update(|state| {
        for kind in PolicyKind::ALL {
            let mut feed = Feed::default();
            feed.event(&mut OfKind { state, kind }, Event::Init);
            feed.event(&mut OfKind { state, kind }, Event::InitDone);
        }
        list::<Namespace>(state, vec![namespace("shop", json!({"cinch.dev/mesh": "enabled"}))]);
        list::<Node>(state, vec![node("node1", "10.240.0.11", "10.1.0.0/24")]);
        list::<ServiceCIDR>(state, vec![]);
        list::<PartialObjectMeta<ReplicaSet>>(state, vec![]);
        list::<PartialObjectMeta<Job>>(state, vec![]);
        list::<Pod>(state, vec![pod("web").ip("10.1.0.5").build()]);
        list::<Service>(state, vec![]);
        list::<EndpointSlice>(state, vec![])
    });
    assert!(index.synced());
    index
}

/// The pod `web`.
pub(crate) fn web(index: &Index) -> Arc<PodInfo> {
    index.pod("web-uid").unwrap()
}

/// Applies a policy of `shop`.
pub(crate) fn apply(index: &Index, kind: PolicyKind, name: &str, generation: i64, spec: Value) {
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "security.istio.io/v1", "kind": kind.as_str(),
        "metadata": {"namespace": "shop", "name": name, "uid": name, "generation": generation},
        "spec": spec,
    }))
    .unwrap();
    event(index, kind, Event::Apply(object));
}

fn event(index: &Index, kind: PolicyKind, event: Event<DynamicObject>) {
    index.update(|state: &mut State| Feed::default().event(&mut OfKind { state, kind }, event));
}
