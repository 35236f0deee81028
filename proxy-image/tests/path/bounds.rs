//! Limits that are settings: what is refused by them, that it is counted, and that nobody else is.

use crate::mesh::*;
use crate::modes;
use crate::web::*;
use cinch_identity::server_name;
use cinch_policy::Mode;
use cinch_proxy::copy::Side;
use cinch_proxy::limits::Limits;
use cinch_proxy::path_metrics::{Direction, PathMetrics};
use cinch_proxy::tunnel_io::{self, Answer, Bounds, Tunnel};
use serde_json::json;
use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// A connection to `to` from another address of this machine.
pub async fn dial_from(source: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::from(source), 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test]
async fn one_source_has_its_share_of_connections_and_leaves_the_rest_to_others() {
    let authority = Authority::new();
    let bounded = Limits { connections: 100, connections_per_source: 3, ..limits() };
    let api = Pod::with(API_IP, authority.good(API), Mode::Disable, bounded).await;
    api.set_app(echo(API_IP).await);
    let (greedy, other) = ([127, 0, 9, 1], [127, 0, 9, 2]);
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = dial_from(greedy, api.inbound).await;
        assert_eq!(exchange(&mut stream, b"held").await.unwrap(), b"held");
        held.push(stream);
    }
    assert_refuses(&mut dial_from(greedy, api.inbound).await, b"one more").await;
    assert_eq!(api.metric("limit_refusals_total{limit=\"connections_per_source\"}"), Some(1));
    assert_eq!(exchange(&mut dial_from(other, api.inbound).await, b"other").await.unwrap(), b"other");
    for stream in &mut held {
        assert_eq!(exchange(stream, b"still").await.unwrap(), b"still");
    }
    let open = "connections_open{direction=\"inbound\"";
    eventually("the other one is gone", || api.metric(open) == Some(3)).await;
    drop(held.pop());
    eventually("one of them is gone", || api.metric(open) == Some(2)).await;
    let mut next = dial_from(greedy, api.inbound).await;
    assert_eq!(exchange(&mut next, b"its place is free").await.unwrap(), b"its place is free");
    assert_eq!(api.metric("limit_refusals_total{limit=\"connections\"}"), None);
}

#[tokio::test]
async fn who_has_all_connections_keeps_no_probe_out() {
    let authority = Authority::new();
    let bounded = Limits { connections: 4, connections_per_source: 2, ..limits() };
    let api = Pod::with(API_IP, authority.good(API), Mode::Permissive, bounded).await;
    api.set_app(echo(API_IP).await);
    let dial = |source: u8| dial_from([127, 0, 9, source], api.inbound);
    let _silent = [dial(1).await, dial(1).await, dial(2).await, dial(2).await];
    assert_refuses(&mut dial(3).await, b"one more").await;
    let refused = || api.metric("limit_refusals_total{limit=\"connections\"}");
    assert_eq!(refused(), Some(1));
    for port in [15020, 15021] {
        api.set_app((API_IP, port).into());
        for source in 1..9 {
            assert_eq!(to_end(&mut dial(source).await).await.0, port.to_string().as_bytes());
        }
    }
    assert_eq!(refused(), Some(1));
}

#[tokio::test]
async fn between_two_turns_of_others_few_requests_of_one_connection_are_judged() {
    const REQUESTS: usize = 4000;
    let authority = Authority::new();
    let api = Pod::with(API_IP, authority.good(API), Mode::Disable, limits()).await;
    let _heard = web(&api).await;
    let deny = json!({"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]});
    put(&api, 2, &[("shop/http", deny)]).await;
    let judged = || api.metric("policy_denials_total{policy=\"shop/http\",rule=\"0\"}").unwrap_or(0);
    let mut hostile = TcpStream::connect(api.inbound).await.unwrap();
    let hostile = tokio::spawn(async move {
        let flood = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n".repeat(REQUESTS);
        let (mut read, mut write) = hostile.split();
        let mut answers = vec![0; 64 * 1024];
        let reading = async { while read.read(&mut answers).await.unwrap() > 0 {} };
        tokio::join!(async { write.write_all(flood.as_bytes()).await.unwrap() }, reading);
    });
    let (mut before, mut most) = (0, 0);
    let watching = async {
        while before < REQUESTS as i64 {
            // As any other task: once the runtime has looked at what else there is.
            tokio::task::yield_now().await;
            let now = judged();
            (before, most) = (now, most.max(now - before));
        }
    };
    within(watching).await;
    hostile.abort();
    assert!(most <= 600, "{most} at once");
}

#[tokio::test]
async fn handshakes_that_keep_us_waiting_give_their_places_to_who_has_fewer() {
    let authority = Authority::new();
    // None of them ends by itself in this test.
    let patient = Duration::from_secs(600);
    let bounded = Limits { handshakes_inbound: 16, handshake_timeout: patient, ..limits() };
    let api = Pod::with(API_IP, authority.good(API), Mode::Strict, bounded).await;
    api.set_app(echo(API_IP).await);
    let credentials = authority.good(WEB);
    let mut held = Vec::new();
    for number in 0..40 {
        let mut client = rustls::ClientConnection::new(to_api(&credentials), server_name()).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let mut stream = dial_from([127, 0, 9, 1 + number % 10], api.inbound).await;
        stream.write_all(&hello).await.unwrap();
        held.push(stream);
    }
    for _ in 0..3 {
        let mut tunnel = within(modes::tunnel(&authority, &api, Duration::ZERO)).await;
        tunnel.begin(b"").unwrap();
        assert_eq!(within(tunnel.answer()).await.unwrap(), Answer::Opened);
    }
    assert!(api.metric("limit_refusals_total{limit=\"handshakes_inbound\"}") >= Some(3));
}

/// A tunnel to `pod` from another address of this machine.
async fn tunnel_from(source: [u8; 4], authority: &Authority, pod: &Pod) -> Tunnel {
    let (stream, credentials) = (dial_from(source, pod.inbound).await, authority.good(WEB));
    let bounds = Bounds { handshake: Duration::from_secs(5), age: Duration::from_secs(60) };
    let gauge = PathMetrics::default().tunnel_open(Direction::Outbound);
    tunnel_io::dial(stream, to_api(&credentials), &credentials, bounds, gauge).await.unwrap()
}

/// One connection to the echo through `tunnel`, from its beginning to its end. Then the tunnel is idle.
async fn use_once(tunnel: &mut Tunnel) {
    tunnel.begin(b"words").unwrap();
    assert_eq!(within(tunnel.answer()).await.unwrap(), Answer::Opened);
    tunnel.send(b"", true).unwrap();
    within(poll_fn(|cx| tunnel.poll_flush(cx))).await.unwrap();
    let mut heard = Vec::new();
    let mut hear = |bytes: &[u8], _: bool| heard.extend_from_slice(bytes);
    while !within(poll_fn(|cx| tunnel.poll_forward(cx, usize::MAX, &mut hear))).await.unwrap().fin {}
    assert_eq!(heard, b"words");
}

#[tokio::test]
async fn who_keeps_most_tunnels_idle_makes_room_for_others() {
    let authority = Authority::new();
    let bounded = Limits { idle_tunnels: 3, ..limits() };
    let api = Pod::with(API_IP, authority.good(API), Mode::Strict, bounded).await;
    api.set_app(echo(API_IP).await);
    let mut greedy = Vec::new();
    for _ in 0..3 {
        let mut tunnel = tunnel_from([127, 0, 9, 1], &authority, &api).await;
        use_once(&mut tunnel).await;
        greedy.push(tunnel);
    }
    let refusals = || api.metric("limit_refusals_total{limit=\"idle_tunnels\"}");
    assert_eq!(refusals(), None);
    let mut honest = tunnel_from([127, 0, 9, 2], &authority, &api).await;
    use_once(&mut honest).await;
    // The longest idle one is told to go.
    within(poll_fn(|cx| greedy[0].poll_idle(cx))).await;
    assert!(greedy[0].is_draining());
    assert_eq!(refusals(), Some(1));
    for tunnel in [&mut honest, &mut greedy[1]] {
        use_once(tunnel).await;
    }
    // Who has most gets no more.
    let mut fourth = tunnel_from([127, 0, 9, 1], &authority, &api).await;
    use_once(&mut fourth).await;
    within(poll_fn(|cx| fourth.poll_idle(cx))).await;
    assert!(fourth.is_draining());
    use_once(&mut honest).await;
}

#[tokio::test]
async fn bounds_of_floods_over_http_2_are_those_of_the_settings() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let rule = json!({"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["PUT"]}}]}]});
    for (idle_frames, is_refused) in [(30, true), (300, false)] {
        let http = cinch_http::Limits { idle_frames, ..cinch_http::Limits::default() };
        let authority = Authority::new();
        let bounded = Limits { http, ..limits() };
        let api = Pod::with(API_IP, authority.good(API), Mode::Disable, bounded).await;
        let _heard = web(&api).await;
        put(&api, 2, &[("shop/http", rule.clone())]).await;
        let mut client = TcpStream::connect(api.inbound).await.unwrap();
        let flood = [PREFACE, SETTINGS, &PING.repeat(100)].concat();
        client.write_all(&flood).await.unwrap();
        let counted = || api.metric("limit_refusals_total{limit=\"http.idle_frames\"}") == Some(1);
        if is_refused {
            to_end(&mut client).await;
            assert!(counted(), "{idle_frames}");
        } else {
            // The app is no server of HTTP/2; what matters is who ends the connection.
            client.shutdown().await.unwrap();
            to_end(&mut client).await;
            assert!(!counted(), "{idle_frames}");
        }
    }
}
