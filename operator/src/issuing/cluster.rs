//! The four questions that issuing asks the API server, always live, never a cache.

use super::claims::AUDIENCE;
use anyhow::{Context, bail};
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::PostParams;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource};
use std::time::Duration;

/// The proxy waits for us; an API server that is slower than this gets another try.
const TIMEOUT: Duration = Duration::from_secs(4);

/// What issuing needs of a cluster.
pub trait Cluster: Send + Sync + 'static {
    /// Has a token reviewed for our audience.
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, anyhow::Result<TokenReviewStatus>>;
    /// Reads a pod; `None` when it is not there.
    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, anyhow::Result<Option<Pod>>>;
    /// Reads a namespace; `None` when it is not there.
    fn namespace<'a>(&'a self, name: &'a str) -> BoxFuture<'a, anyhow::Result<Option<Namespace>>>;
    /// Writes a warning Event at a pod; failures are logged only.
    fn warn<'a>(&'a self, pod: &'a Pod, reason: &'a str, note: String) -> BoxFuture<'a, ()>;
}

/// The API server.
pub struct ApiServer {
    client: Client,
    recorder: Recorder,
}

impl ApiServer {
    /// Events are signed with the name of this pod.
    #[must_use]
    pub fn new(client: Client, own_pod: &str) -> Self {
        let reporter =
            Reporter { controller: "cinch-operator".to_owned(), instance: Some(own_pod.to_owned()) };
        Self { recorder: Recorder::new(client.clone(), reporter), client }
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, kube::Error>>) -> anyhow::Result<T> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(result) => result.context("the API server refused"),
        Err(_) => bail!("the API server did not answer in time"),
    }
}

impl Cluster for ApiServer {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, anyhow::Result<TokenReviewStatus>> {
        let review = TokenReview {
            spec: TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: token.to_owned() },
            ..TokenReview::default()
        };
        Box::pin(async move {
            let api: Api<TokenReview> = Api::all(self.client.clone());
            let answer = in_time(api.create(&PostParams::default(), &review)).await?;
            answer.status.context("the review has no status")
        })
    }

    fn pod<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, anyhow::Result<Option<Pod>>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        Box::pin(async move { in_time(api.get_opt(name)).await })
    }

    fn namespace<'a>(&'a self, name: &'a str) -> BoxFuture<'a, anyhow::Result<Option<Namespace>>> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        Box::pin(async move { in_time(api.get_opt(name)).await })
    }

    fn warn<'a>(&'a self, pod: &'a Pod, reason: &'a str, note: String) -> BoxFuture<'a, ()> {
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note.chars().take(1000).collect()),
            action: "Issue".to_owned(),
            secondary: None,
        };
        Box::pin(async move {
            let reference = pod.object_ref(&());
            if let Err(error) = in_time(self.recorder.publish(&event, &reference)).await {
                tracing::warn!(error = format!("{error:#}"), "an Event could not be written");
            }
        })
    }
}
