//! The TLS listener for reviews: HTTP/1.1, bounded in connections, bytes and time. While draining, each answer
//! closes its connection, so that API servers go elsewhere and none of their requests meets a closed one.
//!
//! Anybody in the cluster can connect here: API servers show no certificate unless their operators set them up to.
//! So nobody gets in by being first: connections have fair places, memory is charged when bytes have come and not
//! when they are promised, and one address gets half of it at most.

use crate::budget::Charges;
use crate::mutate::{Answer, answer_malformed, fault, mutate};
use crate::state::State;
use crate::validate::validate;
use bytes::{Bytes, BytesMut};
use cinch_places::{AtLimit, Limits, Places};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The largest review. An object in the API has at most 1.5 MiB in etcd, and an update carries the old one too.
pub const LARGEST_BODY: usize = 4 << 20;
/// After this a review is given up; the API server stops waiting at 3 s.
const LONGEST_REVIEW: Duration = Duration::from_millis(2500);
/// For a request's body: an API server sends it at once.
const LONGEST_BODY: Duration = Duration::from_secs(1);
/// For a TLS handshake.
const LONGEST_HANDSHAKE: Duration = Duration::from_secs(5);
/// For a request's head, idle time before it included: longer than the 90 s after which the API server's
/// client closes, so that it never writes into a connection that we close.
const LONGEST_IDLE: Duration = Duration::from_secs(120);
/// API servers open a connection for each request in flight, and keep few.
const PLACES: Limits = Limits { most: 2048, of_one_source: 1024, at_limit: AtLimit::Refuse };
/// Connections that may still finish after the listener is closed.
const LONGEST_CLOSE: Duration = Duration::from_secs(3);

/// Serves until `stop`, then lets requests in flight finish.
pub async fn serve(listener: TcpListener, state: Arc<State>, stop: CancellationToken) {
    let places = Places::new(PLACES);
    let tracker = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: accepting again at once would only spin.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(place) = places.take(peer.ip()) else {
            state.metrics.connection_refused();
            continue;
        };
        let (state, stop) = (Arc::clone(&state), stop.clone());
        tracker.spawn(async move {
            let _open = state.metrics.connected();
            tokio::select! {
                () = connection(stream, peer.ip().to_canonical(), Arc::clone(&state), stop) => {}
                () = place.lost() => state.metrics.connection_refused(),
            }
        });
    }
    drop(listener);
    tracker.close();
    if timeout(LONGEST_CLOSE, tracker.wait()).await.is_err() {
        tracing::warn!(connections = tracker.len(), "closing with connections open");
    }
}

async fn connection(stream: TcpStream, source: IpAddr, state: Arc<State>, stop: CancellationToken) {
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
        async move { Ok::<_, Infallible>(respond(request, source, &state).await) }
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

async fn respond(request: Request<Incoming>, source: IpAddr, state: &State) -> Response<Full<Bytes>> {
    let began = Instant::now();
    let asked = match request.uri().path() {
        "/mutate" => Some(Asked::Pod),
        "/validate" => Some(Asked::Policy),
        _ => None,
    };
    let answer = match (request.method(), asked) {
        (_, None) => Answer::text(404, "reviews go to /mutate and /validate"),
        (&Method::POST, Some(asked)) => timeout(LONGEST_REVIEW, review(request, source, asked, state, began))
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

async fn review(
    request: Request<Incoming>,
    source: IpAddr,
    asked: Asked,
    state: &State,
    began: Instant,
) -> Answer {
    let declared = hyper::body::Body::size_hint(request.body()).lower();
    if declared > LARGEST_BODY as u64 {
        return too_large(state, began);
    }
    let mut charges = state.budget.charges(source);
    let body = match timeout(LONGEST_BODY, read(request.into_body(), &mut charges)).await {
        Ok(Ok(body)) => body,
        Ok(Err(Unread::TooLarge)) => return too_large(state, began),
        Ok(Err(Unread::Broken(error))) => {
            return answer_malformed(state, &format!("the body did not come: {error}"), began);
        }
        Err(_) => {
            let why = "the body did not come in time, or there was no memory for it";
            return Answer { status: 408, ..answer_malformed(state, why, began) };
        }
    };
    let values = most_values(&body);
    if values > MOST_VALUES {
        let why = format!("the body has more than {MOST_VALUES} values");
        return Answer { status: 413, ..answer_malformed(state, &why, began) };
    }
    charges.add(values * BYTES_OF_VALUE).await;
    match asked {
        Asked::Pod => mutate(state, &body, began).await,
        Asked::Policy => validate(state, &body, began),
    }
}

/// Why there is no body.
enum Unread {
    TooLarge,
    Broken(hyper::Error),
}

/// Reads a body. What came is charged before more is read.
async fn read(mut incoming: Incoming, charges: &mut Charges) -> Result<Bytes, Unread> {
    let mut body = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame.map_err(Unread::Broken)?.into_data() else { continue };
        if body.len() + data.len() > LARGEST_BODY {
            return Err(Unread::TooLarge);
        }
        // Twice: what grows is copied.
        charges.add(2 * data.len()).await;
        body.extend_from_slice(&data);
    }
    Ok(body.freeze())
}

/// More values than an object of the API can hold in 1.5 MiB, except one made for the purpose.
const MOST_VALUES: usize = 200_000;
/// What a value costs once it is parsed: itself, its name, its share of its map, and the same again while a list
/// or map grows.
const BYTES_OF_VALUE: usize = 160;

/// How many JSON values there are at most: each but the first follows a comma or a bracket. Text may hold more of
/// these and only makes the guess larger.
fn most_values(body: &[u8]) -> usize {
    1 + body.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count()
}

fn too_large(state: &State, began: Instant) -> Answer {
    let answer = answer_malformed(state, &format!("the body has more than {LARGEST_BODY} bytes"), began);
    Answer { status: 413, ..answer }
}
