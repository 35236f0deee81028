//! What a port accepts, by its mode, and what happens when that changes.

use crate::mesh::*;
use cinch_policy::{Mode, PortModes};
use cinch_proxy::context::InboundPolicy;
use cinch_proxy::path_metrics::{Direction, PathMetrics};
use cinch_proxy::tunnel_io::{self, Answer, Bounds, Tunnel};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A pod in `mode` whose app echoes.
pub async fn pod(mode: Mode) -> (Authority, Pod) {
    let authority = Authority::new();
    let pod = Pod::start(API_IP, authority.good(API), mode).await;
    pod.set_app(echo(API_IP).await);
    (authority, pod)
}

/// Dials `pod` as web's proxy would, `silence` after connecting.
pub async fn tunnel(authority: &Authority, pod: &Pod, silence: Duration) -> Tunnel {
    let stream = TcpStream::connect(pod.inbound).await.unwrap();
    tokio::time::sleep(silence).await;
    let credentials = authority.good(WEB);
    let config = to_api(&credentials);
    let bounds = Bounds { handshake: Duration::from_secs(5), age: Duration::from_secs(60) };
    let gauge = PathMetrics::default().tunnel_open(Direction::Outbound);
    tunnel_io::dial(stream, config, &credentials, bounds, gauge).await.unwrap()
}

#[tokio::test]
async fn strict_resets_plaintext_and_the_app_hears_nothing() {
    let (_authority, pod) = pod(Mode::Strict).await;
    let app = TcpListener::bind((API_IP, 0)).await.unwrap();
    pod.set_app(app.local_addr().unwrap());
    for words in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\0\x05\x02", b"\0"] {
        let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
        assert_refuses(&mut stream, words).await;
    }
    let heard = tokio::time::timeout(Duration::from_millis(50), app.accept()).await;
    assert!(heard.is_err(), "the app was connected");
    let counts = pod.totals();
    assert_eq!((counts.denied, counts.served, counts.open), (3, 0, 0));
    let refused = "connections_refused_total{direction=\"inbound\",reason=\"StrictPlaintext\"}";
    assert_eq!(pod.metric(refused), Some(3));
}

#[tokio::test]
async fn strict_refuses_the_apps_own_tls() {
    let (_authority, pod) = pod(Mode::Strict).await;
    let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
    assert_refuses(&mut stream, &foreign_hello()).await;
    assert_eq!(pod.totals().denied, 1);
}

/// A ClientHello without our protocol.
fn foreign_hello() -> Vec<u8> {
    let mut config = rustls::ClientConfig::builder_with_provider(cinch_identity::provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut client =
        rustls::ClientConnection::new(Arc::new(config), "app.example".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test]
async fn a_client_that_waits_on_a_strict_port_is_reset_and_counted() {
    let authority = Authority::new();
    let pod = Pod::with(API_IP, authority.good(API), Mode::Strict, hasty()).await;
    let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
    assert_reset(&mut stream).await;
    assert_eq!((pod.totals().denied, pod.totals().empty), (1, 0));
}

#[tokio::test]
async fn permissive_serves_plaintext_and_counts_whose() {
    let (_authority, pod) = pod(Mode::Permissive).await;
    let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
    assert_eq!(exchange(&mut stream, b"plain").await.unwrap(), b"plain");
    assert_eq!((pod.totals().served, pod.totals().open), (1, 1));
    stream.shutdown().await.unwrap();
    assert_eq!(to_end(&mut stream).await, (vec![], None));
    eventually("it is closed", || pod.totals().open == 0).await;
    let report = pod.ctx.evidence.report(1, false);
    let source = &report.sources[0];
    assert_eq!(source.ip, vec![127, 0, 0, 1]);
    assert_eq!(source.port, u32::from(pod.app.lock().unwrap().port()));
    assert_eq!(source.counts.unwrap().served, 1);
}

#[tokio::test]
async fn permissive_passes_the_apps_own_tls_through_untouched() {
    let (_authority, pod) = pod(Mode::Permissive).await;
    let hello = foreign_hello();
    let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
    assert_eq!(exchange(&mut stream, &hello).await.unwrap(), hello);
    assert_eq!(pod.totals().served, 1);
}

#[tokio::test]
async fn permissive_takes_tunnels_even_late_ones() {
    for silence in [0, 250] {
        let (authority, pod) = pod(Mode::Permissive).await;
        let mut tunnel = tunnel(&authority, &pod, Duration::from_millis(silence)).await;
        tunnel.begin(b"words").unwrap();
        assert_eq!(within(tunnel.answer()).await.unwrap(), Answer::Opened);
        let counts = pod.totals();
        assert_eq!((counts.served, counts.empty, counts.open), (0, 0, 0), "after {silence} ms");
    }
}

#[tokio::test]
async fn a_hello_that_comes_in_pieces_is_a_tunnel_still() {
    let (authority, pod) = pod(Mode::Permissive).await;
    // A network that delivers single bytes for a while.
    let slow = TcpListener::bind((API_IP, 0)).await.unwrap();
    let (address, target) = (slow.local_addr().unwrap(), pod.inbound);
    tokio::spawn(async move {
        let (near, _) = slow.accept().await.unwrap();
        let far = TcpStream::connect(target).await.unwrap();
        far.set_nodelay(true).unwrap();
        let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
            (near.into_split(), far.into_split());
        tokio::spawn(async move { tokio::io::copy(&mut far_read, &mut near_write).await });
        for at in 0.. {
            let mut byte = [0];
            if near_read.read_exact(&mut byte).await.is_err() || far_write.write_all(&byte).await.is_err() {
                return;
            }
            if at == 3 || at == 600 {
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
        }
    });
    let slow = Pod { inbound: address, ..pod };
    let mut tunnel = tunnel(&authority, &slow, Duration::ZERO).await;
    tunnel.begin(b"words").unwrap();
    assert_eq!(within(tunnel.answer()).await.unwrap(), Answer::Opened);
    assert_eq!((slow.totals().served, slow.totals().open), (0, 0));
}

#[tokio::test]
async fn permissive_connects_silent_clients_to_apps_that_speak_first() {
    let (_authority, pod) = pod(Mode::Permissive).await;
    let greeting = app(API_IP, |mut stream| async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.write_all(b"220 ready").await.unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.unwrap();
        stream.write_all(&word).await.unwrap();
    });
    pod.set_app(greeting.await);
    let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
    let mut words = [0; 9];
    within(stream.read_exact(&mut words)).await.unwrap();
    assert_eq!(&words, b"220 ready");
    assert_eq!(exchange(&mut stream, b"quit").await.unwrap(), b"quit");
    assert_eq!(pod.totals().served, 1);
}

#[tokio::test]
async fn a_late_first_word_of_the_client_is_served() {
    let (_authority, pod) = pod(Mode::Permissive).await;
    let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((pod.totals().open, pod.totals().served), (0, 0));
    assert_eq!(exchange(&mut stream, b"late").await.unwrap(), b"late");
    assert_eq!(pod.totals().served, 1);
}

#[tokio::test]
async fn disable_is_plaintext_whatever_it_looks_like() {
    let (_authority, pod) = pod(Mode::Disable).await;
    let hello = foreign_hello();
    for words in [&b"plain"[..], &hello] {
        let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
        assert_eq!(exchange(&mut stream, words).await.unwrap(), words);
    }
    assert_eq!(pod.totals().served, 2);
}

#[tokio::test]
async fn the_lock_cuts_open_plaintext_and_counts_it() {
    let (authority, pod) = pod(Mode::Permissive).await;
    let mut plain = TcpStream::connect(pod.inbound).await.unwrap();
    assert_eq!(exchange(&mut plain, b"plain").await.unwrap(), b"plain");
    let mut silent = TcpStream::connect(pod.inbound).await.unwrap();
    let mut tunnel = tunnel(&authority, &pod, Duration::ZERO).await;
    tunnel.begin(b"").unwrap();
    assert_eq!(within(tunnel.answer()).await.unwrap(), Answer::Opened);
    let connected = "connections_open{direction=\"inbound\",transport=\"plaintext\"}";
    eventually("the silent one is connected", || pod.metric(connected) == Some(2)).await;
    assert_eq!(pod.totals().open, 1, "only one of them has spoken");
    pod.policy.send_replace(Some(Arc::new(policy(Mode::Strict))));
    assert_reset(&mut plain).await;
    assert_reset(&mut silent).await;
    let counts = pod.totals();
    assert_eq!((counts.open, counts.served, counts.denied, counts.empty), (0, 1, 1, 1));
    assert_eq!(pod.metric("connections_cut_total{direction=\"inbound\",reason=\"PlaintextCut\"}"), Some(2));
    let tunnels = "connections_open{direction=\"inbound\",transport=\"tunnel\"}";
    assert_eq!(pod.metric(tunnels), Some(1), "the tunnel goes on");
}

#[tokio::test]
async fn only_the_locked_port_is_cut() {
    let (_authority, pod) = pod(Mode::Permissive).await;
    let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
    exchange(&mut stream, b"one").await.unwrap();
    let other = pod.app.lock().unwrap().port().wrapping_add(1);
    let modes = PortModes::uniform(Mode::Permissive, [(other, Mode::Strict)]);
    pod.policy.send_replace(Some(Arc::new(InboundPolicy { modes, ..policy(Mode::Permissive) })));
    pass(Duration::from_millis(30)).await;
    assert_eq!(exchange(&mut stream, b"two").await.unwrap(), b"two");
}

#[tokio::test]
async fn without_a_policy_nothing_comes_in() {
    let (_authority, pod) = pod(Mode::Permissive).await;
    pod.policy.send_replace(None);
    let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
    assert_reset(&mut stream).await;
}

#[tokio::test]
async fn own_ports_and_foreign_addresses_are_refused() {
    let (_authority, pod) = pod(Mode::Permissive).await;
    let ip = std::net::IpAddr::V4(API_IP);
    for refused in [
        SocketAddr::new(ip, 15000),
        SocketAddr::new(ip, 15001),
        SocketAddr::new(ip, 15006),
        SocketAddr::from(([127, 0, 0, 1], 8080)),
        SocketAddr::from(([10, 0, 0, 1], 8080)),
        SocketAddr::from(([0, 0, 0, 0], 8080)),
    ] {
        pod.set_app(refused);
        let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
        assert_refuses(&mut stream, b"words").await;
    }
    let refused = "connections_refused_total{direction=\"inbound\",reason=\"DestinationRefused\"}";
    assert_eq!(pod.metric(refused), Some(6));
    assert!(pod.ctx.evidence.report(1, false).sources.is_empty());
}

#[tokio::test]
async fn a_connection_to_itself_is_refused() {
    let (_authority, pod) = pod(Mode::Permissive).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((API_IP, 0).into()).unwrap();
    pod.set_app(socket.local_addr().unwrap());
    let mut stream = socket.connect(pod.inbound).await.unwrap();
    assert_reset(&mut stream).await;
}

#[tokio::test]
async fn virtual_ports_are_served_in_every_mode_and_prove_the_redirect() {
    let (_authority, pod) = pod(Mode::Strict).await;
    assert_eq!(pod.ctx.evidence.inbound_proof_age(), None);
    for port in [15020, 15021] {
        pod.set_app((API_IP, port).into());
        let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
        assert_eq!(to_end(&mut stream).await.0, port.to_string().as_bytes());
    }
    assert!(pod.ctx.evidence.inbound_proof_age().is_some());
    assert_eq!(pod.totals().served, 0);
}
