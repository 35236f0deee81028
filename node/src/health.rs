//! Health and metrics over plain HTTP: `/healthz` (alive), `/readyz` (the kubelet has registered the driver and
//! the node can do what is asked of it), `/metrics`.

use crate::agent::Agent;
use crate::csi::Registered;
use bytes::Bytes;
use cinch_places::{AtLimit, Limits, Places};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A kubelet and a Prometheus or two. Each connection is for one answer, so the oldest of those that want too many
/// is nobody's loss, and a kubelet's probe always gets in: where it did not, the kubelet would kill us.
const PLACES: Limits = Limits { most: 16, of_one_source: 4, at_limit: AtLimit::DropOldest };
/// For a request's head.
const LONGEST_HEAD: Duration = Duration::from_secs(5);
/// Bytes of a head that has not come to its end: those of a probe have some hundred.
const LARGEST_HEAD: usize = 16 << 10;
/// For the whole of a connection, an answer that nobody reads included.
const LONGEST_CONNECTION: Duration = Duration::from_secs(10);

/// What is asked about.
#[derive(Clone)]
pub struct Health {
    /// The node's fault and the metrics.
    pub agent: Arc<Agent>,
    /// What the kubelet said.
    pub registered: watch::Receiver<Registered>,
}

impl Health {
    /// What keeps the agent from being ready.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        // First: with it, an agent may not even have tried to be registered.
        self.agent.fault().or_else(|| match &*self.registered.borrow() {
            None => Some("the kubelet has not yet registered the driver".to_owned()),
            Some(Err(error)) => Some(format!("the kubelet did not register the driver: {error}")),
            Some(Ok(())) => None,
        })
    }

    fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, body) = match request.uri().path() {
            "/healthz" => (StatusCode::OK, "ok".to_owned()),
            "/readyz" => match self.not_ready() {
                None => (StatusCode::OK, "ok".to_owned()),
                Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
            },
            "/metrics" => (StatusCode::OK, self.agent.metrics().text()),
            _ => (StatusCode::NOT_FOUND, "healthz, readyz or metrics".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response
    }
}

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, health: Health) {
    let places = Places::new(PLACES);
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Some(place) = places.take(peer.ip()) else {
            continue;
        };
        let health = health.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = health.respond(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(LONGEST_HEAD)
                .keep_alive(false)
                .max_buf_size(LARGEST_HEAD)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = tokio::time::timeout(LONGEST_CONNECTION, served) => {}
                () = place.lost() => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn a_head_that_does_not_end_is_not_kept() {
        let agent = Arc::new(Agent::new(Err("no node".to_owned()), Metrics::default()));
        let (_kubelet, registered) = watch::channel(None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, Health { agent, registered }));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET /healthz HTTP/1.1\r\nx: {}", "a".repeat(LARGEST_HEAD));
        stream.write_all(&head.as_bytes()[..LARGEST_HEAD]).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        serving.abort();
    }
}
