//! Connections that break, in every state that they can be in: nothing is left of them, and nobody else notices.

use crate::mesh::*;
use crate::modes::pod;
use crate::records::Client;
use cinch_identity::{Peer, client_config, server_name};
use cinch_policy::Mode;
use cinch_proxy::limits::Limits;
use cinch_tunnel::ResetCode;
use std::io::Write;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How far a client gets before its connection breaks.
#[derive(Debug, Clone, Copy)]
enum State {
    Connected,
    HalfAHello,
    Hello,
    Shaken,
    HalfARecord,
    Opened,
    Talking,
    ClientEnded,
    AppEnded,
    ResetSaid,
    SecondStream,
}

const STATES: [State; 11] = [
    State::Connected,
    State::HalfAHello,
    State::Hello,
    State::Shaken,
    State::HalfARecord,
    State::Opened,
    State::Talking,
    State::ClientEnded,
    State::AppEnded,
    State::ResetSaid,
    State::SecondStream,
];

/// How it breaks.
#[derive(Debug, Clone, Copy)]
enum Break {
    Reset,
    Fin,
}

fn hello(authority: &Authority) -> Vec<u8> {
    let credentials = authority.good(WEB);
    let peer = Peer::Exactly(id(API));
    let config =
        client_config(Some(&credentials.svid), &credentials.bundle, peer, &[cinch_tunnel::ALPN]).unwrap();
    let mut client = rustls::ClientConnection::new(config, server_name()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

async fn flush(client: &mut Client) {
    let sealed = client.sealed();
    client.tcp.write_all(&sealed).await.unwrap();
}

async fn say_and_hear(client: &mut Client, words: &[u8]) {
    client.open();
    client.say(words, false);
    flush(client).await;
    while client.heard != words {
        client.hear().await.unwrap();
    }
}

/// A connection in `state`.
async fn reach(state: State, authority: &Authority, pod: &Pod) -> TcpStream {
    if matches!(state, State::Connected | State::HalfAHello | State::Hello) {
        let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
        let hello = hello(authority);
        let said = match state {
            State::Connected => 0,
            State::HalfAHello => hello.len() / 2,
            _ => hello.len(),
        };
        stream.write_all(&hello[..said]).await.unwrap();
        return stream;
    }
    let mut client = Client::shake(authority, pod).await;
    flush(&mut client).await;
    match state {
        State::Opened => {
            client.open();
            flush(&mut client).await;
        }
        State::HalfARecord => {
            client.open();
            let sealed = client.sealed();
            client.tcp.write_all(&sealed[..sealed.len() / 2]).await.unwrap();
        }
        State::Talking => say_and_hear(&mut client, b"words").await,
        State::ClientEnded => {
            say_and_hear(&mut client, b"words").await;
            client.say(b"", true);
            flush(&mut client).await;
        }
        State::AppEnded => {
            say_and_hear(&mut client, b"end").await;
            while !client.fin {
                client.hear().await.unwrap();
            }
        }
        State::ResetSaid => {
            say_and_hear(&mut client, b"words").await;
            let mut frame = Vec::new();
            client.session.reset(ResetCode::App, &mut frame).unwrap();
            client.tls.writer().write_all(&frame).unwrap();
            flush(&mut client).await;
        }
        State::SecondStream => {
            say_and_hear(&mut client, b"end").await;
            client.say(b"", true);
            flush(&mut client).await;
            while !client.fin {
                client.hear().await.unwrap();
            }
            client.heard.clear();
            say_and_hear(&mut client, b"again").await;
        }
        _ => {}
    }
    client.tcp
}

/// An app that echoes, and ends its own direction after the word `end`.
async fn ending_app() -> std::net::SocketAddr {
    app(API_IP, |mut stream| async move {
        let mut bytes = [0; 1000];
        while let Ok(count @ 1..) = stream.read(&mut bytes).await {
            if stream.write_all(&bytes[..count]).await.is_err() {
                return;
            }
            if &bytes[..count] == b"end" {
                let _ = stream.shutdown().await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_tunnel_that_breaks_in_any_state_leaves_nothing_behind() {
    let short = Limits { settle: Duration::from_millis(300), ..limits() };
    let authority = Authority::new();
    let pod = Pod::with(API_IP, authority.good(API), Mode::Strict, short).await;
    pod.set_app(ending_app().await);
    let mut witness = Client::shake(&authority, &pod).await;
    say_and_hear(&mut witness, b"I was here before").await;
    let (tunnels, open) = (
        "tunnels_open{direction=\"inbound\"}",
        "connections_open{direction=\"inbound\",transport=\"tunnel\"}",
    );
    for state in STATES {
        for how in [Break::Reset, Break::Fin] {
            let mut broken = Vec::new();
            for _ in 0..5 {
                broken.push(reach(state, &authority, &pod).await);
            }
            for stream in broken {
                match how {
                    Break::Reset => reset(stream),
                    Break::Fin => drop(stream),
                }
            }
            let gone = || {
                let now =
                    [tunnels, open, "connections_opening "].map(|metric| pod.metric(metric).unwrap_or(0));
                now == [1, 1, 0]
            };
            eventually(&format!("{state:?} {how:?}: only the witness is left; that"), gone).await;
        }
    }
    witness.heard.clear();
    witness.say(b"and after", false);
    flush(&mut witness).await;
    while witness.heard != b"and after" {
        witness.hear().await.unwrap();
    }
}

#[tokio::test]
async fn an_app_that_resets_in_any_state_leaves_nothing_behind() {
    let mesh = Mesh::start(Mode::Strict).await;
    mesh.api.set_app(ending_app().await);
    let mut witness = mesh.dial().await;
    assert_eq!(exchange(&mut witness, b"before").await.unwrap(), b"before");
    let open = |direction| format!("connections_open{{direction=\"{direction}\",transport=\"tunnel\"}}");
    for rounds in 0..5 {
        for _ in 0..5 {
            let mut stream = TcpStream::connect(mesh.web.outbound).await.unwrap();
            match rounds {
                0 => {}
                1 => stream.write_all(b"words").await.unwrap(),
                2 => drop(exchange(&mut stream, b"words").await.unwrap()),
                3 => {
                    exchange(&mut stream, b"words").await.unwrap();
                    stream.shutdown().await.unwrap();
                }
                _ => {
                    exchange(&mut stream, b"end").await.unwrap();
                    assert_eq!(to_end(&mut stream).await, (vec![], None));
                }
            }
            reset(stream);
        }
        let gone = || {
            let opening = "connections_opening ";
            mesh.web.metric(&open("outbound")) == Some(1)
                && mesh.api.metric(&open("inbound")) == Some(1)
                && (mesh.web.metric(opening), mesh.api.metric(opening)) == (Some(0), Some(0))
        };
        eventually(&format!("round {rounds}: only the witness is left; that"), gone).await;
    }
    assert_eq!(exchange(&mut witness, b"after").await.unwrap(), b"after");
    assert!(mesh.web.metric("tunnels_idle ") >= Some(1), "what was reset in order is used again");
}

#[tokio::test]
async fn clients_that_never_read_keep_nobody_from_their_answers() {
    let (authority, pod) = pod(Mode::Strict).await;
    // An app that speaks without end.
    let torrent =
        app(API_IP, |mut stream| async move { while stream.write_all(&[7; 65_536]).await.is_ok() {} });
    let echoing = *pod.app.lock().unwrap();
    pod.set_app(torrent.await);
    let mut deaf = Vec::new();
    for _ in 0..20 {
        let mut client = Client::shake(&authority, &pod).await;
        client.open();
        flush(&mut client).await;
        deaf.push(client);
    }
    // Until kernels hold all that they take.
    let sent = "sent_bytes_total{direction=\"inbound\",transport=\"tunnel\"}";
    let mut before = -1;
    while pod.metric(sent).unwrap_or(0) != before {
        before = pod.metric(sent).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before > 0);
    pod.set_app(echoing);
    let mut client = Client::shake(&authority, &pod).await;
    say_and_hear(&mut client, b"an honest word").await;
}
