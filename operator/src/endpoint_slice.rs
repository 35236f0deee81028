//! The Service `cinch-operator` has no selector: the leader writes its one EndpointSlice, so that proxies
//! reach the leader and nobody else. In go our own pod's address and what the API server holds; out comes
//! one apply whenever both differ.

use crate::settings::Settings;
use cinch_api::names::{MANAGED_BY_LABEL, OPERATOR};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Label by which EndpointSlices belong to a Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Label that keeps Kubernetes' own controllers off a slice.
const SLICE_MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// Name of the port, as in the Service.
const PORT_NAME: &str = "control";
/// Between two tries, while the API server does not take it.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the slice as it should be, until `shutdown`. Only the leader may run this.
pub async fn run(client: Client, settings: Arc<Settings>, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = keep(client, &settings) => {}
    }
}

async fn keep(client: Client, settings: &Settings) {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &settings.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={OPERATOR}"));
    let mut events = watcher(slices.clone(), config).default_backoff().boxed();
    let mut wanted = write_until_taken(&client, &slices, settings).await;
    let mut listed = false;
    while let Some(event) = events.next().await {
        let right = match event {
            Ok(Event::Init) => {
                listed = false;
                continue;
            }
            Ok(Event::InitApply(slice)) => {
                listed = true;
                is_right(&slice, &wanted)
            }
            Ok(Event::InitDone) => listed,
            Ok(Event::Apply(slice)) => is_right(&slice, &wanted),
            Ok(Event::Delete(_)) => false,
            Err(error) => {
                warn!(%error, "the watch of our EndpointSlice failed and is tried again");
                continue;
            }
        };
        if !right {
            wanted = write_until_taken(&client, &slices, settings).await;
        }
    }
}

async fn write_until_taken(
    client: &Client,
    slices: &Api<EndpointSlice>,
    settings: &Settings,
) -> EndpointSlice {
    loop {
        match write(client, slices, settings).await {
            Ok(slice) => {
                info!(ip = %settings.pod.ip, "the EndpointSlice names this pod as the leader");
                return slice;
            }
            Err(error) => warn!(%error, "the EndpointSlice could not be written and is tried again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn write(
    client: &Client,
    slices: &Api<EndpointSlice>,
    settings: &Settings,
) -> kube::Result<EndpointSlice> {
    let service = Api::<Service>::namespaced(client.clone(), &settings.namespace).get_opt(OPERATOR).await?;
    let pod = Api::<Pod>::namespaced(client.clone(), &settings.namespace).get_opt(&settings.pod.name).await?;
    let wanted = slice(settings, service.as_ref(), pod.as_ref());
    let apply = PatchParams::apply(OPERATOR).force();
    match slices.patch(OPERATOR, &apply, &Patch::Apply(&wanted)).await {
        // The address family can't be changed; a slice of another family is in the way.
        Err(kube::Error::Api(status)) if status.code == 422 => {
            slices.delete(OPERATOR, &DeleteParams::default()).await?;
            slices.patch(OPERATOR, &apply, &Patch::Apply(&wanted)).await?;
        }
        written => {
            written?;
        }
    }
    Ok(wanted)
}

/// The slice with this pod as the only endpoint, owned by the Service so that it goes with it.
fn slice(settings: &Settings, service: Option<&Service>, pod: Option<&Pod>) -> EndpointSlice {
    let labels =
        [(SERVICE_NAME_LABEL, OPERATOR), (SLICE_MANAGED_BY_LABEL, "cinch"), (MANAGED_BY_LABEL, "cinch")];
    let owner = service.and_then(|service| {
        Some(OwnerReference {
            api_version: "v1".into(),
            kind: "Service".into(),
            name: OPERATOR.into(),
            uid: service.metadata.uid.clone()?,
            ..OwnerReference::default()
        })
    });
    let target = ObjectReference {
        kind: Some("Pod".into()),
        name: Some(settings.pod.name.clone()),
        namespace: Some(settings.namespace.clone()),
        uid: pod.and_then(|pod| pod.metadata.uid.clone()),
        ..ObjectReference::default()
    };
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(OPERATOR.into()),
            namespace: Some(settings.namespace.clone()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        address_type: match settings.pod.ip {
            IpAddr::V4(_) => "IPv4".into(),
            IpAddr::V6(_) => "IPv6".into(),
        },
        endpoints: Some(vec![Endpoint {
            addresses: vec![settings.pod.ip.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
            }),
            node_name: pod.and_then(|pod| pod.spec.as_ref()?.node_name.clone()),
            target_ref: Some(target),
            ..Endpoint::default()
        }]),
        ports: Some(vec![EndpointPort {
            name: Some(PORT_NAME.into()),
            port: Some(settings.control.port.into()),
            protocol: Some("TCP".into()),
            ..EndpointPort::default()
        }]),
    }
}

/// Whether what the API server holds says what we want said; labels of others don't matter.
fn is_right(held: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let labels = |slice: &EndpointSlice| slice.metadata.labels.clone().unwrap_or_default();
    let held_labels = labels(held);
    let labelled = labels(wanted).iter().all(|(key, value)| held_labels.get(key) == Some(value));
    let owned = wanted.metadata.owner_references.iter().flatten().all(|owner| {
        held.metadata.owner_references.iter().flatten().any(|reference| reference.uid == owner.uid)
    });
    labelled
        && owned
        && held.address_type == wanted.address_type
        && held.endpoints == wanted.endpoints
        && held.ports == wanted.ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::OwnPod;
    use serde_json::json;

    fn settings(ip: &str) -> Settings {
        let yaml = "{trustDomain: cluster.local, clusterDomain: cluster.local, namespace: cinch-system, \
                    rootNamespace: cinch-system, images: {proxy: p, allowed: [p]}}";
        let mut settings = Settings::parse(yaml).unwrap();
        settings.pod = OwnPod { name: "cinch-operator-1".into(), ip: ip.parse().unwrap() };
        settings
    }

    fn service() -> Service {
        serde_json::from_value(json!({"metadata": {"name": "cinch-operator", "uid": "service-uid"}})).unwrap()
    }

    #[test]
    fn the_slice_names_this_pod_and_goes_with_the_service() {
        let slice = serde_json::to_value(slice(&settings("10.1.0.7"), Some(&service()), None)).unwrap();
        assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "cinch-operator");
        assert_eq!(slice["metadata"]["ownerReferences"][0]["uid"], "service-uid");
        assert_eq!(slice["addressType"], "IPv4");
        assert_eq!(slice["endpoints"][0]["addresses"], json!(["10.1.0.7"]));
        assert_eq!(slice["ports"], json!([{"name": "control", "port": 7443, "protocol": "TCP"}]));
    }

    #[test]
    fn a_slice_that_says_something_else_is_not_right() {
        let wanted = slice(&settings("10.1.0.7"), Some(&service()), None);
        let edited = |edit: &dyn Fn(&mut EndpointSlice)| {
            let mut held = wanted.clone();
            edit(&mut held);
            is_right(&held, &wanted)
        };
        assert!(edited(&|_| {}));
        assert!(edited(&|held| {
            held.metadata.labels.get_or_insert_default().insert("else".into(), "x".into());
        }));
        assert!(!edited(&|held| held.metadata.labels = None));
        assert!(!edited(&|held| held.metadata.owner_references = None));
        assert!(!edited(&|held| held.endpoints = None));
        assert!(!edited(&|held| held.ports.as_mut().unwrap()[0].port = Some(1)));
        assert!(!is_right(&slice(&settings("10.1.0.8"), Some(&service()), None), &wanted));
        assert!(!is_right(&slice(&settings("fd00::8"), Some(&service()), None), &wanted));
    }
}
