//! Readiness, and the two ports that nobody listens on: 15021 (health and probes) and 15020 (metrics).
//!
//! The data side hands accepted connections over through [`Doorway`]; a task of the control side reads one
//! request of each and answers. Health tells the reasons why the proxy is not ready; probes tell a status only.

use crate::context::{Credentials, HEALTH_PORT, InboundPolicy, METRICS_PORT, VirtualPorts};
use crate::credentials::is_current;
use crate::evidence::Evidence;
use crate::http::{self, HeadError, Request};
use crate::metrics::Metrics;
use crate::path_metrics::PathMetrics;
use crate::probes::ProbeTable;
use cinch_places::{AtLimit, Limits, Place, Places};
use cinch_reason::Reason;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

/// The name of the limit of their connections.
const LIMIT: &str = "probe_connections";
/// A proof is good for this many intervals of the self-test, so that one lost round is no outage.
const PROOF_INTERVALS: u32 = 3;
/// No proof is asked to be younger than this.
const PROOF_FLOOR: Duration = Duration::from_secs(30);

/// Everything that must hold before apps may start.
pub struct Readiness {
    evidence: Arc<Evidence>,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    policy: watch::Receiver<Option<Arc<InboundPolicy>>>,
    /// The operator knows the pod's addresses, or there is no operator.
    indexed: AtomicBool,
    /// The node agent has set the redirect, or there is no agent to wait for.
    redirected: AtomicBool,
    /// Oldest acceptable proof of the redirect in milliseconds; 0: none is asked for.
    proof_limit: AtomicU64,
}

impl Readiness {
    /// For a pod: the redirect must be proved and the pod's addresses indexed.
    #[must_use]
    pub fn in_pod(
        evidence: Arc<Evidence>,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
        policy: watch::Receiver<Option<Arc<InboundPolicy>>>,
    ) -> Self {
        let this = Self {
            evidence,
            credentials,
            policy,
            indexed: AtomicBool::new(false),
            redirected: AtomicBool::new(true),
            proof_limit: AtomicU64::new(0),
        };
        this.expect_proofs_every(PROOF_FLOOR);
        this
    }

    /// Without a control plane: somebody else redirects, and there is no index.
    #[must_use]
    pub fn standalone(
        evidence: Arc<Evidence>,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
        policy: watch::Receiver<Option<Arc<InboundPolicy>>>,
    ) -> Self {
        let (indexed, redirected) = (AtomicBool::new(true), AtomicBool::new(true));
        Self { evidence, credentials, policy, indexed, redirected, proof_limit: AtomicU64::new(0) }
    }

    /// The operator has acknowledged the pod's addresses.
    pub fn set_indexed(&self) {
        self.indexed.store(true, Ordering::Relaxed);
    }

    /// The redirect is the node agent's to set: it must say so first. A table that an earlier start of the proxy
    /// left behind passes the self-test, but exempts a container that is gone.
    pub fn await_agent(&self) {
        self.redirected.store(false, Ordering::Relaxed);
    }

    /// The node agent has set the redirect.
    pub fn set_redirected(&self) {
        self.redirected.store(true, Ordering::Relaxed);
    }

    /// How often the self-test runs.
    pub fn expect_proofs_every(&self, interval: Duration) {
        let limit = (interval * PROOF_INTERVALS).max(PROOF_FLOOR);
        self.proof_limit.store(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What is missing; empty when the proxy is ready.
    #[must_use]
    pub fn missing(&self) -> Vec<Reason> {
        let mut missing = Vec::new();
        if !self.redirected.load(Ordering::Relaxed) {
            missing.push(Reason::AgentPending);
        }
        let limit = self.proof_limit.load(Ordering::Relaxed);
        let proved =
            self.evidence.outbound_proof_age().is_some_and(|age| age <= Duration::from_millis(limit));
        if limit > 0 && !proved {
            missing.push(Reason::RedirectMissing);
        }
        match &*self.credentials.borrow() {
            None => missing.push(Reason::CertificatePending),
            Some(credentials) if !is_current(credentials) => missing.push(Reason::CertificateExpired),
            Some(_) => {}
        }
        if self.policy.borrow().is_none() {
            missing.push(Reason::PolicyPending);
        }
        if !self.indexed.load(Ordering::Relaxed) {
            missing.push(Reason::NotIndexed);
        }
        missing
    }
}

/// A connection with its place.
struct Arrival {
    port: u16,
    stream: std::net::TcpStream,
    place: Place,
}

/// Takes connections from the data side to the control side.
pub struct Doorway {
    waiting: Arc<Mutex<VecDeque<Arrival>>>,
    /// Tells the control side that somebody waits.
    come: mpsc::Sender<()>,
    places: Places,
    connections: usize,
    path: Arc<PathMetrics>,
}

impl Doorway {
    /// Lets a connection wait. Those that have lost their places make room: no more wait than twice what there are.
    fn admit(&self, arrival: Arrival) {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= 2 * self.connections {
            let before = waiting.len();
            waiting.retain(|arrival| !arrival.place.is_lost());
            for _ in waiting.len()..before {
                self.path.count_limit(LIMIT);
            }
        }
        waiting.push_back(arrival);
        drop(waiting);
        // Full: it is told already. Closed: a server that is gone takes nothing more, and need not.
        let _ = self.come.try_send(());
    }
}

impl VirtualPorts for Doorway {
    fn serve(&self, port: u16, stream: TcpStream, peer: SocketAddr) -> BoxFuture<'static, ()> {
        // The place is taken here, so that who comes last gets in however busy the control side is: of those that wait
        // for it too the oldest of the source with the most goes.
        match (stream.into_std(), self.places.take(peer.ip())) {
            (Ok(stream), Some(place)) => self.admit(Arrival { port, stream, place }),
            (Ok(_), None) => self.path.count_limit(LIMIT),
            // A broken socket: a probe that fails is tried again.
            (Err(_), _) => {}
        }
        std::future::ready(()).boxed()
    }
}

/// What answers on the virtual ports.
pub struct VirtualServer {
    /// For `/ready`.
    pub readiness: Arc<Readiness>,
    /// For `/probe/...`.
    pub probes: ProbeTable,
    /// Where probes go; `None` where there are none.
    pub pod: Option<IpAddr>,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// How long a head may take, and again its answer.
    pub patience: Duration,
    /// Bytes of a head.
    pub head_bytes: usize,
    /// So many connections are served at once. A new one always gets in, in the place of the oldest of the source that
    /// holds the most: if those who hold connections open kept kubelets out, these would kill the app.
    pub connections: usize,
    /// Counts those.
    pub path: Arc<PathMetrics>,
}

impl VirtualServer {
    /// The doorway, and the task that serves what comes through it.
    pub fn open(self) -> (Doorway, impl Future<Output = ()> + Send + 'static) {
        let (come, mut told) = mpsc::channel(1);
        let waiting = Arc::<Mutex<VecDeque<Arrival>>>::default();
        let places = Places::new(Limits {
            most: self.connections,
            of_one_source: self.connections.div_ceil(2),
            at_limit: AtLimit::DropOldest,
        });
        let (connections, path) = (self.connections, self.path.clone());
        let doorway = Doorway { waiting: waiting.clone(), come, places, connections, path };
        let server = Arc::new(self);
        let serve = async move {
            while told.recv().await.is_some() {
                let arrivals = std::mem::take(&mut *waiting.lock());
                for Arrival { port, stream, place } in arrivals {
                    let Ok(stream) = TcpStream::from_std(stream) else { continue };
                    let server = server.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            biased;
                            () = place.lost() => server.path.count_limit(LIMIT),
                            () = server.answer(port, stream) => {}
                        }
                    });
                }
            }
        };
        (doorway, serve)
    }

    async fn answer(&self, port: u16, mut stream: TcpStream) {
        let request = http::read_request(&mut stream, self.head_bytes);
        let answer = match tokio::time::timeout(self.patience, request).await {
            Ok(Ok(request)) => self.respond(port, &request).await,
            Ok(Err(HeadError::TooLong)) => {
                self.path.count_limit("probe_head_bytes");
                http::response(400, "text/plain", "")
            }
            Ok(Err(HeadError::Malformed)) => http::response(400, "text/plain", ""),
            Ok(Err(HeadError::Io(_))) => return,
            Err(_) => return self.path.count_limit("probe_timeout"),
        };
        let answering = async {
            stream.write_all(&answer).await?;
            stream.shutdown().await
        };
        if tokio::time::timeout(self.patience, answering).await.is_err() {
            self.path.count_limit("probe_timeout");
        }
    }

    async fn respond(&self, port: u16, request: &Request) -> Vec<u8> {
        if request.method != "GET" {
            return http::response(405, "text/plain", "");
        }
        match (port, request.path.as_str()) {
            (HEALTH_PORT, "/ready") => ready(&self.readiness.missing()),
            (HEALTH_PORT, path) => {
                let Some(pod) = self.pod else { return http::response(404, "text/plain", "") };
                let status = self.probes.run(path, pod, request.user_agent.as_deref()).await;
                http::response(status.unwrap_or(404), "text/plain", "")
            }
            (METRICS_PORT, "/metrics") => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                http::response(200, kind, &self.metrics.page(Instant::now()))
            }
            _ => http::response(404, "text/plain", ""),
        }
    }
}

fn ready(missing: &[Reason]) -> Vec<u8> {
    let mut body = String::new();
    for reason in missing {
        let _ = writeln!(body, "{reason}");
    }
    http::response(if missing.is_empty() { 200 } else { 503 }, "text/plain", &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cinch_policy::PortModes;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    fn readiness() -> (Arc<Readiness>, Arc<Evidence>, watch::Sender<Option<Arc<InboundPolicy>>>) {
        let evidence = Arc::new(Evidence::new(8));
        let policy = watch::Sender::new(None);
        let credentials = watch::Sender::new(None).subscribe();
        (Arc::new(Readiness::in_pod(evidence.clone(), credentials, policy.subscribe())), evidence, policy)
    }

    #[test]
    fn every_missing_part_is_named_until_it_is_there() {
        let (readiness, evidence, policy) = readiness();
        use Reason::{CertificatePending, NotIndexed, PolicyPending, RedirectMissing};
        assert_eq!(readiness.missing(), [RedirectMissing, CertificatePending, PolicyPending, NotIndexed]);
        evidence.note_outbound_proof();
        readiness.set_indexed();
        let modes = PortModes::default();
        policy.send_replace(Some(Arc::new(InboundPolicy::of_modes(1, modes))));
        assert_eq!(readiness.missing(), [CertificatePending]);
    }

    /// A server of the ports with room for so many connections.
    fn server(connections: usize) -> VirtualServer {
        let (readiness, evidence, _policy) = readiness();
        VirtualServer {
            readiness: readiness.clone(),
            probes: ProbeTable::default(),
            pod: Some(IpAddr::from([127, 0, 0, 1])),
            metrics: Arc::new(Metrics::new(evidence, readiness, &Default::default(), &Default::default())),
            patience: Duration::from_secs(60),
            head_bytes: 8 * 1024,
            connections,
            path: Arc::default(),
        }
    }

    /// A client whose connection has gone through the doorway.
    async fn connect(doorway: &Doorway, port: u16) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        doorway.serve(port, stream, peer).await;
        client
    }

    async fn ask(port: u16, request: &str) -> String {
        let (doorway, serve) = server(64).open();
        tokio::spawn(serve);
        let mut client = connect(&doorway, port).await;
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn who_holds_connections_open_keeps_nobody_out_and_is_counted() {
        let server = server(4);
        let path = server.path.clone();
        let (doorway, serve) = server.open();
        tokio::spawn(serve);
        let mut held = Vec::new();
        for _ in 0..12 {
            held.push(connect(&doorway, HEALTH_PORT).await);
            tokio::task::yield_now().await;
            let mut probe = connect(&doorway, HEALTH_PORT).await;
            probe.write_all(b"GET /ready HTTP/1.1\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            probe.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        }
        let mut page = String::new();
        let mut registry = prometheus_client::registry::Registry::default();
        path.register(&mut registry);
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        let counted = "limit_refusals_total{limit=\"probe_connections\"} ";
        let count = page.split(counted).nth(1).and_then(|rest| rest.lines().next()).unwrap_or("0");
        assert!(count.parse::<u64>().unwrap() >= 10, "{page}");
        let mut first = String::new();
        assert!(matches!(held[0].read_to_string(&mut first).await, Ok(0) | Err(_)), "the oldest had to go");
    }

    #[tokio::test]
    async fn who_comes_last_gets_in_though_the_server_was_busy_meanwhile() {
        let (doorway, serve) = server(4).open();
        let mut crowd = Vec::new();
        for _ in 0..50 {
            crowd.push(connect(&doorway, HEALTH_PORT).await);
        }
        assert!(doorway.waiting.lock().len() <= 8, "of those that wait too");
        let mut probe = connect(&doorway, HEALTH_PORT).await;
        probe.write_all(b"GET /ready HTTP/1.1\r\n\r\n").await.unwrap();
        tokio::spawn(serve);
        let mut answer = String::new();
        probe.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }

    #[test]
    fn who_asks_for_metrics_again_and_again_gets_the_last_page() {
        let (server, now) = (server(4), Instant::now());
        let age = |after: Duration| {
            let page = server.metrics.page(now + after);
            let line =
                page.lines().find(|line| line.starts_with("cinch_outbound_redirect_proof_age_seconds"));
            line.and_then(|line| line.split(' ').nth(1)).unwrap().to_owned()
        };
        for _ in 0..9 {
            assert_eq!(age(Duration::ZERO), "-1");
        }
        assert_eq!(age(Duration::from_millis(900)), "-1", "who asks now and then gets a new one");
        server.readiness.evidence.note_outbound_proof();
        let refused = || server.metrics.limits().of("metrics_per_second");
        assert_eq!((refused(), age(Duration::from_millis(999)), refused()), (0, "-1".to_owned(), 1));
        assert_eq!(age(Duration::from_secs(1)), "0");
    }

    #[tokio::test]
    async fn heads_that_are_too_long_or_too_slow_are_counted() {
        let server = VirtualServer { patience: Duration::from_millis(200), ..server(4) };
        let refused = server.path.limit_refusals.clone();
        let (doorway, serve) = server.open();
        tokio::spawn(serve);
        let mut long = connect(&doorway, HEALTH_PORT).await;
        long.write_all(&[b'a'; 8 * 1024]).await.unwrap();
        let mut answer = [0; 12];
        long.read_exact(&mut answer).await.unwrap();
        assert_eq!((&answer, refused.of("probe_head_bytes")), (b"HTTP/1.1 400", 1));
        let mut slow = connect(&doorway, HEALTH_PORT).await;
        slow.write_all(b"GET /ready HTTP/1.1\r\n").await.unwrap();
        assert_eq!(slow.read(&mut answer).await.unwrap(), 0);
        assert_eq!(refused.of("probe_timeout"), 1);
    }

    #[tokio::test]
    async fn the_ports_answer_what_they_are_for_and_nothing_else() {
        let ready = ask(HEALTH_PORT, "GET /ready HTTP/1.1\r\n\r\n").await;
        assert!(ready.starts_with("HTTP/1.1 503 ") && ready.contains("PolicyPending"), "{ready}");
        let metrics = ask(METRICS_PORT, "GET /metrics HTTP/1.1\r\n\r\n").await;
        for name in ["cinch_resident_memory_bytes ", "cinch_open_descriptors ", "cinch_max_descriptors "] {
            assert!(metrics.contains(name), "{name} is not in {metrics}");
        }
        for (port, request, status) in [
            (HEALTH_PORT, "GET /metrics HTTP/1.1\r\n\r\n", 404),
            (METRICS_PORT, "GET /ready HTTP/1.1\r\n\r\n", 404),
            (HEALTH_PORT, "GET /probe/app/liveness/00 HTTP/1.1\r\n\r\n", 404),
            (HEALTH_PORT, "POST /ready HTTP/1.1\r\n\r\n", 405),
            (HEALTH_PORT, "\u{1}\u{2}\r\n\r\n", 400),
        ] {
            let answer = ask(port, request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        }
    }
}
