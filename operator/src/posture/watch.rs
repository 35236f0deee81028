//! The Postures that there are, by namespace.

use cinch_api::Posture;
use cinch_api::names::POSTURE;
use futures::StreamExt;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::Notify;
use tracing::warn;

/// A cheap handle to the Postures of the cluster.
#[derive(Clone, Default)]
pub(super) struct Postures {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    held: Mutex<Held>,
    changed: Notify,
}

#[derive(Default)]
struct Held {
    by_namespace: HashMap<String, Arc<Posture>>,
    relisted: HashSet<String>,
    synced: bool,
}

impl Postures {
    /// All have been listed once.
    pub(super) fn synced(&self) -> bool {
        self.shared.held.lock().synced
    }

    /// The Posture of a namespace.
    pub(super) fn of(&self, namespace: &str) -> Option<Arc<Posture>> {
        self.shared.held.lock().by_namespace.get(namespace).cloned()
    }

    /// Every namespace that has one.
    pub(super) fn namespaces(&self) -> Vec<String> {
        self.shared.held.lock().by_namespace.keys().cloned().collect()
    }

    /// Resolves when a Posture came, went, or its spec was written.
    pub(super) async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    pub(super) fn take(&self, event: Event<Posture>) {
        let told = self.shared.held.lock().take(event);
        if told {
            self.shared.changed.notify_one();
        }
    }
}

impl Held {
    /// `true` when somebody else than ourselves changed something: our own writes change status only.
    fn take(&mut self, event: Event<Posture>) -> bool {
        match event {
            Event::Init => {
                self.relisted.clear();
                false
            }
            Event::InitApply(posture) => {
                self.relisted.extend(posture.namespace());
                self.put(posture)
            }
            Event::Apply(posture) => self.put(posture),
            Event::InitDone => {
                let relisted = std::mem::take(&mut self.relisted);
                self.by_namespace.retain(|namespace, _| relisted.contains(namespace));
                self.synced = true;
                true
            }
            Event::Delete(posture) if posture.name_any() == POSTURE => {
                posture.namespace().is_some_and(|namespace| self.by_namespace.remove(&namespace).is_some())
            }
            Event::Delete(_) => false,
        }
    }

    fn put(&mut self, posture: Posture) -> bool {
        let Some(namespace) = posture.namespace().filter(|_| posture.name_any() == POSTURE) else {
            return false;
        };
        let key = |posture: &Posture| (posture.uid(), posture.metadata.generation);
        let fresh = key(&posture);
        let before = self.by_namespace.insert(namespace, Arc::new(posture));
        before.is_none_or(|before| key(&before) != fresh)
    }
}

/// Follows the Postures of the cluster; ends only with the process.
pub(super) async fn run(client: Client, postures: Postures) {
    let api: Api<Posture> = Api::all(client);
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => postures.take(event),
            Err(error) => warn!(%error, "the watch of Postures failed and is tried again"),
        }
    }
}
