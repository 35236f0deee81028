//! The watchers: one per kind, each with its own place in the stream and its own back-off. A batch of events
//! enters the state under one lock and bumps the generation once.

use super::Index;
use super::keyed::{Feed, Table};
use super::policies::PolicyKind;
use super::relist::DECIDING;
use super::state::State;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// Objects in a page of a list. Pods are large (tens of KB each as JSON), and a page is in memory at once.
const PAGE: u32 = 100;

/// Events that enter the state under one lock at most.
const BATCH: usize = 256;

impl Index {
    /// Watches everything that the index holds, until `shutdown`. Watchers that fail back off and go on; the
    /// index keeps what it has meanwhile.
    pub async fn run(self, client: Client, shutdown: CancellationToken) {
        // A second run of the same index would watch with the first one's client for confirmations.
        let _ = self.shared.client.set(client.clone());
        let all = async {
            tokio::join!(
                self.follow::<Pod>(client.clone(), "pods"),
                self.follow::<Service>(client.clone(), "services"),
                self.follow::<EndpointSlice>(client.clone(), "endpointslices"),
                self.follow::<Namespace>(client.clone(), "namespaces"),
                self.follow::<Node>(client.clone(), "nodes"),
                self.follow::<PartialObjectMeta<ReplicaSet>>(client.clone(), "replicasets"),
                self.follow::<PartialObjectMeta<Job>>(client.clone(), "jobs"),
                self.follow::<ServiceCIDR>(client.clone(), "servicecidrs"),
                self.follow_policies(client.clone(), PolicyKind::PeerAuthentication),
                self.follow_policies(client.clone(), PolicyKind::AuthorizationPolicy),
                self.follow_policies(client.clone(), PolicyKind::RequestAuthentication),
            )
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            _ = all => {}
        }
    }

    async fn follow<K>(&self, client: Client, what: &'static str)
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
        State: Table<K>,
    {
        let mut wanted = self.shared.relists.wanted();
        let decides = DECIDING.contains(&what);
        let mut feed = Feed::default();
        loop {
            let wish = *wanted.borrow_and_update();
            let config = watcher::Config::default().page_size(PAGE);
            let stream = watcher(Api::<K>::all(client.clone()), config).default_backoff();
            let mut batches = std::pin::pin!(stream.ready_chunks(BATCH));
            loop {
                let batch = tokio::select! {
                    batch = batches.next() => batch,
                    _ = wanted.changed(), if decides => break,
                };
                let Some(batch) = batch else { return };
                let listed = batch.iter().any(|event| matches!(event, Ok(Event::InitDone)));
                self.take(&mut feed, batch, what);
                if listed {
                    self.shared.relists.listed(what, wish);
                }
            }
        }
    }

    /// Events of one moment enter the state together.
    fn take<K>(
        &self,
        feed: &mut Feed<<State as Table<K>>::Key>,
        batch: Vec<Result<Event<K>, watcher::Error>>,
        what: &str,
    ) where
        State: Table<K>,
    {
        self.update(|state| {
            state.now = Instant::now();
            let mut changed = false;
            for event in batch {
                match event {
                    Ok(event) => changed |= feed.event(state, event),
                    Err(error) => tracing::warn!(what, %error, "a watch failed and is tried again"),
                }
            }
            changed
        });
    }
}
