//! Real servers on loopback, with certificates of a CA of their own: what is fetched, and what is not.

use super::fault::Fault;
use super::fetch::{Fetcher, LARGEST, Resolve};
use super::obtain::{KeySet, Origin, obtain};
use super::trust::Trust;
use super::url::Plain;
use super::{KeySets, KeyState, wanted};
use crate::index::{Asker, JwksSource, PolicyKind, sample};
use crate::metrics::Metrics;
use crate::settings::JwksSettings;
use cinch_reason::Reason;
use ipnet::IpNet;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const HOST: &str = "issuer.example";
const PATIENT: Duration = Duration::from_secs(60);

/// A key set as issuers publish it (the Ed25519 key of RFC 8037, appendix A).
fn jwks(kid: &str) -> String {
    format!(
        r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"{kid}","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}}]}}"#
    )
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn moved(location: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

/// What the server answers to a path; `None`: nothing at all.
type Answer = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

fn answers(answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Answer {
    Arc::new(answer)
}

/// An issuer: its server, and the CA that its certificate is of.
struct Issuer {
    port: u16,
    ca_file: PathBuf,
    asked: Arc<AtomicUsize>,
    _folder: tempfile::TempDir,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Tls,
    PlainText,
}

async fn issuer(speaks: Speaks, answer: Answer) -> Issuer {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    let (acceptor, ca) = acceptor();
    std::fs::write(&ca_file, ca).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer, count) = (acceptor.clone(), Arc::clone(&answer), Arc::clone(&count));
            tokio::spawn(async move {
                match speaks {
                    Speaks::Tls => {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            serve(stream, &answer, &count).await;
                        }
                    }
                    Speaks::PlainText => serve(stream, &answer, &count).await,
                }
            });
        }
    });
    Issuer { port, ca_file, asked, _folder: folder }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &Answer, count: &AtomicUsize) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    count.fetch_add(1, Ordering::SeqCst);
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap();
    match answer(path) {
        Some(text) => {
            let _ = stream.write_all(text.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
        None => std::future::pending().await,
    }
}

fn acceptor() -> (TlsAcceptor, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![HOST.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), ca.pem())
}

/// Names resolve to `addresses`, each with the port that was asked for.
fn resolve_to(addresses: &'static [&'static str]) -> Resolve {
    Arc::new(move |_, port| {
        let found = addresses.iter().map(|ip| SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port)).collect();
        Box::pin(async move { Ok(found) })
    })
}

impl Issuer {
    /// Trusts the CA and may dial loopback, where the name leads.
    fn fetcher(&self) -> Fetcher {
        Fetcher {
            trust: Trust::new(Some(self.ca_file.clone())),
            allowed: vec!["127.0.0.0/8".parse().unwrap()],
            plain: Plain::Refused,
            resolve: resolve_to(&["127.0.0.1"]),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{HOST}:{}{path}", self.port)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn get(&self, fetcher: &Fetcher, path: &str) -> Result<KeySet, Fault> {
        obtain(fetcher, &Origin::Uri(self.url(path)), &[], PATIENT).await
    }
}

async fn of_answer(text: String) -> Result<KeySet, Fault> {
    let issuer = issuer(Speaks::Tls, answers(move |_| Some(text.clone()))).await;
    issuer.get(&issuer.fetcher(), "/keys").await
}

#[tokio::test]
async fn a_key_set_is_fetched_over_https_with_the_installations_own_ca() {
    let text = ok(&jwks("one")).replace("connection", "cache-control: max-age=300\r\nconnection");
    let keys = of_answer(text).await.unwrap();
    assert_eq!(keys.ids, BTreeSet::from(["one".to_owned()]));
    assert_eq!((&*keys.document, keys.max_age), (jwks("one").as_bytes(), Some(Duration::from_secs(300))));
}

#[tokio::test]
async fn without_that_ca_or_under_another_name_tls_fails() {
    let issuer = issuer(Speaks::Tls, answers(|_| Some(ok(&jwks("one"))))).await;
    let unknown = Fetcher { trust: Trust::new(None), ..issuer.fetcher() };
    assert!(matches!(issuer.get(&unknown, "/").await, Err(Fault::Tls { .. })));
    let other = Origin::Uri(format!("https://other.example:{}/", issuer.port));
    assert!(matches!(obtain(&issuer.fetcher(), &other, &[], PATIENT).await, Err(Fault::Tls { .. })));
    let plain = Fetcher { plain: Plain::Allowed, ..issuer.fetcher() };
    let in_clear = Origin::Uri(format!("http://{HOST}:{}/", issuer.port));
    assert!(obtain(&plain, &in_clear, &[], PATIENT).await.is_err(), "a TLS port does not answer plain HTTP");
    assert_eq!(issuer.asked(), 0, "nobody was asked for a document");
}

#[tokio::test]
async fn plain_http_only_where_it_is_allowed() {
    let issuer = issuer(Speaks::PlainText, answers(|_| Some(ok(&jwks("one"))))).await;
    let origin = Origin::Uri(format!("http://{HOST}:{}/keys", issuer.port));
    let refused = obtain(&issuer.fetcher(), &origin, &[], PATIENT).await;
    assert!(matches!(refused, Err(Fault::Url { .. })), "{refused:?}");
    assert_eq!(issuer.asked(), 0);
    let fetcher = Fetcher { plain: Plain::Allowed, ..issuer.fetcher() };
    assert!(obtain(&fetcher, &origin, &[], PATIENT).await.is_ok());
}

#[tokio::test]
async fn no_connection_is_made_to_an_address_that_is_refused() {
    let issuer = issuer(Speaks::Tls, answers(|_| Some(ok(&jwks("one"))))).await;
    let closed = Fetcher { allowed: Vec::new(), ..issuer.fetcher() };
    let fault = issuer.get(&closed, "/").await.unwrap_err();
    assert_eq!(fault.reason(), Reason::KeySourceRefused);
    assert!(fault.to_string().contains("127.0.0.1") && fault.to_string().contains("loopback"), "{fault}");
    // As a literal, in the spellings that resolvers and parsers take for it.
    for host in ["127.0.0.1", "[::ffff:127.0.0.1]", "[::1]"] {
        let origin = Origin::Uri(format!("https://{host}:{}/", issuer.port));
        let fault = obtain(&closed, &origin, &[], PATIENT).await.unwrap_err();
        assert_eq!(fault.reason(), Reason::KeySourceRefused, "{host}");
    }
    // The cluster's own ranges, whatever they are.
    let cluster: [IpNet; 1] = ["127.0.0.0/8".parse().unwrap()];
    let origin = Origin::Uri(issuer.url("/"));
    let fault = obtain(&closed, &origin, &cluster, PATIENT).await.unwrap_err();
    assert!(fault.to_string().contains("of the cluster"), "{fault}");
    assert_eq!(issuer.asked(), 0);
}

#[tokio::test]
async fn a_name_with_a_good_and_a_refused_address_is_dialled_at_the_good_one_only() {
    let issuer = issuer(Speaks::Tls, answers(|_| Some(ok(&jwks("one"))))).await;
    let fetcher = Fetcher {
        allowed: vec!["127.0.0.1/32".parse().unwrap()],
        resolve: resolve_to(&["127.0.0.2", "10.0.0.1", "127.0.0.1"]),
        ..issuer.fetcher()
    };
    assert!(issuer.get(&fetcher, "/").await.is_ok());
}

#[tokio::test]
async fn a_name_that_answers_otherwise_the_second_time_is_judged_anew_where_it_is_dialled() {
    let issuer = issuer(
        Speaks::Tls,
        answers(|path| Some(if path == "/keys" { moved("/moved") } else { ok(&jwks("one")) })),
    )
    .await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let resolve: Resolve = Arc::new(move |_, port| {
        let second = counted.fetch_add(1, Ordering::SeqCst) > 0;
        let ip = if second { [127, 0, 0, 2] } else { [127, 0, 0, 1] };
        Box::pin(async move { Ok(vec![SocketAddr::from((ip, port))]) })
    });
    let allowed = vec!["127.0.0.1/32".parse().unwrap()];
    let fetcher = Fetcher { allowed, resolve, ..issuer.fetcher() };
    let fault = issuer.get(&fetcher, "/keys").await.unwrap_err();
    assert_eq!(fault.reason(), Reason::KeySourceRefused);
    assert_eq!(calls.load(Ordering::SeqCst), 2, "resolved once for each connection, and never in between");
    assert_eq!(issuer.asked(), 1);
}

#[tokio::test]
async fn redirects_are_followed_a_few_times_and_only_to_where_keys_may_be_fetched() {
    let issuer = issuer(
        Speaks::Tls,
        answers(|path| {
            Some(match path {
                "/once" => moved("/keys"),
                "/loop" => moved("/loop"),
                "/inside" => moved("https://10.0.0.1/keys"),
                "/metadata" => moved("https://169.254.169.254/latest"),
                "/clear" => moved(&format!("http://{HOST}/keys")),
                "/nowhere" => "HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
                _ => ok(&jwks("one")),
            })
        }),
    )
    .await;
    let fetcher = Fetcher { plain: Plain::Allowed, ..issuer.fetcher() };
    assert!(issuer.get(&fetcher, "/once").await.is_ok());
    let before = issuer.asked();
    assert!(matches!(issuer.get(&fetcher, "/loop").await, Err(Fault::Redirects(_))));
    assert_eq!(issuer.asked() - before, 4);
    for path in ["/inside", "/metadata"] {
        let fault = issuer.get(&fetcher, path).await.unwrap_err();
        assert_eq!(fault.reason(), Reason::KeySourceRefused, "{path}");
    }
    assert!(matches!(issuer.get(&fetcher, "/clear").await, Err(Fault::Url { .. })));
    assert!(matches!(issuer.get(&fetcher, "/nowhere").await, Err(Fault::Http(_))));
}

#[tokio::test]
async fn what_is_no_key_set_is_refused_and_never_quoted() {
    let secret = "s3cr3t-of-an-internal-server";
    for (name, text) in [
        ("no JSON", ok(secret)),
        ("another shape", ok(&format!(r#"{{"keys":"{secret}"}}"#))),
        ("no keys", ok(r#"{"keys":[]}"#)),
        ("no usable key", ok(r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#)),
        ("an error", ok(secret).replace("200 OK", "500 Oops")),
        ("no HTTP", secret.to_owned()),
        ("broken off", ok(&jwks("one")).replace("\"}]}", "")),
        ("compressed", ok(&jwks("one")).replace("connection", "content-encoding: gzip\r\nconnection")),
    ] {
        let fault = of_answer(text).await.unwrap_err();
        assert_eq!(fault.reason(), Reason::KeysUnavailable, "{name}: {fault}");
        assert!(!fault.to_string().contains("s3cr3t"), "{name}: {fault}");
    }
}

#[tokio::test]
async fn more_than_the_bound_is_not_read_whether_its_length_is_told_or_not() {
    let large = " ".repeat(LARGEST) + &jwks("one");
    let told = ok(&large);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    for text in [told, chunked] {
        assert!(matches!(of_answer(text).await, Err(Fault::TooLarge { .. })));
    }
    let head = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(1_000_000));
    let result = of_answer(head).await;
    assert!(matches!(result, Err(Fault::Http(_))), "{result:?}");
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    let issuer = issuer(Speaks::Tls, answers(|_| None)).await;
    let origin = Origin::Uri(issuer.url("/"));
    let result = obtain(&issuer.fetcher(), &origin, &[], Duration::from_millis(300)).await;
    assert!(matches!(result, Err(Fault::Slow { milliseconds: 300, .. })), "{result:?}");
}

#[tokio::test]
async fn discovery_leads_to_the_keys_of_exactly_this_issuer() {
    let said = Arc::new(parking_lot::Mutex::new(String::new()));
    let document = Arc::clone(&said);
    let issuer = issuer(
        Speaks::Tls,
        answers(move |path| {
            Some(match path {
                "/realm/.well-known/openid-configuration" => ok(&document.lock()),
                "/realm/keys" => ok(&jwks("one")),
                _ => ok("").replace("200 OK", "404 Not Found"),
            })
        }),
    )
    .await;
    let (own, keys) = (issuer.url("/realm"), issuer.url("/realm/keys"));
    let discovery = |issuer: &str, uri: &str| format!(r#"{{"issuer":"{issuer}","jwks_uri":"{uri}","x":1}}"#);
    let slash = format!("{own}/");
    let cases = [
        ("itself", own.clone(), discovery(&own, &keys), None),
        ("with a slash at the end", slash.clone(), discovery(&slash, &keys), None),
        ("one that differs by a slash", own.clone(), discovery(&slash, &keys), Some("is that of the issuer")),
        ("somebody else", own.clone(), discovery("https://evil.example", &keys), Some("evil.example")),
        ("no document", own.clone(), "[]".to_owned(), Some("no OpenID discovery document")),
        ("keys inside", own.clone(), discovery(&own, "https://10.0.0.1/k"), Some("private")),
        ("keys in plain text", own.clone(), discovery(&own, "http://a.example/k"), Some("not https")),
        ("no such realm", issuer.url("/other"), String::new(), Some("status 404")),
        ("no URL", "accounts@example".to_owned(), String::new(), Some("the issuer is no URL")),
    ];
    for (name, origin, text, fault) in cases {
        *said.lock() = text;
        let result = obtain(&issuer.fetcher(), &Origin::Issuer(origin), &[], PATIENT).await;
        match fault {
            None => assert!(result.is_ok(), "{name}: {result:?}"),
            Some(word) => {
                let fault = result.unwrap_err().to_string();
                assert!(fault.contains(word), "{name}: {fault}");
            }
        }
    }
}

#[tokio::test]
async fn the_file_with_certificates_may_change_while_we_run() {
    let issuer = issuer(Speaks::Tls, answers(|_| Some(ok(&jwks("one"))))).await;
    let good = std::fs::read(&issuer.ca_file).unwrap();
    let fetcher = issuer.fetcher();
    for (name, content) in [("empty", &b""[..]), ("no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n")] {
        std::fs::write(&issuer.ca_file, content).unwrap();
        assert!(matches!(issuer.get(&fetcher, "/").await, Err(Fault::Trust(_))), "{name}");
    }
    std::fs::write(&issuer.ca_file, good).unwrap();
    assert!(issuer.get(&fetcher, "/").await.is_ok());
    std::fs::remove_file(&issuer.ca_file).unwrap();
    assert!(matches!(issuer.get(&fetcher, "/").await, Err(Fault::Trust(_))));
}

#[tokio::test]
async fn keys_travel_with_the_policy_that_names_their_source_and_the_last_good_ones_stay() {
    let good = Arc::new(AtomicUsize::new(1));
    let answers_well = Arc::clone(&good);
    let issuer = issuer(
        Speaks::Tls,
        answers(move |_| {
            Some(match answers_well.load(Ordering::SeqCst) {
                1 => ok(&jwks("one")),
                _ => ok("").replace("200 OK", "503 Oops"),
            })
        }),
    )
    .await;
    let index = sample::shop();
    let second = Duration::from_secs(1);
    let settings = Arc::new(JwksSettings {
        refresh_interval: second,
        retry_interval: second,
        ..JwksSettings::default()
    });
    let sets = KeySets::new(&settings, &Metrics::new());
    let mut ended = sets.changes();
    tokio::spawn(sets.clone().run_with(issuer.fetcher(), index.clone(), Arc::clone(&settings)));
    let rule = serde_json::json!({"issuer": "https://a.example", "jwksUri": issuer.url("/keys")});
    let spec = serde_json::json!({"jwtRules": [rule]});
    sample::apply(&index, PolicyKind::RequestAuthentication, "tokens", 1, spec);
    let sent = || {
        let policy = index.workload_policy("web-uid").unwrap();
        policy.policies[0].jwks.iter().map(|jwks| jwks.document.to_vec()).collect::<Vec<_>>()
    };
    assert!(sent().is_empty(), "no keys before a fetch");
    ended.changed().await.unwrap();
    assert_eq!(sent(), [jwks("one").into_bytes()]);
    assert_eq!(sets.state(&issuer.url("/keys")), Some(KeyState::Held));
    sets.settled(&index).await;

    good.store(0, Ordering::SeqCst);
    while sets.state(&issuer.url("/keys")) == Some(KeyState::Held) {
        ended.changed().await.unwrap();
    }
    let state = sets.state(&issuer.url("/keys"));
    assert!(matches!(state, Some(KeyState::Failed { keeps_old: true, .. })), "{state:?}");
    assert_eq!(sent(), [jwks("one").into_bytes()], "an issuer that fails refuses nobody");

    sample::apply(&index, PolicyKind::RequestAuthentication, "tokens", 2, serde_json::json!({}));
    while sets.state(&issuer.url("/keys")).is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(index.jwks_sources().is_empty());
}

#[test]
fn policies_that_share_a_source_can_not_harm_each_other() {
    let source = |issuer: &str, uri: Option<&str>, timeout: Option<u64>| JwksSource {
        issuer: issuer.to_owned(),
        uri: uri.map(str::to_owned),
        timeout: timeout.map(Duration::from_millis),
    };
    let default = Duration::from_secs(5);
    let asker = |namespace: &str| BTreeSet::from([Asker::Namespace(namespace.into())]);
    let sources = BTreeMap::from([
        (source("https://good", None, None), asker("a")),
        (source("", Some("https://good"), Some(1)), asker("b")),
        (source("https://patient", None, Some(9_000_000)), asker("a")),
    ]);
    let wanted = wanted(&sources, default);
    assert_eq!(wanted["https://good"].origin, Origin::Issuer("https://good".to_owned()));
    assert_eq!(wanted["https://good"].timeout, default);
    assert_eq!(wanted["https://good"].askers.len(), 2);
    assert_eq!(wanted["https://patient"].timeout, Duration::from_secs(30));
}

#[test]
fn a_source_that_no_policy_names_has_no_state() {
    let sets = KeySets::new(&JwksSettings::default(), &Metrics::new());
    assert_eq!(sets.state("https://a/keys"), None::<KeyState>);
}
