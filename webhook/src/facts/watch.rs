//! The watches that feed the tables. Each runs until the process ends; errors are counted, logged and tried
//! again with growing pauses, while the table keeps what it has.

use super::table::{Event, Key, Table};
use super::{Caches, around, extract};
use crate::metrics::Metrics;
use futures::{Stream, StreamExt, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::runtime::watcher::{self, Config, Error};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Api, Client, ResourceExt};
use std::sync::Arc;
use tokio::task::JoinSet;

/// How many objects the API server gives at once; bounds what it and we hold while listing.
const PAGE: u32 = 500;

/// Starts every watch in `tasks`. None of them ends by itself.
pub fn follow(client: &Client, caches: &Arc<Caches>, metrics: &Arc<Metrics>, tasks: &mut JoinSet<()>) {
    let all = || Config::default().page_size(PAGE);
    macro_rules! feed {
        ($stream:expr, $table:ident, $keep:path) => {{
            let (caches, metrics) = (Arc::clone(caches), Arc::clone(metrics));
            let stream = $stream;
            tasks.spawn(async move {
                let table = &caches.$table;
                feed(stringify!($table), stream, table, $keep, &metrics).await;
            });
        }};
    }
    let trust = all().fields(&format!("metadata.name={}", extract::TRUST_CONFIG_MAP));
    feed!(watch_objects(Api::all(client.clone()), all()), namespaces, extract::namespace);
    feed!(watch_objects(Api::all(client.clone()), all()), accounts, extract::account);
    feed!(
        watch_objects(Api::<PartialObjectMeta<ConfigMap>>::all(client.clone()), trust),
        trust,
        extract::trust
    );
    feed!(watch_objects(Api::all(client.clone()), all()), jobs, extract::job);
    feed!(watch_objects(Api::all(client.clone()), all()), role_bindings, extract::role_binding);
    feed!(
        watch_objects(Api::all(client.clone()), all()),
        cluster_role_bindings,
        extract::cluster_role_binding
    );
    let posture = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("cinch.dev", "v1alpha1", "Posture"),
        "postures",
    );
    let postures = Api::<DynamicObject>::all_with(client.clone(), &posture);
    feed!(watch_objects(postures, all()), postures, extract::posture);
    let core = |kind: &str, plural: &str| {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", kind), plural)
    };
    let pods = Api::<around::Pod>::all_with(client.clone(), &core("Pod", "pods"));
    feed!(watch_objects(pods, all()), pods, around::pod);
    let services = Api::<around::Service>::all_with(client.clone(), &core("Service", "services"));
    feed!(watch_objects(services, all()), services, around::service);
    let policy = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("security.istio.io", "v1", "AuthorizationPolicy"),
        "authorizationpolicies",
    );
    let policies = Api::<DynamicObject>::all_with(client.clone(), &policy);
    feed!(watch_objects(policies, all()), policies, around::policy);
}

async fn feed<K, V>(
    kind: &'static str,
    stream: impl Stream<Item = Result<watcher::Event<K>, Error>>,
    table: &Table<V>,
    keep: fn(&K) -> Option<V>,
    metrics: &Metrics,
) where
    K: ResourceExt,
    V: Clone + PartialEq,
{
    let stream = stream.default_backoff();
    pin_mut!(stream);
    let key = |object: &K| Key::new(object.namespace().as_deref().unwrap_or_default(), &object.name_any());
    let mut failing = false;
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => table.apply(Event::Begin),
            Ok(watcher::Event::InitApply(object)) => table.apply(Event::Listed(key(&object), keep(&object))),
            Ok(watcher::Event::InitDone) => {
                failing = false;
                table.apply(Event::Complete);
            }
            Ok(watcher::Event::Apply(object)) => table.apply(Event::Upsert(key(&object), keep(&object))),
            Ok(watcher::Event::Delete(object)) => table.apply(Event::Remove(key(&object))),
            // A kind whose definition is missing has no objects; the watch goes on in case it comes.
            Err(error) if is_unknown_kind(&error) => {
                tracing::debug!(kind, "the API server does not know this kind");
                table.assume_empty();
            }
            Err(error) => {
                metrics.watch_failed(kind);
                // Said once: while the API server is away each kind fails every second.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(kind, error = %error_chain(&error), "watch failed, will be tried again");
                }
            }
        }
    }
}

fn is_unknown_kind(error: &Error) -> bool {
    match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}

/// An error with all its causes in one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
