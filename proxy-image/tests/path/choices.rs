//! Which endpoints a connection tries, and when it gives up: peers that are others than the record says, and too many
//! handshakes at once.

use crate::mesh::*;
use cinch_policy::Mode;
use cinch_proxy::limits::Limits;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

const MALLORY: &str = "spiffe://cluster.local/ns/shop/sa/mallory";
/// Another Service than [`SERVICE`].
const OTHER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 0, 11)), 80);
const FROZEN_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 3, 1);

async fn web() -> (Authority, Pod) {
    web_with(limits()).await
}

async fn web_with(limits: Limits) -> (Authority, Pod) {
    let authority = Authority::new();
    let pod = Pod::with(WEB_IP, authority.good(WEB), Mode::Permissive, limits).await;
    (authority, pod)
}

/// A peer that takes connections and never says a word.
struct Frozen {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// Of these, those on which a handshake has begun.
    hellos: Arc<AtomicUsize>,
}

impl Frozen {
    async fn start() -> Frozen {
        let listener = TcpListener::bind((FROZEN_IP, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, hellos) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (connected, began) = (connections.clone(), hellos.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                connected.fetch_add(1, Ordering::Relaxed);
                let began = began.clone();
                tokio::spawn(async move {
                    if stream.read_u8().await.is_ok() {
                        began.fetch_add(1, Ordering::Relaxed);
                    }
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                });
            }
        });
        Frozen { address, connections, hellos }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    fn hellos(&self) -> usize {
        self.hellos.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn healthy_endpoints_serve_whoever_meets_others_at_two_addresses_first() {
    let (authority, web) = web().await;
    let api = Pod::start(API_IP, authority.good(API), Mode::Strict).await;
    api.set_app(echo(API_IP).await);
    let mut wrong = Vec::new();
    for _ in 0..2 {
        wrong.push(Pod::start(API_IP, authority.good(MALLORY), Mode::Strict).await);
    }
    let endpoints: Vec<_> = wrong.iter().chain([&api]).map(|pod| endpoint(pod.inbound, API)).collect();
    web.told.say(SERVICE, one_of(endpoints));
    // Its load makes the healthy one the last choice.
    web.told.say(OTHER, one_of(vec![endpoint(api.inbound, API)]));
    let mut open = web.dial(OTHER).await;
    assert_eq!(exchange(&mut open, b"open").await.unwrap(), b"open");
    for _ in 0..3 {
        let mut stream = web.dial(SERVICE).await;
        assert_eq!(exchange(&mut stream, b"words").await.unwrap(), b"words");
        assert_eq!(std::mem::take(&mut *web.told.forgotten.lock().unwrap()), [SERVICE, SERVICE]);
    }
    assert!(wrong.iter().all(|pod| pod.totals().served == 0));
}

#[tokio::test]
async fn who_meets_others_everywhere_gives_up() {
    let (authority, web) = web().await;
    let mut wrong = Vec::new();
    for _ in 0..5 {
        wrong.push(Pod::start(API_IP, authority.good(MALLORY), Mode::Strict).await);
    }
    web.told.say(SERVICE, one_of(wrong.iter().map(|pod| endpoint(pod.inbound, API)).collect()));
    assert_refuses(&mut web.dial(SERVICE).await, b"secret").await;
    assert_eq!(web.told.forgotten.lock().unwrap().len(), 3, "after as many as it tries");
    let refused = "connections_refused_total{direction=\"outbound\",reason=\"PeerIdentityMismatch\"}";
    assert_eq!(web.metric(refused), Some(1));
}

/// Who waits for a handshake waits briefly; who has begun one keeps its place through the test.
fn impatient(handshakes: usize, handshakes_per_source: usize) -> Limits {
    let (open_timeout, handshake_timeout) = (Duration::from_millis(300), PATIENCE * 2);
    Limits { handshakes, handshakes_per_source, open_timeout, handshake_timeout, ..limits() }
}

#[tokio::test]
async fn where_all_places_are_taken_an_endpoint_with_an_idle_tunnel_serves() {
    let (authority, web) = web_with(impatient(1, 16)).await;
    let api = Pod::start(API_IP, authority.good(API), Mode::Strict).await;
    api.set_app(echo(API_IP).await);
    web.told.say(OTHER, one_of(vec![endpoint(api.inbound, API)]));
    // What stays open makes the cold endpoint the first choice; what ends leaves a tunnel.
    let (mut open, mut ended) = (web.dial(OTHER).await, web.dial(OTHER).await);
    for stream in [&mut open, &mut ended] {
        assert_eq!(exchange(stream, b"open").await.unwrap(), b"open");
    }
    drop(ended);
    eventually("a tunnel is idle", || web.metric("tunnels_idle") == Some(1)).await;
    let (holder, cold) = (Frozen::start().await, Frozen::start().await);
    web.told.say(OTHER, one_of(vec![endpoint(holder.address, API)]));
    let _held = web.dial(OTHER).await;
    eventually("its handshake has begun", || holder.hellos() == 1).await;
    web.told.say(SERVICE, one_of(vec![endpoint(cold.address, API), endpoint(api.inbound, API)]));
    assert_eq!(exchange(&mut web.dial(SERVICE).await, b"words").await.unwrap(), b"words");
    assert_eq!((cold.connections(), cold.hellos()), (1, 0));
    assert_eq!(web.metric("limit_refusals_total{limit=\"handshakes\"}"), Some(1));
}

#[tokio::test]
async fn where_all_places_stay_taken_no_handshake_begins_and_the_connection_is_refused() {
    let (_authority, web) = web_with(impatient(1, 16)).await;
    let holder = Frozen::start().await;
    web.told.say(OTHER, one_of(vec![endpoint(holder.address, API)]));
    let _held = web.dial(OTHER).await;
    eventually("its handshake has begun", || holder.hellos() == 1).await;
    let others = [Frozen::start().await, Frozen::start().await, Frozen::start().await];
    web.told.say(SERVICE, one_of(others.iter().map(|peer| endpoint(peer.address, API)).collect()));
    assert_refuses(&mut web.dial(SERVICE).await, b"words").await;
    assert_eq!(others.iter().map(Frozen::hellos).sum::<usize>(), 0);
    let refused = "connections_refused_total{direction=\"outbound\",reason=\"Overloaded\"}";
    assert_eq!(web.metric(refused), Some(1));
    assert_eq!(web.metric("limit_refusals_total{limit=\"handshakes\"}"), Some(3));
}

#[tokio::test]
async fn where_the_turns_of_one_address_are_taken_another_endpoint_serves() {
    let (authority, web) = web_with(impatient(2, 1)).await;
    let api = Pod::start(API_IP, authority.good(API), Mode::Strict).await;
    api.set_app(echo(API_IP).await);
    let (holder, full) = (Frozen::start().await, Frozen::start().await);
    web.told.say(OTHER, one_of(vec![endpoint(api.inbound, API)]));
    let mut open = web.dial(OTHER).await;
    assert_eq!(exchange(&mut open, b"open").await.unwrap(), b"open");
    web.told.say(OTHER, one_of(vec![endpoint(holder.address, API)]));
    let _held = web.dial(OTHER).await;
    eventually("its handshake has begun", || holder.hellos() == 1).await;
    // What is open there makes the full one the first choice, and takes the tunnel.
    web.told.say(SERVICE, one_of(vec![endpoint(full.address, API), endpoint(api.inbound, API)]));
    assert_eq!(exchange(&mut web.dial(SERVICE).await, b"words").await.unwrap(), b"words");
    assert_eq!(web.metric("limit_refusals_total{limit=\"handshakes_per_source\"}"), Some(1));
    assert_eq!(full.connections(), 0, "nobody dials whose turn has not come");
}
