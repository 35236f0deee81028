//! Many connections at once: each gets on, what each costs is known, and what they cost together is given back.
//! The whole process counts its memory, so the tests take turns.
//!
//! `CINCH_MANY=10000 cargo test -p cinch-proxy --test many -- --nocapture` plays them with as many connections, and as
//! many peers, where the hard limit of descriptors allows seven for each, and prints the figures.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(missing_docs)]
// The allocator's interface is unsafe; it only counts and hands on.
#![allow(unsafe_code)]

const RECORDS: cinch_identity::RecordLayer = cinch_identity::RecordLayer::InPlace;

#[allow(dead_code)]
#[path = "path/mesh.rs"]
mod mesh;

use cinch_policy::Mode;
use cinch_proxy::copy::READ;
use cinch_proxy::limits::Limits;
use cinch_proxy::process;
use futures::future::join_all;
use mesh::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

static TURN: Mutex<()> = Mutex::const_new(());
/// Bytes allocated and not freed.
static HELD: AtomicI64 = AtomicI64::new(0);

struct Counting;

/// The most that it was since it was last set.
static PEAK: AtomicI64 = AtomicI64::new(0);

fn count(change: i64) {
    let held = HELD.fetch_add(change, Ordering::Relaxed) + change;
    PEAK.fetch_max(held, Ordering::Relaxed);
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

/// An app that echoes, and holds nothing while it waits.
async fn lean_echo(ip: Ipv4Addr) -> SocketAddr {
    app(ip, |mut stream| async move {
        while stream.readable().await.is_ok() {
            let words = match read_now(&stream) {
                Ok(words) => words,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(_) => return,
            };
            if words.is_empty() || stream.write_all(&words).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// What has come; nothing at the end.
fn read_now(stream: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = [0; 4096];
    stream.try_read(&mut bytes).map(|count| bytes[..count].to_vec())
}

async fn say(stream: &mut TcpStream, words: [u8; 8]) {
    stream.write_all(&words).await.unwrap();
    let mut back = [0; 8];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, words);
}

/// As [`held`], without what the test's access logs keep.
async fn held_but_for_logs(pods: [&Pod; 2]) -> i64 {
    pass(Duration::from_millis(300)).await;
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
    let long = Duration::from_secs(600);
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
    // Two contexts of cryptography come on top in each, 1.3 KiB, which C allocates.
    assert!(both - own < 2 * 4 * 1024, "{} bytes", both - own);
    drop((direct, meshed));
}

/// `usual` connections at once, or as many as `CINCH_MANY` says: two pods, their apps and their clients are one process
/// here and take six descriptors for each.
fn many(usual: usize) -> usize {
    process::raise_descriptor_limit(0);
    let most = usize::try_from(process::descriptor_limit().unwrap() / 7).unwrap();
    match std::env::var("CINCH_MANY") {
        Ok(wanted) => {
            let wanted = wanted.parse().expect("CINCH_MANY is a number");
            assert!(wanted <= most, "{wanted} connections need {} descriptors", 7 * wanted);
            wanted
        }
        Err(_) => usual.min(most),
    }
}

/// Of many connections, those that never rest.
const BUSY: usize = 50;
/// What they send at a time.
const BULK: usize = 16 * 1024;

/// Says something on every one of `open`, three times, while a few of them send and receive without end.
async fn all_get_on(open: &mut [TcpStream]) {
    let (busy, others) = open.split_at_mut(BUSY);
    let is_over = AtomicBool::new(false);
    let bulk = vec![7; BULK];
    let busy = join_all(busy.iter_mut().map(async |stream| {
        let (mut moved, mut back) = (0, vec![0; BULK]);
        while !is_over.load(Ordering::Relaxed) {
            stream.write_all(&bulk).await.unwrap();
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(back, bulk);
            moved += BULK;
        }
        moved
    }));
    let others = async {
        for round in 0..3 {
            join_all(others.iter_mut().map(async |stream| say(stream, [round; 8]).await)).await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let (moved, ()) = futures::join!(busy, others);
    let least = moved.iter().min().unwrap();
    println!("while {BUSY} were busy, each of the others got on; the least busy one moved {least} bytes");
    assert!(*least > 0);
}

/// The most that `open` connections may hold, `own` bytes of each being the test's: 6 KiB in each proxy, and what those
/// may that move bytes or shake hands at a time. In each proxy that is a read of the app, sealed and unsealed, what the
/// socket did not take of it, and a read of the tunnel.
fn bound(open: usize, own: i64) -> i64 {
    const QUIET: usize = 2 * 6 * 1024;
    const MOVING: usize = 2 * 4 * READ + 2 * BULK;
    // The future of what the test awaits on each; tables that double as they grow.
    const SLACK: usize = 2 * 1024;
    let moving = BUSY + 2 * Limits::default().handshakes_per_source;
    (open * (QUIET + SLACK) + moving * MOVING) as i64 + open as i64 * own
}

/// What the test itself holds for a connection to an app, its log set aside.
async fn own_cost(mesh: &Mesh) -> i64 {
    let app = *mesh.api.app.lock().unwrap();
    drop(cost_of(50, app, mesh).await);
    cost_of(50, app, mesh).await.0
}

fn assert_bounded(what: &str, open: usize, before: i64, own: i64) {
    let (most, bound) = (PEAK.load(Ordering::Relaxed) - before, bound(open, own));
    println!(
        "{what}: at most {most} bytes held by all at once, {} for each; the bound: {bound}",
        most / open as i64
    );
    assert!(most <= bound, "{what}: {most} bytes were held, the bound is {bound}");
}

#[tokio::test]
async fn a_burst_to_one_new_peer_is_served_whole_and_what_it_took_is_given_back() {
    let _turn = TURN.lock().await;
    let burst = many(2000);
    let mesh = wide(patient()).await;
    drop(cost_of(80, mesh.web.outbound, &mesh).await);
    eventually("the pool is full", || mesh.web.metric("tunnels_idle ") == Some(64)).await;
    let own = own_cost(&mesh).await;
    let pods = [&mesh.web, &mesh.api];
    let before = held_but_for_logs(pods).await;
    PEAK.store(before, Ordering::Relaxed);
    let (to, begun) = (mesh.web.outbound, Instant::now());
    let mut open = join_all((0..burst).map(async |number| {
        let mut stream = TcpStream::connect(to).await.unwrap();
        say(&mut stream, number.to_be_bytes()).await;
        stream
    }))
    .await;
    println!("{burst} connections at once were answered within {:?}", begun.elapsed());
    all_get_on(&mut open).await;
    assert_eq!(mesh.web.metric("connections_refused_total"), None);
    assert_bounded("connections to one peer", burst, before, own);
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
    let tables = (2 << 20).max(burst as i64 * 1024);
    assert!(left < tables, "{left} bytes are left");
}

#[tokio::test]
async fn a_client_of_very_many_peers_holds_a_bounded_number_of_tunnels() {
    let _turn = TURN.lock().await;
    let peers = many(800);
    let limits = Limits { idle_tunnels: 100, ..patient() };
    let authority = Authority::new();
    let web = Pod::with(WEB_IP, authority.good(WEB), Mode::Permissive, limits.clone()).await;
    // One proxy at very many addresses: each is a peer of its own to the client.
    let anywhere = Ipv4Addr::UNSPECIFIED;
    let api = Pod::with(anywhere, authority.good(API), Mode::Strict, limits).await;
    api.set_app(lean_echo(anywhere).await);
    let mesh = Mesh { authority, web, api };
    let Mesh { web, api, .. } = &mesh;
    let own = own_cost(&mesh).await;
    let talk = async |from: usize, to: usize| {
        let before = held_but_for_logs([web, api]).await;
        PEAK.store(before, Ordering::Relaxed);
        let (mut open, begun) = (Vec::new(), Instant::now());
        for peer in from..to {
            let address = Ipv4Addr::from(0x7f03_0001 + u32::try_from(peer).unwrap());
            let address = SocketAddr::from((address, api.inbound.port()));
            web.told.say(SERVICE, one_of(vec![endpoint(address, API)]));
            let mut stream = TcpStream::connect(web.outbound).await.unwrap();
            say(&mut stream, [1; 8]).await;
            open.push(stream);
        }
        println!("connections to {} peers, one after the other: {:?}", to - from, begun.elapsed());
        all_get_on(&mut open).await;
        assert_bounded("connections to as many peers", to - from, before, own);
        drop(open);
        let open = |direction| format!("tunnels_open{{direction=\"{direction}\"}}");
        eventually("what the pool does not hold is closed", || {
            web.metric(&open("outbound")) == Some(100) && api.metric(&open("inbound")) == Some(100)
        })
        .await;
        held_but_for_logs([web, api]).await
    };
    let first = talk(0, peers).await;
    let others = talk(peers, peers + peers / 4).await;
    assert_eq!(web.metric("tunnels_idle "), Some(100));
    println!("bytes more after a quarter as many further peers: {}", others - first);
    assert!(others - first < 256 * 1024, "{} bytes", others - first);
}
