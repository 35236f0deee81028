//! The watchers of Istio's kinds. They are not ours: their definitions may be missing, come later, go, or be served
//! in the older version only. A kind that is not served has no objects; a kind that we are not allowed to see is
//! another matter: nothing is assumed then, and what is known stays.

use super::Index;
use super::keyed::Feed;
use super::policies::{OfKind, PolicyKind};
use futures::StreamExt;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use std::time::Duration;

/// The API group.
const GROUP: &str = "security.istio.io";

/// The versions in which the kinds are served; they say the same.
const VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// How soon a kind that is not served is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Objects in a page of a list.
const PAGE: u32 = 200;

/// Events that enter the state under one lock at most.
const BATCH: usize = 256;

/// What a failed watch means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// The API server does not serve the kind in this version.
    NotServed,
    /// We are not allowed to see it.
    Forbidden,
    /// It may be over soon.
    Passing,
}

impl Index {
    /// Watches one kind until the process ends, in the newest version that is served.
    pub(super) async fn follow_policies(&self, client: Client, kind: PolicyKind) {
        let mut wanted = self.shared.relists.wanted();
        loop {
            let wish = *wanted.borrow_and_update();
            let newest_served = async {
                for version in VERSIONS {
                    self.follow_version(client.clone(), kind, version, wish).await;
                }
                // Both versions were asked for, one after the other: this is no answer of a bad moment.
                self.update(|state| state.policies.not_served(kind));
                self.shared.relists.listed(kind.plural(), wish);
                tokio::time::sleep(LOOK_AGAIN).await;
            };
            tokio::select! {
                () = newest_served => {}
                _ = wanted.changed() => {}
            }
        }
    }

    /// Watches one kind in one version; returns when that is not served (any more).
    async fn follow_version(&self, client: Client, kind: PolicyKind, version: &str, wish: u64) {
        let of_kind = GroupVersionKind::gvk(GROUP, version, kind.as_str());
        let resource = ApiResource::from_gvk_with_plural(&of_kind, kind.plural());
        let api: Api<DynamicObject> = Api::all_with(client, &resource);
        let config = watcher::Config::default().page_size(PAGE);
        let stream = watcher(api, config).default_backoff();
        let mut batches = std::pin::pin!(stream.ready_chunks(BATCH));
        let mut feed = Feed::default();
        while let Some(batch) = batches.next().await {
            let (mut served, mut listed) = (true, false);
            self.update(|state| {
                let mut changed = false;
                for event in batch {
                    listed |= matches!(event, Ok(Event::InitDone));
                    match event {
                        Ok(event) => changed |= feed.event(&mut OfKind { state, kind }, event),
                        Err(error) => match trouble(&error) {
                            Trouble::NotServed => served = false,
                            Trouble::Forbidden => {
                                tracing::error!(%kind, %error, "the operator may not read policies: nothing is known of them but what was; grant it get, list and watch");
                                changed |= state.policies.forbidden(kind);
                                listed = true;
                            }
                            Trouble::Passing => {
                                tracing::warn!(%kind, %error, "a watch failed and is tried again");
                            }
                        },
                    }
                }
                changed
            });
            if listed {
                self.shared.relists.listed(kind.plural(), wish);
            }
            if !served {
                return;
            }
        }
    }
}

fn trouble(error: &watcher::Error) -> Trouble {
    let code = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code,
        _ => 0,
    };
    match code {
        404 => Trouble::NotServed,
        401 | 403 => Trouble::Forbidden,
        _ => Trouble::Passing,
    }
}
