//! How streams end while their last bytes are still on their way to a slow app.

use crate::mesh::*;
use crate::modes::{pod, tunnel};
use cinch_policy::Mode;
use cinch_proxy::copy::Side;
use cinch_proxy::path_metrics::{Direction, PathMetrics};
use cinch_proxy::tunnel_io::{self, Answer, Bounds, Tunnel, TunnelError};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;

/// An app that has nothing to say, and reads to the end after `pause`. Its kernel holds little for it.
async fn slow_reader(pause: Duration) -> (SocketAddr, oneshot::Receiver<io::Result<usize>>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind((API_IP, 0).into()).unwrap();
    let listener = socket.listen(8).unwrap();
    let address = listener.local_addr().unwrap();
    let (told, heard) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.shutdown().await.unwrap();
        tokio::time::sleep(pause).await;
        let mut bytes = Vec::new();
        let _ = told.send(stream.read_to_end(&mut bytes).await.map(|_| bytes.len()));
    });
    (address, heard)
}

async fn flush(tunnel: &mut Tunnel) {
    poll_fn(|cx| tunnel.poll_flush(cx)).await.unwrap();
}

/// A stream on which the app has ended its direction already, and the client ends its own after `size` bytes.
async fn say_all(tunnel: &mut Tunnel, size: usize) {
    tunnel.begin(b"").unwrap();
    assert_eq!(within(tunnel.answer()).await.unwrap(), Answer::Opened);
    while !within(poll_fn(|cx| tunnel.poll_forward(cx, &mut |_, _| {}))).await.unwrap().fin {}
    tunnel.send(&vec![7; size], true).unwrap();
    within(flush(tunnel)).await;
}

#[tokio::test]
async fn a_tunnel_that_closes_behind_the_last_bytes_takes_none_of_them_back() {
    let (authority, pod) = pod(Mode::Strict).await;
    let (address, heard) = slow_reader(Duration::from_millis(300)).await;
    pod.set_app(address);
    let mut tunnel = tunnel(&authority, &pod, Duration::ZERO).await;
    say_all(&mut tunnel, 1 << 20).await;
    tunnel.close(Duration::from_secs(5)).await;
    assert_eq!(within(heard).await.unwrap().unwrap(), 1 << 20);
}

#[tokio::test]
async fn the_next_stream_waits_outside_until_the_last_is_over() {
    let (mut server, mut client) = pair().await;
    tokio::spawn(async move {
        say_all(&mut client, 1).await;
        client.begin(b"").unwrap();
        // Far more than kernels hold between the two.
        client.send(&vec![8; 24 << 20], false).unwrap();
        // Were it all taken, the client would leave.
        flush(&mut client).await;
    });
    within(poll_fn(|cx| server.poll_open(cx))).await.unwrap().unwrap();
    server.opened().unwrap();
    server.send(&[], true).unwrap();
    flush(&mut server).await;
    while !within(poll_fn(|cx| server.poll_forward(cx, &mut |_, _| {}))).await.unwrap().fin {}
    // The last byte is on its way to the app.
    let waiting = poll_fn(|cx| server.poll_after_fin(cx));
    assert!(tokio::time::timeout(Duration::from_secs(3), waiting).await.is_err());
    // Then the next stream is there.
    assert!(within(poll_fn(|cx| server.poll_open(cx))).await.unwrap().is_some());
}

/// Both ends of a tunnel.
async fn pair() -> (Tunnel, Tunnel) {
    let authority = Authority::new();
    let (server, client) = (authority.good(API), authority.good(WEB));
    let listener = TcpListener::bind((API_IP, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let bounds = Bounds { handshake: Duration::from_secs(5), age: Duration::from_secs(60) };
    let accepting = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let gauge = PathMetrics::default().tunnel_open(Direction::Inbound);
        tunnel_io::accept(stream, Vec::new(), &server, bounds, gauge).await.unwrap()
    });
    let peer = cinch_identity::Peer::Exactly(id(API));
    let config =
        cinch_identity::client_config(Some(&client.svid), &client.bundle, peer, &[cinch_tunnel::ALPN]);
    let gauge = PathMetrics::default().tunnel_open(Direction::Outbound);
    let stream = TcpStream::connect(address).await.unwrap();
    let dialled = tunnel_io::dial(stream, config.unwrap(), &client, bounds, gauge).await.unwrap();
    (accepting.await.unwrap(), dialled)
}

#[tokio::test]
async fn a_close_is_a_close_even_if_it_is_met_while_sending() {
    let (server, mut client) = pair().await;
    server.close(Duration::from_secs(1)).await;
    client.begin(b"").unwrap();
    // It meets a socket that is closed, which answers with a reset.
    flush(&mut client).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.send(b"more", false).unwrap();
    assert!(matches!(within(client.answer()).await, Err(TunnelError::Closed)));
}

#[tokio::test]
async fn idle_tunnels_keep_no_new_one_out() {
    let authority = Authority::new();
    let limits = cinch_proxy::limits::Limits { idle_tunnels: 1, ..limits() };
    let pod = Pod::with(API_IP, authority.good(API), Mode::Strict, limits).await;
    pod.set_app(echo(API_IP).await);
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut tunnel = tunnel(&authority, &pod, Duration::ZERO).await;
        tunnel.begin(b"words").unwrap();
        assert_eq!(within(tunnel.answer()).await.unwrap(), Answer::Opened);
        tunnel.send(&[], true).unwrap();
        flush(&mut tunnel).await;
        while !within(poll_fn(|cx| tunnel.poll_forward(cx, &mut |_, _| {}))).await.unwrap().fin {}
        held.push(tunnel);
    }
    // All but the first are told that there is no place for idle ones.
    for tunnel in held.iter_mut().skip(1) {
        within(poll_fn(|cx| tunnel.poll_idle(cx))).await;
        assert!(tunnel.is_draining());
    }
    assert!(held[0].is_reusable());
    assert_eq!(pod.metric("limit_refusals_total{limit=\"idle_tunnels\"}"), Some(2));
}
