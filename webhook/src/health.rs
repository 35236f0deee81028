//! Health and metrics over plain HTTP: `/healthz` (alive), `/readyz` (certificate and caches are there, not
//! draining), `/metrics`.

use crate::state::State;
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

/// A kubelet and a Prometheus or two. Each connection is for one answer, so the oldest of those that want too many
/// is nobody's loss, and a kubelet's probe always gets in: where it did not, the kubelet would kill us.
const PLACES: Limits = Limits { most: 64, of_one_source: 8, at_limit: AtLimit::DropOldest };
/// For a request's head.
const LONGEST_HEAD: Duration = Duration::from_secs(5);
/// Bytes of a head that has not come to its end: those of a probe have some hundred.
const LARGEST_HEAD: usize = 16 << 10;
/// For the whole of a connection, an answer that nobody reads included.
const LONGEST_CONNECTION: Duration = Duration::from_secs(10);

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, state: Arc<State>) {
    let places = Places::new(PLACES);
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Some(place) = places.take(peer.ip()) else {
            continue;
        };
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = respond(&request, &state);
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

fn respond(request: &Request<Incoming>, state: &State) -> Response<Full<Bytes>> {
    let (status, body) = match request.uri().path() {
        "/healthz" => (StatusCode::OK, "ok".to_owned()),
        "/readyz" => match state.not_ready() {
            None => (StatusCode::OK, "ok".to_owned()),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
        },
        "/metrics" => (StatusCode::OK, state.metrics.text()),
        _ => (StatusCode::NOT_FOUND, "healthz, readyz or metrics".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Caches;
    use crate::metrics::Metrics;
    use crate::settings::Settings;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn a_head_that_does_not_end_is_not_kept() {
        let settings =
            "{trustDomain: cluster.local, namespace: cinch-system, images: {proxy: r/cinch-proxy:1}}";
        let settings = Settings::parse(settings).unwrap();
        let metrics = Arc::new(Metrics::default());
        let state = State::new(Arc::new(Caches::default()), settings.sidecar(), settings.mesh(), metrics);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, Arc::new(state)));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET /healthz HTTP/1.1\r\nx: {}", "a".repeat(LARGEST_HEAD));
        stream.write_all(&head.as_bytes()[..LARGEST_HEAD]).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        serving.abort();
    }
}
