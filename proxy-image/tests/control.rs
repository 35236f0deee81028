//! The client of the operator against an operator made here: real TLS, real messages, paused for nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod operator_side;

use cinch_control::v1;
use cinch_control::v1::operator_message::Kind as Say;
use cinch_control::v1::proxy_message::Kind as Heard;
use cinch_identity::{SpiffeId, VerifiedCsr};
use cinch_policy::Mode;
use cinch_proxy::context::{Destination, Discovery, InboundPolicy};
use cinch_proxy::control::Control;
use cinch_proxy::control::trust::Trust;
use cinch_proxy::credentials::CredentialStore;
use cinch_proxy::discovery::{RecordCache, ip_bytes};
use cinch_proxy::evidence::Evidence;
use cinch_proxy::health::Readiness;
use cinch_proxy::limits::Limits;
use cinch_proxy::metrics::ControlMetrics;
use cinch_proxy::settings::PodSettings;
use cinch_reason::Reason;
use operator_side::{OPERATOR, OWN, Operator, WAIT};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const KEYS: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

struct Client {
    control: Arc<Control>,
    /// Says that live connections were judged, for tests that hold the data path back.
    judged: watch::Sender<u64>,
    _token: tempfile::NamedTempFile,
    _trust: watch::Sender<Option<Arc<Trust>>>,
    task: tokio::task::JoinHandle<()>,
}

/// A client whose data path judges at once.
fn start(operator: &Operator) -> Client {
    let client = start_held(operator);
    let (judged, mut policy) = (client.judged.clone(), client.control.policy.subscribe());
    tokio::spawn(async move {
        while policy.changed().await.is_ok() {
            let version = policy.borrow_and_update().as_ref().map_or(0, |policy| policy.version);
            judged.send_replace(version);
        }
    });
    client
}

/// A client whose data path judges when the test says so.
fn start_held(operator: &Operator) -> Client {
    cinch_proxy::process::start_logging();
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "the token\n").unwrap();
    let variable = |name: &str| {
        let value = match name {
            "CINCH_POD_IPS" => "10.0.0.5",
            "CINCH_POD_NAMESPACE" => "shop",
            "CINCH_SERVICE_ACCOUNT" => "web",
            "CINCH_TRUST_DOMAIN" => "cluster.local",
            "CINCH_OPERATOR_ID" => OPERATOR,
            "CINCH_POD_UID" | "CINCH_POD_NAME" => "web-1",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let mut settings = PodSettings::read(variable).unwrap();
    settings.token_file = token.path().to_owned();
    let metrics = ControlMetrics::default();
    let evidence = Arc::new(Evidence::new(8));
    let credentials = CredentialStore::default();
    let policy = watch::Sender::new(None::<Arc<InboundPolicy>>);
    let readiness = Readiness::in_pod(evidence.clone(), credentials.subscribe(), policy.subscribe());
    let judged = watch::Sender::new(0);
    let control = Arc::new(Control {
        settings,
        credentials,
        policy,
        judged: judged.subscribe(),
        records: Arc::new(RecordCache::new(&Limits::default(), metrics.discovery.clone())),
        evidence,
        unknown_keys: Arc::default(),
        readiness: Arc::new(readiness),
        interval: watch::Sender::new(Duration::from_secs(10)),
        metrics,
        last_error: Mutex::new(None),
        finish: CancellationToken::new(),
    });
    let trust =
        Trust { bundle: operator.authority.bundle(1), operator: operator.listener.local_addr().unwrap() };
    let (trust, watched) = watch::channel(Some(Arc::new(trust)));
    let client = control.clone();
    let task = tokio::spawn(async move { client.run(watched).await });
    Client { control, judged, _token: token, _trust: trust, task }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < WAIT, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn policy(version: u64, mode: v1::Mode) -> Say {
    Say::Policy(v1::WorkloadPolicy { version, mode: mode as i32, ..Default::default() })
}

fn mesh() -> Say {
    let cidr = v1::Cidr { address: vec![10, 0, 0, 0].into(), prefix_length: 8 };
    Say::Mesh(v1::Mesh { version: 9, cidrs: vec![cidr] })
}

fn record(port: u32) -> Say {
    let address = Some(v1::Address { ip: vec![10, 1, 1, 1].into(), port });
    let endpoint = v1::Endpoint { address: address.clone(), ready: true, ..Default::default() };
    Say::Record(v1::Record {
        address,
        version: 1,
        kind: v1::record::Kind::Endpoints as i32,
        endpoints: vec![endpoint],
        affinity_seconds: 0,
    })
}

#[tokio::test]
async fn a_pod_gets_its_certificate_policy_and_records_and_reports_to_the_end() {
    let operator = Operator::new(OPERATOR).await;
    let client = start(&operator);
    assert_eq!(operator.issue(3_600_000).await, "the token");
    let mut peer = operator.stream().await;
    let hello = peer.welcome().await;
    assert_eq!((hello.pod_ips, hello.trust_bundle_version), (vec![ip_bytes("10.0.0.5".parse().unwrap())], 3));

    peer.say(policy(7, v1::Mode::Strict)).await;
    let Heard::Ack(ack) = peer.heard_but_reports().await else { panic!("no ack") };
    assert_eq!((ack.policy_version, ack.nack.as_str()), (7, ""));
    assert_eq!(client.control.policy.borrow().as_ref().unwrap().modes.mode(80), Mode::Strict);
    peer.say(mesh()).await;
    let Heard::Ack(ack) = peer.heard_but_reports().await else { panic!("no ack") };
    assert_eq!((ack.policy_version, ack.trust_bundle_version, ack.mesh_version), (7, 3, 9));
    assert!(client.control.readiness.missing().contains(&Reason::NotIndexed));
    peer.say(Say::Indexed(v1::IndexedIp { pod_ips: vec![vec![10, 0, 0, 5].into()] })).await;

    let asked = {
        let records = client.control.records.clone();
        tokio::spawn(async move { records.resolve("10.1.1.1:80".parse().unwrap()).await })
    };
    let Heard::Subscribe(subscribe) = peer.heard_but_reports().await else { panic!("no subscription") };
    assert_eq!(subscribe.addresses, [v1::Address { ip: vec![10, 1, 1, 1].into(), port: 80 }]);
    peer.say(record(80)).await;
    assert!(matches!(asked.await.unwrap(), Destination::Endpoints(_)));
    assert_eq!(client.control.readiness.missing(), [Reason::RedirectMissing]);

    client.control.finish.cancel();
    let mut last = v1::Evidence::default();
    while !last.r#final {
        if let Some(Heard::Evidence(report)) = peer.heard().await {
            assert!(report.sequence > last.sequence, "reports are in order");
            last = report;
        }
    }
    assert_eq!(last.policy_version, 7);
    peer.say(Say::EvidenceAck(v1::EvidenceAck { boot_id: last.boot_id, sequence: last.sequence })).await;
    timeout(WAIT, client.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_policy_is_acknowledged_only_after_live_connections_were_judged_by_it() {
    let operator = Operator::new(OPERATOR).await;
    let client = start_held(&operator);
    operator.issue(3_600_000).await;
    let mut peer = operator.stream().await;
    peer.welcome().await;
    let broken = v1::Policy { name: "shop/p".into(), action: "DENY".into(), ..Default::default() };
    let sent = v1::WorkloadPolicy { version: 8, policies: vec![broken], ..Default::default() };
    peer.say(policy(7, v1::Mode::Strict)).await;
    peer.say(Say::Policy(sent)).await;
    eventually("the policy is taken", || {
        client.control.policy.borrow().as_ref().is_some_and(|policy| policy.version == 8)
    })
    .await;
    // Other things are acknowledged meanwhile, and reports go out: neither speaks of the policy.
    peer.say(mesh()).await;
    let Heard::Ack(ack) = peer.heard_but_reports().await else { panic!("no ack") };
    assert_eq!((ack.policy_version, ack.mesh_version, ack.nack.as_str()), (0, 9, ""));
    client.judged.send_replace(7);
    client.judged.send_replace(8);
    let Heard::Ack(ack) = peer.heard_but_reports().await else { panic!("no ack") };
    assert_eq!((ack.policy_version, ack.mesh_version), (8, 9));
    assert!(ack.nack.contains("shop/p: "), "{}", ack.nack);
    // A certificate's acknowledgement repeats both.
    peer.say(mesh()).await;
    let Heard::Ack(again) = peer.heard_but_reports().await else { panic!("no ack") };
    assert_eq!((again.policy_version, again.nack), (8, ack.nack));
}

#[tokio::test]
async fn a_key_that_is_not_there_is_asked_for_over_the_stream() {
    let operator = Operator::new(OPERATOR).await;
    let client = start(&operator);
    operator.issue(3_600_000).await;
    let mut peer = operator.stream().await;
    let hello = peer.welcome().await;
    assert!(hello.features.contains(&"http".to_owned()), "{:?}", hello.features);
    client.control.unknown_keys.ask(&"https://issuer.example/keys".into(), "new");
    let Heard::UnknownKey(asked) = peer.heard_but_reports().await else { panic!("not asked") };
    assert_eq!((asked.source.as_str(), asked.kid.as_str()), ("https://issuer.example/keys", "new"));
}

#[tokio::test]
async fn an_operator_that_comes_back_is_asked_for_everything_again() {
    let operator = Operator::new(OPERATOR).await;
    let client = start(&operator);
    operator.issue(3_600_000).await;
    let mut peer = operator.stream().await;
    peer.welcome().await;
    peer.say(policy(7, v1::Mode::Strict)).await;
    peer.say(mesh()).await;
    let records = client.control.records.clone();
    let asked = tokio::spawn(async move { records.resolve("10.1.1.1:80".parse().unwrap()).await });
    while !matches!(peer.heard_but_reports().await, Heard::Subscribe(_)) {}
    peer.say(record(80)).await;
    asked.await.unwrap();
    drop(peer);

    eventually("the loss is noticed", || client.control.metrics.connected.get() == 0).await;
    let cached = client.control.records.resolve("10.1.1.1:80".parse().unwrap()).await;
    assert!(matches!(cached, Destination::Endpoints(_)));
    assert!(client.control.policy.borrow().is_some());
    let mut peer = operator.stream().await;
    assert_eq!(peer.welcome().await.policy_version, 7);
    let Heard::Subscribe(subscribe) = peer.heard_but_reports().await else { panic!("no subscription") };
    assert_eq!(subscribe.addresses.len(), 1);
    assert_eq!(client.control.metrics.streams.get(), 2);
}

#[tokio::test]
async fn a_certificate_is_renewed_over_the_stream_with_a_fresh_key() {
    let operator = Operator::new(OPERATOR).await;
    let client = start(&operator);
    operator.issue(50).await;
    let mut peer = operator.stream().await;
    peer.welcome().await;
    let first = client.control.credentials.current().unwrap();
    let Heard::Renew(renew) = peer.heard_but_reports().await else { panic!("no renewal") };
    assert_ne!(VerifiedCsr::verify(&renew.csr).unwrap().public_key(), first.svid.chain()[0].as_ref());
    peer.say(Say::Certificate(operator.authority.certificate(OWN, &renew.csr, 3_600_000))).await;
    let Heard::Ack(ack) = peer.heard_but_reports().await else { panic!("no ack") };
    assert_eq!(ack.trust_bundle_version, 3);
    let second = client.control.credentials.current().unwrap();
    assert_eq!((first.generation, second.generation), (1, 2));
    assert_ne!(first.svid.chain(), second.svid.chain());
}

/// Names the keys of one issuer, and brings this document for them.
fn tokens(version: u64, document: &str) -> Say {
    let jwks = v1::Jwks { source: "https://a.example".into(), document: document.to_owned().into() };
    let body = r#"{"jwtRules":[{"issuer":"https://a.example"}]}"#.into();
    let (name, kind, required_features) =
        ("shop/a".into(), "RequestAuthentication".into(), vec!["http".into()]);
    let policy = v1::Policy { name, kind, body, required_features, jwks: vec![jwks], ..Default::default() };
    Say::Policy(v1::WorkloadPolicy { version, policies: vec![policy], ..Default::default() })
}

#[tokio::test]
async fn keys_that_come_with_no_policy_any_more_are_kept_for_a_day_and_told() {
    let operator = Operator::new(OPERATOR).await;
    let client = start(&operator);
    operator.issue(3_600_000).await;
    let mut peer = operator.stream().await;
    peer.welcome().await;
    for (version, document) in [(1, KEYS), (2, "{}"), (3, "{}"), (4, KEYS)] {
        peer.say(tokens(version, document)).await;
        let Heard::Ack(ack) = peer.heard_but_reports().await else { panic!("no ack") };
        let policy = client.control.policy.borrow().clone().unwrap();
        let kept: Vec<_> = policy.missing_keys().iter().map(|keys| keys.until - keys.since).collect();
        let told = client.control.metrics.keys_missing_since.lock().is_some();
        let day = Duration::from_secs(24 * 3600);
        let expected = if document == KEYS { (vec![], false) } else { (vec![day], true) };
        assert_eq!((ack.policy_version, (kept, told)), (version, expected));
    }
}

#[tokio::test]
async fn a_refusal_is_told_and_its_pause_kept() {
    let operator = Operator::new(OPERATOR).await;
    let client = start(&operator);
    let mut peer = operator.accept().await;
    let _ = peer.heard().await;
    let message = "the pod is not enrolled".to_owned();
    peer.say(Say::Refused(v1::Refused { reason: "PodNotMeshed".into(), message, retry_after_ms: 700 })).await;
    let refused = Instant::now();
    let _again = operator.accept().await;
    assert!(refused.elapsed() >= Duration::from_millis(650), "{:?}", refused.elapsed());
    let told = client.control.last_error.lock().clone().unwrap();
    assert!(told.starts_with("PodNotMeshed: ") && told.contains("the pod is not enrolled"), "{told}");
}

#[tokio::test]
async fn somebody_else_at_the_operators_address_gets_no_token() {
    let operator = Operator::new("spiffe://cluster.local/ns/shop/sa/mallory").await;
    let client = start(&operator);
    let (tcp, _) = operator.listener.accept().await.unwrap();
    assert!(operator.acceptor.accept(tcp).await.is_err(), "the proxy refuses the handshake");
    eventually("the error is told", || client.control.last_error.lock().is_some()).await;
    let told = client.control.last_error.lock().clone().unwrap();
    assert!(told.starts_with("PeerIdentityMismatch: "), "{told}");
}

#[tokio::test]
async fn a_certificate_for_another_workload_is_not_taken() {
    let operator = Operator::new(OPERATOR).await;
    let client = start(&operator);
    let mut peer = operator.accept().await;
    let Some(Heard::FirstCertificate(first)) = peer.heard().await else { panic!("no request") };
    let foreign = "spiffe://cluster.local/ns/shop/sa/other";
    peer.say(Say::Certificate(operator.authority.certificate(foreign, &first.csr, 1000))).await;
    eventually("the error is told", || client.control.last_error.lock().is_some()).await;
    assert!(client.control.credentials.current().is_none());
    assert!(client.control.last_error.lock().as_ref().unwrap().starts_with("CertificateIdentity: "));
}

#[tokio::test]
async fn an_absent_operator_is_named_and_never_hammered() {
    let operator = Operator::new(OPERATOR).await;
    let address = operator.listener.local_addr().unwrap();
    let client = {
        let client = start(&operator);
        drop(operator);
        client
    };
    eventually("the error is told", || client.control.last_error.lock().is_some()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let told = client.control.last_error.lock().clone().unwrap();
    assert!(told.starts_with("ControlUnreachable: "), "{told}");
    assert!(told.contains(&address.to_string()), "{told}");
    assert!(client.control.metrics.failures.get() < 20, "{}", client.control.metrics.failures.get());
    client.control.finish.cancel();
    timeout(WAIT, client.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn garbage_from_the_operator_ends_the_stream_and_nothing_else() {
    let operator = Operator::new(OPERATOR).await;
    let client = start(&operator);
    operator.issue(3_600_000).await;
    let mut peer = operator.stream().await;
    peer.welcome().await;
    peer.stream.write_all(&[0xff; 64]).await.unwrap();
    let mut again = operator.stream().await;
    again.welcome().await;
    assert!(SpiffeId::parse(OWN).is_ok_and(|own| client.control.settings.identity == own));
}
