//! Bytes of an enemy at every door: only his own connection suffers.

use crate::mesh::*;
use crate::modes::{pod, tunnel};
use cinch_identity::{Peer, client_config, server_name};
use cinch_policy::Mode;
use cinch_proxy::limits::Limits;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

fn noise(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; random.random_range(1..3000)];
    random.fill_bytes(&mut bytes);
    bytes
}

#[tokio::test]
async fn noise_on_the_inbound_port_closes_only_that_connection() {
    let mut random = StdRng::seed_from_u64(15006);
    for mode in [Mode::Strict, Mode::Permissive] {
        let mesh = Mesh::with_echo(mode).await;
        let mut good = mesh.dial().await;
        for round in 0..60 {
            let mut bytes = noise(&mut random);
            // As near to a tunnel as noise comes.
            bytes.splice(0..0, [0x16, 3, 1].into_iter().take(round % 4));
            let mut stream = TcpStream::connect(mesh.api.inbound).await.unwrap();
            let _ = stream.write_all(&bytes).await;
            if mode == Mode::Strict {
                let (heard, end) = to_end(&mut stream).await;
                assert!(heard.is_empty() && end.is_some());
            }
        }
        assert_eq!(exchange(&mut good, b"still here").await.unwrap(), b"still here");
        assert_eq!(exchange(&mut mesh.dial().await, b"and new").await.unwrap(), b"and new");
        if mode == Mode::Strict {
            assert_eq!(mesh.api.totals().served, 0);
            assert!(mesh.api.totals().denied >= 60);
        }
    }
}

#[tokio::test]
async fn damaged_hellos_close_only_that_connection() {
    let mut random = StdRng::seed_from_u64(22);
    let (authority, pod) = pod(Mode::Strict).await;
    let credentials = authority.good(WEB);
    let peer = Peer::Exactly(id(API));
    let config =
        client_config(Some(&credentials.svid), &credentials.bundle, peer, &[cinch_tunnel::ALPN]).unwrap();
    for _ in 0..60 {
        let mut client = rustls::ClientConnection::new(config.clone(), server_name()).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let at = random.random_range(0..hello.len());
        hello[at] ^= 1 << random.random_range(0..8);
        let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut all = Vec::new();
        let _ = within(stream.read_to_end(&mut all)).await;
    }
    let mut tunnel = tunnel(&authority, &pod, Duration::ZERO).await;
    tunnel.begin(b"").unwrap();
    assert!(within(tunnel.answer()).await.is_ok());
}

#[tokio::test]
async fn noise_inside_a_tunnel_closes_only_that_tunnel() {
    let mut random = StdRng::seed_from_u64(7);
    let mesh = Mesh::with_echo(Mode::Strict).await;
    let mut good = mesh.dial().await;
    let credentials = mesh.authority.good(WEB);
    let peer = Peer::Exactly(id(API));
    let config =
        client_config(Some(&credentials.svid), &credentials.bundle, peer, &[cinch_tunnel::ALPN]).unwrap();
    for round in 0..60 {
        let stream = TcpStream::connect(mesh.api.inbound).await.unwrap();
        let mut tls = TlsConnector::from(Arc::clone(&config)).connect(server_name(), stream).await.unwrap();
        let mut bytes = noise(&mut random);
        if round % 2 == 0 {
            // A stream that begins as it should.
            bytes.splice(0..0, [0x80, 1, 1]);
        }
        let _ = tls.write_all(&bytes).await;
        let mut all = Vec::new();
        let _ = tokio::time::timeout(Duration::from_millis(200), tls.read_to_end(&mut all)).await;
    }
    assert!(mesh.api.metric("protocol_errors_total{direction=\"inbound\"}") >= Some(15));
    assert_eq!(exchange(&mut good, b"still here").await.unwrap(), b"still here");
    assert_eq!(exchange(&mut mesh.dial().await, b"and new").await.unwrap(), b"and new");
}

#[tokio::test]
async fn noise_from_a_server_is_a_reset_for_its_client_alone() {
    let (authority, web) = {
        let authority = Authority::new();
        let web = Pod::start(WEB_IP, authority.good(WEB), Mode::Permissive).await;
        (authority, web)
    };
    let credentials = Arc::new(authority.good(API));
    let noisy = app(API_IP, move |stream| {
        let credentials = credentials.clone();
        async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(credentials.tunnel_server.clone());
            let Ok(mut tls) = acceptor.accept(stream).await else { return };
            let mut random = StdRng::seed_from_u64(1);
            let _ = tls.read(&mut [0; 100]).await;
            let _ = tls.write_all(&noise(&mut random)).await;
            let _ = tls.shutdown().await;
        }
    });
    web.told.say(SERVICE, one_of(vec![endpoint(noisy.await, API)]));
    let mut stream = web.dial(SERVICE).await;
    let (heard, end) = to_end(&mut stream).await;
    assert!(heard.is_empty());
    assert_eq!(end, Some(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn noise_on_the_outbound_port_is_only_an_apps_bytes() {
    let mut random = StdRng::seed_from_u64(15001);
    let mesh = Mesh::with_echo(Mode::Strict).await;
    for _ in 0..30 {
        let bytes = noise(&mut random);
        assert_eq!(exchange(&mut mesh.dial().await, &bytes).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn handshakes_that_never_end_do_not_keep_others_out() {
    let mut mesh = Mesh::with_echo(Mode::Strict).await;
    let brief = Limits { handshake_timeout: Duration::from_secs(1), ..limits() };
    mesh.api = Pod::with(API_IP, mesh.authority.good(API), Mode::Strict, brief).await;
    mesh.api.set_app(echo(API_IP).await);
    mesh.web.told.say(SERVICE, one_of(vec![endpoint(mesh.api.inbound, API)]));
    let credentials = mesh.authority.good(WEB);
    let peer = Peer::Exactly(id(API));
    let config =
        client_config(Some(&credentials.svid), &credentials.bundle, peer, &[cinch_tunnel::ALPN]).unwrap();
    let mut held = Vec::new();
    for _ in 0..40 {
        let mut client = rustls::ClientConnection::new(config.clone(), server_name()).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let mut stream = TcpStream::connect(mesh.api.inbound).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        held.push(stream);
    }
    // They time out after a second; the good one waits for its place.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(exchange(&mut mesh.dial().await, b"my turn").await.unwrap(), b"my turn");
}
