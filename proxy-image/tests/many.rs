//! Many connections at once: each gets on, what each costs is known, and what they cost together is given back.
//! The whole process counts its memory, so the tests take turns.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(missing_docs)]
// The allocator's interface is unsafe; it only counts and hands on.
#![allow(unsafe_code)]

const RECORDS: cinch_identity::RecordLayer = cinch_identity::RecordLayer::InPlace;

#[allow(dead_code)]
#[path = "path/mesh.rs"]
mod mesh;

use cinch_policy::Mode;
use cinch_proxy::limits::Limits;
use cinch_proxy::process;
use futures::future::join_all;
use mesh::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

static TURN: Mutex<()> = Mutex::const_new(());
/// Bytes allocated and not freed.
static HELD: AtomicI64 = AtomicI64::new(0);

struct Counting;

fn count(change: i64) {
    HELD.fetch_add(change, Ordering::Relaxed);
}

fn held() -> i64 {
    HELD.load(Ordering::Relaxed)
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: as above; the pointer came from `alloc` or `realloc`, hence from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// An app that echoes, a few bytes at a time, and holds nothing else.
async fn lean_echo(ip: Ipv4Addr) -> SocketAddr {
    app(ip, |mut stream| async move {
        let mut bytes = [0; 16];
        while let Ok(count @ 1..) = stream.read(&mut bytes).await {
            if stream.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn say(stream: &mut TcpStream, words: [u8; 8]) {
    stream.write_all(&words).await.unwrap();
    let mut back = [0; 8];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, words);
}

/// As [`held`], without what the test's access logs keep.
async fn held_but_for_logs(pods: [&Pod; 2]) -> i64 {
    tokio::time::sleep(Duration::from_millis(300)).await;
    for pod in pods {
        pod.log.forget();
    }
    held()
}

/// Opens `count` connections to `to`, says something on each, and keeps them; what was allocated for each.
async fn cost_of(count: usize, to: SocketAddr, mesh: &Mesh) -> (i64, Vec<TcpStream>) {
    let pods = [&mesh.web, &mesh.api];
    let (before, mut open) = (held_but_for_logs(pods).await, Vec::with_capacity(count));
    for number in 0..count {
        let mut stream = TcpStream::connect(to).await.unwrap();
        say(&mut stream, number.to_be_bytes()).await;
        open.push(stream);
    }
    ((held_but_for_logs(pods).await - before) / count as i64, open)
}

/// A client with its pod, and a server with its own, for connections without number.
async fn wide(limits: Limits) -> Mesh {
    let authority = Authority::new();
    let web = Pod::with(WEB_IP, authority.good(WEB), Mode::Permissive, limits.clone()).await;
    let api = Pod::with(API_IP, authority.good(API), Mode::Strict, limits).await;
    web.told.say(SERVICE, one_of(vec![endpoint(api.inbound, API)]));
    api.set_app(lean_echo(API_IP).await);
    Mesh { authority, web, api }
}

fn patient() -> Limits {
    // Debug builds on busy machines take their time for handshakes.
    let long = Duration::from_secs(60);
    Limits { handshake_timeout: long, open_timeout: long, ..Limits::default() }
}

#[tokio::test]
async fn an_idle_connection_holds_less_than_six_kibibytes_in_each_proxy() {
    let _turn = TURN.lock().await;
    let mesh = wide(patient()).await;
    let app = *mesh.api.app.lock().unwrap();
    // What the process holds once, and what the test itself holds for a connection.
    drop((cost_of(50, mesh.web.outbound, &mesh).await, cost_of(50, app, &mesh).await));
    let (own, direct) = cost_of(200, app, &mesh).await;
    let (both, meshed) = cost_of(200, mesh.web.outbound, &mesh).await;
    println!("bytes held for an idle connection by both proxies: {}", both - own);
    assert!(both - own < 2 * 6 * 1024, "{} bytes", both - own);
    drop((direct, meshed));
}

/// Connections at once: two pods, their apps and their clients are one process here and take six descriptors for each.
fn burst() -> usize {
    process::raise_descriptor_limit(0);
    let descriptors = process::descriptor_limit().unwrap();
    usize::try_from(descriptors / 7).unwrap().min(2000)
}

#[tokio::test]
async fn a_burst_to_one_new_peer_is_served_whole_and_what_it_took_is_given_back() {
    let _turn = TURN.lock().await;
    let burst = burst();
    let mesh = wide(patient()).await;
    drop(cost_of(80, mesh.web.outbound, &mesh).await);
    eventually("the pool is full", || mesh.web.metric("tunnels_idle ") == Some(64)).await;
    let pods = [&mesh.web, &mesh.api];
    let before = held_but_for_logs(pods).await;
    let to = mesh.web.outbound;
    let mut open = join_all((0..burst).map(async |number| {
        let mut stream = TcpStream::connect(to).await.unwrap();
        say(&mut stream, number.to_be_bytes()).await;
        stream
    }))
    .await;
    // All of them go on, none waits for another's end.
    for round in 0..3 {
        join_all(open.iter_mut().map(async |stream| say(stream, [round; 8]).await)).await;
    }
    assert_eq!(mesh.web.metric("connections_refused_total"), None);
    let most = (held_but_for_logs(pods).await - before) / burst as i64;
    println!("bytes held for each of {burst} connections at once, by all: {most}");
    drop(open);
    eventually("only idle tunnels are left", || {
        let open = |direction| format!("tunnels_open{{direction=\"{direction}\"}}");
        mesh.web.metric("tunnels_idle ") == Some(64)
            && mesh.web.metric(&open("outbound")) == Some(64)
            && mesh.api.metric(&open("inbound")) == Some(64)
    })
    .await;
    let left = held_but_for_logs(pods).await - before;
    println!("bytes left when they are gone: {left}");
    // Tables that grew stay as they are.
    assert!(left < 2 << 20, "{left} bytes are left");
}

#[tokio::test]
async fn a_client_of_very_many_peers_holds_a_bounded_number_of_tunnels() {
    const PEERS: u32 = 1000;
    let _turn = TURN.lock().await;
    let limits = Limits { idle_tunnels: 100, ..patient() };
    let authority = Authority::new();
    let web = Pod::with(WEB_IP, authority.good(WEB), Mode::Permissive, limits.clone()).await;
    // One proxy at very many addresses: each is a peer of its own to the client.
    let anywhere = Ipv4Addr::UNSPECIFIED;
    let api = Pod::with(anywhere, authority.good(API), Mode::Strict, limits).await;
    api.set_app(lean_echo(anywhere).await);
    let talk = async |from: u32, to: u32| {
        for peer in from..to {
            let address = SocketAddr::from((Ipv4Addr::from(0x7f03_0001 + peer), api.inbound.port()));
            web.told.say(SERVICE, one_of(vec![endpoint(address, API)]));
            let mut stream = TcpStream::connect(web.outbound).await.unwrap();
            say(&mut stream, [1; 8]).await;
        }
        let open = |direction| format!("tunnels_open{{direction=\"{direction}\"}}");
        eventually("what the pool does not hold is closed", || {
            web.metric(&open("outbound")) == Some(100) && api.metric(&open("inbound")) == Some(100)
        })
        .await;
        held_but_for_logs([&web, &api]).await
    };
    let half = talk(0, PEERS / 2).await;
    let whole = talk(PEERS / 2, PEERS).await;
    assert_eq!(web.metric("tunnels_idle "), Some(100));
    println!("bytes more after {PEERS} peers than after half of them: {}", whole - half);
    assert!(whole - half < 256 * 1024, "{} bytes", whole - half);
}
