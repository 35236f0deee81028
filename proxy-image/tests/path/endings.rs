//! How streams end while their last bytes are still on their way to a slow app.

use crate::mesh::*;
use crate::modes::{pod, tunnel};
use cinch_policy::Mode;
use cinch_proxy::copy::{Failure, Side, TcpSide};
use cinch_proxy::kept::Kept;
use cinch_proxy::path_metrics::{Direction, PathMetrics};
use cinch_proxy::tunnel_io::{self, Answer, Bounds, Tunnel, TunnelError};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::Poll;
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
    while !within(poll_fn(|cx| tunnel.poll_forward(cx, usize::MAX, &mut |_, _| {}))).await.unwrap().fin {}
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
    while !within(poll_fn(|cx| server.poll_forward(cx, usize::MAX, &mut |_, _| {}))).await.unwrap().fin {}
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
    let config = to_api(&client);
    let gauge = PathMetrics::default().tunnel_open(Direction::Outbound);
    let stream = TcpStream::connect(address).await.unwrap();
    let dialled = tunnel_io::dial(stream, config, &client, bounds, gauge).await.unwrap();
    (accepting.await.unwrap(), dialled)
}

#[tokio::test]
async fn a_close_is_a_close_even_if_it_is_met_while_sending() {
    let (server, mut client) = pair().await;
    server.close(Duration::from_secs(1)).await;
    client.begin(b"").unwrap();
    // It meets a socket that is closed, which answers with a reset.
    flush(&mut client).await;
    pass(Duration::from_millis(100)).await;
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
        while !within(poll_fn(|cx| tunnel.poll_forward(cx, usize::MAX, &mut |_, _| {}))).await.unwrap().fin {}
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

#[tokio::test]
async fn what_was_said_before_the_drain_arrives_though_nobody_had_accepted_it() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    // The accept loop waits.
    pass(Duration::from_millis(20)).await;
    // Without a pause in which it could run.
    let mut said = std::net::TcpStream::connect(mesh.web.outbound).unwrap();
    io::Write::write_all(&mut said, b"last words").unwrap();
    said.shutdown(std::net::Shutdown::Write).unwrap();
    said.set_nonblocking(true).unwrap();
    mesh.web.ctx.drain.cancel();
    let mut said = TcpStream::from_std(said).unwrap();
    assert_eq!(to_end(&mut said).await, (b"last words".to_vec(), None));
}

#[tokio::test]
async fn a_connection_on_its_way_counts_until_it_is_open_or_over() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    let opening = || mesh.web.metric("connections_opening ");
    let mut stream = mesh.dial().await;
    exchange(&mut stream, b"words").await.unwrap();
    assert_eq!((opening(), mesh.api.metric("connections_opening ")), (Some(0), Some(0)));
    // Nobody answers the handshake there.
    let silent = TcpListener::bind((API_IP, 0)).await.unwrap();
    let web = Pod::with(WEB_IP, mesh.authority.good(WEB), Mode::Permissive, hasty()).await;
    let opening = || web.metric("connections_opening ");
    web.told.say(SERVICE, one_of(vec![endpoint(silent.local_addr().unwrap(), API)]));
    let mut waiting = web.dial(SERVICE).await;
    assert_eq!(opening(), Some(1));
    assert_reset(&mut waiting).await;
    eventually("it is over", || opening() == Some(0)).await;
}

#[test]
fn what_is_left_when_the_drain_ends_is_reset_on_both_sides() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (proxy, outside) = (runtime(), runtime());
    // Apps and clients outlive the proxy.
    let listener = outside.block_on(TcpListener::bind((API_IP, 0))).unwrap();
    let (mut pod, mut silent) = proxy.block_on(async {
        let (_authority, pod) = pod(Mode::Permissive).await;
        pod.set_app(listener.local_addr().unwrap());
        let silent = std::net::TcpStream::connect(pod.inbound).unwrap();
        let connected = "connections_open{direction=\"inbound\",transport=\"plaintext\"}";
        eventually("it is connected", || pod.metric(connected) == Some(1)).await;
        (pod, silent)
    });
    let mut client = std::net::TcpStream::connect(pod.inbound).unwrap();
    io::Write::write_all(&mut client, b"half a sentence").unwrap();
    let told = async { eventually("it is served", || pod.totals().served == 1).await };
    proxy.block_on(told);
    let apps = [outside.block_on(listener.accept()), outside.block_on(listener.accept())];
    proxy.block_on(async {
        pod.ctx.drain.cancel();
        pod.ctx.end.cancel();
        for serving in pod.serving.drain(..) {
            within(serving).await.unwrap();
        }
    });
    drop(proxy);
    let mut bytes = [0; 64];
    for left in [&mut client, &mut silent] {
        let error = io::Read::read(left, &mut bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    let app = apps.into_iter().map(|app| app.unwrap().0.into_std().unwrap());
    let ends: Vec<_> = app
        .map(|mut app| {
            app.set_nonblocking(false).unwrap();
            io::Read::read_to_end(&mut app, &mut Vec::new()).map_err(|error| error.kind())
        })
        .collect();
    assert!(ends.contains(&Err(io::ErrorKind::ConnectionReset)), "the app has heard half of it: {ends:?}");
}

#[tokio::test]
async fn an_answer_before_a_reset_is_heard_though_the_runtime_has_not_heard_of_it() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let mut app = Some(listener.accept().unwrap().0);
    let kept = Kept::new(0, &std::sync::Arc::default());
    let mut side = TcpSide::new(stream, kept.share());
    let mut heard = Vec::new();
    // In one turn of the runtime, which so never looks.
    poll_fn(|cx| {
        side.send(b"an upload", false).unwrap();
        assert!(side.poll_forward(cx, usize::MAX, &mut |_, _| ()).is_pending());
        let mut app = app.take().unwrap();
        std::io::Write::write_all(&mut app, b"413").unwrap();
        // It has not read the upload: that is a reset.
        drop(app);
        assert_eq!(side.send(b"more of it", false), Err(Failure::Reset));
        let mut hear = |bytes: &[u8], fin: bool| {
            assert!(!fin, "a reset is no end");
            heard.extend_from_slice(bytes);
        };
        while let Poll::Ready(Ok(_)) = side.poll_forward(cx, usize::MAX, &mut hear) {}
        Poll::Ready(())
    })
    .await;
    assert_eq!(heard, b"413");
}
