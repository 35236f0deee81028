//! The ConfigMap `cinch-trust` in each enrolled namespace: the trust bundle and where the operator is, so
//! that a new proxy can begin its control stream. In go the enrolled namespaces, the bundle and the
//! ConfigMaps there are; out come applies and deletions. Decisions are pure ([`plan`]).

use crate::index::Index;
use crate::pulse::Pulse;
use crate::settings::Settings;
use cinch_api::names::{MANAGED_BY_LABEL, OPERATOR, TRUST_CONFIG_MAP};
use cinch_identity::TrustBundle;
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Key of the trust bundle, PEM.
pub const BUNDLE_KEY: &str = "bundle.pem";
/// Key of the operator's address, `ip:port`.
pub const OPERATOR_KEY: &str = "operator";
/// Value of the label that marks what is ours.
const MANAGED_BY: &str = "cinch";
/// What stands still when this does.
const ROOM: &str = "the trust bundles";
/// Writes that failed are tried again so often.
const RETRY: Duration = Duration::from_secs(2);

/// What each ConfigMap must say.
type Content = BTreeMap<String, String>;

/// What is known of one ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    uid: Option<String>,
    ours: bool,
    data: Content,
}

/// The ConfigMaps by namespace, as the watch tells them.
#[derive(Debug, Default)]
struct Seen {
    held: HashMap<String, Held>,
    relisted: HashSet<String>,
    synced: bool,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Write the ConfigMap of this namespace.
    Apply(String),
    /// The namespace has left: delete the ConfigMap with this UID.
    Remove(String, Option<String>),
}

/// What this room reads and where it writes.
pub struct Parts {
    /// Access to the API server.
    pub client: Client,
    /// Which namespaces are enrolled, and where the operator is.
    pub index: Index,
    /// The namespace of the operator, and its port.
    pub settings: Arc<Settings>,
    /// Where it says that it goes on.
    pub pulse: Pulse,
}

/// Keeps the ConfigMaps as they should be, until `shutdown`. Only the leader may run this.
pub async fn run(parts: Parts, bundle: watch::Receiver<Arc<TrustBundle>>, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = keep(parts, bundle) => {}
    }
}

async fn keep(parts: Parts, mut bundle: watch::Receiver<Arc<TrustBundle>>) {
    let Parts { client, index, settings, pulse } = parts;
    let config =
        watcher::Config::default().fields(&format!("metadata.name={TRUST_CONFIG_MAP}")).page_size(100);
    let mut events =
        watcher(Api::<ConfigMap>::all(client.clone()), config).default_backoff().ready_chunks(64).boxed();
    let mut changes = index.changes();
    let mut retry = tokio::time::interval(RETRY);
    let mut seen = Seen::default();
    let mut failed = false;
    loop {
        pulse.beat(ROOM);
        tokio::select! {
            batch = events.next() => match batch {
                Some(batch) => batch.into_iter().for_each(|event| seen.take(event)),
                None => return,
            },
            changed = changes.changed() => if changed.is_err() { return },
            changed = bundle.changed() => if changed.is_err() { return },
            _ = retry.tick() => if !failed { continue },
        }
        let Some(content) = content(&index, &settings, &bundle.borrow_and_update().clone()) else { continue };
        if !seen.synced || !index.synced() {
            continue;
        }
        failed = false;
        let leaving =
            |namespace: &str| index.namespace(namespace).is_none_or(|namespace| namespace.terminating);
        for step in plan(&index.enrolled(), &leaving, &seen.held, &content) {
            pulse.beat(ROOM);
            if let Err(error) = carry_out(&client, &step, &content, &mut seen).await {
                warn!(%error, ?step, "a trust ConfigMap could not be written and is tried again");
                failed = true;
            }
        }
    }
}

/// `None` until the Service has its address: a ConfigMap without it would be of no use.
fn content(index: &Index, settings: &Settings, bundle: &TrustBundle) -> Option<Content> {
    let ip = index.cluster_ip(&settings.namespace, OPERATOR)?;
    let operator = SocketAddr::new(ip, settings.control.port).to_string();
    Some([(BUNDLE_KEY.to_owned(), bundle.to_pem()), (OPERATOR_KEY.to_owned(), operator)].into())
}

/// What to do so that exactly the `enrolled` namespaces have a ConfigMap that says `content`. Namespaces that
/// are going anyway (`leaving`) are left alone, and so is what is not ours where nothing of ours should be.
fn plan(
    enrolled: &[String],
    leaving: &dyn Fn(&str) -> bool,
    held: &HashMap<String, Held>,
    content: &Content,
) -> Vec<Step> {
    let right =
        |held: &Held| held.ours && content.iter().all(|(key, value)| held.data.get(key) == Some(value));
    let missing = enrolled.iter().filter(|namespace| !held.get(*namespace).is_some_and(right));
    let mut steps: Vec<Step> = missing.cloned().map(Step::Apply).collect();
    let mut left: Vec<_> = held
        .iter()
        .filter(|(namespace, held)| held.ours && !enrolled.contains(namespace) && !leaving(namespace))
        .map(|(namespace, held)| Step::Remove(namespace.clone(), held.uid.clone()))
        .collect();
    left.sort_by(|a, b| format!("{a:?}").cmp(&format!("{b:?}")));
    steps.extend(left);
    steps
}

async fn carry_out(client: &Client, step: &Step, content: &Content, seen: &mut Seen) -> kube::Result<()> {
    match step {
        Step::Apply(namespace) => {
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
            let wanted = config_map(namespace, content);
            let apply = PatchParams::apply(OPERATOR).force();
            let written = match api.patch(TRUST_CONFIG_MAP, &apply, &Patch::Apply(&wanted)).await {
                // Somebody made it immutable.
                Err(kube::Error::Api(status)) if status.code == 422 => {
                    api.delete(TRUST_CONFIG_MAP, &DeleteParams::default()).await?;
                    api.patch(TRUST_CONFIG_MAP, &apply, &Patch::Apply(&wanted)).await?
                }
                written => written?,
            };
            info!(namespace, "the trust ConfigMap was written");
            seen.held.insert(namespace.clone(), Held::of(&written));
        }
        Step::Remove(namespace, uid) => {
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
            let same = Preconditions { uid: uid.clone(), resource_version: None };
            match api.delete(TRUST_CONFIG_MAP, &DeleteParams::default().preconditions(same)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                deleted => {
                    deleted?;
                }
            }
            info!(namespace, "the namespace left the mesh, its trust ConfigMap was removed");
            seen.held.remove(namespace);
        }
    }
    Ok(())
}

fn config_map(namespace: &str, content: &Content) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(TRUST_CONFIG_MAP.into()),
            namespace: Some(namespace.into()),
            labels: Some([(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: Some(content.clone()),
        ..ConfigMap::default()
    }
}

impl Held {
    fn of(map: &ConfigMap) -> Self {
        let label = map.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY_LABEL));
        Self {
            uid: map.metadata.uid.clone(),
            ours: label.is_some_and(|value| value == MANAGED_BY),
            data: map.data.clone().unwrap_or_default(),
        }
    }
}

impl Seen {
    fn take(&mut self, event: watcher::Result<Event<ConfigMap>>) {
        match event {
            Ok(Event::Init) => self.relisted.clear(),
            Ok(Event::InitApply(map)) => {
                if let Some(namespace) = map.metadata.namespace.clone() {
                    self.relisted.insert(namespace.clone());
                    self.held.insert(namespace, Held::of(&map));
                }
            }
            Ok(Event::InitDone) => {
                self.held.retain(|namespace, _| self.relisted.contains(namespace));
                self.synced = true;
            }
            Ok(Event::Apply(map)) => {
                if let Some(namespace) = map.metadata.namespace.clone() {
                    self.held.insert(namespace, Held::of(&map));
                }
            }
            Ok(Event::Delete(map)) => {
                if let Some(namespace) = &map.metadata.namespace {
                    self.held.remove(namespace);
                }
            }
            Err(error) => warn!(%error, "the watch of trust ConfigMaps failed and is tried again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(operator: &str) -> Content {
        [(BUNDLE_KEY.to_owned(), "pem".to_owned()), (OPERATOR_KEY.to_owned(), operator.to_owned())].into()
    }

    fn held(ours: bool, data: Content) -> HashMap<String, Held> {
        [("shop".to_owned(), Held { uid: Some("1".into()), ours, data })].into()
    }

    #[test]
    fn exactly_the_enrolled_namespaces_have_the_map() {
        let wanted = said("10.96.0.9:7443");
        let apply = vec![Step::Apply("shop".into())];
        let remove = vec![Step::Remove("shop".into(), Some("1".into()))];
        let more: Content = wanted.clone().into_iter().chain([("x".to_owned(), "y".to_owned())]).collect();
        let cases = [
            ("missing", true, false, HashMap::new(), apply.clone()),
            ("right", true, false, held(true, wanted.clone()), vec![]),
            ("right, and a key of somebody else", true, false, held(true, more), vec![]),
            ("the operator has moved", true, false, held(true, said("10.96.0.8:7443")), apply.clone()),
            ("emptied", true, false, held(true, Content::new()), apply.clone()),
            ("the label was taken away", true, false, held(false, wanted.clone()), apply),
            ("left the mesh", false, false, held(true, wanted.clone()), remove),
            ("left, and is not ours", false, false, held(false, wanted.clone()), vec![]),
            ("is terminating", false, true, held(true, wanted.clone()), vec![]),
            ("was never in", false, false, HashMap::new(), vec![]),
        ];
        for (case, is_enrolled, is_leaving, held, want) in cases {
            let enrolled: Vec<String> = is_enrolled.then(|| "shop".to_owned()).into_iter().collect();
            assert_eq!(plan(&enrolled, &|_| is_leaving, &held, &wanted), want, "{case}");
        }
    }

    #[test]
    fn a_relist_forgets_what_it_did_not_name() {
        let map = |namespace: &str| config_map(namespace, &said("x"));
        let mut seen = Seen::default();
        for event in [Event::Init, Event::InitApply(map("a")), Event::InitApply(map("b")), Event::InitDone] {
            seen.take(Ok(event));
        }
        assert!(seen.synced && seen.held.len() == 2);
        for event in [Event::Init, Event::InitApply(map("b")), Event::InitDone, Event::Apply(map("c"))] {
            seen.take(Ok(event));
        }
        let mut names: Vec<_> = seen.held.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["b", "c"]);
        seen.take(Ok(Event::Delete(map("b"))));
        assert_eq!(seen.held.len(), 1);
    }
}
