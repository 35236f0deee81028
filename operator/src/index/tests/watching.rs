//! The watchers of Istio's kinds against an API server that does not serve them, serves them later or in the older
//! version only, or refuses to show them. The API server is a mock that answers lists.

use super::super::fixtures::*;
use super::super::{Index, PolicyKind};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// The status with which lists of `v1` and of `v1beta1` are answered, and the objects that they show.
#[derive(Clone)]
struct Answers(Arc<Mutex<(u16, u16, Vec<Value>)>>);

impl Answers {
    fn set(&self, v1: u16, v1beta1: u16, objects: Vec<Value>) {
        *self.0.lock() = (v1, v1beta1, objects);
    }

    fn to(&self, uri: &str) -> (u16, Value) {
        let (v1, v1beta1, objects) = self.0.lock().clone();
        let code = if uri.contains("/v1beta1/") { v1beta1 } else { v1 };
        let body = match code {
            200 => json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthenticationList",
                "metadata": {"resourceVersion": "1"}, "items": objects}),
            _ => json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "code": code, "message": "no",
                "status": "Failure", "reason": "no"}),
        };
        (code, body)
    }
}

fn peer(name: &str) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"namespace": "shop", "name": name, "uid": name}, "spec": {"mtls": {"mode": "PERMISSIVE"}}})
}

/// An index that watches PeerAuthentications of such an API server.
fn watching(answers: &Answers) -> (Index, tokio::task::JoinHandle<()>) {
    let answers = answers.clone();
    let service = tower::service_fn(move |request: hyper::Request<Body>| {
        let uri = request.uri().to_string();
        let (code, body) = answers.to(&uri);
        async move {
            if uri.contains("watch=true") {
                // A watch on which nothing happens.
                std::future::pending::<()>().await;
            }
            hyper::Response::builder().status(code).body(Body::from(serde_json::to_vec(&body).unwrap()))
        }
    });
    let index = Index::new(settings());
    index.update(|state| {
        state.policies.not_served(PolicyKind::AuthorizationPolicy)
            | state.policies.not_served(PolicyKind::RequestAuthentication)
    });
    let (watched, client) = (index.clone(), kube::Client::new(service, "default"));
    let watcher =
        tokio::spawn(async move { watched.follow_policies(client, PolicyKind::PeerAuthentication).await });
    (index, watcher)
}

async fn eventually(what: &str, index: &Index, condition: impl Fn(&Index) -> bool) {
    let come_true = async {
        while !condition(index) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), come_true).await.unwrap_or_else(|_| panic!("{what}"));
}

fn policies_known(index: &Index) -> bool {
    index.shared.state.read().policies.synced()
}

#[tokio::test]
async fn kinds_that_are_not_served_are_none_and_are_picked_up_when_they_appear() {
    let answers = Answers(Arc::default());
    answers.set(404, 404, vec![]);
    let (index, watcher) = watching(&answers);
    assert!(!policies_known(&index), "nothing is known before an answer");
    eventually("a kind that is not served is known to be empty", &index, policies_known).await;
    assert!(!index.istio_kinds_served() && index.pins().is_some_and(|pins| pins.is_empty()));
    answers.set(200, 404, vec![peer("late")]);
    eventually("it is watched when it appears", &index, |index| index.policies().len() == 1).await;
    assert!(index.istio_kinds_served() && index.pins().is_some_and(|pins| pins.len() == 1));
    watcher.abort();
}

#[tokio::test]
async fn an_older_version_is_read_where_the_newer_is_not_served() {
    let answers = Answers(Arc::default());
    answers.set(404, 200, vec![peer("older")]);
    let (index, watcher) = watching(&answers);
    eventually("the older version is listed", &index, |index| index.policies().len() == 1).await;
    watcher.abort();
}

#[tokio::test]
async fn a_kind_that_may_not_be_seen_is_not_known_until_it_may() {
    let answers = Answers(Arc::default());
    answers.set(403, 403, vec![]);
    let (index, watcher) = watching(&answers);
    // The refusal itself changes something: from then on nothing may be assumed.
    eventually("the refusal arrives", &index, |index| *index.changes().borrow() > 1).await;
    assert!(!policies_known(&index) && index.pins().is_none(), "a refusal is not an empty list");
    answers.set(200, 404, vec![peer("pins")]);
    eventually("it is read as soon as it may be", &index, policies_known).await;
    assert!(index.pins().is_some_and(|pins| pins.len() == 1));
    watcher.abort();
}
