//! Access to the API server. In goes what kube finds of the cluster; out comes a client none of whose calls waits for
//! ever: rooms make one call after the other, and an API server that dies after it has acknowledged a request would
//! otherwise stop them while the lease is renewed over another connection.

use anyhow::Context;
use futures::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as HttpBody, Bytes};
use hyper::{Request, Response, Uri};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use std::task::{Context as Task, Poll};
use std::time::Duration;
use tower::{BoxError, Layer, Service};

/// From the request to the last byte of its answer. An API server that is slower is tried again.
const CALL: Duration = Duration::from_secs(10);
/// The same of a page of a list: a large cluster's may wait for its turn.
const PAGE: Duration = Duration::from_secs(30);
/// On a connection that carries a watch: longer than the API server lets one live without a word (290 s are asked for).
const SILENCE: Duration = Duration::from_secs(305);

/// A client for this pod's service account, or for the kubeconfig of whoever runs it outside.
///
/// # Errors
/// When neither is there, or what it says can't be used.
pub async fn connect() -> anyhow::Result<Client> {
    let mut config = Config::infer().await.context("no access to the API server")?;
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    let builder = ClientBuilder::try_from(config).context("no access to the API server")?;
    Ok(builder.with_layer(&InTime { call: CALL, page: PAGE }).build())
}

/// Gives each call its limit.
#[derive(Debug, Clone, Copy)]
struct InTime {
    call: Duration,
    page: Duration,
}

impl InTime {
    /// How long a call may take; `None` for a watch, which has no end.
    fn limit(self, uri: &Uri) -> Option<Duration> {
        let mut parameters = uri.query().unwrap_or_default().split('&');
        if parameters.clone().any(|parameter| matches!(parameter, "watch=true" | "watch=1")) {
            return None;
        }
        Some(if parameters.any(|parameter| parameter.starts_with("limit=")) { self.page } else { self.call })
    }
}

impl<S> Layer<S> for InTime {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { inner, limits: *self }
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// A service whose answers are complete within the limit.
struct Limited<S> {
    inner: S,
    limits: InTime,
}

impl<S, B> Service<Request<Body>> for Limited<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Answer;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answer, BoxError>>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(task).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let limit = self.limits.limit(request.uri());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let Some(limit) = limit else {
                return Ok(answer
                    .await
                    .map_err(Into::into)?
                    .map(|body| body.map_err(Into::into).boxed_unsync()));
            };
            let whole = async {
                let (head, body) = answer.await.map_err(Into::into)?.into_parts();
                let body = body.collect().await.map_err(Into::into)?.to_bytes();
                let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
                Ok(Response::from_parts(head, body))
            };
            match tokio::time::timeout(limit, whole).await {
                Ok(whole) => whole,
                Err(_) => Err(format!("the API server did not answer within {limit:?}").into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{StreamExt, stream};
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Api;
    use kube::api::{ListParams, WatchParams};
    use std::convert::Infallible;
    use tower::service_fn;

    const LIMITS: InTime = InTime { call: Duration::from_millis(20), page: Duration::from_millis(40) };

    /// A client of an API server that answers with these bytes and then, holding the connection, with nothing.
    fn client(begun: &'static [&'static str]) -> Client {
        let service = service_fn(move |_: Request<Body>| async move {
            let said = begun
                .iter()
                .map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from_static(text.as_bytes()))));
            let body = StreamBody::new(stream::iter(said).chain(stream::pending()));
            if begun.is_empty() {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(body))
        });
        Client::new(LIMITS.layer(service), "default")
    }

    #[tokio::test]
    async fn a_call_that_is_not_answered_or_only_in_part_fails_in_time() {
        for begun in [&[][..], &["{\"metadata\":"][..]] {
            let api: Api<ConfigMap> = Api::default_namespaced(client(begun));
            let answer = api.get_opt("x").await.unwrap_err();
            assert!(format!("{answer:?}").contains("did not answer within 20ms"), "{begun:?}: {answer:?}");
            let page = api.list(&ListParams::default().limit(100)).await.unwrap_err();
            assert!(format!("{page:?}").contains("did not answer within 40ms"), "{begun:?}: {page:?}");
        }
    }

    #[tokio::test]
    async fn a_watch_without_news_is_left_alone() {
        let bookmark = "{\"type\":\"BOOKMARK\",\"object\":{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\
                        \"metadata\":{\"resourceVersion\":\"7\",\"annotations\":{}}}}\n";
        let api: Api<ConfigMap> = Api::default_namespaced(client(Box::leak(Box::new([bookmark]))));
        let mut events = api.watch(&WatchParams::default(), "0").await.unwrap().boxed();
        assert!(events.next().await.unwrap().is_ok());
        let next = tokio::time::timeout(LIMITS.page * 5, events.next()).await;
        assert!(next.is_err(), "nothing ends it: {next:?}");
    }
}
