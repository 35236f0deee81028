//! Limits that are settings: what is refused by them, that it is counted, and that nobody else is.

use crate::mesh::*;
use crate::web::*;
use cinch_policy::Mode;
use cinch_proxy::limits::Limits;
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

/// A connection to `to` from another address of this machine.
async fn dial_from(source: [u8; 4], to: SocketAddr) -> TcpStream {
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
