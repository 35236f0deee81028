//! The whole port over real TLS on loopback.

use super::*;
use crate::ca::CertificateAuthority;
use crate::ca::tests::{authority, svid};
use crate::control::certificate;
use crate::issuing::tests::{FakeCluster, issuing, token};
use bytes::BytesMut;
use cinch_control::v1::proxy_message::Kind as Request;
use cinch_control::{ALPN, Decoder, MAX_MESSAGE, encode};
use cinch_identity::{KeyPair, Peer, SpiffeId, Svid, client_config, server_name};
use rustls_pki_types::CertificateDer;
use std::io::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What is to come has come by then, on any machine that does not stand still.
const PATIENCE: Duration = Duration::from_secs(60);
const OPERATOR: &str = "spiffe://cluster.local/ns/cinch-system/sa/cinch-operator";

struct Port {
    address: SocketAddr,
    authority: CertificateAuthority,
    view: Arc<FakeView>,
    sessions: Sessions,
    metrics: Metrics,
    shutdown: CancellationToken,
    bundle: watch::Sender<Arc<TrustBundle>>,
}

impl Port {
    /// A port whose one pod `u1` (account api) has the address of the test itself.
    async fn open() -> Self {
        let authority = authority(Duration::from_secs(3600));
        let view = Arc::new(FakeView::new(&[pod("u1", "api", &["127.0.0.1"])]));
        let (tls, _) = certificate::issue(&authority, &SpiffeId::parse(OPERATOR).unwrap()).unwrap();
        let (sessions, metrics, shutdown) = (Sessions::default(), Metrics::new(), CancellationToken::new());
        let (bundle, bundle_watch) = watch::channel(authority.bundle());
        let control = Arc::new(Control::new(Parts {
            view: Arc::clone(&view) as Arc<dyn ClusterView>,
            issuing: issuing(Arc::new(FakeCluster::default()), authority.clone()),
            sessions: sessions.clone(),
            bundle: bundle_watch,
            tls: watch::channel(tls).1,
            report_interval: Duration::from_secs(10),
            metrics: metrics.clone(),
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, control, shutdown.clone()));
        Self { address, authority, view, sessions, metrics, shutdown, bundle }
    }

    async fn dial(&self, svid: Option<&Svid>, alpn: &[&[u8]]) -> std::io::Result<Client> {
        let operator = Peer::Exactly(SpiffeId::parse(OPERATOR).unwrap());
        let config = client_config(svid, &self.authority.bundle(), operator, alpn).unwrap();
        let stream = TcpStream::connect(self.address).await?;
        let stream = TlsConnector::from(config).connect(server_name(), stream).await?;
        Ok(Client { stream, buffer: BytesMut::new() })
    }

    /// A bound stream of pod `u1`.
    async fn bound(&self) -> Client {
        let svid = svid(&self.authority, API_ID);
        let mut client = self.dial(Some(&svid), &[ALPN]).await.unwrap();
        client.send(Request::Hello(hello("u1", &["127.0.0.1"]))).await;
        client
    }

    async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let come_true = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, come_true).await.expect("it did not come to pass");
    }
}

struct Client {
    stream: TlsStream<TcpStream>,
    buffer: BytesMut,
}

impl Client {
    async fn send(&mut self, kind: Request) {
        let mut out = BytesMut::new();
        encode(&v1::ProxyMessage { kind: Some(kind) }, &mut out).unwrap();
        self.stream.write_all(&out).await.unwrap();
    }

    /// The next message; `None` at the end.
    async fn next(&mut self) -> Option<Kind> {
        let decoder = Decoder::<v1::OperatorMessage>::new(MAX_MESSAGE);
        loop {
            if let Some(message) = decoder.next(&mut self.buffer).unwrap() {
                return message.kind;
            }
            let read = self.stream.read_buf(&mut self.buffer);
            match tokio::time::timeout(PATIENCE, read).await.expect("silence") {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) =>
                {
                    return None;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn until<T>(&mut self, pick: impl Fn(&Kind) -> Option<T>) -> T {
        loop {
            if let Some(found) = pick(&self.next().await.expect("the stream ended")) {
                return found;
            }
        }
    }

    async fn indexed(&mut self) {
        self.until(|kind| matches!(kind, Kind::Indexed(_)).then_some(())).await;
    }
}

#[tokio::test]
async fn a_pod_gets_its_first_certificate_and_binds_a_stream_with_it() {
    let port = Port::open().await;
    let key = KeyPair::generate().unwrap();
    let mut client = port.dial(None, &[ALPN]).await.unwrap();
    let request = v1::FirstCertificate { token: token("u1", "good"), csr: key.csr().unwrap().into() };
    client.send(Request::FirstCertificate(request)).await;
    let Some(Kind::Certificate(certificate)) = client.next().await else { panic!("no certificate") };
    assert!(client.next().await.is_none());
    let chain = certificate.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let svid = Svid::new(chain, key).unwrap();
    assert_eq!(svid.id().as_str(), API_ID);

    let mut client = port.dial(Some(&svid), &[ALPN]).await.unwrap();
    client.send(Request::Hello(hello("u1", &["127.0.0.1"]))).await;
    let Some(Kind::Welcome(welcome)) = client.next().await else { panic!("no welcome") };
    assert_eq!(welcome.report_interval_ms, 10_000);
    client.indexed().await;
    assert!(port.sessions.connected("u1"));
}

#[tokio::test]
async fn a_stream_carries_records_acks_evidence_renewals_and_changes() {
    let port = Port::open().await;
    let mut client = port.bound().await;
    client.indexed().await;
    port.view.set("10.0.0.5:80", RecordKind::Endpoints, 1);
    let addresses = vec![address("10.0.0.5:80".parse().unwrap()), address("10.0.0.6:80".parse().unwrap())];
    client.send(Request::Subscribe(v1::Subscribe { addresses })).await;
    let record = |kind: &Kind| match kind {
        Kind::Record(record) => Some((record.kind(), record.version)),
        _ => None,
    };
    assert_eq!(client.until(record).await, (RecordKind::Endpoints, 1));
    assert_eq!(client.until(record).await, (RecordKind::Unknown, 0));
    port.view.set("10.0.0.5:80", RecordKind::Endpoints, 2);
    *port.view.policy.lock() = 7;
    port.view.changed();
    let policy = client
        .until(|kind| match kind {
            Kind::Policy(policy) => Some(policy.version),
            _ => None,
        })
        .await;
    assert_eq!(policy, 7);
    assert_eq!(client.until(record).await, (RecordKind::Endpoints, 2));
    client.send(Request::Ack(v1::Ack { policy_version: 7, ..v1::Ack::default() })).await;
    client.send(Request::Evidence(v1::Evidence { sequence: 3, ..v1::Evidence::default() })).await;
    client.until(|kind| matches!(kind, Kind::EvidenceAck(_)).then_some(())).await;
    assert_eq!(port.sessions.acknowledged("u1"), Some(7));
    assert_eq!(*port.view.reports.lock(), [("u1".to_owned(), 3)]);
    assert_eq!(port.metrics.evidence.get(), 1);
    let key = KeyPair::generate().unwrap();
    client.send(Request::Renew(v1::Renew { csr: key.csr().unwrap().into() })).await;
    let renewed = |kind: &Kind| match kind {
        Kind::Certificate(it) => Some(it.chain.clone()),
        _ => None,
    };
    let chain = client.until(renewed).await.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    assert_eq!(Svid::new(chain, key).unwrap().id().as_str(), API_ID);
    let mut roots = port.authority.bundle().roots().to_vec();
    roots.extend(authority(Duration::from_secs(60)).bundle().roots().to_vec());
    let bundle = TrustBundle::new(port.authority.bundle().trust_domain().clone(), u64::MAX, roots).unwrap();
    port.bundle.send_replace(Arc::new(bundle));
    let roots = client
        .until(|kind| match kind {
            Kind::TrustBundle(it) => Some(it.roots.len()),
            _ => None,
        })
        .await;
    assert_eq!(roots, 2);
}

#[tokio::test]
async fn a_nack_is_kept_and_counted() {
    let port = Port::open().await;
    let mut client = port.bound().await;
    client.indexed().await;
    let nack = v1::Ack { policy_version: 1, nack: "no such field".to_owned(), ..v1::Ack::default() };
    client.send(Request::Ack(nack)).await;
    port.until(|port| port.sessions.acked("u1").is_some_and(|acked| !acked.nack.is_empty())).await;
    assert_eq!(port.metrics.nacks.get(), 1);
}

#[tokio::test]
async fn a_wrong_token_is_refused_with_a_word_and_the_connection_closed() {
    let port = Port::open().await;
    let mut client = port.dial(None, &[ALPN]).await.unwrap();
    let csr = KeyPair::generate().unwrap().csr().unwrap();
    client
        .send(Request::FirstCertificate(v1::FirstCertificate { token: token("u1", "bad"), csr: csr.into() }))
        .await;
    let Some(Kind::Refused(refused)) = client.next().await else { panic!("not refused") };
    assert_eq!(refused.reason, "TokenRejected");
    assert!(client.next().await.is_none());
}

#[tokio::test]
async fn a_stream_for_a_foreign_pod_is_refused() {
    let port = Port::open().await;
    let svid = svid(&port.authority, "spiffe://cluster.local/ns/shop/sa/web");
    let mut client = port.dial(Some(&svid), &[ALPN]).await.unwrap();
    client.send(Request::Hello(hello("u1", &["127.0.0.1"]))).await;
    let Some(Kind::Refused(refused)) = client.next().await else { panic!("not refused") };
    assert_eq!(refused.reason, "PodMismatch");
    assert!(!port.sessions.connected("u1"));
}

#[tokio::test]
async fn certificates_of_another_authority_are_refused_and_counted() {
    let port = Port::open().await;
    let foreign = svid(&authority(Duration::from_secs(60)), API_ID);
    if let Ok(mut client) = port.dial(Some(&foreign), &[ALPN]).await {
        // In TLS 1.3 the client is done first and learns of the refusal by the alert.
        assert!(client.stream.read_u8().await.is_err());
    }
    port.until(|port| port.metrics.connections(ConnectionEnd::Certificate) == 1).await;
}

#[tokio::test]
async fn garbage_at_every_stage_closes_the_connection_and_is_counted() {
    let port = Port::open().await;
    let mut raw = TcpStream::connect(port.address).await.unwrap();
    raw.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    port.until(|port| port.metrics.connections(ConnectionEnd::Handshake) == 1).await;
    assert!(port.dial(None, &[b"h2"]).await.is_err());
    port.until(|port| port.metrics.connections(ConnectionEnd::Handshake) == 2).await;

    let mut first = port.dial(None, &[ALPN]).await.unwrap();
    first.stream.write_all(&[0xff; 64]).await.unwrap();
    assert!(first.next().await.is_none());
    let mut out_of_place = port.dial(None, &[ALPN]).await.unwrap();
    out_of_place.send(Request::Hello(hello("u1", &["127.0.0.1"]))).await;
    assert!(out_of_place.next().await.is_none());
    port.until(|port| port.metrics.connections(ConnectionEnd::Garbage) == 2).await;

    let mut bound = port.bound().await;
    bound.indexed().await;
    bound.stream.write_all(&[0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
    assert!(bound.next().await.is_none());
    port.until(|port| port.metrics.connections(ConnectionEnd::Garbage) == 3).await;
    port.until(|port| !port.sessions.connected("u1")).await;
    // And it still serves.
    port.bound().await.indexed().await;
}

/// What the log has at its default level, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn has(&self, words: &[&str]) -> bool {
        let log = String::from_utf8_lossy(&self.0.lock()).into_owned();
        log.lines().any(|line| words.iter().all(|word| line.contains(word)))
    }
}

#[tokio::test]
async fn what_no_proxy_does_is_told_in_the_log_at_its_default_level() {
    let log = Log::default();
    let writer = {
        let log = log.clone();
        move || log.clone()
    };
    let lines = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_ansi(false);
    let _guard = tracing::subscriber::set_default(lines.with_writer(writer).finish());
    let port = Port::open().await;
    let mut raw = TcpStream::connect(port.address).await.unwrap();
    raw.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    port.until(|_| log.has(&["WARN", "127.0.0.1", "end=\"handshake\"", "corrupt message"])).await;
    assert!(port.dial(None, &[b"h2"]).await.is_err());
    port.until(|_| log.has(&["end=\"handshake\"", "any known protocol"])).await;
    let foreign = svid(&authority(Duration::from_secs(60)), API_ID);
    drop(port.dial(Some(&foreign), &[ALPN]).await);
    port.until(|_| log.has(&["end=\"certificate\"", "CertificateUntrusted"])).await;
    let mut first = port.dial(None, &[ALPN]).await.unwrap();
    first.stream.write_all(&[0xff; 64]).await.unwrap();
    port.until(|_| log.has(&["end=\"garbage\"", "the first message could not be read"])).await;
    // Over and over, it is told that it goes on, and no more: the port lets a pod in sixteen times at once.
    for _ in 0..200 {
        drop(TcpStream::connect(port.address).await.unwrap());
    }
    port.until(|port| port.metrics.connections(ConnectionEnd::Limit) >= 150).await;
    assert!(log.has(&["end=\"limit\"", "too often"]));
    let limited = String::from_utf8_lossy(&log.0.lock()).matches("end=\"limit\"").count();
    assert!(limited <= 30, "{limited} lines");
}

#[tokio::test]
async fn without_our_protocol_nothing_is_answered() {
    let port = Port::open().await;
    let mut client = port.dial(None, &[]).await.unwrap();
    assert!(client.next().await.is_none());
    port.until(|port| port.metrics.connections(ConnectionEnd::Handshake) == 1).await;
}

#[tokio::test]
async fn a_newer_stream_of_the_same_pod_takes_the_place() {
    let port = Port::open().await;
    let mut older = port.bound().await;
    older.indexed().await;
    let mut newer = port.bound().await;
    newer.indexed().await;
    while older.next().await.is_some() {}
    assert!(port.sessions.connected("u1"));
    assert_eq!(port.metrics.connections(ConnectionEnd::Superseded), 1);
}

#[tokio::test]
async fn a_stream_waits_for_a_pod_that_the_watch_has_not_told_of_yet() {
    let port = Port::open().await;
    let known = port.view.pods.lock().remove("u1").unwrap();
    let mut client = port.bound().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!port.sessions.connected("u1"));
    port.view.pods.lock().insert("u1".to_owned(), known);
    port.view.changed();
    client.indexed().await;
}

#[tokio::test]
async fn renewals_end_with_the_pod() {
    let port = Port::open().await;
    let mut client = port.bound().await;
    client.indexed().await;
    port.view.pods.lock().clear();
    let csr = KeyPair::generate().unwrap().csr().unwrap();
    client.send(Request::Renew(v1::Renew { csr: csr.into() })).await;
    let refused = client
        .until(|kind| match kind {
            Kind::Refused(it) => Some(it.reason.clone()),
            _ => None,
        })
        .await;
    assert_eq!(refused, "PodMismatch");
}

#[tokio::test]
async fn shutdown_ends_streams_at_once() {
    let port = Port::open().await;
    let mut client = port.bound().await;
    client.indexed().await;
    port.shutdown.cancel();
    while client.next().await.is_some() {}
    port.until(|port| !port.sessions.connected("u1")).await;
}

#[tokio::test]
async fn a_pod_that_connects_without_end_is_not_shaken_hands_with() {
    let port = Port::open().await;
    for _ in 0..40 {
        drop(TcpStream::connect(port.address).await.unwrap());
    }
    port.until(|port| port.metrics.connections(ConnectionEnd::Limit) >= 20).await;
    assert!(port.dial(Some(&svid(&port.authority, API_ID)), &[ALPN]).await.is_err());
}
