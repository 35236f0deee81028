//! Where connections of apps go: tunnels with pinned identities, plaintext where the mesh ends, refusals.

use crate::mesh::*;
use cinch_identity::TrustBundle;
use cinch_policy::Mode;
use cinch_proxy::context::{Credentials, Destination, Endpoint};
use cinch_proxy::path_metrics::{Direction, PathMetrics};
use cinch_proxy::tunnel_io::{self, Bounds, Tunnel};
use cinch_reason::Reason;
use cinch_tunnel::RefuseCode;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const MALLORY: &str = "spiffe://cluster.local/ns/shop/sa/mallory";

async fn web() -> (Authority, Pod) {
    let authority = Authority::new();
    let pod = Pod::start(WEB_IP, authority.good(WEB), Mode::Permissive).await;
    (authority, pod)
}

/// What web's connections meet when api's proxy has `credentials`.
async fn against(web: &Pod, credentials: Credentials) -> Pod {
    let api = Pod::start(API_IP, credentials, Mode::Strict).await;
    api.set_app(echo(API_IP).await);
    web.told.say(SERVICE, one_of(vec![endpoint(api.inbound, API)]));
    api
}

async fn assert_refused(web: &Pod, api: &Pod) {
    let mut stream = web.dial(SERVICE).await;
    assert_refuses(&mut stream, b"secret").await;
    assert_eq!(api.metric("connections_total{direction=\"inbound\",transport=\"tunnel\"}"), None);
    assert_eq!(api.totals().served, 0);
}

/// A server that was not trusted is counted where it was dialled, twice shaken hands with and once refused.
fn assert_counted_by_client(web: &Pod, reason: &str) {
    let failed = "tunnel_handshakes_total{direction=\"outbound\",outcome=\"failed\"}";
    assert_eq!(web.metric(failed), Some(2));
    let refused = format!("connections_refused_total{{direction=\"outbound\",reason=\"{reason}\"}}");
    assert_eq!(web.metric(&refused), Some(1));
}

#[tokio::test]
async fn an_expired_server_is_refused() {
    let (authority, web) = web().await;
    let api = against(&web, authority.credentials(API, -60, authority.bundle())).await;
    assert_refused(&web, &api).await;
    assert_counted_by_client(&web, "CertificateExpired");
}

#[tokio::test]
async fn an_expired_client_is_refused() {
    let (authority, web) = web().await;
    let api = against(&web, authority.good(API)).await;
    web.credentials.send_replace(Some(Arc::new(authority.credentials(WEB, -60, authority.bundle()))));
    assert_refused(&web, &api).await;
    let failed = "tunnel_handshakes_total{direction=\"inbound\",outcome=\"failed\"}";
    assert!(api.metric(failed) >= Some(1));
    let refused = "connections_refused_total{direction=\"inbound\",reason=\"CertificateExpired\"}";
    assert!(api.metric(refused) >= Some(1));
}

#[tokio::test]
async fn certificates_of_a_foreign_authority_are_refused_on_either_side() {
    let (authority, web) = web().await;
    let foreign = Authority::new();
    let bundle: TrustBundle = authority.bundle();
    let api = against(&web, foreign.credentials(API, 3600, bundle.clone())).await;
    assert_refused(&web, &api).await;
    assert_counted_by_client(&web, "CertificateUntrusted");
    let api = against(&web, authority.good(API)).await;
    let other = Credentials { generation: 2, ..foreign.credentials(WEB, 3600, bundle) };
    web.credentials.send_replace(Some(Arc::new(other)));
    assert_refused(&web, &api).await;
    let refused = "connections_refused_total{direction=\"inbound\",reason=\"CertificateUntrusted\"}";
    assert!(api.metric(refused) >= Some(1));
}

#[tokio::test]
async fn a_peer_with_another_identity_is_asked_for_once_more_and_then_refused() {
    let (authority, web) = web().await;
    let api = against(&web, authority.good(MALLORY)).await;
    assert_refused(&web, &api).await;
    assert_eq!(*web.told.forgotten.lock().unwrap(), [SERVICE]);
    let refused = "connections_refused_total{direction=\"outbound\",reason=\"PeerIdentityMismatch\"}";
    assert_eq!(web.metric(refused), Some(1));
    let shaken = "tunnel_handshakes_total{direction=\"outbound\",outcome=\"failed\"}";
    assert_eq!(web.metric(shaken), Some(1), "the answer was the same, and nobody asked the peer again");
}

#[tokio::test]
async fn a_stale_record_is_mended_by_asking_again() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    mesh.web.told.say_then(SERVICE, one_of(vec![endpoint(mesh.api.inbound, API)]));
    let stale = one_of(vec![endpoint(mesh.api.inbound, "spiffe://cluster.local/ns/shop/sa/before")]);
    mesh.web.told.say(SERVICE, stale);
    mesh.web.told.say_then(SERVICE, one_of(vec![endpoint(mesh.api.inbound, API)]));
    assert_eq!(exchange(&mut mesh.dial().await, b"found").await.unwrap(), b"found");
    assert_eq!(mesh.web.told.forgotten.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_meshed_peer_never_gets_plaintext() {
    let (_authority, web) = web().await;
    let listener = TcpListener::bind((API_IP, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    web.told.say(SERVICE, one_of(vec![endpoint(address, API)]));
    let heard = tokio::spawn(async move {
        let mut all = Vec::new();
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = tokio::time::timeout(Duration::from_millis(700), stream.read_to_end(&mut all)).await;
        }
        all
    });
    let mut stream = web.dial(SERVICE).await;
    assert_refuses(&mut stream, b"the secret marker").await;
    let heard = within(heard).await.unwrap();
    assert_eq!(heard[0], 0x16);
    assert!(!heard.windows(6).any(|window| window == b"secret"));
}

#[tokio::test]
async fn a_meshed_endpoint_without_identity_or_own_certificate_is_refused() {
    let (_authority, web) = web().await;
    let target = echo(API_IP).await;
    web.told.say(SERVICE, one_of(vec![Endpoint { identity: None, ..endpoint(target, API) }]));
    assert_reset(&mut web.dial(SERVICE).await).await;
    web.credentials.send_replace(None);
    web.told.say(SERVICE, one_of(vec![endpoint(target, API)]));
    assert_reset(&mut web.dial(SERVICE).await).await;
}

#[tokio::test]
async fn outside_of_the_mesh_connections_go_as_they_are() {
    let (_authority, web) = web().await;
    let target = echo(API_IP).await;
    web.told.say(target, Destination::PassThrough);
    assert_eq!(exchange(&mut web.dial(target).await, b"through").await.unwrap(), b"through");
    // All endpoints unmeshed: the address that the app dialled, not the endpoint's.
    let unused = SocketAddr::from((API_IP, 1));
    web.told.say(target, one_of(vec![unmeshed(unused)]));
    assert_eq!(exchange(&mut web.dial(target).await, b"as dialled").await.unwrap(), b"as dialled");
    // Some meshed: the endpoint that was chosen, plain if it has no proxy or its port is DISABLE.
    let gone = Endpoint { ready: false, ..endpoint(unused, API) };
    web.told.say(SERVICE, one_of(vec![unmeshed(target), gone.clone()]));
    assert_eq!(exchange(&mut web.dial(SERVICE).await, b"chosen").await.unwrap(), b"chosen");
    let disabled = Endpoint { mode: Mode::Disable, ..endpoint(target, API) };
    web.told.say(SERVICE, one_of(vec![disabled, gone]));
    assert_eq!(exchange(&mut web.dial(SERVICE).await, b"disabled").await.unwrap(), b"disabled");
    assert_eq!(web.metric("connections_total{direction=\"outbound\",transport=\"plaintext\"}"), Some(4));
}

#[tokio::test]
async fn passed_through_connections_keep_half_closes_and_resets() {
    let (_authority, web) = web().await;
    let target = app(API_IP, |mut stream| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        if all == b"reset" {
            return reset(stream);
        }
        stream.write_all(&all).await.unwrap();
    })
    .await;
    web.told.say(target, Destination::PassThrough);
    for (words, end) in [(&b"answer"[..], None), (b"reset", Some(std::io::ErrorKind::ConnectionReset))] {
        let mut stream = web.dial(target).await;
        stream.write_all(words).await.unwrap();
        stream.shutdown().await.unwrap();
        let expected = if end.is_none() { words.to_vec() } else { vec![] };
        assert_eq!(to_end(&mut stream).await, (expected, end));
    }
}

#[tokio::test]
async fn what_can_not_be_reached_is_a_reset() {
    let (_authority, web) = web().await;
    let not_ready = Endpoint { ready: false, ..endpoint((API_IP, 1).into(), API) };
    for (what, destination) in [
        ("refused", Destination::Refuse(Reason::DestinationUnknown)),
        ("no endpoints", one_of(vec![])),
        ("none ready", one_of(vec![not_ready])),
        ("nobody listens", one_of(vec![endpoint((API_IP, 1).into(), API)])),
    ] {
        web.told.say(SERVICE, destination);
        let mut stream = web.dial(SERVICE).await;
        assert_eq!(to_end(&mut stream).await.1, Some(std::io::ErrorKind::ConnectionReset), "{what}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_passed_over() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    let gone = endpoint((API_IP, 1).into(), API);
    mesh.web.told.say(SERVICE, one_of(vec![gone, endpoint(mesh.api.inbound, API)]));
    for _ in 0..10 {
        assert_eq!(exchange(&mut mesh.dial().await, b"there").await.unwrap(), b"there");
    }
}

#[tokio::test]
async fn a_pod_that_is_not_ready_is_reached_by_its_own_address() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    let address = mesh.api.inbound;
    mesh.web.told.say(address, one_of(vec![Endpoint { ready: false, ..endpoint(address, API) }]));
    assert_eq!(exchange(&mut mesh.web.dial(address).await, b"pod").await.unwrap(), b"pod");
}

/// An app that says who it is and waits for its client's end.
async fn says(name: &'static str) -> SocketAddr {
    app(API_IP, move |mut stream| async move {
        stream.write_all(name.as_bytes()).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await
}

async fn who(web: &Pod, to: SocketAddr) -> String {
    let mut stream = web.dial(to).await;
    let mut name = [0];
    within(stream.read_exact(&mut name)).await.unwrap();
    String::from_utf8_lossy(&name).into_owned()
}

#[tokio::test]
async fn with_affinity_connections_stay_with_the_endpoint_that_took_the_last_one() {
    let (authority, web) = web().await;
    let mut pods = Vec::new();
    let mut endpoints = Vec::new();
    for name in ["a", "b", "c"] {
        let pod = Pod::start(API_IP, authority.good(API), Mode::Strict).await;
        pod.set_app(says(name).await);
        endpoints.push(endpoint(pod.inbound, API));
        pods.push(pod);
    }
    let sticky = |endpoints: &[Endpoint]| Destination::Sticky(endpoints.into(), Duration::from_secs(60));
    web.told.say(SERVICE, sticky(&endpoints));
    let first = who(&web, SERVICE).await;
    for _ in 0..20 {
        assert_eq!(who(&web, SERVICE).await, first);
    }
    // It takes no new connections any more: another one does, and keeps them.
    let kept = ["a", "b", "c"].iter().position(|name| *name == first).unwrap();
    let mut without = endpoints.clone();
    without[kept].ready = false;
    web.told.say(SERVICE, sticky(&without));
    let second = who(&web, SERVICE).await;
    assert_ne!(second, first);
    web.told.say(SERVICE, sticky(&endpoints));
    for _ in 0..10 {
        assert_eq!(who(&web, SERVICE).await, second);
    }
    // Its time is over.
    let brief = Destination::Sticky(endpoints.clone().into(), Duration::ZERO);
    web.told.say(SERVICE, brief);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        seen.insert(who(&web, SERVICE).await);
    }
    assert!(seen.len() > 1, "{seen:?}");
}

#[tokio::test]
async fn idle_tunnels_to_an_endpoint_that_is_gone_are_closed() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    let idle = || mesh.web.metric("tunnels_idle");
    assert_eq!(exchange(&mut mesh.dial().await, b"first").await.unwrap(), b"first");
    eventually("an idle tunnel", || idle() == Some(1)).await;
    // It stays past a sweep while anything leads there.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(idle(), Some(1));
    mesh.web.told.gone.lock().unwrap().push(mesh.api.inbound);
    eventually("it to be closed", || idle() == Some(0)).await;
    // Both ends have let go of it.
    eventually("the other end", || mesh.api.metric("tunnels_open{direction=\"inbound\"}").unwrap_or(0) == 0)
        .await;
}

/// A server that shakes hands and then does `work` with each tunnel.
async fn server<F>(authority: &Authority, work: impl Fn(Tunnel) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let credentials = authority.good(API);
    let listener = TcpListener::bind((API_IP, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let bounds = Bounds { handshake: Duration::from_secs(5), age: Duration::from_secs(60) };
            let gauge = PathMetrics::default().tunnel_open(Direction::Inbound);
            let shaken = tunnel_io::accept(stream, Vec::new(), &credentials, bounds, gauge).await;
            if let Ok(tunnel) = shaken {
                tokio::spawn(work(tunnel));
            }
        }
    });
    address
}

#[tokio::test]
async fn a_refusal_for_draining_is_retried_on_another_endpoint_with_the_same_words() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    let draining = server(&mesh.authority, |mut tunnel| async move {
        if poll_fn(|cx| tunnel.poll_open(cx)).await.unwrap().is_some() {
            tunnel.refuse(RefuseCode::Draining).unwrap();
            let _ = tunnel.settle(None).await;
        }
    })
    .await;
    let both = vec![endpoint(draining, API), endpoint(mesh.api.inbound, API)];
    mesh.web.told.say(SERVICE, one_of(both));
    for _ in 0..12 {
        let mut stream = mesh.dial().await;
        assert_eq!(exchange(&mut stream, b"early words").await.unwrap(), b"early words");
    }
    assert!(mesh.web.metric("tunnel_retries_total") >= Some(1));
}

#[tokio::test]
async fn where_one_endpoint_has_no_listener_another_one_serves_with_the_same_words() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    for code in [RefuseCode::NoListener, RefuseCode::Unreachable, RefuseCode::Denied] {
        let asked = Arc::new(AtomicUsize::new(0));
        let asks = asked.clone();
        let dead = server(&mesh.authority, move |mut tunnel| {
            let asks = asks.clone();
            async move {
                while let Ok(Some(_)) = poll_fn(|cx| tunnel.poll_open(cx)).await {
                    asks.fetch_add(1, Ordering::Relaxed);
                    tunnel.refuse(code).unwrap();
                    let _ = tunnel.settle(None).await;
                }
            }
        })
        .await;
        mesh.web.told.say(SERVICE, one_of(vec![endpoint(dead, API), endpoint(mesh.api.inbound, API)]));
        let mut failed = 0;
        for _ in 0..20 {
            let mut stream = mesh.dial().await;
            match exchange(&mut stream, b"early words").await {
                Ok(words) => assert_eq!(words, b"early words"),
                Err(_) => failed += 1,
            }
        }
        let asked = asked.load(Ordering::Relaxed);
        assert!(asked >= 1, "{code:?}: nobody came");
        // What a policy of one endpoint denies, no other one is asked for.
        assert_eq!(failed, if code == RefuseCode::Denied { asked } else { 0 }, "{code:?}");
    }
}

#[tokio::test]
async fn a_refusal_is_retried_on_the_pods_own_app_with_the_same_words() {
    let (authority, web) = web().await;
    let draining = server(&authority, |mut tunnel| async move {
        if poll_fn(|cx| tunnel.poll_open(cx)).await.unwrap().is_some() {
            tunnel.refuse(RefuseCode::Draining).unwrap();
            let _ = tunnel.settle(None).await;
        }
    })
    .await;
    let own = echo(WEB_IP).await;
    web.told.say(SERVICE, one_of(vec![endpoint(draining, API), endpoint(own, WEB)]));
    for _ in 0..12 {
        // Said while the tunnel still shakes hands, so that the words go with its OPEN.
        let mut stream = TcpStream::connect(web.outbound).await.unwrap();
        assert_eq!(exchange(&mut stream, b"early words").await.unwrap(), b"early words");
    }
    assert!(web.metric("tunnel_retries_total") >= Some(1));
}

#[tokio::test]
async fn a_close_before_the_answer_is_retried_once() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    let tunnels = Arc::new(AtomicUsize::new(0));
    let seen = tunnels.clone();
    let closing = server(&mesh.authority, move |mut tunnel| {
        let seen = seen.clone();
        async move {
            seen.fetch_add(1, Ordering::Relaxed);
            let _ = poll_fn(|cx| tunnel.poll_open(cx)).await;
            tunnel.close(Duration::from_secs(1)).await;
        }
    })
    .await;
    mesh.web.told.say(SERVICE, one_of(vec![endpoint(closing, API)]));
    let mut stream = mesh.dial().await;
    assert_eq!(to_end(&mut stream).await.1, Some(std::io::ErrorKind::ConnectionReset));
    assert_eq!(tunnels.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_break_without_a_word_is_never_retried() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    let tunnels = Arc::new(AtomicUsize::new(0));
    let seen = tunnels.clone();
    let breaking = server(&mesh.authority, move |mut tunnel| {
        let seen = seen.clone();
        async move {
            seen.fetch_add(1, Ordering::Relaxed);
            let _ = poll_fn(|cx| tunnel.poll_open(cx)).await;
            tunnel.abort();
        }
    })
    .await;
    mesh.web.told.say(SERVICE, one_of(vec![endpoint(breaking, API)]));
    assert_eq!(to_end(&mut mesh.dial().await).await.1, Some(std::io::ErrorKind::ConnectionReset));
    assert_eq!(tunnels.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn who_dials_the_listener_itself_is_refused() {
    let (_authority, web) = web().await;
    assert_reset(&mut web.dial(web.outbound).await).await;
    let refused = "connections_refused_total{direction=\"outbound\",reason=\"DestinationRefused\"}";
    assert_eq!(web.metric(refused), Some(1));
}

#[tokio::test]
async fn connections_over_the_limit_are_refused_and_counted() {
    let authority = Authority::new();
    let bounded = cinch_proxy::limits::Limits { connections: 2, ..limits() };
    let web = Pod::with(WEB_IP, authority.good(WEB), Mode::Permissive, bounded).await;
    let target = echo(API_IP).await;
    web.told.say(target, Destination::PassThrough);
    let mut held: Vec<TcpStream> = Vec::new();
    for _ in 0..2 {
        held.push(web.dial(target).await);
    }
    assert_reset(&mut web.dial(target).await).await;
    assert_eq!(web.metric("limit_refusals_total{limit=\"connections\"}"), Some(1));
    for stream in &mut held {
        assert_eq!(exchange(stream, b"held").await.unwrap(), b"held");
    }
}

/// A port whose queue of connections is full: the kernel drops each further SYN, and who dials it waits.
pub fn swallows() -> (socket2::Socket, Vec<socket2::Socket>, SocketAddr) {
    let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let listener = socket();
    listener.bind(&SocketAddr::from((API_IP, 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let queued = (0..4).map(|_| {
        let filler = socket();
        filler.set_nonblocking(true).unwrap();
        let _ = filler.connect(&address.into());
        filler
    });
    let queued = queued.collect();
    (listener, queued, address)
}

#[tokio::test]
async fn endpoints_that_swallow_packets_take_no_places_for_handshakes() {
    let authority = Authority::new();
    let bounded = cinch_proxy::limits::Limits { handshakes: 1, handshakes_per_source: 1, ..limits() };
    let web = Pod::with(WEB_IP, authority.good(WEB), Mode::Permissive, bounded).await;
    let api = Pod::start(API_IP, authority.good(API), Mode::Strict).await;
    api.set_app(echo(API_IP).await);
    let (_listener, _queued, hole) = swallows();
    let lost: SocketAddr = "10.96.0.77:80".parse().unwrap();
    web.told.say(lost, one_of(vec![endpoint(hole, API)]));
    web.told.say(SERVICE, one_of(vec![endpoint(api.inbound, API)]));
    let _waiting = web.dial(lost).await;
    pass(Duration::from_millis(50)).await;
    assert_eq!(exchange(&mut web.dial(SERVICE).await, b"through").await.unwrap(), b"through");
    assert_eq!(web.metric("limit_refusals_total{limit=\"handshakes\"}"), None);
}
