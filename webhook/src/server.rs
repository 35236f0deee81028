//! The TLS listener for reviews: HTTP/1.1, bounded in connections, bytes and time. While draining, each answer
//! closes its connection, so that API servers go elsewhere and none of their requests meets a closed one.

use crate::mutate::{Answer, answer_malformed, fault, mutate};
use crate::state::{BODY_UNIT, State};
use crate::validate::validate;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The largest review. An object in the API has at most 1.5 MiB in etcd; a review carries it once, with
/// escapes, beside its request.
pub const LARGEST_BODY: usize = 6 << 20;
/// After this a review is given up; the API server stops waiting at 3 s.
const LONGEST_REVIEW: Duration = Duration::from_millis(2500);
/// For a TLS handshake.
const LONGEST_HANDSHAKE: Duration = Duration::from_secs(5);
/// For a request's head, idle time before it included: longer than the 90 s after which the API server's
/// client closes, so that it never writes into a connection that we close.
const LONGEST_IDLE: Duration = Duration::from_secs(120);
/// API servers open a connection for each request in flight, and keep few.
const MOST_CONNECTIONS: usize = 2048;
/// Connections that may still finish after the listener is closed.
const LONGEST_CLOSE: Duration = Duration::from_secs(3);

/// Serves until `stop`, then lets requests in flight finish.
pub async fn serve(listener: TcpListener, state: Arc<State>, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let tracker = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: accepting again at once would only spin.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            state.metrics.connection_refused();
            continue;
        };
        let (state, stop) = (Arc::clone(&state), stop.clone());
        tracker.spawn(async move {
            let open = state.metrics.connected();
            connection(stream, state, stop).await;
            drop((open, slot));
        });
    }
    drop(listener);
    tracker.close();
    if timeout(LONGEST_CLOSE, tracker.wait()).await.is_err() {
        tracing::warn!(connections = tracker.len(), "closing with connections open");
    }
}

async fn connection(stream: TcpStream, state: Arc<State>, stop: CancellationToken) {
    // Answers are small and awaited.
    let _ = stream.set_nodelay(true);
    let Some(serving) = state.serving() else {
        return;
    };
    let handshake = TlsAcceptor::from(Arc::clone(&serving.tls)).accept(stream);
    let stream = match timeout(LONGEST_HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            state.metrics.handshake_failed();
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
        Err(_) => {
            state.metrics.handshake_failed();
            return;
        }
    };
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(respond(request, &state).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(LONGEST_IDLE)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}

async fn respond(request: Request<Incoming>, state: &State) -> Response<Full<Bytes>> {
    let began = Instant::now();
    let asked = match request.uri().path() {
        "/mutate" => Some(Asked::Pod),
        "/validate" => Some(Asked::Policy),
        _ => None,
    };
    let answer = match (request.method(), asked) {
        (_, None) => Answer::text(404, "reviews go to /mutate and /validate"),
        (&Method::POST, Some(asked)) => timeout(LONGEST_REVIEW, review(request, asked, state, began))
            .await
            .unwrap_or_else(|_| fault(state, "the review took too long", began)),
        (_, Some(_)) => Answer::text(405, "reviews are POSTed"),
    };
    let json = answer.status == 200;
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content = if json { "application/json" } else { "text/plain; charset=utf-8" };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content));
    if state.draining.is_cancelled() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What a review is about.
#[derive(Clone, Copy)]
enum Asked {
    Pod,
    Policy,
}

async fn review(request: Request<Incoming>, asked: Asked, state: &State, began: Instant) -> Answer {
    let declared = hyper::body::Body::size_hint(request.body()).exact();
    let size = declared.and_then(|size| usize::try_from(size).ok()).unwrap_or(LARGEST_BODY);
    if size > LARGEST_BODY {
        return too_large(state, began);
    }
    let units = u32::try_from(size.div_ceil(BODY_UNIT)).unwrap_or(u32::MAX);
    let Ok(_budget) = state.bodies.acquire_many(units.max(1)).await else {
        return fault(state, "the webhook ends", began);
    };
    match Limited::new(request.into_body(), LARGEST_BODY).collect().await {
        Ok(body) => match asked {
            Asked::Pod => mutate(state, &body.to_bytes(), began).await,
            Asked::Policy => validate(state, &body.to_bytes(), began),
        },
        Err(error) if error.is::<http_body_util::LengthLimitError>() => too_large(state, began),
        Err(error) => answer_malformed(state, &format!("the body did not come: {error}"), began),
    }
}

fn too_large(state: &State, began: Instant) -> Answer {
    let answer = answer_malformed(state, &format!("the body has more than {LARGEST_BODY} bytes"), began);
    Answer { status: 413, ..answer }
}
