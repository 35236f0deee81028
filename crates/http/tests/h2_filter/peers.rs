//! The `h2` crate on both ends: a client and a server that know nothing of the filter between them.

use crate::scene::Rules;
use bytes::Bytes;
use cinch_http::h2::Connection;
use cinch_http::{Filter, Limits, Output, Turn};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response};
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

/// Moves bytes between both sides and the filter until the connection ends; returns what the authorizer heard.
async fn filter(mut client: DuplexStream, mut app: DuplexStream, read: usize) -> Rules {
    let now = Instant::now();
    let mut filter = Connection::new(Arc::new(Limits::default()), now);
    let (mut rules, mut out) = (Rules::default(), Output::default());
    let (mut of_client, mut of_app) = (vec![0; read], vec![0; read]);
    while filter.end().is_none() {
        // Nothing, or bytes of the client (true) or of the app.
        let mut come = None;
        if !filter.wants_turn() {
            come = tokio::select! {
                length = client.read(&mut of_client), if filter.wants_client() => Some((true, length.unwrap_or(0))),
                length = app.read(&mut of_app), if filter.wants_app() => Some((false, length.unwrap_or(0))),
            };
        }
        let input = match come {
            None => &[],
            Some((true, length)) => &of_client[..length],
            Some((false, length)) => &of_app[..length],
        };
        step(&mut filter, come, input, &mut Turn { now, authorizer: &mut rules, out: &mut out });
        for (outgoing, to) in [(&out.to_app, &mut app), (&out.to_client, &mut client)] {
            for slice in outgoing.slices(input) {
                let _ = to.write_all(slice).await;
            }
            if outgoing.fin() {
                let _ = to.shutdown().await;
            }
        }
        out.clear();
    }
    rules
}

fn step(filter: &mut Connection, come: Option<(bool, usize)>, input: &[u8], turn: &mut Turn<'_>) {
    match come {
        None => filter.client_data(&[], turn),
        Some((true, 0)) => filter.client_eof(turn),
        Some((true, _)) => filter.client_data(input, turn),
        Some((false, 0)) => filter.app_eof(turn),
        Some((false, _)) => filter.app_data(input, turn),
    }
}

/// Answers every request: `/echo` sends back what it gets, message by message; others answer with their path.
async fn serve(io: DuplexStream) {
    let mut connection = h2::server::handshake(io).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let path = request.uri().path().to_owned();
            let peer = request.headers().get("x-cinch-peer").cloned();
            let mut body = request.into_body();
            let mut answer = Response::builder().status(200).header("x-path", &path).header("server", "peer");
            if let Some(peer) = peer {
                answer = answer.header("x-peer", peer);
            }
            let mut send = respond.send_response(answer.body(()).unwrap(), false).unwrap();
            let mut total = 0;
            while let Some(Ok(piece)) = body.data().await {
                total += piece.len();
                let _ = body.flow_control().release_capacity(piece.len());
                if path.starts_with("/echo") && write(&mut send, piece).await.is_err() {
                    return;
                }
            }
            let _ = body.trailers().await;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            trailers.insert("x-total", total.to_string().parse().unwrap());
            let _ = send.send_trailers(trailers);
        });
    }
}

/// Sends as the window permits.
async fn write(send: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let room = std::future::poll_fn(|context| send.poll_capacity(context)).await;
        let room = room.ok_or(h2::Error::from(h2::Reason::CANCEL))??;
        send.send_data(bytes.split_to(room.min(bytes.len())), false)?;
    }
    Ok(())
}

async fn read(body: &mut RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut all = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.unwrap();
        let _ = body.flow_control().release_capacity(piece.len());
        all.extend_from_slice(&piece);
    }
    let trailers = body.trailers().await.unwrap();
    (all, trailers)
}

struct Pair {
    send: SendRequest<Bytes>,
    rules: JoinHandle<Rules>,
}

async fn pair(read: usize) -> Pair {
    let (client, to_client) = duplex(64 * 1024);
    let (app, to_app) = duplex(64 * 1024);
    let rules = tokio::spawn(filter(to_client, to_app, read));
    tokio::spawn(serve(app));
    let (send, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    Pair { send, rules }
}

fn request(path: &str) -> http::request::Builder {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://shop.example:8080{path}"))
        .header("user-agent", "grpc-rust/1.0")
        .header("te", "trailers")
}

async fn ready(send: &SendRequest<Bytes>) -> SendRequest<Bytes> {
    send.clone().ready().await.unwrap()
}

#[tokio::test]
async fn many_requests_at_once_are_each_answered_as_decided() {
    for read_size in [7, 65_536] {
        let pair = pair(read_size).await;
        let mut tasks = Vec::new();
        for number in 0..150_u32 {
            let path =
                format!("{}/{number}", ["/a", "/deny", "/patch", "/401", "/echo"][number as usize % 5]);
            let mut send = ready(&pair.send).await;
            tasks.push(tokio::spawn(async move {
                let request = request(&path).header("x-number", number).header("x-long", "v".repeat(100));
                let (answer, mut stream) = send.send_request(request.body(()).unwrap(), false).unwrap();
                let _ = stream.send_data(Bytes::from(vec![number as u8; 300]), true);
                let answer = answer.await.unwrap();
                let header =
                    |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
                let (status, at, peer) = (answer.status().as_u16(), header("x-path"), header("x-peer"));
                match number % 5 {
                    1 => assert_eq!((status, at), (403, None)),
                    3 => assert_eq!((status, at), (401, None)),
                    2 => {
                        let peers = Some("spiffe://td/ns/a/sa/b".to_owned());
                        assert_eq!((status, at, peer), (200, Some(format!("/patched/{number}")), peers));
                    }
                    _ => {
                        assert_eq!((status, at), (200, Some(path)));
                        let (body, trailers) = read(&mut answer.into_body()).await;
                        assert_eq!(body, if number % 5 == 4 { vec![number as u8; 300] } else { Vec::new() });
                        assert_eq!(trailers.unwrap()["x-total"], "300");
                    }
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        drop(pair.send);
        let rules = pair.rules.await.unwrap();
        assert_eq!((rules.seen.len(), rules.finished.len(), rules.refused.len()), (150, 150, 0));
    }
}

#[tokio::test]
async fn grpc_streams_in_both_directions_at_once() {
    let pair = pair(65_536).await;
    let mut tasks = Vec::new();
    for number in 0..8_u8 {
        let mut send = ready(&pair.send).await;
        tasks.push(tokio::spawn(async move {
            let request = request("/echo/pkg.Service/Chat").header("content-type", "application/grpc");
            let (answer, mut stream) = send.send_request(request.body(()).unwrap(), false).unwrap();
            let mut body = answer.await.unwrap().into_body();
            // Each message waits for the echo of the one before: nothing is held back on the way.
            for round in 0..50_usize {
                let message = vec![number ^ round as u8; 5 + round * round];
                write(&mut stream, Bytes::from(message.clone())).await.unwrap();
                let mut echo = Vec::new();
                while echo.len() < message.len() {
                    let piece = body.data().await.unwrap().unwrap();
                    let _ = body.flow_control().release_capacity(piece.len());
                    echo.extend_from_slice(&piece);
                }
                assert_eq!(echo, message);
            }
            stream.send_data(Bytes::new(), true).unwrap();
            let (rest, trailers) = read(&mut body).await;
            assert_eq!((rest.len(), &trailers.unwrap()["grpc-status"]), (0, &"0".parse().unwrap()));
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn rule_06_refused_uploads_do_not_use_up_the_window_of_the_connection() {
    let pair = pair(65_536).await;
    // Far more than the 64 KiB that the connection has.
    for _ in 0..40 {
        let mut send = ready(&pair.send).await;
        let call = request("/deny/pkg.Service/Upload").header("content-type", "application/grpc");
        let (answer, mut stream) = send.send_request(call.body(()).unwrap(), false).unwrap();
        let _ = stream.send_data(Bytes::from(vec![1; 60_000]), false);
        let answer = answer.await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        assert_eq!(answer.headers()["grpc-status"], "7");
        assert!(answer.body().is_end_stream());
    }
    let mut send = ready(&pair.send).await;
    let (answer, mut stream) = send.send_request(request("/echo").body(()).unwrap(), false).unwrap();
    let sent = vec![5; 3 << 20];
    let bytes = Bytes::from(sent.clone());
    let writer = tokio::spawn(async move {
        write(&mut stream, bytes).await.unwrap();
        stream.send_data(Bytes::new(), true).unwrap();
    });
    let (body, trailers) = read(&mut answer.await.unwrap().into_body()).await;
    writer.await.unwrap();
    assert!(body == sent, "3 MiB came back otherwise");
    assert_eq!(trailers.unwrap()["x-total"], (3 << 20).to_string());
}
