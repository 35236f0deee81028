use super::*;

const PROXY: u64 = 7;
const APP: u64 = 8;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn socket(protocol: Protocol, state: State, local: &str, remote: &str, cgroup: u64) -> Socket {
    let inode = u32::from(at(local).port()) + 100_000;
    Socket { protocol, state, local: at(local), remote: at(remote), inode, cgroup: Some(cgroup) }
}

fn open(local: &str, remote: &str, cgroup: u64) -> Socket {
    socket(Protocol::Tcp, State::Established, local, remote, cgroup)
}

fn proxy() -> Proxy {
    Proxy { cgroups: [PROXY].into(), foreign: HashSet::new(), outbound_port: 15_001 }
}

/// As the kernel's lists make it: only what matters.
fn scene(sockets: Vec<Socket>, flows: Vec<Flow>, proxy: &Proxy) -> Scene {
    let addresses: HashSet<IpAddr> =
        ["10.1.0.2", "fd00::2", "127.0.0.1"].map(|ip| ip.parse().unwrap()).into();
    let mattering = sockets.into_iter().filter(|socket| matters(socket, &addresses, proxy));
    let (tcp, udp) = mattering.partition(|socket| socket.protocol == Protocol::Tcp);
    let flows = flows.into_iter().filter(|flow| leaves(flow, &addresses)).collect();
    Scene {
        tcp: whole(tcp),
        udp: whole(udp),
        flows: whole(flows),
        addresses,
        ephemeral: Some(32_768..=60_999),
    }
}

fn whole<T>(all: Vec<T>) -> Listed<T> {
    Listed { all, is_cut: false }
}

fn seen(sockets: Vec<Socket>, flows: &[(&str, &str)]) -> Vec<String> {
    seen_with(sockets, flows, HashSet::new())
}

fn seen_with(sockets: Vec<Socket>, flows: &[(&str, &str)], foreign: HashSet<u32>) -> Vec<String> {
    let flows = flows.iter().map(|(from, to)| Flow { from: at(from), to: at(to) }).collect();
    let proxy = Proxy { foreign, ..proxy() };
    let found = suspects(&scene(sockets, flows, &proxy), &proxy).all;
    let peer = |suspect: &Suspect| suspect.peer().map_or("-".to_owned(), |ip| ip.to_string());
    found.iter().map(|found| format!("{:?} {} {}", found.way, peer(found), found.port())).collect()
}

#[test]
fn what_meets_the_proxy_or_stays_in_the_pod_is_no_bypass() {
    let listens = |at| socket(Protocol::Tcp, State::Listening, at, "0.0.0.0:0", APP);
    let nothing: [&str; 0] = [];
    for (case, sockets) in [
        (
            "captured",
            vec![
                open("10.1.0.2:40000", "10.9.0.1:443", APP),
                open("127.0.0.1:15001", "10.1.0.2:40000", PROXY),
                open("10.1.0.2:50000", "10.9.0.7:443", PROXY),
            ],
        ),
        (
            "captured, IPv6",
            vec![
                open("[fd00::2]:40000", "[fd00:9::1]:443", APP),
                open("[::1]:15001", "[fd00::2]:40000", PROXY),
            ],
        ),
        (
            "one port to two places",
            vec![
                open("10.1.0.2:40000", "10.9.0.1:443", APP),
                open("10.1.0.2:40000", "10.9.0.2:443", APP),
                open("127.0.0.1:15001", "10.1.0.2:40000", PROXY),
                open("127.0.0.1:15001", "10.1.0.2:61234", PROXY),
            ],
        ),
        (
            "inbound",
            vec![
                listens("0.0.0.0:8080"),
                open("10.1.0.2:15006", "10.9.0.1:33000", PROXY),
                open("10.1.0.2:42000", "10.1.0.2:8080", PROXY),
                open("10.1.0.2:8080", "10.1.0.2:42000", APP),
            ],
        ),
        (
            "within the pod",
            vec![open("127.0.0.1:1", "127.0.0.1:2", APP), open("10.1.0.2:1", "10.1.0.2:2", APP)],
        ),
        (
            "left by design",
            vec![open("10.1.0.2:1", "169.254.169.254:80", APP), open("[fd00::2]:1", "[fe80::1]:80", APP)],
        ),
        (
            "not open",
            vec![
                socket(Protocol::Tcp, State::Other, "10.1.0.2:1", "10.9.0.1:443", APP),
                listens("0.0.0.0:80"),
            ],
        ),
    ] {
        assert_eq!(seen(sockets, &[]), nothing, "{case}");
    }
}

#[test]
fn connections_that_do_not_meet_the_proxy_are_seen() {
    let listens = socket(Protocol::Tcp, State::Listening, "0.0.0.0:8080", "0.0.0.0:0", APP);
    let direct = open("10.1.0.2:40000", "10.9.0.1:443", APP);
    for (case, sockets, want) in [
        ("outbound", vec![direct], "Outbound 10.9.0.1 443"),
        ("inbound", vec![listens, open("10.1.0.2:8080", "10.9.0.1:33000", APP)], "Inbound 10.9.0.1 8080"),
        (
            "beside a captured one of another address",
            vec![direct, open("[::1]:15001", "[fd00::2]:40000", PROXY)],
            "Outbound 10.9.0.1 443",
        ),
        (
            "behind an open dial to the proxy from the same port",
            vec![
                direct,
                open("10.1.0.2:40000", "127.0.0.1:15001", APP),
                open("127.0.0.1:15001", "10.1.0.2:40000", PROXY),
            ],
            "Outbound 10.9.0.1 443",
        ),
        (
            "another port of the proxy explains nothing",
            vec![direct, open("127.0.0.1:15021", "10.1.0.2:40000", PROXY)],
            "Outbound 10.9.0.1 443",
        ),
        (
            "from outside the pod's containers",
            vec![open("10.1.0.2:1", "10.9.0.1:22", 99)],
            "Outbound 10.9.0.1 22",
        ),
    ] {
        assert_eq!(seen(sockets, &[]), [want], "{case}");
    }
}

#[test]
fn who_was_brought_into_the_proxys_container_is_not_the_proxy() {
    let sockets =
        vec![open("10.1.0.2:40000", "10.9.0.1:443", PROXY), open("10.1.0.2:40001", "10.9.0.1:80", PROXY)];
    assert_eq!(seen_with(sockets, &[], [140_001].into()), ["Outbound 10.9.0.1 80"]);
}

#[test]
fn udp_is_seen_but_for_dns_and_what_stays() {
    let udp = |state, local, remote, cgroup| socket(Protocol::Udp, state, local, remote, cgroup);
    let sockets = vec![
        udp(State::Established, "10.1.0.2:40000", "10.9.0.1:443", APP),
        udp(State::Established, "10.1.0.2:40001", "10.96.0.10:53", APP),
        udp(State::Established, "127.0.0.1:40002", "127.0.0.1:8125", APP),
        udp(State::Established, "10.1.0.2:40003", "10.9.0.1:443", PROXY),
        udp(State::Other, "0.0.0.0:5140", "0.0.0.0:0", APP),
        udp(State::Other, "127.0.0.1:8125", "0.0.0.0:0", APP),
        udp(State::Other, "[::]:53", "[::]:0", APP),
        udp(State::Other, "0.0.0.0:40004", "0.0.0.0:0", APP),
        udp(State::Other, "0.0.0.0:40005", "0.0.0.0:0", PROXY),
    ];
    let flows = [
        // Known already by its socket.
        ("10.1.0.2:40000", "10.9.0.1:443"),
        ("10.1.0.2:40004", "10.9.0.2:4433"),
        ("10.1.0.2:40004", "10.96.0.10:53"),
        ("10.1.0.2:40005", "10.9.0.3:1"),
        // Its socket is gone.
        ("10.1.0.2:40009", "10.9.0.4:123"),
        // Somebody outside speaks to us, and we to ourselves.
        ("10.9.0.5:40004", "10.1.0.2:5140"),
        ("10.1.0.2:40004", "10.1.0.2:5140"),
    ];
    assert_eq!(
        seen(sockets, &flows),
        ["UdpPeer 10.9.0.1 443", "UdpListener - 5140", "UdpPeer 10.9.0.2 4433", "UdpPeer 10.9.0.4 123"]
    );
}

#[test]
fn only_what_two_looks_have_seen_counts() {
    let of = |local: &str, inode| Suspect {
        way: Way::Outbound,
        local: at(local),
        remote: at("10.9.0.1:443"),
        inode,
        cgroup: None,
    };
    let first = [of("10.1.0.2:1", 1), of("10.1.0.2:2", 2)];
    // Accepted by its process meanwhile: the newer look knows more.
    assert_eq!(in_both(&first, vec![of("10.1.0.2:2", 3), of("10.1.0.2:4", 4)]), [of("10.1.0.2:2", 3)]);
}

#[test]
fn what_stays_in_the_pod_takes_no_room_in_a_list() {
    let addresses = scene(Vec::new(), Vec::new(), &proxy()).addresses;
    let udp = |state, local, remote, cgroup| socket(Protocol::Udp, state, local, remote, cgroup);
    for (case, socket, want) in [
        ("loopback", open("127.0.0.1:1", "127.0.0.1:2", APP), false),
        ("of the pod's address", open("10.1.0.2:1", "10.1.0.2:2", APP), false),
        ("the proxy's way on", open("10.1.0.2:1", "10.9.0.1:2", PROXY), false),
        ("outbound", open("10.1.0.2:1", "10.9.0.1:2", APP), true),
        ("accepted by the proxy", open("127.0.0.1:15001", "10.1.0.2:1", PROXY), true),
        ("dialled openly", open("10.1.0.2:1", "127.0.0.1:15001", APP), true),
        ("a listener", socket(Protocol::Tcp, State::Listening, "127.0.0.1:1", "0.0.0.0:0", APP), true),
        ("UDP, loopback", udp(State::Established, "127.0.0.1:1", "127.0.0.1:2", APP), false),
        ("UDP, the proxy's", udp(State::Established, "127.0.0.1:1", "127.0.0.1:2", PROXY), true),
        ("UDP, open", udp(State::Other, "0.0.0.0:1", "0.0.0.0:0", APP), true),
    ] {
        assert_eq!(matters(&socket, &addresses, &proxy()), want, "{case}");
    }
}

/// Flows of one socket to as many peers, the first one first.
fn flows_to(count: u32) -> Vec<Flow> {
    let peer = |number: u32| SocketAddr::new(IpAddr::from((0x0a09_0000 + number).to_be_bytes()), 443);
    (0..count).map(|number| Flow { from: at("10.1.0.2:40004"), to: peer(number) }).collect()
}

#[test]
fn more_suspects_than_there_is_room_for_are_left_and_told() {
    let most = u32::try_from(MOST_SUSPECTS).unwrap();
    for (flows, is_cut) in [(most - 1, false), (most, true), (20_000, true)] {
        // TCP has its place, however much UDP there is.
        let found = suspects(
            &scene(vec![open("10.1.0.2:1", "10.9.0.1:443", APP)], flows_to(flows), &proxy()),
            &proxy(),
        );
        assert_eq!((found.all.len(), found.is_cut), (MOST_SUSPECTS, is_cut), "{flows} flows");
        assert_eq!(found.all[0].way, Way::Outbound);
    }
    let many = |protocol, listener: bool| {
        let of = |flow: Flow| Socket {
            remote: flow.to,
            ..socket(protocol, State::Established, "10.1.0.2:8080", "10.9.0.1:1", APP)
        };
        let listener = listener.then(|| socket(protocol, State::Listening, "0.0.0.0:8080", "0.0.0.0:0", APP));
        scene(flows_to(20_000).into_iter().map(of).chain(listener).collect(), Vec::new(), &proxy())
    };
    for (case, scene) in [
        ("outbound", many(Protocol::Tcp, false)),
        ("inbound", many(Protocol::Tcp, true)),
        ("connected UDP", many(Protocol::Udp, false)),
        ("flows", scene(Vec::new(), flows_to(20_000), &proxy())),
    ] {
        let found = suspects(&scene, &proxy());
        assert_eq!((found.all.len(), found.is_cut), (MOST_SUSPECTS, true), "{case}");
        assert_eq!(found.hides_tcp, ["outbound", "inbound"].contains(&case), "{case}");
        // Nor is there ever room for more than that, and one to know by.
        let mut held = tcp(&scene, &proxy());
        udp(&scene, &proxy(), &mut held);
        assert_eq!(held.len(), MOST_SUSPECTS + 1, "{case}");
    }
}

#[test]
fn of_lists_that_are_cut_only_what_they_prove_is_taken() {
    let listens = socket(Protocol::Tcp, State::Listening, "0.0.0.0:8080", "0.0.0.0:0", APP);
    let sockets = vec![
        open("10.1.0.2:40000", "10.9.0.1:443", APP),
        listens,
        open("10.1.0.2:8080", "10.9.0.1:33000", APP),
        socket(Protocol::Udp, State::Other, "0.0.0.0:40004", "0.0.0.0:0", APP),
    ];
    let stray = Flow { from: at("10.1.0.2:40009"), to: at("10.9.0.1:1") };
    let whole = scene(sockets, [flows_to(1), vec![stray]].concat(), &proxy());
    let ways = |scene: &Scene| {
        let found = suspects(scene, &proxy());
        (
            found.all.iter().map(|suspect| (suspect.way, suspect.local.port())).collect::<Vec<_>>(),
            found.is_cut,
            found.hides_tcp,
        )
    };
    let (inbound, outbound) = ((Way::Inbound, 8080), (Way::Outbound, 40_000));
    let (known, stray) = ((Way::UdpPeer, 40_004), (Way::UdpPeer, 40_009));
    assert_eq!(ways(&whole), (vec![inbound, outbound, known, stray], false, false));
    // What explains a connection may be in the part that is missing, and so may the proxy's socket of a flow.
    let mut cut = whole.clone();
    cut.tcp.is_cut = true;
    assert_eq!(ways(&cut), (vec![inbound, known, stray], true, true));
    let mut cut = whole.clone();
    cut.udp.is_cut = true;
    assert_eq!(ways(&cut), (vec![inbound, outbound, known], true, false));
    let mut cut = whole;
    cut.flows.is_cut = true;
    assert_eq!(ways(&cut), (vec![inbound, outbound, known, stray], true, false));
}

#[test]
fn a_flow_that_is_listed_twice_is_one() {
    let found = suspects(&scene(Vec::new(), [flows_to(2), flows_to(2)].concat(), &proxy()), &proxy());
    assert_eq!(found.all.len(), 2);
}
