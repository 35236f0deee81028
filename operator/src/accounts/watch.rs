//! The watchers behind `observed`. Only the leader runs them.

use super::observed::{Observed, WORKLOAD_KINDS, WorkloadKind, Workloads};
use crate::index::keyed::{Feed, Table};
use cinch_api::Posture;
use futures::future::join_all;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::sync::Arc;
use tokio::sync::Notify;
use tracing::{debug, warn};

/// Objects in a page of a list; workloads are large.
const PAGE: u32 = 100;
/// Events taken under one lock at most.
const BATCH: usize = 256;

/// Fills `observed` and notifies `changed` after each batch that changed anything; does not end.
pub(super) async fn run(client: Client, observed: Arc<Mutex<Observed>>, changed: Arc<Notify>) {
    let workloads =
        WORKLOAD_KINDS.iter().map(|kind| follow_workloads(client.clone(), kind, &observed, &changed));
    tokio::join!(
        join_all(workloads),
        follow::<ServiceAccount>(&client, "serviceaccounts", &observed, &changed),
        follow::<RoleBinding>(&client, "rolebindings", &observed, &changed),
        follow::<ClusterRoleBinding>(&client, "clusterrolebindings", &observed, &changed),
        follow::<Posture>(&client, "postures", &observed, &changed),
    );
}

async fn follow<K>(client: &Client, what: &'static str, observed: &Mutex<Observed>, changed: &Notify)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    Observed: Table<K>,
{
    let events = watcher(Api::<K>::all(client.clone()), Config::default().page_size(PAGE)).default_backoff();
    let mut feed = Feed::default();
    each_batch(events, |batch| {
        let mut observed = observed.lock();
        let mut any = false;
        for event in batch {
            match event {
                Ok(event) => any |= feed.event(&mut *observed, event),
                Err(error) => warn!(what, %error, "a watch failed and is tried again"),
            }
        }
        if any {
            changed.notify_one();
        }
    })
    .await;
}

async fn follow_workloads(
    client: Client,
    kind: &'static WorkloadKind,
    observed: &Mutex<Observed>,
    changed: &Notify,
) {
    let gvk = GroupVersionKind::gvk(kind.group, kind.version, kind.kind.as_str());
    let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural);
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let events = watcher(api, Config::default().page_size(PAGE)).default_backoff();
    let mut feed = Feed::default();
    each_batch(events, |batch| {
        let mut observed = observed.lock();
        let mut table = Workloads { kind, observed: &mut observed };
        let mut any = false;
        for event in batch {
            match event {
                Ok(event) => any |= feed.event(&mut table, event),
                Err(error) if kind.is_optional => {
                    debug!(kind = kind.plural, %error, "this kind is not served")
                }
                Err(error) => warn!(kind = kind.plural, %error, "a watch failed and is tried again"),
            }
        }
        if any {
            changed.notify_one();
        }
    })
    .await;
}

async fn each_batch<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
    mut take: impl FnMut(Vec<watcher::Result<Event<K>>>),
) {
    let mut batches = std::pin::pin!(events.ready_chunks(BATCH));
    while let Some(batch) = batches.next().await {
        take(batch);
    }
}
