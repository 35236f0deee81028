//! Very many connections between two proxies: each has one of an app and a tunnel for each, which is all that a process
//! has descriptors for. All are served, all get on alike, who comes late is served meanwhile, and memory is bounded and
//! given back.
//!
//! `CINCH_MANY=9900 cargo test -p cinch-proxy --test programs many:: -- --nocapture --test-threads 1` plays it with as
//! many; `CINCH_PROGRAM=FILE` with another program, the released one for its figures.

use crate::many_apps::{App, Crowd, PORT, Round};
use crate::scene::{CLIENT_SIDE_IP, FIRST_IP, FIRST_SIDE_IP, SECOND_IP, Scene};
use crate::support;
use crate::vanished_apps::{ECHO, Echo};
use crate::{comes_about, eventually};
use cinch_proxy::process;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Times that no machine is too slow for; otherwise as many as there may be. One source of the server is the client, so
/// that there is room for others.
const SETTINGS: &str = "{limits: {connections: 12000, connectionsPerSource: 9950, openTimeout: 30m, \
                        handshakeTimeout: 10m, idleTunnels: 100, idleTunnelsPerPeer: 100}}";
/// Tunnels that the pool keeps.
const POOLED: u64 = 100;
/// Who comes late, and so many of them at a time, because the crowd has taken the descriptors.
const LATE: usize = 100;
const AT_A_TIME: usize = 20;
/// In bytes, of each proxy: what it may have besides, for bytes that move and handshakes under way, and for each
/// connection.
const BESIDES: u64 = 8 << 20;
const EACH: u64 = 10 << 10;
/// The same when all are gone: tables that grew stay as they are.
const LEFT_BESIDES: u64 = 3 << 20;
const LEFT_EACH: u64 = 1 << 9;

/// What is the server's besides its own address: so many addresses are there.
const NETWORK: &str = "10.200.0.0/16";

/// `usual` connections, or as many as `CINCH_MANY` says.
fn many(usual: usize) -> usize {
    process::raise_descriptor_limit(0);
    let most = usize::try_from(process::descriptor_limit().unwrap()).unwrap().saturating_sub(100) / 2;
    let wanted = std::env::var("CINCH_MANY").map_or(usual, |text| text.parse().expect("a number"));
    assert!(wanted <= most, "there are descriptors for {most} connections");
    wanted
}

/// Of the client's proxy and of the server's, in bytes.
type Memory = [u64; 2];

fn memory(scene: &Scene) -> Memory {
    [scene.client_proxy.resident(), scene.first_proxy.resident()]
}

/// Sets it when dropped, so that a test that fails does not wait for who waits for it.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The most that both have until it is over.
fn most(scene: &Scene, is_over: &AtomicBool) -> Memory {
    let mut most = [0; 2];
    while !is_over.load(Ordering::Relaxed) {
        for (most, now) in most.iter_mut().zip(memory(scene)) {
            *most = now.max(*most);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    most
}

/// Connections of a stranger to the crowd's server, and of the crowd's pod to another one.
fn late(scene: &Scene) -> Round {
    let mut all = Round::default();
    for _ in 0..LATE / AT_A_TIME {
        let to = |ip, port| vec![SocketAddrV4::new(ip, port); AT_A_TIME];
        all.add(Crowd::open(&scene.stranger, to(FIRST_SIDE_IP, PORT)).1);
        all.add(Crowd::open(&scene.client, to(SECOND_IP, ECHO)).1);
    }
    all
}

/// Opens one connection to each of `to`, lets them rest and speak again, and closes them.
fn play(what: &str, scene: &Scene, to: Vec<SocketAddrV4>) {
    let count = to.len();
    let (few, first_words) = Crowd::open(&scene.client, to[..AT_A_TIME].to_vec());
    drop(few);
    let idle = memory(scene);
    let is_over = AtomicBool::new(false);
    let (open, first, second, late, held, most) = std::thread::scope(|scope| {
        let over = Over(&is_over);
        let watching = scope.spawn(|| most(scene, &is_over));
        let (mut crowd, first) = Crowd::open(&scene.client, to);
        std::thread::sleep(Duration::from_secs(1));
        let held = memory(scene);
        let latecomers = scope.spawn(|| late(scene));
        let second = crowd.again();
        let late = latecomers.join().unwrap();
        drop(over);
        (crowd.count(), first, second, late, held, watching.join().unwrap())
    });
    let tunnels =
        |ip, direction| scene.metrics(ip).value(&format!("cinch_tunnels_open{{direction=\"{direction}\"}}"));
    eventually("what the pool does not hold is closed", || {
        tunnels(CLIENT_SIDE_IP, "outbound") <= POOLED && tunnels(FIRST_SIDE_IP, "inbound") <= POOLED
    });
    let bound = |besides: u64, each: u64| idle.map(|idle| idle + besides + each * count as u64);
    let (at_most, left) = (bound(BESIDES, EACH), bound(LEFT_BESIDES, LEFT_EACH));
    let is_within = |now: Memory, bound: Memory| now.iter().zip(bound).all(|(now, bound)| *now <= bound);
    let mut after = memory(scene);
    // The allocator gives back within seconds.
    let is_given_back = comes_about(|| {
        after = memory(scene);
        is_within(after, left)
    });
    let mut text = format!("{what}: {open} open at once\n");
    writeln!(text, "  opened and answered: {}", first.spread()).unwrap();
    writeln!(text, "  the next answer:     {}", second.spread()).unwrap();
    writeln!(text, "  {} late ones meanwhile: {}", late.times.len(), late.spread()).unwrap();
    for (name, memory) in [
        ("idle", idle),
        ("open", held),
        ("most", most),
        ("bound", at_most),
        ("closed", after),
        ("bound", left),
    ] {
        let [client, server] = memory.map(|bytes| bytes / 1024);
        writeln!(text, "  KiB of the client's proxy {client:>8}, of the server's {server:>8}: {name}")
            .unwrap();
    }
    let each = [0, 1].map(|of| (held[of] as f64 - idle[of] as f64) / count as f64 / 1024.0);
    writeln!(text, "  KiB for each that is open: {:.1}, {:.1}", each[0], each[1]).unwrap();
    println!("{text}");

    for (which, round) in [("few", &first_words), ("first", &first), ("second", &second), ("late", &late)] {
        assert!(round.errors.is_empty(), "{which}: {:?}\n{}", round.errors, last_words(scene));
    }
    assert_eq!((open, late.times.len()), (count, 2 * LATE));
    assert!(is_within(most, at_most) && is_given_back, "{text}");
    assert_no_limit(scene);
}

/// Neither proxy has refused anything for want of room or time.
fn assert_no_limit(scene: &Scene) {
    for ip in [CLIENT_SIDE_IP, FIRST_SIDE_IP] {
        let page = scene.metrics(ip);
        for limit in [
            "connections",
            "connections_per_source",
            "handshakes",
            "handshakes_per_source",
            "handshakes_waiting",
            "handshake_timeout",
            "open_timeout",
        ] {
            assert_eq!(page.limit(limit), 0, "{limit}");
        }
    }
}

/// What the proxies said at last, which explains errors.
fn last_words(scene: &Scene) -> String {
    let mut text = String::new();
    for (name, proxy) in [("client", &scene.client_proxy), ("server", &scene.first_proxy)] {
        let (log, access_log) = proxy.logs();
        for line in log.lines().rev().take(10).chain(access_log.lines().rev().take(10)) {
            writeln!(text, "{name}'s proxy: {line}").unwrap();
        }
    }
    text
}

#[test]
fn many_connections_to_one_peer_are_all_served_alike_and_leave_room_for_others() {
    crate::need_namespaces!("many_connections_to_one_peer_are_all_served_alike_and_leave_room_for_others");
    let count = many(500);
    let scene = Scene::start(SETTINGS, None, |_, _| {});
    let _app = App::start(&scene.first);
    Echo::start(&scene.second);
    play("connections to one peer", &scene, vec![SocketAddrV4::new(FIRST_IP, PORT); count]);
}

#[test]
fn a_connection_to_each_of_many_peers_is_served_and_leaves_room_for_others() {
    crate::need_namespaces!("a_connection_to_each_of_many_peers_is_served_and_leaves_room_for_others");
    let count = many(500);
    let address = |number: usize| Ipv4Addr::from_bits(0x0ac8_0001 + u32::try_from(number).unwrap());
    let all: Vec<Ipv4Addr> = (0..count).map(address).collect();
    let lines: Vec<String> = all.iter().map(|ip| format!("addr add {ip}/32 dev lo")).collect();
    let scene = Scene::start(SETTINGS, Some(NETWORK), |server, files| {
        let file = files.write("addresses", &lines.join("\n"));
        server.ip(&format!("-batch {}", file.display()));
    });
    scene.client.ip(&format!("route add {NETWORK} via {FIRST_IP}"));
    let _app = App::start(&scene.first);
    Echo::start(&scene.second);
    play(
        "connections to as many peers",
        &scene,
        all.into_iter().map(|ip| SocketAddrV4::new(ip, PORT)).collect(),
    );
}
