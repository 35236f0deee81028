//! The review server over loopback, and a TLS client of it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use bytes::Bytes;
use cinch_injection::AccountState;
use cinch_webhook::certificate::Serving;
use cinch_webhook::facts::{Account, Caches, Event, Key, NamespaceFacts};
use cinch_webhook::metrics::Metrics;
use cinch_webhook::server::serve;
use cinch_webhook::settings::Settings;
use cinch_webhook::state::State;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

pub const NAME: &str = "cinch-webhook.cinch-system.svc";
const SETTINGS: &str =
    "{trustDomain: cluster.local, namespace: cinch-system, images: {proxy: r/cinch-proxy:1}}";

pub struct Server {
    pub state: Arc<State>,
    pub address: SocketAddr,
    pub tls: Arc<ClientConfig>,
    pub stop: CancellationToken,
    pub task: tokio::task::JoinHandle<()>,
}

pub fn certificate() -> (Secret, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let data = [
        ("tls.crt", made.cert.pem().into_bytes()),
        ("tls.key", made.signing_key.serialize_pem().into_bytes()),
        ("probe.key", vec![7; 32]),
    ];
    let data = data.into_iter().map(|(key, bytes)| (key.to_owned(), ByteString(bytes))).collect();
    (Secret { data: Some(data), ..Secret::default() }, made.cert.der().clone())
}

pub fn client(root: CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(root).unwrap();
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

impl Server {
    pub async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let caches = Arc::new(Caches::default());
        let settings = Settings::parse(SETTINGS).unwrap();
        let metrics = Arc::new(Metrics::default());
        let state = Arc::new(State::new(caches, settings.sidecar(), settings.mesh(), metrics));
        let (secret, root) = certificate();
        state.serve_with(Serving::from_secret(&secret).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, Arc::clone(&state), stop.clone()));
        let server = Self { state, address, tls: client(root), stop, task };
        let caches = &server.state.caches;
        caches
            .namespaces
            .apply(Event::Upsert(Key::new("", "shop"), Some(Arc::new(NamespaceFacts::default()))));
        caches.trust.apply(Event::Upsert(Key::new("shop", "cinch-trust"), Some(())));
        server
    }

    pub fn account_appears(&self) {
        let ours = Account { state: AccountState::Ours("StatefulSet/db".into()), cloud_identity: None };
        self.state.caches.accounts.apply(Event::Upsert(Key::new("shop", "db-statefulset"), Some(ours)));
    }

    pub async fn connect(&self) -> SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    pub async fn post(&self, body: impl Into<Bytes>) -> (u16, String) {
        self.post_to("/mutate?timeout=3s", body).await
    }

    pub async fn post_to(&self, path: &str, body: impl Into<Bytes>) -> (u16, String) {
        let response = send_to(&mut self.connect().await, path, body).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    pub async fn review(&self, review: &Value) -> Value {
        let (status, body) = self.post(review.to_string()).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).unwrap()["response"].clone()
    }
}

pub async fn send(
    sender: &mut SendRequest<Full<Bytes>>,
    body: impl Into<Bytes>,
) -> Response<hyper::body::Incoming> {
    send_to(sender, "/mutate?timeout=3s", body).await
}

async fn send_to(
    sender: &mut SendRequest<Full<Bytes>>,
    path: &str,
    body: impl Into<Bytes>,
) -> Response<hyper::body::Incoming> {
    let request = Request::post(path).header("host", NAME).body(Full::new(body.into())).unwrap();
    sender.send_request(request).await.unwrap()
}
