//! `/healthz`, `/readyz` and `/metrics` over plain HTTP/1, on every replica.

use crate::metrics::Metrics;
use anyhow::Context;
use cinch_places::{AtLimit, Limits, Places};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// A kubelet and a few scrapers; more is abuse. Each connection is for one answer, so the oldest of those that want
/// too many is nobody's loss, and a kubelet's probe always gets in: where it did not, the kubelet would kill us.
const PLACES: Limits = Limits { most: 64, of_one_source: 8, at_limit: AtLimit::DropOldest };
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// For the whole of it, an answer that nobody reads included.
const CONNECTION_LIFE: Duration = Duration::from_secs(10);
/// Where it listens.
pub const PORT: u16 = 8080;

/// What the kubelet is told.
#[derive(Clone)]
pub struct Checks {
    /// Whether this replica can be counted on.
    pub ready: Arc<dyn Fn() -> bool + Send + Sync>,
    /// What stands still of it, so that only a new process helps.
    pub stopped: Arc<dyn Fn() -> Option<&'static str> + Send + Sync>,
}

/// Serves until `shutdown`.
///
/// # Errors
/// When the port can't be bound.
pub async fn serve(
    address: SocketAddr,
    metrics: Metrics,
    checks: Checks,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("{address} can not be listened on"))?;
    serve_on(listener, metrics, checks, shutdown).await;
    Ok(())
}

async fn serve_on(listener: TcpListener, metrics: Metrics, checks: Checks, shutdown: CancellationToken) {
    let places = Places::new(PLACES);
    loop {
        let (stream, peer) = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors: let others go first.
                    debug!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let Some(place) = places.take(peer.ip()) else { continue };
        let (metrics, checks) = (metrics.clone(), checks.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(request.method(), request.uri().path(), &metrics, &checks);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .keep_alive(false)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = tokio::time::timeout(CONNECTION_LIFE, connection) => {}
                () = place.lost() => {}
            }
        });
    }
}

fn answer(method: &Method, path: &str, metrics: &Metrics, checks: &Checks) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return respond(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n".to_owned());
    }
    match path {
        "/healthz" => match (checks.stopped)() {
            None => respond(StatusCode::OK, "text/plain", "ok\n".to_owned()),
            Some(what) => {
                respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{what} stand still\n"))
            }
        },
        "/readyz" if (checks.ready)() => respond(StatusCode::OK, "text/plain", "ok\n".to_owned()),
        "/readyz" => {
            let text = "the index has not yet listed everything\n".to_owned();
            respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain", text)
        }
        "/metrics" => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            respond(StatusCode::OK, kind, metrics.encode())
        }
        _ => respond(StatusCode::NOT_FOUND, "text/plain", "no such page\n".to_owned()),
    }
}

fn respond(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn get(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn readiness_follows_the_index_and_garbage_does_no_harm() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, synced) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        let (ready, still) = (Arc::clone(&synced), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&still);
        let checks = Checks {
            ready: Arc::new(move || ready.load(Ordering::SeqCst)),
            stopped: Arc::new(move || stopped.load(Ordering::SeqCst).then_some("the postures")),
        };
        let server = tokio::spawn(serve_on(listener, Metrics::new(), checks, shutdown.clone()));
        let page = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(get(address, &page("/readyz")).await.starts_with("HTTP/1.1 503"));
        synced.store(true, Ordering::SeqCst);
        assert!(get(address, &page("/readyz")).await.starts_with("HTTP/1.1 200"));
        assert!(get(address, &page("/healthz")).await.starts_with("HTTP/1.1 200"));
        still.store(true, Ordering::SeqCst);
        assert!(
            get(address, &page("/healthz")).await.starts_with("HTTP/1.1 500"),
            "a leader that stands still"
        );
        still.store(false, Ordering::SeqCst);
        assert!(get(address, &page("/metrics")).await.contains("cinch_operator_leader 0"));
        assert!(get(address, &page("/other")).await.starts_with("HTTP/1.1 404"));
        let post = "POST /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        assert!(get(address, post).await.starts_with("HTTP/1.1 405"));
        assert!(get(address, "\x16\x03\x01 garbage\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        shutdown.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_probe_is_answered_while_others_hold_every_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let fine = Checks { ready: Arc::new(|| true), stopped: Arc::new(|| None) };
        let server = tokio::spawn(serve_on(listener, Metrics::new(), fine, shutdown.clone()));
        let mut held = Vec::new();
        for _ in 0..2 * PLACES.most {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /healthz HT").await.unwrap();
            held.push(stream);
        }
        let page = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
        for _ in 0..3 {
            assert!(get(address, page).await.starts_with("HTTP/1.1 200"));
        }
        shutdown.cancel();
        server.await.unwrap();
    }
}
