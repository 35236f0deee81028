//! The TLS listener for reviews: HTTP/1.1, bounded in connections, bytes and time. While draining, each answer
//! closes its connection, so that API servers go elsewhere and none of their requests meets a closed one.
//!
//! Anybody in the cluster can connect here: API servers show no certificate unless their operators set them up to.
//! So nobody gets in by being first: connections have fair places and small buffers, and memory is charged when bytes
//! have come and not when they are promised, until the answer has been taken.

use crate::budget::Charges;
use crate::intake::{self, Asked};
use crate::mutate::Answer;
use crate::state::State;
use bytes::Bytes;
use cinch_places::{AtLimit, Limits, Pace, Place, Places, RateLimit, source_of};
use http_body_util::Full;
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
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// For a TLS handshake.
const LONGEST_HANDSHAKE: Duration = Duration::from_secs(5);
/// For a request's head, idle time before it included: longer than the 90 s after which the API server's
/// client closes, so that it never writes into a connection that we close.
const LONGEST_IDLE: Duration = Duration::from_secs(120);
/// For a peer to take an answer.
const LONGEST_ANSWER: Duration = Duration::from_secs(5);
/// API servers open a connection for each request in flight, of which they have some hundreds at most, and keep few.
/// One that is idle costs some 20 KB, and 80 KB when its peer fills every buffer: 80 MB for all of them.
const PLACES: Limits = Limits { most: 1024, of_one_source: 512, at_limit: AtLimit::Refuse };
/// How often one source may begin a connection: a handshake costs us far more than whoever asks for it. An API server
/// opens some hundreds at once when the last replica that it used has gone, and some for each review that finds all it
/// keeps in use.
const KNOCKS: Pace = Pace { burst: 1024, refill: Duration::from_millis(5) };
/// Bytes of a connection for a request's head, which has some hundred, and for a part of its body; and again for what
/// its peer does not yet take.
const LARGEST_BUFFER: usize = 16 << 10;
/// Connections that may still finish after the listener is closed.
const LONGEST_CLOSE: Duration = Duration::from_secs(3);

/// Serves until `stop`, then lets requests in flight finish.
pub async fn serve(listener: TcpListener, state: Arc<State>, stop: CancellationToken) {
    let mut gate = Gate { places: Places::new(PLACES), knocks: RateLimit::new(KNOCKS) };
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
        let source = source_of(peer.ip());
        let Some(place) = gate.enter(source, Instant::now()) else {
            state.metrics.connection_refused();
            state.tell(source, "too many of its source, or too often", "");
            continue;
        };
        let (state, stop) = (Arc::clone(&state), stop.clone());
        tracker.spawn(async move {
            let _open = state.metrics.connected();
            tokio::select! {
                () = connection(stream, source, Arc::clone(&state), stop) => {}
                () = place.lost() => {
                    state.metrics.connection_refused();
                    state.tell(source, "its place went to a source with fewer", "");
                }
            }
        });
    }
    drop(listener);
    tracker.close();
    if timeout(LONGEST_CLOSE, tracker.wait()).await.is_err() {
        tracing::warn!(connections = tracker.len(), "closing with connections open");
    }
}

/// Who may come in.
struct Gate {
    places: Places,
    knocks: RateLimit<IpAddr>,
}

impl Gate {
    fn enter(&mut self, source: IpAddr, now: Instant) -> Option<Place> {
        self.knocks.take(&source, now.into_std()).ok()?;
        self.places.take(source)
    }
}

async fn connection(stream: TcpStream, source: IpAddr, state: Arc<State>, stop: CancellationToken) {
    // Answers are small and awaited.
    let _ = stream.set_nodelay(true);
    let Some(serving) = state.serving() else {
        return;
    };
    let handshake = TlsAcceptor::from(Arc::clone(&serving.tls))
        .accept_with(stream, |tls| tls.set_buffer_limit(Some(LARGEST_BUFFER)));
    let stream = match timeout(LONGEST_HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            state.metrics.handshake_failed();
            state.tell(source, "the TLS handshake failed", &error.to_string());
            return;
        }
        Err(_) => {
            state.metrics.handshake_failed();
            state.tell(source, "no TLS handshake in time", "");
            return;
        }
    };
    let (outgoing, pending) = watch::channel(None);
    let service = service_fn(move |request| {
        let (state, outgoing) = (Arc::clone(&state), outgoing.clone());
        async move { Ok::<_, Infallible>(respond(request, source, &state, outgoing).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(LONGEST_IDLE)
        .max_buf_size(LARGEST_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = untaken(pending) => return,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}

async fn respond(
    request: Request<Incoming>,
    source: IpAddr,
    state: &State,
    outgoing: watch::Sender<Option<Pending>>,
) -> Response<Full<Bytes>> {
    let began = Instant::now();
    let asked = match request.uri().path() {
        "/mutate" => Some(Asked::Pod),
        "/validate" => Some(Asked::Policy),
        _ => None,
    };
    let (answer, charges) = match (request.method(), asked) {
        (_, None) => (Answer::text(404, "reviews go to /mutate and /validate"), None),
        (&Method::POST, Some(asked)) => {
            let (answer, charges) = intake::answer(request.into_body(), source, asked, state, began).await;
            (answer, Some(charges))
        }
        (_, Some(_)) => (Answer::text(405, "reviews are POSTed"), None),
    };
    let json = answer.status == 200;
    let body = match charges {
        Some(charges) => Bytes::from_owner(Outgoing::new(answer.body, charges, outgoing)),
        None => Bytes::from(answer.body),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content = if json { "application/json" } else { "text/plain; charset=utf-8" };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content));
    if state.draining.is_cancelled() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// An answer that its peer has not yet taken.
#[derive(Debug, Clone)]
struct Pending {
    until: Instant,
    /// Its memory went to somebody else.
    lost: CancellationToken,
}

/// The body of an answer on its way. What its review was charged is given back when it is gone.
struct Outgoing {
    body: Vec<u8>,
    _charges: Charges,
    pending: watch::Sender<Option<Pending>>,
}

impl Outgoing {
    fn new(body: Vec<u8>, charges: Charges, pending: watch::Sender<Option<Pending>>) -> Self {
        let until = Instant::now() + LONGEST_ANSWER;
        pending.send_replace(Some(Pending { until, lost: charges.lost() }));
        Self { body, _charges: charges, pending }
    }
}

impl AsRef<[u8]> for Outgoing {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.pending.send_replace(None);
    }
}

/// Ends when an answer was not taken in time, or has lost its memory before.
async fn untaken(mut pending: watch::Receiver<Option<Pending>>) {
    loop {
        let waiting = pending.borrow_and_update().clone();
        let ended = async {
            match &waiting {
                None => std::future::pending().await,
                Some(Pending { until, lost }) => tokio::select! {
                    () = sleep_until(*until) => {}
                    () = lost.cancelled() => {}
                },
            }
        };
        tokio::select! {
            () = ended => return,
            changed = pending.changed() => if changed.is_err() {
                // The connection ends by itself.
                return std::future::pending().await;
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use std::net::Ipv4Addr;

    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn a_source_that_knocks_without_end_is_not_let_in_and_nobody_else_is_the_worse_for_it() {
        let mut gate = Gate { places: Places::new(PLACES), knocks: RateLimit::new(KNOCKS) };
        let (start, other) = (Instant::now(), IpAddr::from([10, 0, 0, 1]));
        let mut entered =
            |source, times: u32, at| (0..times).filter(|_| gate.enter(source, at).is_some()).count();
        assert_eq!(entered(SOURCE, 5000, start), 1024, "each leaves at once");
        assert_eq!(entered(other, 500, start), 500);
        assert_eq!(entered(SOURCE, 5000, start + Duration::from_secs(1)), 200);
    }

    #[tokio::test]
    async fn an_answer_is_charged_until_its_peer_has_taken_it() {
        let budget = Budget::default();
        let all = budget.left();
        let mut charges = budget.charges(SOURCE);
        charges.add(5000).await.unwrap();
        let (outgoing, pending) = watch::channel(None);
        let body = Bytes::from_owner(Outgoing::new(vec![7; 10], charges, outgoing));
        let part = body.slice(2..);
        drop(body);
        assert_eq!((&part[..], budget.left()), (&[7; 8][..], all - 5000));
        assert!(pending.borrow().is_some());
        drop(part);
        assert_eq!(budget.left(), all);
        assert!(pending.borrow().is_none());
    }

    #[tokio::test]
    async fn who_does_not_take_its_answer_or_loses_its_memory_loses_its_connection() {
        let (sender, receiver) = watch::channel(None);
        let mut waits = tokio::spawn(untaken(receiver));
        tokio::task::yield_now().await;
        let lost = CancellationToken::new();
        let later = Instant::now() + LONGEST_IDLE;
        for pending in [Some(Pending { until: later, lost: lost.clone() }), None] {
            sender.send_replace(pending);
            tokio::task::yield_now().await;
            assert!(!waits.is_finished());
        }
        sender.send_replace(Some(Pending { until: Instant::now(), lost: lost.clone() }));
        waits.await.unwrap();
        waits = tokio::spawn(untaken(sender.subscribe()));
        sender.send_replace(Some(Pending { until: later, lost: lost.clone() }));
        lost.cancel();
        waits.await.unwrap();
    }
}
