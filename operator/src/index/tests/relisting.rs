//! Watches that are dead and don't know it, against an API server that answers lists and never a watch.

use super::super::Index;
use super::super::fixtures::*;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What the API server shows; `None`: it does not answer.
type Shown = Arc<Mutex<Option<Value>>>;

fn shop(locked: &str) -> Value {
    json!({"metadata": {"name": "shop", "uid": "u", "labels": {"cinch.dev/mesh": "enabled", "cinch.dev/mode": locked}}})
}

fn api_server(shown: &Shown) -> kube::Client {
    let shown = Arc::clone(shown);
    let service = tower::service_fn(move |request: hyper::Request<Body>| {
        let (uri, shown) = (request.uri().to_string(), shown.lock().clone());
        async move {
            let Some(namespace) = shown.filter(|_| !uri.contains("watch=true")) else {
                return std::future::pending().await;
            };
            let items = if uri.contains("/namespaces") { vec![namespace] } else { vec![] };
            // The kinds of Istio are not served.
            let code = if uri.contains("istio") { 404 } else { 200 };
            let body = match code {
                200 => {
                    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items})
                }
                _ => {
                    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "code": code, "message": "no",
                    "status": "Failure", "reason": "NotFound"})
                }
            };
            hyper::Response::builder().status(code).body(Body::from(serde_json::to_vec(&body).unwrap()))
        }
    });
    kube::Client::new(service, "default")
}

#[tokio::test]
async fn a_new_leader_hears_what_its_watches_have_missed_before_it_speaks() {
    let shown: Shown = Arc::new(Mutex::new(Some(shop("PERMISSIVE"))));
    let (index, shutdown) = (Index::new(settings()), CancellationToken::new());
    let running = tokio::spawn(index.clone().run(api_server(&shown), shutdown.clone()));
    let in_time = |done| tokio::time::timeout(Duration::from_secs(60), done);
    in_time(index.relist()).await.expect("the first lists");
    assert!(index.synced());
    let locked = |index: &Index| index.namespace("shop").is_some_and(|shop| shop.locked);
    assert!(!locked(&index));

    *shown.lock() = Some(shop("STRICT"));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!locked(&index), "no watch has told");
    in_time(index.relist()).await.expect("lists anew");
    assert!(locked(&index));

    *shown.lock() = None;
    let silent = tokio::time::timeout(Duration::from_millis(100), index.relist()).await;
    assert!(silent.is_err(), "who can't list does not go on");
    assert!(index.synced() && locked(&index), "what is known stays");
    shutdown.cancel();
    running.await.unwrap();
}
