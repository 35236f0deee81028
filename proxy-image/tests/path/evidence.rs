//! What counts as plaintext, and what only looks like it.

use crate::mesh::*;
use crate::modes::pod;
use cinch_policy::Mode;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

#[tokio::test]
async fn a_connect_scan_is_empty_in_every_mode() {
    for mode in [Mode::Strict, Mode::Permissive, Mode::Disable] {
        let (_authority, pod) = pod(mode).await;
        drop(TcpStream::connect(pod.inbound).await.unwrap());
        reset(TcpStream::connect(pod.inbound).await.unwrap());
        eventually("both are counted", || pod.totals().empty == 2).await;
        let counts = pod.totals();
        assert_eq!((counts.served, counts.denied, counts.open), (0, 0, 0), "{mode}");
        assert_eq!(pod.ctx.evidence.report(1, false).sources.len(), 1);
    }
}

#[tokio::test]
async fn a_silent_connection_is_not_open_plaintext_and_ends_as_empty() {
    let (_authority, pod) = pod(Mode::Permissive).await;
    let stream = TcpStream::connect(pod.inbound).await.unwrap();
    let connected = "connections_open{direction=\"inbound\",transport=\"plaintext\"}";
    eventually("the app has it", || pod.metric(connected) == Some(1)).await;
    assert_eq!((pod.totals().open, pod.totals().served), (0, 0));
    drop(stream);
    eventually("it is empty", || pod.totals().empty == 1).await;
    assert_eq!((pod.totals().open, pod.totals().served), (0, 0));
}

#[tokio::test]
async fn a_port_without_listener_is_counted_as_such() {
    let (_authority, pod) = pod(Mode::Permissive).await;
    pod.set_app((API_IP, 1).into());
    let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
    assert_refuses(&mut stream, b"anybody?").await;
    assert_eq!((pod.totals().no_listener, pod.totals().served), (1, 0));
}

#[tokio::test]
async fn the_apps_greeting_alone_is_served_plaintext() {
    let (_authority, pod) = pod(Mode::Permissive).await;
    let greeting = app(API_IP, |mut stream| async move {
        let _ = stream.write_all(b"220").await;
    });
    pod.set_app(greeting.await);
    let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
    assert_eq!(to_end(&mut stream).await.0, b"220");
    assert_eq!(pod.totals().served, 1);
}

#[tokio::test]
async fn the_self_test_is_proof_of_the_outbound_redirect() {
    let (_authority, pod) = pod(Mode::Permissive).await;
    assert_eq!(pod.ctx.evidence.outbound_proof_age(), None);
    let begun = Instant::now();
    let mut stream = pod.dial(([192, 0, 2, 1], 15001).into()).await;
    assert_eq!(to_end(&mut stream).await, (vec![], None));
    // Ages are in milliseconds.
    assert!(pod.ctx.evidence.outbound_proof_age().unwrap() <= begun.elapsed() + Duration::from_millis(1));
}
