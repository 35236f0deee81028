//! Peers and apps that take their bytes slowly or not at all: what is kept for them is bounded for all together, each
//! of them goes on when it reads, and nobody else waits for it.

use crate::mesh::*;
use crate::records::Client;
use cinch_policy::Mode;
use cinch_proxy::limits::Limits;
use socket2::SockRef;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

/// For all together, beyond their floors.
const BOUND: usize = 256 * 1024;
/// Who holds up what; more than kernels hold for one.
const SLOW: usize = 16;
const WORDS: usize = 6 << 20;

/// A pod whose app is `app`, with a bound that a few can reach.
async fn pod(app: SocketAddr) -> (Authority, Pod) {
    let authority = Authority::new();
    let bounded = Limits { kept_bytes: BOUND, ..limits() };
    let pod = Pod::with(API_IP, authority.good(API), Mode::Permissive, bounded).await;
    pod.set_app(app);
    (authority, pod)
}

/// The kernel keeps little of what is said on it, so that it is the proxy that holds things up.
fn keep_little(stream: &TcpStream) {
    SockRef::from(stream).set_send_buffer_size(256 * 1024).unwrap();
}

/// Words that say at which place of a stream they are.
fn words() -> Arc<[u8]> {
    (0..WORDS).map(|at| (at % 251) as u8).collect()
}

/// Waits until no more bytes go by `metric`.
async fn stalled(pod: &Pod, metric: &str) {
    let (mut before, mut same) = (0, 0);
    while same < 3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = pod.metric(metric).unwrap_or(0);
        same = if now > 0 && now == before { same + 1 } else { 0 };
        before = now;
    }
}

fn assert_bounded(pod: &Pod) {
    let kept = pod.metric("kept_bytes ").unwrap();
    println!("{kept} bytes are kept beyond the floors");
    let bound = i64::try_from(BOUND).unwrap();
    assert!((bound / 2..=bound).contains(&kept), "{kept} bytes");
    assert!(pod.metric("limit_refusals_total{limit=\"kept_bytes\"}") >= Some(1));
}

/// Much goes both ways through a connection to an echo.
async fn assert_serves(pod: &Pod) {
    pod.set_app(echo(API_IP).await);
    let words = words();
    let (mut read, mut write) = TcpStream::connect(pod.inbound).await.unwrap().into_split();
    let said = words.clone();
    tokio::spawn(async move { write.write_all(&said).await.map(|()| write) });
    let mut back = vec![0; words.len()];
    within(read.read_exact(&mut back)).await.unwrap();
    assert!(back == words[..], "not what was said");
}

#[tokio::test]
async fn what_is_kept_for_clients_that_do_not_read_is_bounded_and_each_goes_on_when_it_does() {
    let said = words();
    let speaker = {
        let said = said.clone();
        app(API_IP, move |mut stream| {
            let said = said.clone();
            async move {
                keep_little(&stream);
                let _ = stream.write_all(&said).await;
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            }
        })
    };
    let (authority, pod) = pod(speaker.await).await;
    let mut plain = Vec::new();
    for _ in 0..SLOW {
        let mut stream = TcpStream::connect(pod.inbound).await.unwrap();
        stream.write_all(b"more").await.unwrap();
        plain.push(stream);
    }
    let mut tunnels = Vec::new();
    for _ in 0..SLOW / 4 {
        let mut client = Client::shake(&authority, &pod).await;
        client.open();
        let sealed = client.sealed();
        client.tcp.write_all(&sealed).await.unwrap();
        tunnels.push(client);
    }
    stalled(&pod, "sent_bytes_total{direction=\"inbound\",transport=\"plaintext\"}").await;
    stalled(&pod, "sent_bytes_total{direction=\"inbound\",transport=\"tunnel\"}").await;
    assert_bounded(&pod);
    assert_serves(&pod).await;
    // The last ones first: nobody waits for those before.
    for client in tunnels.iter_mut().rev() {
        while client.heard.len() < WORDS {
            client.hear().await.unwrap();
        }
        assert!(client.heard == said[..], "not what was said");
    }
    for stream in plain.iter_mut().rev() {
        let mut heard = vec![0; WORDS];
        within(stream.read_exact(&mut heard)).await.unwrap();
        assert!(heard == said[..], "not what was said");
    }
    eventually("nothing is kept", || pod.metric("kept_bytes ") == Some(0)).await;
}

#[tokio::test]
async fn what_is_kept_for_an_app_that_does_not_read_is_bounded_and_it_gets_all_when_it_does() {
    let (go, told) = watch::channel(false);
    let (heard, mut all) = mpsc::unbounded_channel();
    let slow = app(API_IP, move |mut stream| {
        let (mut told, heard) = (told.clone(), heard.clone());
        async move {
            let _ = told.wait_for(|go| *go).await;
            let mut bytes = vec![0; WORDS];
            let whole = stream.read_exact(&mut bytes).await.is_ok();
            let _ = heard.send((whole, bytes));
            let _ = stream.read(&mut [0]).await;
        }
    });
    let (authority, pod) = pod(slow.await).await;
    let said = words();
    let mut open = Vec::new();
    for number in 0..SLOW {
        let client = if number % 4 == 0 {
            let mut client = Client::shake(&authority, &pod).await;
            client.open();
            let mut sealed = client.sealed();
            for chunk in said.chunks(16_000) {
                client.say(chunk, false);
                sealed.extend(client.sealed());
            }
            (client.tcp, sealed.into())
        } else {
            (TcpStream::connect(pod.inbound).await.unwrap(), said.clone())
        };
        let (mut stream, bytes): (TcpStream, Arc<[u8]>) = client;
        keep_little(&stream);
        open.push(tokio::spawn(async move { stream.write_all(&bytes).await.map(|()| stream) }));
    }
    stalled(&pod, "received_bytes_total{direction=\"inbound\",transport=\"plaintext\"}").await;
    stalled(&pod, "received_bytes_total{direction=\"inbound\",transport=\"tunnel\"}").await;
    assert_bounded(&pod);
    assert_serves(&pod).await;
    go.send_replace(true);
    for _ in 0..SLOW {
        let (whole, bytes) = within(all.recv()).await.unwrap();
        assert!(whole && bytes == said[..], "not what was said");
    }
    eventually("nothing is kept", || pod.metric("kept_bytes ") == Some(0)).await;
}
