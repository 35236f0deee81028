//! `/healthz`, `/readyz` and `/metrics` over plain HTTP/1, on every replica.

use crate::metrics::Metrics;
use anyhow::Context;
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
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Kubelet and a few scrapers; more is abuse.
const MAX_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle keep-alive connection may not hold a place for ever.
const CONNECTION_LIFE: Duration = Duration::from_secs(120);
/// Where it listens.
pub const PORT: u16 = 8080;

/// Whether this replica can be counted on.
pub type Ready = Arc<dyn Fn() -> bool + Send + Sync>;

/// Serves until `shutdown`.
///
/// # Errors
/// When the port can't be bound.
pub async fn serve(
    address: SocketAddr,
    metrics: Metrics,
    ready: Ready,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("{address} can not be listened on"))?;
    serve_on(listener, metrics, ready, shutdown).await;
    Ok(())
}

async fn serve_on(listener: TcpListener, metrics: Metrics, ready: Ready, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors: let others go first.
                    debug!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (metrics, ready) = (metrics.clone(), Arc::clone(&ready));
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(request.method(), request.uri().path(), &metrics, &ready);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(CONNECTION_LIFE, connection).await;
            drop(place);
        });
    }
}

fn answer(method: &Method, path: &str, metrics: &Metrics, ready: &Ready) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return respond(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n".to_owned());
    }
    match path {
        "/healthz" => respond(StatusCode::OK, "text/plain", "ok\n".to_owned()),
        "/readyz" if ready() => respond(StatusCode::OK, "text/plain", "ok\n".to_owned()),
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
        let ready = Arc::clone(&synced);
        let ready: Ready = Arc::new(move || ready.load(Ordering::SeqCst));
        let server = tokio::spawn(serve_on(listener, Metrics::new(), ready, shutdown.clone()));
        let page = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(get(address, &page("/readyz")).await.starts_with("HTTP/1.1 503"));
        synced.store(true, Ordering::SeqCst);
        assert!(get(address, &page("/readyz")).await.starts_with("HTTP/1.1 200"));
        assert!(get(address, &page("/healthz")).await.starts_with("HTTP/1.1 200"));
        assert!(get(address, &page("/metrics")).await.contains("cinch_operator_leader 0"));
        assert!(get(address, &page("/other")).await.starts_with("HTTP/1.1 404"));
        let post = "POST /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        assert!(get(address, post).await.starts_with("HTTP/1.1 405"));
        assert!(get(address, "\x16\x03\x01 garbage\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        shutdown.cancel();
        server.await.unwrap();
    }
}
