//! The redirect in real network namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use cinch_redirect::{
    Exempt, Family, RedirectConfig, RedirectError, Table, install, is_installed, original_destination,
    original_destination_in, remove, table,
};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use support::{Namespace, Pair, as_user, dial_from, send_stray_ack};

const WAIT: Duration = Duration::from_secs(60);

fn dial(to: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to.parse().unwrap(), WAIT)?;
    stream.set_read_timeout(Some(WAIT))?;
    Ok(stream)
}

fn listen(namespace: &Namespace, at: &'static str) -> TcpListener {
    namespace.run(move || TcpListener::bind(at).unwrap())
}

/// Accepts one connection, writes `word`, and says where it had been dialled to.
fn answer_one(listener: TcpListener, word: &'static str) -> std::thread::JoinHandle<SocketAddr> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(word.as_bytes()).unwrap();
        original_destination(&stream).unwrap()
    })
}

fn read_word(mut stream: TcpStream) -> String {
    let mut word = String::new();
    stream.read_to_string(&mut word).unwrap();
    word
}

fn pod_with_redirect() -> Pair {
    let pair = Pair::new();
    pair.pod.run(|| install(&RedirectConfig::default())).unwrap();
    pair
}

#[test]
fn it_is_installed_replaced_recognised_and_removed() {
    need_namespaces!("it_is_installed_replaced_recognised_and_removed");
    Namespace::new().run(|| {
        let config = RedirectConfig::default();
        assert!(!is_installed(&config).unwrap());
        assert_eq!(table(&config).unwrap(), Table::Missing);
        install(&config).unwrap();
        assert!(is_installed(&config).unwrap());
        assert_eq!(table(&config).unwrap(), Table::Current);
        let other = RedirectConfig { exempt: Exempt::User(1508), ..config };
        assert!(!is_installed(&other).unwrap());
        assert_eq!(table(&other).unwrap(), Table::Other);
        install(&other).unwrap();
        assert!(is_installed(&other).unwrap() && !is_installed(&config).unwrap());
        remove().unwrap();
        assert!(!is_installed(&other).unwrap());
        assert_eq!(table(&other).unwrap(), Table::Missing);
        remove().unwrap();
    });
}

#[test]
fn without_the_capability_the_error_says_so() {
    need_namespaces!("without_the_capability_the_error_says_so");
    Namespace::new().run(|| {
        let refused = as_user(1000, || install(&RedirectConfig::default())).unwrap_err();
        assert!(matches!(refused, RedirectError::Refused { .. }), "{refused}");
        assert!(refused.to_string().contains("Operation not permitted"), "{refused}");
    });
}

#[test]
fn dials_of_the_pod_reach_the_outbound_port_with_their_destination() {
    need_namespaces!("dials_of_the_pod_reach_the_outbound_port_with_their_destination");
    let pair = pod_with_redirect();
    for (at, to) in [("127.0.0.1:15001", "10.9.0.1:8080"), ("[::1]:15001", "[fd00:9::1]:8080")] {
        let seen = answer_one(listen(&pair.pod, at), "proxy");
        let word = pair.pod.run(move || read_word(dial(to).unwrap()));
        assert_eq!((word.as_str(), seen.join().unwrap()), ("proxy", to.parse().unwrap()));
    }
}

#[test]
fn dials_of_the_proxy_go_out_untouched() {
    need_namespaces!("dials_of_the_proxy_go_out_untouched");
    let pair = pod_with_redirect();
    let _capture = listen(&pair.pod, "127.0.0.1:15001");
    let seen = answer_one(listen(&pair.outside, "10.9.0.1:8080"), "outside");
    let word = pair.pod.run(|| read_word(as_user(1507, || dial("10.9.0.1:8080")).unwrap()));
    assert_eq!(word, "outside");
    // The listener's side has no redirect and tracks nothing, or names its own address.
    drop(seen);
}

#[test]
fn the_self_test_address_is_captured_for_everybody() {
    need_namespaces!("the_self_test_address_is_captured_for_everybody");
    let pair = pod_with_redirect();
    for uid in [0, 1507, 4000] {
        let seen = answer_one(listen(&pair.pod, "127.0.0.1:15001"), "proxy");
        let word = pair.pod.run(move || read_word(as_user(uid, || dial("192.0.2.1:9")).unwrap()));
        assert_eq!((word.as_str(), seen.join().unwrap()), ("proxy", "192.0.2.1:9".parse().unwrap()));
    }
}

#[test]
fn connections_from_outside_reach_the_inbound_port_with_their_destination() {
    need_namespaces!("connections_from_outside_reach_the_inbound_port_with_their_destination");
    let pair = pod_with_redirect();
    let _app = listen(&pair.pod, "0.0.0.0:8080");
    for (at, to) in [("0.0.0.0:15006", "10.9.0.2:8080"), ("[::]:15006", "[fd00:9::2]:8080")] {
        // A wildcard IPv6 listener takes IPv4 too unless it is told otherwise, so one goes before the other.
        let seen = answer_one(listen(&pair.pod, at), "proxy");
        let word = pair.outside.run(move || read_word(dial(to).unwrap()));
        assert_eq!((word.as_str(), seen.join().unwrap()), ("proxy", to.parse().unwrap()));
    }
}

#[test]
fn no_process_of_the_pod_lends_another_destination_to_a_connection_of_ipv6() {
    need_namespaces!("no_process_of_the_pod_lends_another_destination_to_a_connection_of_ipv6");
    let pair = pod_with_redirect();
    // Of both families, so that the process finds somebody.
    let listener = listen(&pair.pod, "[::]:15006");
    let _client = pair.outside.run(|| dial("[fd00:9::2]:8080").unwrap());
    let (stream, client) = listener.accept().unwrap();
    // The same ports, between the addresses that Linux gives a socket of IPv6 when it is asked by IPv4.
    let lent = |port| std::net::SocketAddrV4::new([127, 0, 0, 6].into(), port);
    let _lender = pair.pod.run(move || dial_from(lent(client.port()), lent(15006)).unwrap());
    let dialled: SocketAddr = "[fd00:9::2]:8080".parse().unwrap();
    assert_eq!(original_destination(&stream).unwrap(), dialled);
    assert_eq!(original_destination_in(Family::of(dialled), &stream).unwrap(), dialled);
    let asked = original_destination_in(Family::V4, &stream).ok();
    assert_eq!(asked, Some(SocketAddr::V4(lent(15006))), "what the other question answers");
}

/// Connection tracking takes a stray segment for the middle of a connection, decides that it is not translated,
/// and remembers that for the SYN that comes after it from the same port.
#[test]
fn no_stray_segment_opens_a_way_past_the_inbound_port() {
    need_namespaces!("no_stray_segment_opens_a_way_past_the_inbound_port");
    let pair = pod_with_redirect();
    for (listener, word) in
        [(listen(&pair.pod, "0.0.0.0:8080"), "app"), (listen(&pair.pod, "0.0.0.0:15006"), "proxy")]
    {
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(word.as_bytes());
            }
        });
    }
    // The second is swallowed without an answer: the signature of RFC 2385 of a key that nobody has.
    let signed: &[u8] = &[[19, 18].as_slice(), &[0; 16], &[1, 1]].concat();
    for (port, options) in [(40_001, &[][..]), (40_002, signed)] {
        let from = std::net::SocketAddrV4::new([10, 9, 0, 1].into(), port);
        let to = std::net::SocketAddrV4::new([10, 9, 0, 2].into(), 8080);
        let options = options.to_vec();
        let reached = pair.outside.run(move || {
            send_stray_ack(from, to, &options);
            std::thread::sleep(Duration::from_millis(100));
            dial_from(from, to).map(read_word).unwrap_or_default()
        });
        assert_ne!(reached, "app", "from port {port}");
    }
}

#[test]
fn no_stray_segment_opens_a_way_past_the_outbound_port() {
    need_namespaces!("no_stray_segment_opens_a_way_past_the_outbound_port");
    let pair = pod_with_redirect();
    for (listener, word) in
        [(listen(&pair.outside, "10.9.0.1:8080"), "outside"), (listen(&pair.pod, "127.0.0.1:15001"), "proxy")]
    {
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(word.as_bytes());
            }
        });
    }
    let app = std::net::SocketAddrV4::new([10, 9, 0, 2].into(), 40_003);
    let peer = std::net::SocketAddrV4::new([10, 9, 0, 1].into(), 8080);
    pair.outside.run(move || send_stray_ack(peer, app, &[]));
    std::thread::sleep(Duration::from_millis(100));
    let reached = pair.pod.run(move || dial_from(app, peer).map(read_word).unwrap_or_default());
    assert_ne!(reached, "outside");
}

#[test]
fn loopback_and_own_addresses_are_left_alone() {
    need_namespaces!("loopback_and_own_addresses_are_left_alone");
    let pair = pod_with_redirect();
    let _capture = (listen(&pair.pod, "127.0.0.1:15001"), listen(&pair.pod, "0.0.0.0:15006"));
    for to in ["127.0.0.1:8080", "10.9.0.2:8080", "127.8.8.8:8080", "[::1]:8080", "[fd00:9::2]:8080"] {
        let app = answer_one(listen(&pair.pod, to), "app");
        assert_eq!(pair.pod.run(move || read_word(dial(to).unwrap())), "app", "{to}");
        drop(app);
    }
}

#[test]
fn replies_and_older_connections_are_left_alone() {
    need_namespaces!("replies_and_older_connections_are_left_alone");
    let pair = Pair::new();
    let app = listen(&pair.pod, "10.9.0.2:8080");
    let outside = listen(&pair.outside, "10.9.0.1:8080");
    let mut inbound = pair.outside.run(|| dial("10.9.0.2:8080").unwrap());
    let mut outbound = pair.pod.run(|| dial("10.9.0.1:8080").unwrap());
    let (mut served, _) = app.accept().unwrap();
    let (mut reached, _) = outside.accept().unwrap();
    let mut echo = |word: &[u8]| {
        let mut read = vec![0; word.len()];
        for (from, to) in [(&mut inbound, &mut served), (&mut outbound, &mut reached)] {
            to.set_read_timeout(Some(WAIT)).unwrap();
            from.write_all(word).unwrap();
            to.read_exact(&mut read).unwrap();
            to.write_all(word).unwrap();
            from.read_exact(&mut read).unwrap();
        }
    };
    echo(b"before");
    for _ in 0..3 {
        pair.pod.run(|| install(&RedirectConfig::default())).unwrap();
        echo(b"after");
    }
    pair.pod.run(remove).unwrap();
    echo(b"removed");
}

#[test]
fn redirected_connections_survive_a_replaced_table() {
    need_namespaces!("redirected_connections_survive_a_replaced_table");
    let pair = pod_with_redirect();
    let proxy = listen(&pair.pod, "127.0.0.1:15001");
    let mut app = pair.pod.run(|| dial("10.9.0.1:8080").unwrap());
    let (mut accepted, _) = proxy.accept().unwrap();
    for _ in 0..5 {
        pair.pod.run(|| install(&RedirectConfig::default())).unwrap();
        app.write_all(b"ping").unwrap();
        let mut word = [0; 4];
        accepted.read_exact(&mut word).unwrap();
        accepted.write_all(&word).unwrap();
        app.read_exact(&mut word).unwrap();
    }
}

#[test]
fn udp_is_untouched() {
    need_namespaces!("udp_is_untouched");
    let pair = pod_with_redirect();
    let outside = pair.outside.run(|| UdpSocket::bind("10.9.0.1:5353").unwrap());
    let pod = pair.pod.run(|| UdpSocket::bind("10.9.0.2:5353").unwrap());
    outside.set_read_timeout(Some(WAIT)).unwrap();
    pod.set_read_timeout(Some(WAIT)).unwrap();
    pod.send_to(b"query", "10.9.0.1:5353").unwrap();
    let (mut buffer, client) = ([0; 16], "10.9.0.2:5353".parse().unwrap());
    assert_eq!(outside.recv_from(&mut buffer).unwrap(), (5, client));
    outside.send_to(b"answer", client).unwrap();
    assert_eq!(pod.recv_from(&mut buffer).unwrap().0, 6);
}

#[test]
fn with_nobody_at_the_outbound_port_dials_are_refused_not_leaked() {
    need_namespaces!("with_nobody_at_the_outbound_port_dials_are_refused_not_leaked");
    let pair = pod_with_redirect();
    let _outside = listen(&pair.outside, "10.9.0.1:8080");
    let refused = pair.pod.run(|| dial("10.9.0.1:8080").unwrap_err());
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}
