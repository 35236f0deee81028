//! HTTP/2 with prior knowledge, and so gRPC, under policies that need HTTP. The `h2` crate stands on both ends.

use crate::mesh::*;
use crate::web::{BOTH, Over, put};
use bytes::Bytes;
use cinch_policy::Mode;
use cinch_proxy::limits::Limits;
use h2::client::SendRequest;
use http::{Request, Response};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

/// An app that answers with as many bytes as it got, or, under `/poll`, never.
async fn serve(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            if request.uri().path().starts_with("/poll") {
                return std::future::pending().await;
            }
            let mut body = request.into_body();
            let mut total = 0;
            while let Some(Ok(piece)) = body.data().await {
                total += piece.len();
                let _ = body.flow_control().release_capacity(piece.len());
            }
            let answer = Response::builder().header("x-total", total.to_string()).body(()).unwrap();
            respond.send_response(answer, true).unwrap();
        });
    }
}

fn to(action: &str, paths: &[&str]) -> Value {
    json!({"action": action, "rules": [{"to": [{"operation": {"paths": paths}}]}]})
}

async fn start(over: Over, policy: Value) -> (Mesh, SendRequest<Bytes>) {
    start_with(over, policy, limits()).await
}

async fn start_with(over: Over, policy: Value, limits: Limits) -> (Mesh, SendRequest<Bytes>) {
    let mut mesh = Mesh::start(Mode::Permissive).await;
    mesh.api = Pod::with(API_IP, mesh.authority.good(API), Mode::Permissive, limits).await;
    mesh.web.told.say(SERVICE, one_of(vec![endpoint(mesh.api.inbound, API)]));
    mesh.api.set_app(app(API_IP, serve).await);
    put(&mesh.api, 2, &[("shop/http", policy)]).await;
    let stream = match over {
        Over::Tunnel => mesh.dial().await,
        Over::Plaintext => TcpStream::connect(mesh.api.inbound).await.unwrap(),
    };
    let (send, connection) = within(h2::client::handshake(stream)).await.unwrap();
    tokio::spawn(connection);
    (mesh, send)
}

fn request(path: &str, kind: &str) -> Request<()> {
    Request::post(format!("http://shop{path}")).header("content-type", kind).body(()).unwrap()
}

async fn ask(send: &SendRequest<Bytes>, path: &str, kind: &str, body: usize) -> Response<h2::RecvStream> {
    let mut send = within(send.clone().ready()).await.unwrap();
    let (answer, mut stream) = send.send_request(request(path, kind), body == 0).unwrap();
    if body > 0 {
        stream.send_data(vec![7; body].into(), true).unwrap();
    }
    within(answer).await.unwrap()
}

#[tokio::test]
async fn streams_are_judged_one_by_one_and_grpc_is_refused_in_its_own_way() {
    for over in BOTH {
        let (mesh, send) = start(over, to("DENY", &["/admin*", "/shop.Cart/Delete"])).await;
        for _ in 0..3 {
            let answer = ask(&send, "/up", "text/plain", 1 << 20).await;
            assert_eq!(
                (answer.status(), &answer.headers()["x-total"]),
                (200.try_into().unwrap(), "1048576".try_into().as_ref().unwrap()),
                "{over:?}"
            );
            assert_eq!(ask(&send, "/x/../admin", "text/plain", 0).await.status(), 403, "{over:?}");
            let refused = ask(&send, "/shop.Cart/Delete", "application/grpc", 10).await;
            assert_eq!(
                (refused.status().as_u16(), &refused.headers()["grpc-status"]),
                (200, &"7".try_into().unwrap())
            );
        }
        let security = if over == Over::Tunnel { "mutual_tls" } else { "none" };
        let denied = format!(
            "requests_total{{reporter=\"destination\",request_protocol=\"http2\",connection_security_policy=\"{security}\",response_code_class=\"4xx\",reason=\"DeniedByPolicy\"}}"
        );
        assert_eq!(mesh.api.metric(&denied), Some(6), "{over:?}");
    }
}

#[tokio::test]
async fn a_policy_change_cuts_the_stream_that_it_refuses_and_leaves_the_others() {
    for over in BOTH {
        let (mesh, send) = start(over, to("DENY", &["/admin"])).await;
        let mut send = within(send.ready()).await.unwrap();
        let (one, _) = send.send_request(request("/poll/one", "text/plain"), true).unwrap();
        let (other, _) = send.send_request(request("/poll/other", "text/plain"), true).unwrap();
        assert_eq!(ask(&send, "/", "text/plain", 0).await.status(), 200);
        put(&mesh.api, 3, &[("shop/http", to("DENY", &["/poll/one"]))]).await;
        assert_eq!(within(one).await.unwrap_err().reason(), Some(h2::Reason::CANCEL), "{over:?}");
        let still = tokio::time::timeout(std::time::Duration::from_millis(50), other).await;
        assert!(still.is_err(), "{over:?}: {still:?}");
        assert_eq!(ask(&send, "/", "text/plain", 0).await.status(), 200, "{over:?}");
    }
}

/// The begin of a connection, and 48 KiB of a head that goes on.
fn unfinished_head() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    // HEADERS and CONTINUATION, none with END_HEADERS.
    for kind in [1, 9, 9] {
        bytes.extend([0, 0x40, 0, kind, 0, 0, 0, 0, 1]);
        bytes.extend([b'x'; 0x4000]);
    }
    bytes
}

#[tokio::test]
async fn a_client_with_many_calls_keeps_them_where_others_fill_the_bound_with_unfinished_heads() {
    const CALLS: usize = 60;
    let mut bounded = Limits { http_held_bytes: 600_000, ..limits() };
    bounded.http.head_timeout = PATIENCE * 2;
    let (mesh, send) = start_with(Over::Tunnel, to("DENY", &["/admin"]), bounded).await;
    let mut calls = Vec::new();
    for _ in 0..CALLS {
        let mut send = within(send.clone().ready()).await.unwrap();
        let long = format!("/poll/{}", "x".repeat(1000));
        calls.push(send.send_request(request(&long, "text/plain"), true).unwrap().0);
    }
    let held = || mesh.api.metric("http_held_bytes").unwrap_or(0);
    let largest = limits().http.head_bytes as i64;
    eventually("it is the largest of all by far", || held() > largest * 3 / 2).await;
    let cut = || mesh.api.metric("limit_refusals_total{limit=\"http_held_bytes\"}").unwrap_or(0);
    let mut unfinished = Vec::new();
    while cut() == 0 {
        assert!(unfinished.len() < 16, "{} bytes are held", held());
        // Each from a host of its own, so that none of these has as much as the client.
        let socket = TcpSocket::new_v4().unwrap();
        let host = u8::try_from(unfinished.len()).unwrap();
        socket.bind(([127, 0, 9, host + 1], 0).into()).unwrap();
        let mut client = socket.connect(mesh.api.inbound).await.unwrap();
        client.write_all(&unfinished_head()).await.unwrap();
        unfinished.push(client);
        pass(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(ask(&send, "/", "text/plain", 0).await.status(), 200);
    for call in &mut calls {
        assert!(futures::poll!(call).is_pending());
    }
}

#[tokio::test]
async fn the_drain_sends_the_client_away_after_its_requests() {
    let (mesh, send) = start(Over::Tunnel, to("DENY", &["/admin"])).await;
    assert_eq!(ask(&send, "/", "text/plain", 0).await.status(), 200);
    mesh.api.ctx.drain.cancel();
    let mut away = send.clone();
    let begun = std::time::Instant::now();
    while begun.elapsed() < PATIENCE {
        away = match away.ready().await {
            Ok(ready) => ready,
            Err(error) => {
                assert_eq!(
                    (error.is_go_away(), error.reason()),
                    (true, Some(h2::Reason::NO_ERROR)),
                    "{error:?}"
                );
                return;
            }
        };
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("nobody said goodbye");
}
