//! The pieces that the tests put together: an authority, pods with a proxy each, apps, and a discovery that says
//! what it is told.

use cinch_identity::{
    KeyPair, SpiffeId, Svid, TrustBundle, TrustDomain, tunnel_client_config, tunnel_server_config,
};
use cinch_policy::{Mode, PortModes};
use cinch_proxy::accept::OriginalDestination;
use cinch_proxy::access_log::{AccessLog, AccessLogSettings};
use cinch_proxy::context::{
    Context, Credentials, Destination, Discovery, Endpoint, InboundPolicy, VirtualPorts,
};
use cinch_proxy::evidence::Evidence;
use cinch_proxy::http_filter::Shared;
use cinch_proxy::kept::Kept;
use cinch_proxy::limits::Limits;
use cinch_proxy::live::Live;
use cinch_proxy::path_metrics::PathMetrics;
use cinch_proxy::proofs::Proofs;
use cinch_proxy::{inbound, outbound};
use futures::future::BoxFuture;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls_pki_types::UnixTime;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub const API: &str = "spiffe://cluster.local/ns/shop/sa/api";
pub const WEB_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
pub const API_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 1);
/// How long something may take that is to come: only on a machine that stands still it does not.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// What web's apps dial; nothing listens there.
pub const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 80);

pub fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

/// Of the client side of tunnels to api.
pub fn to_api(credentials: &Credentials) -> Arc<rustls::ClientConfig> {
    let Credentials { svid, bundle, records, .. } = credentials;
    tunnel_client_config(svid, bundle, id(API), cinch_tunnel::ALPN, *records).unwrap()
}

/// A root that signs leaves.
pub struct Authority(CertifiedIssuer<'static, rcgen::KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = date_time_ymd(2020, 1, 1);
        Self(CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap())
    }

    pub fn bundle(&self) -> TrustBundle {
        let trust_domain = TrustDomain::parse("cluster.local").unwrap();
        TrustBundle::from_roots(trust_domain, vec![self.0.der().clone()]).unwrap()
    }

    /// A certificate that runs out in `lifetime` seconds, or did so that long ago.
    pub fn svid(&self, uri: &str, lifetime: i64) -> Svid {
        let key = rcgen::KeyPair::generate().unwrap();
        let epoch = date_time_ymd(1970, 1, 1);
        let now = UnixTime::now().as_secs();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.not_before = epoch + Duration::from_secs(now - 7200);
        params.not_after = epoch + Duration::from_secs(now.saturating_add_signed(lifetime));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.0).unwrap();
        Svid::new(vec![leaf.into()], KeyPair::from_pem(&key.serialize_pem()).unwrap()).unwrap()
    }

    /// Credentials whose peers must chain to `bundle`.
    pub fn credentials(&self, uri: &str, lifetime: i64, bundle: TrustBundle) -> Credentials {
        let svid = self.svid(uri, lifetime);
        let records = crate::RECORDS;
        let tunnel_server = tunnel_server_config(&svid, &bundle, cinch_tunnel::ALPN, records).unwrap();
        Credentials {
            generation: 1,
            bundle_version: 1,
            svid: Arc::new(svid),
            bundle: Arc::new(bundle),
            tunnel_server,
            records,
        }
    }

    pub fn good(&self, uri: &str) -> Credentials {
        self.credentials(uri, 3600, self.bundle())
    }
}

/// Says what the test has told it.
#[derive(Default)]
pub struct Told {
    destinations: Mutex<HashMap<SocketAddr, Vec<Destination>>>,
    pub forgotten: Mutex<Vec<SocketAddr>>,
    /// Endpoints to which nothing leads any more.
    pub gone: Mutex<Vec<SocketAddr>>,
}

impl Told {
    pub fn say(&self, to: SocketAddr, destination: Destination) {
        self.destinations.lock().unwrap().insert(to, vec![destination]);
    }

    /// What to say after the next [`Discovery::forget`].
    pub fn say_then(&self, to: SocketAddr, destination: Destination) {
        self.destinations.lock().unwrap().entry(to).or_default().insert(0, destination);
    }
}

impl Discovery for Told {
    fn resolve(&self, to: SocketAddr) -> Pin<Box<dyn Future<Output = Destination> + Send + '_>> {
        let found = self.destinations.lock().unwrap().get(&to).and_then(|all| all.last().cloned());
        let unknown = Destination::Refuse(cinch_reason::Reason::DestinationUnknown);
        Box::pin(async move { found.unwrap_or(unknown) })
    }

    fn forget(&self, to: SocketAddr, _endpoint: &Endpoint) {
        self.forgotten.lock().unwrap().push(to);
        if let Some(all) = self.destinations.lock().unwrap().get_mut(&to)
            && all.len() > 1
        {
            all.pop();
        }
    }

    fn leads_to(&self, endpoint: SocketAddr) -> bool {
        !self.gone.lock().unwrap().contains(&endpoint)
    }
}

/// Answers with the port.
struct Probes;

impl VirtualPorts for Probes {
    fn serve(&self, port: u16, mut stream: TcpStream, _peer: SocketAddr) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let _ = stream.write_all(port.to_string().as_bytes()).await;
        })
    }
}

pub fn endpoint(address: SocketAddr, identity: &str) -> Endpoint {
    Endpoint { address, meshed: true, identity: Some(id(identity)), mode: Mode::Permissive, ready: true }
}

pub fn unmeshed(address: SocketAddr) -> Endpoint {
    Endpoint { address, meshed: false, identity: None, mode: Mode::Disable, ready: true }
}

pub fn one_of(endpoints: Vec<Endpoint>) -> Destination {
    Destination::Endpoints(endpoints.into())
}

pub fn policy(mode: Mode) -> InboundPolicy {
    InboundPolicy::of_modes(1, PortModes::uniform(mode, []))
}

/// A pod with its proxy.
pub struct Pod {
    pub ctx: Arc<Context>,
    pub told: Arc<Told>,
    pub credentials: watch::Sender<Option<Arc<Credentials>>>,
    pub policy: watch::Sender<Option<Arc<InboundPolicy>>>,
    /// Where its inbound side listens; connections there are taken as dialled to `app`.
    pub inbound: SocketAddr,
    /// Where its outbound side listens; connections there are taken as dialled to `dialled`.
    pub outbound: SocketAddr,
    pub app: Arc<Mutex<SocketAddr>>,
    pub dialled: Arc<Mutex<SocketAddr>>,
    pub serving: Vec<JoinHandle<()>>,
    /// What the access log says; it tells everything.
    pub log: Log,
}

/// Keeps the lines of an access log.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Drops what was said so far.
    pub fn forget(&self) {
        *self.0.lock().unwrap() = Vec::new();
    }

    fn start(&self) -> AccessLog {
        let settings = AccessLogSettings { sampling: 1.0, ..AccessLogSettings::default() };
        AccessLog::start_to(&settings, self.clone()).unwrap()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    pub fn lines(&self) -> Vec<serde_json::Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn says(address: &Arc<Mutex<SocketAddr>>) -> OriginalDestination {
    let address = address.clone();
    Arc::new(move |_| Ok(*address.lock().unwrap()))
}

pub fn limits() -> Limits {
    // Tunnels and plaintext come from one address here.
    let usual = Limits::default();
    Limits { silence_of_peers: usual.silence, ..usual }
}

/// Where a handshake is not to end: too short for an honest one on a machine that has much to do.
pub fn hasty() -> Limits {
    Limits { handshake_timeout: Duration::from_millis(500), ..limits() }
}

impl Pod {
    pub async fn start(ip: Ipv4Addr, credentials: Credentials, mode: Mode) -> Pod {
        Self::with(ip, credentials, mode, limits()).await
    }

    pub async fn with(ip: Ipv4Addr, credentials: Credentials, mode: Mode, limits: Limits) -> Pod {
        let own = credentials.svid.id().clone();
        let (credentials, credentials_seen) = watch::channel(Some(Arc::new(credentials)));
        let (policy, policy_seen) = watch::channel(Some(Arc::new(policy(mode))));
        let (_, own_addresses) = watch::channel(Arc::from([IpAddr::V4(ip)]));
        let told = Arc::new(Told::default());
        let live = Arc::new(Live::default());
        let log = Log::default();
        let metrics = Arc::new(PathMetrics::with_log(log.start()));
        metrics.telemetry.set_own(own);
        tokio::spawn(live.clone().follow(policy_seen.clone()));
        let proofs = Proofs::new(credentials_seen.clone());
        tokio::spawn(proofs.clone().follow());
        let ctx = Arc::new(Context {
            credentials: credentials_seen,
            proofs,
            policy: policy_seen,
            live,
            discovery: told.clone(),
            evidence: Arc::new(Evidence::within(&limits, metrics.limit_refusals.clone())),
            kept: Kept::new(limits.kept_bytes, &metrics),
            http: Shared::new(&limits, &metrics),
            metrics,
            own_addresses,
            probes: Arc::new(Probes),
            limits,
            drain: CancellationToken::new(),
            end: CancellationToken::new(),
        });
        let app = Arc::new(Mutex::new(SocketAddr::from((ip, 1))));
        let dialled = Arc::new(Mutex::new(SERVICE));
        let inbound_listener = TcpListener::bind((ip, 0)).await.unwrap();
        let outbound_listener = TcpListener::bind((ip, 0)).await.unwrap();
        let inbound = inbound_listener.local_addr().unwrap();
        let outbound = outbound_listener.local_addr().unwrap();
        let serving = vec![
            tokio::spawn(inbound::serve_with(inbound_listener, ctx.clone(), says(&app))),
            tokio::spawn(outbound::serve_with(outbound_listener, ctx.clone(), says(&dialled))),
        ];
        Pod { ctx, told, credentials, policy, inbound, outbound, app, dialled, serving, log }
    }

    pub fn set_app(&self, app: SocketAddr) {
        *self.app.lock().unwrap() = app;
    }

    /// A connection that an app of this pod makes to `to`.
    pub async fn dial(&self, to: SocketAddr) -> TcpStream {
        *self.dialled.lock().unwrap() = to;
        let stream = TcpStream::connect(self.outbound).await.unwrap();
        // The accept loop must have asked for the destination before the next dial.
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stream
    }

    pub fn totals(&self) -> cinch_control::v1::PlaintextCounts {
        self.ctx.evidence.report(1, false).totals.unwrap()
    }

    pub fn metric(&self, line: &str) -> Option<i64> {
        let mut registry = prometheus_client::registry::Registry::default();
        self.ctx.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let found = text.lines().find(|candidate| candidate.starts_with(line))?;
        found.rsplit(' ').next()?.parse().ok()
    }
}

/// Web and api under one authority: web's apps reach api's app through SERVICE.
pub struct Mesh {
    pub authority: Authority,
    pub web: Pod,
    pub api: Pod,
}

impl Mesh {
    pub async fn start(mode: Mode) -> Mesh {
        let authority = Authority::new();
        let web = Pod::start(WEB_IP, authority.good(WEB), Mode::Permissive).await;
        let api = Pod::start(API_IP, authority.good(API), mode).await;
        web.told.say(SERVICE, one_of(vec![endpoint(api.inbound, API)]));
        Mesh { authority, web, api }
    }

    pub async fn with_echo(mode: Mode) -> Mesh {
        let mesh = Mesh::start(mode).await;
        mesh.api.set_app(echo(API_IP).await);
        mesh
    }

    pub async fn dial(&self) -> TcpStream {
        self.web.dial(SERVICE).await
    }
}

/// An app that does `work` with each connection.
pub async fn app<F>(ip: Ipv4Addr, work: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(work(stream));
        }
    });
    address
}

/// An app that sends back what it gets, and ends when its client does.
pub async fn echo(ip: Ipv4Addr) -> SocketAddr {
    app(ip, |mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

/// Says `words` and reads as many bytes back.
pub async fn exchange(stream: &mut TcpStream, words: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(words).await?;
    let mut back = vec![0; words.len()];
    within(stream.read_exact(&mut back)).await?;
    Ok(back)
}

/// Fails the test when `what` takes too long.
pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it takes too long")
}

/// Reads until the connection ends; the error, when it ended by a reset.
pub async fn to_end(stream: &mut TcpStream) -> (Vec<u8>, Option<io::ErrorKind>) {
    let mut bytes = Vec::new();
    let result = within(stream.read_to_end(&mut bytes)).await;
    (bytes, result.err().map(|error| error.kind()))
}

pub async fn assert_reset(stream: &mut TcpStream) {
    assert_eq!(to_end(stream).await, (Vec::new(), Some(io::ErrorKind::ConnectionReset)));
}

/// Says `words` to who resets the connection, before or after them.
pub async fn assert_refuses(stream: &mut TcpStream, words: &[u8]) {
    match stream.write_all(words).await {
        // The reset is told only once.
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        Ok(()) => assert_reset(stream).await,
    }
}

pub fn reset(stream: TcpStream) {
    cinch_proxy::socket::abort(stream);
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come about");
}

/// Lets everything that is under way in this thread go on for so long and for as many turns of the runtime as that has on
/// an idle machine: then all has happened that needs nobody else.
pub async fn pass(time: Duration) {
    const TURNS: u32 = 20;
    for _ in 0..TURNS {
        tokio::time::sleep(time / TURNS).await;
    }
}
