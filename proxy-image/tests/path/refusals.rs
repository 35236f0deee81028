//! What limits refuse is counted under the name of its setting, and a line of the log tells it.

use crate::mesh::*;
use crate::modes::tunnel;
use crate::outbound::swallows;
use crate::web::{self, Client, put};
use cinch_policy::Mode;
use cinch_proxy::accept::OriginalDestination;
use cinch_proxy::copy::Side;
use cinch_proxy::inbound;
use cinch_proxy::limits::Limits;
use cinch_proxy::tunnel_io::{Answer, Tunnel};
use serde_json::json;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tracing_subscriber::fmt::MakeWriter;

/// What this thread, and so all of one test, says in the proxy's own log.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Said {
    type Writer = Said;

    fn make_writer(&'a self) -> Said {
        self.clone()
    }
}

/// A log, as long as it lives.
struct Listening(Said, #[allow(dead_code)] tracing::subscriber::DefaultGuard);

impl Listening {
    fn begin() -> Listening {
        let said = Said::default();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(said.clone()).finish();
        Listening(said, tracing::subscriber::set_default(log))
    }

    /// Waits until `limit` has refused something in `pod`, and the log has told it.
    async fn hears(&self, pod: &Pod, limit: &str) {
        let counted = format!("limit_refusals_total{{limit=\"{limit}\"}}");
        eventually(&counted, || pod.metric(&counted) >= Some(1)).await;
        let text = String::from_utf8(self.0.0.lock().unwrap().clone()).unwrap();
        let word = format!("limit=\"{limit}\"");
        let told = |line: &str| line.contains("WARN") && line.contains(&word) && line.contains("refused=");
        assert_eq!(text.lines().filter(|line| told(line)).count(), 1, "{limit}: {text}");
    }
}

/// A pod of api with an echo behind it.
async fn api(mode: Mode, limits: Limits) -> (Authority, Pod) {
    let authority = Authority::new();
    let api = Pod::with(API_IP, authority.good(API), mode, limits).await;
    api.set_app(echo(API_IP).await);
    (authority, api)
}

/// A pod of web whose SERVICE has these endpoints.
async fn web(limits: Limits, endpoints: Vec<SocketAddr>) -> (Authority, Pod) {
    let authority = Authority::new();
    let web = Pod::with(WEB_IP, authority.good(WEB), Mode::Permissive, limits).await;
    web.told.say(SERVICE, one_of(endpoints.into_iter().map(|to| endpoint(to, API)).collect()));
    (authority, web)
}

/// Takes connections and says nothing.
async fn mute() -> SocketAddr {
    app(API_IP, |stream| async move {
        let _kept = stream;
        std::future::pending::<()>().await;
    })
    .await
}

async fn open(tunnel: &mut Tunnel) {
    tunnel.begin(b"").unwrap();
    assert_eq!(within(tunnel.answer()).await.unwrap(), Answer::Opened);
}

/// The head of a TLS record of `length` bytes, with the type of a ClientHello.
fn record_of(length: u16) -> Vec<u8> {
    [&[0x16, 3, 1][..], &length.to_be_bytes(), &[1]].concat()
}

#[tokio::test]
async fn hello_bytes() {
    let log = Listening::begin();
    let (_authority, api) = api(Mode::Strict, limits()).await;
    assert_refuses(&mut TcpStream::connect(api.inbound).await.unwrap(), &record_of(4097)).await;
    log.hears(&api, "hello_bytes").await;
}

#[tokio::test]
async fn a_hello_of_as_many_bytes_as_the_setting_says_is_waited_for() {
    let bounded = Limits { hello_bytes: 8192, ..hasty() };
    let (_authority, api) = api(Mode::Strict, bounded).await;
    assert_refuses(&mut TcpStream::connect(api.inbound).await.unwrap(), &record_of(8192)).await;
    assert_eq!(api.metric("limit_refusals_total{limit=\"hello_bytes\"}"), None);
    assert_eq!(api.metric("limit_refusals_total{limit=\"handshake_timeout\"}"), Some(1));
}

#[tokio::test]
async fn handshake_timeout_of_the_first_stream() {
    let log = Listening::begin();
    let (authority, api) = api(Mode::Strict, hasty()).await;
    let mut silent = tunnel(&authority, &api, Duration::ZERO).await;
    within(poll_fn(|cx| silent.poll_idle(cx))).await;
    assert!(silent.is_draining());
    log.hears(&api, "handshake_timeout").await;
}

#[tokio::test]
async fn a_tunnel_that_has_served_may_be_idle() {
    let bounded = Limits { handshake_timeout: Duration::from_millis(50), ..limits() };
    let (authority, api) = api(Mode::Strict, bounded).await;
    let mut used = tunnel(&authority, &api, Duration::ZERO).await;
    open(&mut used).await;
    used.send(b"", true).unwrap();
    while !within(poll_fn(|cx| used.poll_forward(cx, usize::MAX, &mut |_, _| {}))).await.unwrap().fin {}
    tokio::time::sleep(Duration::from_millis(150)).await;
    open(&mut used).await;
    assert_eq!(api.metric("limit_refusals_total"), None);
}

#[tokio::test]
async fn handshakes_waiting() {
    let log = Listening::begin();
    // Of one host one shakes hands, and one more waits.
    let patient = Duration::from_secs(60);
    let bounded =
        Limits { handshakes_inbound: 8, handshakes_waiting: 4, handshake_timeout: patient, ..limits() };
    let (authority, api) = api(Mode::Strict, bounded).await;
    let config = to_api(&authority.good(WEB));
    let mut held = Vec::new();
    for _ in 0..3 {
        let name = cinch_identity::server_name();
        let mut client = rustls::ClientConnection::new(config.clone(), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let mut stream = TcpStream::connect(api.inbound).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        held.push(stream);
    }
    log.hears(&api, "handshakes_waiting").await;
}

#[tokio::test]
async fn handshakes_and_handshakes_per_source() {
    let hasty = Duration::from_millis(100);
    for (limit, endpoints) in [("handshakes_per_source", 1), ("handshakes", 2)] {
        let log = Listening::begin();
        let bounded = Limits {
            handshakes: 1,
            handshakes_per_source: 1,
            // The first one keeps its place meanwhile: the second waits for less.
            handshake_timeout: hasty * if endpoints == 1 { 5 } else { 1 },
            open_timeout: hasty,
            ..limits()
        };
        let mute = [
            mute().await,
            app([127, 0, 2, 2].into(), |stream| async move {
                let _kept = stream;
                std::future::pending::<()>().await;
            })
            .await,
        ];
        let (_authority, web) = web(bounded, Vec::new()).await;
        let mut waiting = Vec::new();
        for at in 0..2 {
            let to = SocketAddr::from(([10, 96, 0, 20 + at], 80));
            let endpoint_of = mute[usize::from(at) % endpoints];
            web.told.say(to, one_of(vec![endpoint(endpoint_of, API)]));
            waiting.push(web.dial(to).await);
        }
        log.hears(&web, limit).await;
    }
}

#[tokio::test]
async fn idle_tunnels_per_peer() {
    let log = Listening::begin();
    let authority = Authority::new();
    let bounded = Limits { idle_tunnels_per_peer: 0, ..limits() };
    let web = Pod::with(WEB_IP, authority.good(WEB), Mode::Permissive, bounded).await;
    let api = Pod::start(API_IP, authority.good(API), Mode::Strict).await;
    api.set_app(echo(API_IP).await);
    web.told.say(SERVICE, one_of(vec![endpoint(api.inbound, API)]));
    let mut client = web.dial(SERVICE).await;
    assert_eq!(exchange(&mut client, b"words").await.unwrap(), b"words");
    client.shutdown().await.unwrap();
    log.hears(&web, "idle_tunnels_per_peer").await;
}

#[tokio::test]
async fn settle_of_a_stream_that_is_not_answered() {
    let log = Listening::begin();
    let bounded = Limits { settle: Duration::from_millis(50), ..limits() };
    let (authority, api) = api(Mode::Strict, bounded).await;
    let mut silent = tunnel(&authority, &api, Duration::ZERO).await;
    open(&mut silent).await;
    // It is cut, and the client takes no notice.
    put(&api, 2, &[("shop/all", json!({"action": "DENY", "rules": [{}]}))]).await;
    log.hears(&api, "settle").await;
    assert_eq!(api.metric("limit_refusals_total{limit=\"peer_timeout\"}"), None);
}

#[tokio::test]
async fn endpoint_tries() {
    let log = Listening::begin();
    let bounded = Limits { endpoint_tries: 2, ..limits() };
    let closed = |last: u8| SocketAddr::from(([127, 0, 3, last], 1));
    let (_authority, web) = web(bounded, (1..4).map(closed).collect()).await;
    assert_reset(&mut web.dial(SERVICE).await).await;
    log.hears(&web, "endpoint_tries").await;
    web.told.say(SERVICE, one_of((1..3).map(|last| endpoint(closed(last), API)).collect()));
    assert_reset(&mut web.dial(SERVICE).await).await;
    assert_eq!(web.metric("limit_refusals_total{limit=\"endpoint_tries\"}"), Some(1), "all were tried");
}

#[tokio::test]
async fn connect_timeout() {
    let log = Listening::begin();
    let bounded = Limits { connect_timeout: Duration::from_millis(50), ..limits() };
    let (_listener, _queued, hole) = swallows();
    let (_authority, web) = web(bounded, vec![hole]).await;
    assert_reset(&mut web.dial(SERVICE).await).await;
    log.hears(&web, "connect_timeout").await;
}

#[tokio::test]
async fn http_path_bytes_and_http_flush() {
    let log = Listening::begin();
    let bounded = Limits { http_flush: Duration::from_millis(50), ..limits() };
    let (authority, api) = api(Mode::Permissive, bounded).await;
    let _heard = web::web(&api).await;
    let rule = json!({"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/denied"]}}]}]});
    put(&api, 2, &[("shop/http", rule)]).await;
    let mut client = Client(BufReader::new(TcpStream::connect(api.inbound).await.unwrap()));
    assert_eq!(client.ask(&format!("GET /{}", "%2540".repeat(80))).await.status, 200);
    assert_eq!(client.ask(&format!("GET /{}", "%252f;".repeat(200))).await.status, 400);
    log.hears(&api, "http_path_bytes").await;
    // The answer says that it is the last one, and the client does not leave.
    let mut stays = tunnel(&authority, &api, Duration::ZERO).await;
    stays.begin(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(within(stays.answer()).await.unwrap(), Answer::Opened);
    log.hears(&api, "http_flush").await;
}

#[tokio::test]
async fn open_timeout() {
    let log = Listening::begin();
    let authority = Authority::new();
    let bounded = Limits { open_timeout: Duration::from_millis(50), ..limits() };
    let web = Pod::with(WEB_IP, authority.good(WEB), Mode::Permissive, bounded).await;
    // It shakes hands, and then nobody reads.
    let credentials = authority.good(API);
    let server = app(API_IP, move |stream| {
        let acceptor = tokio_rustls::TlsAcceptor::from(credentials.tunnel_server.clone());
        async move {
            let _kept = acceptor.accept(stream).await.unwrap();
            std::future::pending::<()>().await;
        }
    })
    .await;
    web.told.say(SERVICE, one_of(vec![endpoint(server, API)]));
    assert_reset(&mut web.dial(SERVICE).await).await;
    log.hears(&web, "open_timeout").await;
}

#[tokio::test]
async fn listen_backlog() {
    let log = Listening::begin();
    let (_authority, pod) = api(Mode::Disable, limits()).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((API_IP, 0).into()).unwrap();
    let listener: TcpListener = socket.listen(1).unwrap();
    let to = listener.local_addr().unwrap();
    let dial = |_| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&to.into());
        socket
    };
    // Nobody accepts before all have come.
    let _waiting: Vec<socket2::Socket> = (0..8).map(dial).collect();
    let app = *pod.app.lock().unwrap();
    let original: OriginalDestination = Arc::new(move |_| Ok(app));
    tokio::spawn(inbound::serve_with(listener, pod.ctx.clone(), original));
    log.hears(&pod, "listen_backlog").await;
}

#[tokio::test]
async fn what_an_app_breaks_over_http_2() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // HEADERS of a stream, whose block does not end.
    const OPEN: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 0, 1];
    let continued = [OPEN, &[0, 0, 1, 9, 0, 0, 0, 0, 1, 0x88].repeat(20)].concat();
    let cases = [
        ("http.idle_frames", PING.repeat(2000)),
        ("http.continuations", continued),
        ("http.head_timeout", OPEN.to_vec()),
    ];
    for (limit, flood) in cases {
        let log = Listening::begin();
        let http = cinch_http::Limits { head_timeout: Duration::from_millis(100), ..Default::default() };
        let (_authority, api) = api(Mode::Disable, Limits { http, ..limits() }).await;
        let flood = Arc::new([SETTINGS, &flood].concat());
        let hostile = app(API_IP, move |mut stream| {
            let flood = flood.clone();
            async move {
                let _ = stream.write_all(&flood).await;
                std::future::pending::<()>().await;
            }
        });
        api.set_app(hostile.await);
        let rule = json!({"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["PUT"]}}]}]});
        put(&api, 2, &[("shop/http", rule)]).await;
        let mut client = TcpStream::connect(api.inbound).await.unwrap();
        client.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
        log.hears(&api, limit).await;
    }
}
