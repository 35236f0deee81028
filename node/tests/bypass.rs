//! What the agent sees pass by a proxy, and what it does not take for that: real processes, sockets and namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unsafe_code)]

mod node;

use node::{APP, PROXY, Running, pair, serve, support};
use std::net::{TcpListener, TcpStream, UdpSocket};
use support::{Namespace, Pair};

/// Not a test of its own: what the containers of the others run.
#[test]
fn a_container_of_this_test() {
    node::run_as_container();
}

/// Takes connections at `at` and keeps them.
fn hold(namespace: &Namespace, at: &'static str) {
    let listener = namespace.run(move || TcpListener::bind(at).unwrap());
    std::thread::spawn(move || {
        let held: Vec<_> = listener.incoming().collect();
        drop(held);
    });
}

/// A pair with places outside that keep what they accept.
fn with_holders() -> Pair {
    let pair = pair();
    for at in ["10.9.0.1:9090", "10.9.0.1:9091", "[fd00:9::1]:9090"] {
        hold(&pair.outside, at);
    }
    pair
}

/// What an agent says that has seen exactly these.
fn seen(list: &[&str]) -> String {
    format!("seen [{}]", list.join(", "))
}

/// Looks until exactly these are seen, a few times: while the proxy has not yet closed the agent's own dial, that
/// explains a connection of the same address.
fn assert_seen(proxy: &mut Running, list: &[&str], case: &str) {
    let last = (0..5).map(|_| proxy.order("look")).find(|found| *found == seen(list));
    assert_eq!(last.unwrap_or_else(|| proxy.order("look")), seen(list), "{case}");
}

#[test]
fn what_meets_the_proxy_or_stays_in_the_pod_is_not_seen() {
    let node = need_node!("what_meets_the_proxy_or_stays_in_the_pod_is_not_seen");
    let (pair, _agent) = (with_holders(), serve(&node));
    let mut proxy = node.start(&PROXY, Some(&pair.pod));
    let mut app = node.start(&APP, Some(&pair.pod));
    proxy.order("listen and hold");
    assert!(proxy.order("ask").starts_with("done "));
    for place in ["10.9.0.1:9090", "10.9.0.1:9091", "[fd00:9::1]:9090"] {
        // Captured; and the proxy's own way on.
        app.order(&format!("hold: {place}"));
        proxy.order(&format!("hold: {place}"));
    }
    for place in ["10.9.0.2:8081", "127.0.0.1:8082", "[::1]:8083"] {
        app.order(&format!("serve: {place}"));
        proxy.order(&format!("hold: {place}"));
        app.order("accept");
        app.order(&format!("hold: {place}"));
    }
    app.order("hold: 127.0.0.1:15001");
    app.order("udp at: 127.0.0.1:8125");
    app.order("udp to: 127.0.0.1:8125");
    app.order("udp to: 10.9.0.1:53");
    proxy.order("udp to: 10.9.0.1:443");
    assert_eq!(proxy.order("look"), seen(&[]));
}

#[test]
fn what_passes_by_the_proxy_is_seen_with_its_process_until_it_ends() {
    let node = need_node!("what_passes_by_the_proxy_is_seen_with_its_process_until_it_ends");
    let (pair, _agent) = (with_holders(), serve(&node));
    let mut proxy = node.start(&PROXY, Some(&pair.pod));
    let mut app = node.start(&APP, Some(&pair.pod));
    // Before there is a redirect, as it is while somebody has flushed it.
    for place in ["10.9.0.1:9090", "[fd00:9::1]:9090"] {
        app.order(&format!("hold: {place}"));
    }
    app.order("serve: 0.0.0.0:8081");
    let caller = pair.outside.run(|| TcpStream::connect("10.9.0.2:8081").unwrap());
    app.order("accept");
    app.order("udp at: 0.0.0.0:5140");
    app.order("udp to: 10.9.0.1:123");
    app.order("udp to: [fd00:9::1]:443");
    proxy.order("listen and hold");
    let mut want = vec![
        "Outbound 10.9.0.1 9090 container app",
        "Outbound fd00:9::1 9090 container app",
        "Inbound 10.9.0.1 8081 container app",
        "UdpPeer 10.9.0.1 123 container app",
        "UdpPeer fd00:9::1 443 container app",
        "UdpListener - 5140 container app",
    ];
    assert_seen(&mut proxy, &want, "opened before the redirect");
    // Nobody but connection tracking knows whom a socket speaks to that is not connected.
    let _peer = pair.outside.run(|| UdpSocket::bind("10.9.0.1:4433").unwrap());
    app.order("udp towards: 10.9.0.1:4433");
    want.insert(4, "UdpPeer 10.9.0.1 4433 container app");
    assert_seen(&mut proxy, &want, "and UDP of a socket that is not connected");
    app.order("hold: 10.9.0.1:9091");
    assert_seen(&mut proxy, &want, "captured");
    drop(caller);
    app.order("let go");
    let left = proxy.order("look");
    assert!(!left.contains("bound"), "{left}");
}

#[test]
fn who_was_brought_into_the_proxys_container_is_seen() {
    let node = need_node!("who_was_brought_into_the_proxys_container_is_seen");
    let (pair, _agent) = (with_holders(), serve(&node));
    let mut proxy = node.start(&PROXY, Some(&pair.pod));
    proxy.order("listen and hold");
    assert!(proxy.order("ask").starts_with("done "));
    // As `exec` does: the same cgroup, so the same exemption.
    let mut brought = node.start(&PROXY, Some(&pair.pod));
    brought.order("hold: 10.9.0.1:9090");
    proxy.order("hold: 10.9.0.1:9091");
    assert_seen(&mut proxy, &["Outbound 10.9.0.1 9090 container cinch-proxy"], "brought in");
    drop(brought);
    assert_eq!(proxy.order("look"), seen(&[]));
}

#[test]
fn a_process_of_no_container_of_the_pod_is_seen_without_a_name() {
    let node = need_node!("a_process_of_no_container_of_the_pod_is_seen_without_a_name");
    let (pair, _agent) = (with_holders(), serve(&node));
    let mut proxy = node.start(&PROXY, Some(&pair.pod));
    proxy.order("listen and hold");
    let _stream = pair.pod.run(|| TcpStream::connect("10.9.0.1:9090").unwrap());
    assert_seen(&mut proxy, &["Outbound 10.9.0.1 9090 - -"], "entered from outside");
}

#[test]
fn a_pod_with_more_peers_than_a_look_takes_is_answered_with_a_part_and_the_word_that_it_is_one() {
    let node = need_node!(
        "a_pod_with_more_peers_than_a_look_takes_is_answered_with_a_part_and_the_word_that_it_is_one"
    );
    let (pair, agent) = (with_holders(), serve(&node));
    let mut proxy = node.start(&PROXY, Some(&pair.pod));
    let mut app = node.start(&APP, Some(&pair.pod));
    // What is seen of TCP must not be lost among it.
    app.order("hold: 10.9.0.1:9090");
    proxy.order("listen and hold");
    // Flows are tracked from the redirect on.
    assert!(proxy.order("ask").starts_with("done "));
    app.order("udp towards many: 1500");
    let found = proxy.order("look");
    assert!(found.starts_with("seen [Outbound 10.9.0.1 9090 container app, UdpPeer 10.9.0.1 10"), "{found}");
    // An answer names 32 of the 1024 that a look takes, and there is at least one more.
    assert!(found.ends_with(" container app] and 993 more"), "{found}");
    assert!(agent.metrics().text().contains("looks_cut_total 1\n"));
}
