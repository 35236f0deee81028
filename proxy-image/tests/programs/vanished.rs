//! A peer that is gone without a word: its packets are lost on the way, and nothing says so. What was under way with it
//! ends, in time and with an error, on both sides; nobody else notices. And a peer that only has no time: it is waited
//! for.

use crate::kernel::{ESTABLISHED, Socket};
use crate::proxies::{POLICIES, USER};
use crate::scene::{CLIENT_SIDE_IP, FIRST_IP, FIRST_SIDE_IP, SECOND_IP, Scene};
use crate::support;
use crate::vanished_apps::{BULK, Busy, ECHO, Echo, Honest, LATE, LOUD, OTHER};
use crate::vanished_apps::{end_of, exchange, serve_late, serve_loud};
use crate::{WAIT, eventually};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::time::Duration;

/// Long enough for what is honest, and each shorter than the next one that it must not be mistaken for.
const SETTINGS: &str =
    "{limits: {connectTimeout: 2s, openTimeout: 5s, handshakeTimeout: 5s, peerTimeout: 8s}}";
/// Where plaintext is permitted, a peer that is slow to say its hello is connected to the app before it has: a busy
/// machine would make more connections than are counted.
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                      metadata: {name: default, namespace: default}\nspec: {mtls: {mode: STRICT}}\n";
/// Streams that are idle when the peer vanishes, and streams that are not.
const QUIET: usize = 20;
const BUSY: usize = 5;
/// Tunnels in the pool then.
const POOLED: usize = 3;
/// What the ends of all that may leave behind in a proxy, in bytes: pages that the allocator keeps.
const LEFT: u64 = 4 << 20;

fn at(ip: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(ip, port)
}

/// A connection to the first server's echo, after an exchange on it.
fn talked(scene: &Scene) -> TcpStream {
    let mut stream = scene.dial(at(FIRST_IP, ECHO));
    exchange(&mut stream).unwrap();
    stream
}

/// What is under way between the client and the first server.
struct UnderWay {
    quiet: Vec<TcpStream>,
    busy: Vec<Busy>,
    /// Its tunnel shakes hands: the hello has come, and nobody reads it.
    shaking: TcpStream,
}

fn begin(scene: &Scene, echo: &Echo) -> UnderWay {
    let quiet = (0..QUIET).map(|_| talked(scene)).collect();
    let busy: Vec<TcpStream> = (0..BUSY).map(|_| talked(scene)).collect();
    drop((0..POOLED).map(|_| talked(scene)).collect::<Vec<_>>());
    eventually("the pool has tunnels", || {
        let idle = scene.metrics(CLIENT_SIDE_IP).value("cinch_tunnels_idle");
        echo.ended() == POOLED && idle >= u64::try_from(POOLED).unwrap()
    });
    let busy = busy.into_iter().map(Busy::begin).collect();
    scene.first_proxy.signal(libc::SIGSTOP);
    let shaking = scene.dial(at(FIRST_IP, OTHER));
    eventually("a hello waits to be read", || {
        let to_other = |socket: &Socket| socket.remote.port() == OTHER && socket.user == USER;
        let Some(hand) = scene.towards_first().into_iter().find(to_other) else { return false };
        let of_hand = |port: u16| hand.state == ESTABLISHED && port == hand.local.port();
        scene.with_client().iter().any(|socket| of_hand(socket.remote.port()) && socket.waiting > 0)
    });
    UnderWay { quiet, busy, shaking }
}

#[test]
fn a_peer_that_vanishes_ends_what_was_under_way_with_it_on_both_sides_and_nothing_else() {
    crate::need_namespaces!(
        "a_peer_that_vanishes_ends_what_was_under_way_with_it_on_both_sides_and_nothing_else"
    );
    let scene = Scene::start(SETTINGS, None, |_, files| drop(files.write(POLICIES, STRICT)));
    let echo = Echo::start(&scene.first);
    Echo::start(&scene.second);
    let honest = Honest::start(&scene);
    let before = [scene.client_proxy.memory(), scene.first_proxy.memory()];

    let UnderWay { quiet, busy, shaking } = begin(&scene, &echo);
    scene.part();
    scene.first_proxy.signal(libc::SIGCONT);
    let good = honest.good();
    // A request that meets a tunnel of the pool, and one after it was found out where that leads.
    let mut asked = scene.dial(at(FIRST_IP, ECHO));
    asked.write_all(b"who is there").unwrap();
    assert_eq!(end_of(asked), Some(ErrorKind::ConnectionReset), "on an idle tunnel");
    assert_eq!(end_of(scene.dial(at(FIRST_IP, ECHO))), Some(ErrorKind::ConnectionReset), "after it");
    assert_eq!(end_of(shaking), Some(ErrorKind::ConnectionReset), "in the handshake");
    assert!(busy.into_iter().all(Busy::ends_by_reset), "with bytes under way");
    let quiet: Vec<_> = quiet.into_iter().map(end_of).collect();
    assert_eq!(quiet, [Some(ErrorKind::ConnectionReset); QUIET], "with nothing under way");

    eventually("the server's app knows", || echo.ended() == POOLED + BUSY + QUIET);
    assert_eq!(*echo.broken.lock().unwrap(), [ErrorKind::ConnectionReset; BUSY + QUIET]);
    eventually("all sockets are given back", || {
        scene.towards_first().is_empty() && scene.with_client().is_empty()
    });
    assert!(honest.good() > good, "nothing honest was done meanwhile");
    told(&scene);
    let after = [scene.client_proxy.memory(), scene.first_proxy.memory()];
    println!("bytes of the client's proxy and of the server's: {before:?} before, {after:?} after");
    assert!(after.iter().zip(before).all(|(after, before)| *after < before + LEFT));

    scene.join();
    drop(talked(&scene));
    assert_eq!(honest.end(), Vec::<String>::new());
}

/// What the proxies say of it.
fn told(scene: &Scene) {
    let (client, server) = (scene.metrics(CLIENT_SIDE_IP), scene.metrics(FIRST_SIDE_IP));
    assert_eq!(client.limit("open_timeout"), 1, "one idle tunnel was tried, and no other");
    assert_eq!(client.limit("handshake_timeout"), 1);
    assert_eq!(
        client.limit("connect_timeout"),
        2,
        "of the next connection, and of the second try to shake hands"
    );
    assert_eq!((client.refused("Overloaded"), client.refused("NoListener")), (1, 2));
    let cut = "cinch_connections_cut_total{direction=\"outbound\",reason=\"TunnelBroken\"}";
    assert_eq!(client.value(cut), u64::try_from(BUSY + QUIET).unwrap());
    assert_eq!(server.limit("handshake_timeout"), 1);
    // Each connection that was under way, on both sides.
    for side in [&client, &server] {
        assert!(side.limit("peer_timeout") >= u64::try_from(BUSY + QUIET).unwrap());
    }
    assert_eq!(server.value("cinch_tunnels_open{direction=\"inbound\"}"), 0);
    for direction in ["inbound", "outbound"] {
        let open = format!("cinch_connections_open{{direction=\"{direction}\",transport=\"tunnel\"}}");
        assert_eq!(server.value(&open), 0);
    }
    let (log, access_log) = scene.client_proxy.logs();
    for limit in ["open_timeout", "handshake_timeout", "connect_timeout", "peer_timeout"] {
        assert!(log.contains(limit), "{limit} is not in\n{log}");
    }
    let refused = |line: &&str| line.contains(&format!("{FIRST_IP}")) && line.contains("\"Overloaded\"");
    assert_eq!(access_log.lines().filter(refused).count(), 1, "{access_log}");
}

#[test]
fn one_question_that_is_lost_ends_no_idle_connection() {
    crate::need_namespaces!("one_question_that_is_lost_ends_no_idle_connection");
    let scene = Scene::start(SETTINGS, None, |_, files| drop(files.write(POLICIES, STRICT)));
    Echo::start(&scene.first);
    let mut idle = talked(&scene);
    // Shorter than the time after which a peer is taken for gone, and when that would be over if it was not asked before.
    std::thread::sleep(Duration::from_secs(6));
    scene.part();
    std::thread::sleep(Duration::from_secs(3));
    scene.join();
    std::thread::sleep(Duration::from_secs(4));
    exchange(&mut idle).unwrap();
}

#[test]
fn a_peer_whose_app_reads_late_is_waited_for() {
    crate::need_namespaces!("a_peer_whose_app_reads_late_is_waited_for");
    let scene = Scene::start("{limits: {peerTimeout: 1s}}", None, |_, _| {});
    let read = serve_late(&scene.second);
    serve_loud(&scene.second);
    // What the server has no time for, and what the client has none for.
    let mut upload = scene.dial(at(SECOND_IP, LATE));
    let mut download = scene.dial(at(SECOND_IP, LOUD));
    let mut sending = upload.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        sending.write_all(&vec![7; BULK])?;
        sending.shutdown(Shutdown::Write)
    });
    // Several times what a peer may say nothing.
    std::thread::sleep(Duration::from_secs(4));
    assert!(!sending.is_finished(), "the buffers had room for all");
    read.send(()).unwrap();
    let mut answer = [0; 8];
    upload.set_read_timeout(Some(WAIT)).unwrap();
    upload.read_exact(&mut answer).unwrap();
    assert_eq!(usize::try_from(u64::from_be_bytes(answer)).unwrap(), BULK);
    sending.join().unwrap().unwrap();
    let mut said = Vec::new();
    download.read_to_end(&mut said).unwrap();
    assert!(said == vec![7; BULK], "{} bytes, and not those that were said", said.len());
}
