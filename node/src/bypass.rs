//! What of a pod's traffic passes by its proxy, decided from what the kernel lists.
//!
//! In go the sockets, flows and addresses of the pod's network namespace, and which sockets are the proxy's; out
//! come the suspects. A connection is no suspect when its other end is the proxy's or in the pod itself, or where
//! the redirect leaves connections by design: loopback, link-local and multicast.

use crate::sockets::{Flow, Protocol, Socket, State};
use cinch_redirect::sighting::Way;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

/// Names are asked for by everybody, mostly by UDP and past every mesh.
const DNS: u16 = 53;

/// What the kernel says of a namespace at one moment.
#[derive(Debug, Clone, Default)]
pub struct Scene {
    /// TCP and UDP.
    pub sockets: Vec<Socket>,
    /// UDP, as connection tracking has it: the peers of sockets that are not connected.
    pub flows: Vec<Flow>,
    /// The pod's own.
    pub addresses: HashSet<IpAddr>,
    /// The ports that the kernel gives to those who ask for none.
    pub ephemeral: Option<RangeInclusive<u16>>,
}

/// Which sockets are the proxy's.
#[derive(Debug, Clone, Default)]
pub struct Proxy {
    /// The cgroup of its container and those below.
    pub cgroups: HashSet<u64>,
    /// Sockets of other processes in its container, by their inodes: who was brought in there by `exec` is exempt
    /// from the redirect, and is not the proxy.
    pub foreign: HashSet<u32>,
    /// Where it accepts what the pod's processes dial.
    pub outbound_port: u16,
}

/// Something that seems to pass by the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Suspect {
    /// How.
    pub way: Way,
    /// The pod's end.
    pub local: SocketAddr,
    /// The other end; unspecified for a listener.
    pub remote: SocketAddr,
    /// The socket's inode; 0 when the socket is gone or held by nobody.
    pub inode: u32,
    /// The socket's cgroup.
    pub cgroup: Option<u64>,
}

impl Suspect {
    fn of(way: Way, socket: &Socket) -> Self {
        let Socket { local, remote, inode, cgroup, .. } = *socket;
        Self { way, local, remote, inode, cgroup }
    }

    /// The port that is served, on whichever side that is.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self.way {
            Way::Outbound | Way::UdpPeer => self.remote.port(),
            Way::Inbound | Way::UdpListener => self.local.port(),
        }
    }

    /// The other end's address.
    #[must_use]
    pub fn peer(&self) -> Option<IpAddr> {
        (self.way != Way::UdpListener).then(|| self.remote.ip())
    }
}

impl Proxy {
    fn owns(&self, socket: &Socket) -> bool {
        socket.cgroup.is_some_and(|id| self.cgroups.contains(&id)) && !self.foreign.contains(&socket.inode)
    }
}

/// Whether a process besides the proxy has a UDP socket that may speak to anybody: whom it spoke to only connection
/// tracking can tell.
#[must_use]
pub fn has_open_udp(sockets: &[Socket], proxy: &Proxy) -> bool {
    let is_open = |socket: &&Socket| {
        socket.protocol == Protocol::Udp
            && socket.state != State::Established
            && (socket.local.ip().is_unspecified() || !is_never_captured(socket.local.ip()))
    };
    sockets.iter().filter(is_open).any(|socket| !proxy.owns(socket))
}

/// All that passes by `proxy` in `scene`.
#[must_use]
pub fn suspects(scene: &Scene, proxy: &Proxy) -> Vec<Suspect> {
    let mut found = tcp(scene, proxy);
    found.extend(udp(scene, proxy));
    found
}

/// What was found in two looks, a moment apart: a connection that is being opened or closed, or a list that the
/// kernel did not make in one go, shows one end without the other.
#[must_use]
pub fn in_both(first: &[Suspect], second: Vec<Suspect>) -> Vec<Suspect> {
    let same = |one: &Suspect, other: &Suspect| {
        (one.way, one.local, one.remote) == (other.way, other.local, other.remote)
    };
    second.into_iter().filter(|suspect| first.iter().any(|before| same(before, suspect))).collect()
}

fn tcp(scene: &Scene, proxy: &Proxy) -> Vec<Suspect> {
    let tcp = || scene.sockets.iter().filter(|socket| socket.protocol == Protocol::Tcp);
    let listening: HashSet<u16> = tcp()
        .filter(|socket| socket.state == State::Listening && !proxy.owns(socket))
        .map(|socket| socket.local.port())
        .collect();
    let mut captured = captured(tcp(), proxy);
    let mut outbound = Vec::new();
    let mut found = Vec::new();
    for socket in tcp().filter(|socket| socket.state == State::Established && !proxy.owns(socket)) {
        if scene.is_left_alone(socket.remote.ip()) {
            continue;
        }
        if listening.contains(&socket.local.port()) {
            found.push(Suspect::of(Way::Inbound, socket));
        } else if !captured.take(socket.local) {
            outbound.push(socket);
        }
    }
    // Two connections from one port to two places become one port to one place behind the redirect: the kernel
    // gives the second another port then. So what the proxy holds of the same address explains one each.
    outbound.retain(|socket| !captured.take_any(socket.local.ip()));
    found.extend(outbound.into_iter().map(|socket| Suspect::of(Way::Outbound, socket)));
    found
}

/// The other ends of what the proxy has accepted at its outbound port.
struct Captured(HashMap<SocketAddr, usize>);

/// Without those that a process of the pod has dialled there openly, which explain nothing else.
fn captured<'a>(tcp: impl Iterator<Item = &'a Socket> + Clone, proxy: &Proxy) -> Captured {
    let dialled: HashSet<(SocketAddr, SocketAddr)> = tcp
        .clone()
        .filter(|socket| socket.remote.port() == proxy.outbound_port)
        .map(|socket| (socket.remote, socket.local))
        .collect();
    let accepted = tcp
        .filter(|socket| socket.state == State::Established && proxy.owns(socket))
        .filter(|socket| socket.local.port() == proxy.outbound_port)
        .filter(|socket| !dialled.contains(&(socket.local, socket.remote)));
    let mut ends = HashMap::new();
    for socket in accepted {
        *ends.entry(socket.remote).or_default() += 1;
    }
    Captured(ends)
}

impl Captured {
    fn take(&mut self, end: SocketAddr) -> bool {
        let Some(count) = self.0.get_mut(&end) else { return false };
        *count -= 1;
        if *count == 0 {
            self.0.remove(&end);
        }
        true
    }

    fn take_any(&mut self, ip: IpAddr) -> bool {
        let end = self.0.keys().find(|end| end.ip() == ip).copied();
        end.is_some_and(|end| self.take(end))
    }
}

fn udp(scene: &Scene, proxy: &Proxy) -> Vec<Suspect> {
    let udp = || scene.sockets.iter().filter(|socket| socket.protocol == Protocol::Udp);
    let is_ephemeral = |port| scene.ephemeral.as_ref().is_some_and(|range| range.contains(&port));
    let mut found = Vec::new();
    for socket in udp().filter(|socket| !proxy.owns(socket)) {
        let (local, remote) = (socket.local, socket.remote);
        if socket.state == State::Established {
            if remote.port() != DNS && !scene.is_left_alone(remote.ip()) {
                found.push(Suspect::of(Way::UdpPeer, socket));
            }
        } else if local.port() != 0
            && local.port() != DNS
            && !is_ephemeral(local.port())
            && (local.ip().is_unspecified() || !is_never_captured(local.ip()))
        {
            found.push(Suspect::of(Way::UdpListener, socket));
        }
    }
    let by_port: HashMap<u16, &Socket> = udp().map(|socket| (socket.local.port(), socket)).collect();
    for flow in &scene.flows {
        let leaves = scene.addresses.contains(&flow.from.ip()) && !scene.is_left_alone(flow.to.ip());
        let socket = by_port.get(&flow.from.port());
        let known = found.iter().any(|suspect| (suspect.local, suspect.remote) == (flow.from, flow.to));
        if leaves && flow.to.port() != DNS && !known && !socket.is_some_and(|socket| proxy.owns(socket)) {
            let inode = socket.map_or(0, |socket| socket.inode);
            let cgroup = socket.and_then(|socket| socket.cgroup);
            found.push(Suspect { way: Way::UdpPeer, local: flow.from, remote: flow.to, inode, cgroup });
        }
    }
    found
}

impl Scene {
    /// What goes there never leaves the pod, or is left by the redirect.
    fn is_left_alone(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip) || is_never_captured(ip)
    }
}

/// The ranges that the rules of the redirect leave.
fn is_never_captured(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_unspecified(),
        IpAddr::V6(ip) => {
            ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified()
        }
    }
}

#[cfg(test)]
mod tests {
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

    fn seen(sockets: Vec<Socket>, flows: &[(&str, &str)]) -> Vec<String> {
        seen_with(sockets, flows, HashSet::new())
    }

    fn seen_with(sockets: Vec<Socket>, flows: &[(&str, &str)], foreign: HashSet<u32>) -> Vec<String> {
        let scene = Scene {
            sockets,
            flows: flows.iter().map(|(from, to)| Flow { from: at(from), to: at(to) }).collect(),
            addresses: ["10.1.0.2", "fd00::2", "127.0.0.1"].map(|ip| ip.parse().unwrap()).into(),
            ephemeral: Some(32_768..=60_999),
        };
        let proxy = Proxy { cgroups: [PROXY].into(), foreign, outbound_port: 15_001 };
        let found = suspects(&scene, &proxy);
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
}
