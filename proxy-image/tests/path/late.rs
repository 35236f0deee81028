//! ClientHellos that come late, at apps that speak first: from where tunnels have come lately they are waited for, and
//! what all the same was taken for plaintext is not told as such.

use crate::bounds::dial_from;
use crate::mesh::*;
use crate::modes::tunnel;
use cinch_identity::server_name;
use cinch_policy::Mode;
use cinch_proxy::limits::Limits;
use cinch_proxy::tunnel_io::Answer;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const BANNER: &[u8] = b"220 ready";

/// An app that speaks first, and then hears its client out.
async fn greeting() -> SocketAddr {
    app(API_IP, |mut stream| async move {
        let _ = stream.write_all(BANNER).await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await
}

/// A pod that has had a tunnel from the address that tests use.
async fn visited_pod(silence_of_peers: Duration) -> (Authority, Pod) {
    visited_pod_with(Limits { silence_of_peers, ..limits() }).await
}

async fn visited_pod_with(limits: Limits) -> (Authority, Pod) {
    let authority = Authority::new();
    let limits = Limits { silence: Duration::from_millis(20), ..limits };
    let pod = Pod::with(API_IP, authority.good(API), Mode::Permissive, limits).await;
    pod.set_app(greeting().await);
    drop(tunnel(&authority, &pod, Duration::ZERO).await);
    let shaken = "tunnel_handshakes_total{direction=\"inbound\",outcome=\"ok\"}";
    eventually("the handshake has ended on this side, too", || pod.metric(shaken) == Some(1)).await;
    (authority, pod)
}

/// The first words of a tunnel.
fn hello(authority: &Authority) -> Vec<u8> {
    let credentials = authority.good(WEB);
    let mut client = rustls::ClientConnection::new(to_api(&credentials), server_name()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

async fn hear_banner(stream: &mut TcpStream) {
    let mut heard = [0; BANNER.len()];
    within(stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(heard, BANNER);
}

#[tokio::test]
async fn a_late_hello_from_where_tunnels_came_lately_is_waited_for() {
    let (authority, pod) = visited_pod(Duration::from_secs(20)).await;
    let mut late = tunnel(&authority, &pod, Duration::from_millis(300)).await;
    late.begin(b"").unwrap();
    assert_eq!(within(late.answer()).await.unwrap(), Answer::Opened);
    // A stranger is not kept waiting: he waits for the banner while nobody may have come from him.
    hear_banner(&mut dial_from([127, 0, 9, 2], pod.inbound).await).await;
    eventually("the stranger is told", || pod.totals().served == 1).await;
}

#[tokio::test]
async fn a_hello_that_comes_after_the_apps_first_word_is_no_plaintext() {
    let (authority, pod) = visited_pod(Duration::from_millis(20)).await;
    let hello = hello(&authority);
    for cut in [0, 100] {
        let mut late = TcpStream::connect(pod.inbound).await.unwrap();
        hear_banner(&mut late).await;
        late.write_all(&hello[..cut]).await.unwrap();
        pass(Duration::from_millis(20)).await;
        late.write_all(&hello[cut..]).await.unwrap();
        assert_reset(&mut late).await;
    }
    let open = "connections_open{direction=\"inbound\",transport=\"plaintext\"}";
    eventually("they are gone", || pod.metric(open) == Some(0)).await;
    let counts = pod.totals();
    assert_eq!((counts.served, counts.empty, counts.denied, counts.open), (0, 0, 0, 0));
    assert_eq!(pod.metric("limit_refusals_total{limit=\"silence_of_peers\"}"), Some(2));
}

#[tokio::test]
async fn who_was_plaintext_once_is_not_waited_for_again() {
    let (authority, pod) = visited_pod(Duration::from_millis(100)).await;
    let mut plain = TcpStream::connect(pod.inbound).await.unwrap();
    hear_banner(&mut plain).await;
    drop(plain);
    eventually("it has ended", || (pod.totals().served, pod.totals().open) == (1, 0)).await;
    // Nobody looks at the first words of the next one: it is a stranger's.
    let mut next = TcpStream::connect(pod.inbound).await.unwrap();
    hear_banner(&mut next).await;
    next.write_all(&hello(&authority)).await.unwrap();
    eventually("it is served", || pod.totals().served == 2).await;
    assert_eq!(pod.metric("limit_refusals_total{limit=\"silence_of_peers\"}").unwrap_or(0), 0);
}

#[tokio::test]
async fn plaintext_from_where_tunnels_came_lately_is_told() {
    let brief = Limits { silence_of_peers: Duration::from_millis(20), ..hasty() };
    let (_authority, pod) = visited_pod_with(brief).await;
    let mut speaks = TcpStream::connect(pod.inbound).await.unwrap();
    hear_banner(&mut speaks).await;
    speaks.write_all(b"HELO").await.unwrap();
    eventually("what it says is served", || (pod.totals().served, pod.totals().open) == (1, 1)).await;
    // One whose first words look like TLS for a while, and then are another's.
    let mut tls = TcpStream::connect(pod.inbound).await.unwrap();
    hear_banner(&mut tls).await;
    tls.write_all(&[0x16, 3, 1, 0, 5]).await.unwrap();
    pass(Duration::from_millis(20)).await;
    tls.write_all(&[2, 0, 0, 0, 0]).await.unwrap();
    eventually("nor is that a tunnel", || pod.totals().served == 2).await;
    // Silent ones: one that stays, and one that leaves after it has heard the app.
    let mut stays = TcpStream::connect(pod.inbound).await.unwrap();
    hear_banner(&mut stays).await;
    eventually("who says nothing in its time is served, too", || pod.totals().served == 3).await;
    let mut leaves = TcpStream::connect(pod.inbound).await.unwrap();
    hear_banner(&mut leaves).await;
    drop(leaves);
    eventually("it is told that it was served", || pod.totals().served == 4).await;
}
