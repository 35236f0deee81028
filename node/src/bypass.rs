//! What of a pod's traffic passes by its proxy, decided from what the kernel lists.
//!
//! In go the sockets, flows and addresses of the pod's network namespace, and which sockets are the proxy's; out
//! come the suspects. A connection is no suspect when its other end is the proxy's or in the pod itself, or where
//! the redirect leaves connections by design: loopback, link-local and multicast. Nothing here takes longer than in
//! proportion to what goes in.

use crate::bounds::Listed;
use crate::sockets::{Flow, Protocol, Socket, State};
use cinch_redirect::sighting::Way;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

/// Names are asked for by everybody, mostly by UDP and past every mesh.
const DNS: u16 = 53;
/// Of one look; an answer names 32 of them.
pub const MOST_SUSPECTS: usize = 1024;

/// What the kernel says of a namespace at one moment.
#[derive(Debug, Clone, Default)]
pub struct Scene {
    /// Those that matter.
    pub tcp: Listed<Socket>,
    /// Those that matter.
    pub udp: Listed<Socket>,
    /// UDP, as connection tracking has it: the peers of sockets that are not connected.
    pub flows: Listed<Flow>,
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

/// All suspects of one moment, TCP first.
#[derive(Debug, Clone, Default)]
pub struct Suspects {
    /// At most [`MOST_SUSPECTS`].
    pub all: Vec<Suspect>,
    /// There may be more.
    pub is_cut: bool,
    /// There may be more TCP, which is what must not go unseen.
    pub hides_tcp: bool,
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

/// Whether anything here depends on `socket`: most connections of a pod stay in it.
#[must_use]
pub fn matters(socket: &Socket, addresses: &HashSet<IpAddr>, proxy: &Proxy) -> bool {
    if socket.state != State::Established {
        return true;
    }
    match socket.protocol {
        Protocol::Tcp => {
            [socket.local.port(), socket.remote.port()].contains(&proxy.outbound_port)
                || !proxy.owns(socket) && !is_left_alone(addresses, socket.remote.ip())
        }
        Protocol::Udp => proxy.owns(socket) || !is_left_alone(addresses, socket.remote.ip()),
    }
}

/// Whether a flow leaves the pod, and not for DNS.
#[must_use]
pub fn leaves(flow: &Flow, addresses: &HashSet<IpAddr>) -> bool {
    flow.to.port() != DNS && addresses.contains(&flow.from.ip()) && !is_left_alone(addresses, flow.to.ip())
}

/// Whether a process besides the proxy has a UDP socket that may speak to anybody: whom it spoke to only connection
/// tracking can tell.
#[must_use]
pub fn has_open_udp(udp: &[Socket], proxy: &Proxy) -> bool {
    let is_open = |socket: &&Socket| {
        socket.state != State::Established
            && (socket.local.ip().is_unspecified() || !is_never_captured(socket.local.ip()))
    };
    udp.iter().filter(is_open).any(|socket| !proxy.owns(socket))
}

/// What passes by `proxy` in `scene`.
#[must_use]
pub fn suspects(scene: &Scene, proxy: &Proxy) -> Suspects {
    let mut all = tcp(scene, proxy);
    let hides_tcp = scene.tcp.is_cut || all.len() > MOST_SUSPECTS;
    udp(scene, proxy, &mut all);
    let is_cut = hides_tcp || scene.udp.is_cut || scene.flows.is_cut || all.len() > MOST_SUSPECTS;
    all.truncate(MOST_SUSPECTS);
    Suspects { all, is_cut, hides_tcp }
}

/// What was found in two looks, a moment apart: a connection that is being opened or closed, or a list that the
/// kernel did not make in one go, shows one end without the other.
#[must_use]
pub fn in_both(first: &[Suspect], second: Vec<Suspect>) -> Vec<Suspect> {
    let ends = |suspect: &Suspect| (suspect.way, suspect.local, suspect.remote);
    let before: HashSet<_> = first.iter().map(ends).collect();
    second.into_iter().filter(|suspect| before.contains(&ends(suspect))).collect()
}

/// One more than there may be is enough to know that there are too many.
fn has_room(found: &[Suspect]) -> bool {
    found.len() <= MOST_SUSPECTS
}

fn tcp(scene: &Scene, proxy: &Proxy) -> Vec<Suspect> {
    let tcp = || scene.tcp.all.iter();
    let listening: HashSet<u16> = tcp()
        .filter(|socket| socket.state == State::Listening && !proxy.owns(socket))
        .map(|socket| socket.local.port())
        .collect();
    let mut captured = captured(tcp(), proxy);
    let mut outbound = Vec::new();
    let mut found = Vec::new();
    for socket in tcp().filter(|socket| socket.state == State::Established && !proxy.owns(socket)) {
        if is_left_alone(&scene.addresses, socket.remote.ip()) {
            continue;
        }
        if listening.contains(&socket.local.port()) {
            if has_room(&found) {
                found.push(Suspect::of(Way::Inbound, socket));
            }
        } else if !captured.take(socket.local) {
            outbound.push(socket);
        }
    }
    // What explains them may be in the part that was left.
    if scene.tcp.is_cut {
        return found;
    }
    // Two connections from one port to two places become one port to one place behind the redirect: the kernel
    // gives the second another port then. So what the proxy holds of the same address explains one each.
    outbound.retain(|socket| !captured.take_any(socket.local.ip()));
    let room = (MOST_SUSPECTS + 1).saturating_sub(found.len());
    found.extend(outbound.into_iter().take(room).map(|socket| Suspect::of(Way::Outbound, socket)));
    found
}

/// The other ends of what the proxy has accepted at its outbound port.
#[derive(Default)]
struct Captured {
    /// How many of each.
    ends: HashMap<SocketAddr, usize>,
    /// How many of each address.
    of_address: HashMap<IpAddr, usize>,
}

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
    let mut captured = Captured::default();
    for socket in accepted {
        *captured.ends.entry(socket.remote).or_default() += 1;
        *captured.of_address.entry(socket.remote.ip()).or_default() += 1;
    }
    captured
}

impl Captured {
    fn take(&mut self, end: SocketAddr) -> bool {
        take_one(&mut self.ends, &end) && take_one(&mut self.of_address, &end.ip())
    }

    /// Only after all of [`Self::take`]: which of the address it was is forgotten.
    fn take_any(&mut self, ip: IpAddr) -> bool {
        take_one(&mut self.of_address, &ip)
    }
}

fn take_one<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) -> bool {
    let left = counts.get_mut(key).and_then(|count| Some((count.checked_sub(1)?, count)));
    left.map(|(left, count)| *count = left).is_some()
}

fn udp(scene: &Scene, proxy: &Proxy, found: &mut Vec<Suspect>) {
    let is_ephemeral = |port| scene.ephemeral.as_ref().is_some_and(|range| range.contains(&port));
    for socket in scene.udp.all.iter().filter(|socket| !proxy.owns(socket)) {
        if !has_room(found) {
            return;
        }
        let (local, remote) = (socket.local, socket.remote);
        if socket.state == State::Established {
            if remote.port() != DNS && !is_left_alone(&scene.addresses, remote.ip()) {
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
    let by_port: HashMap<u16, &Socket> =
        scene.udp.all.iter().map(|socket| (socket.local.port(), socket)).collect();
    let mut known: HashSet<_> = found.iter().map(|suspect| (suspect.local, suspect.remote)).collect();
    for flow in scene.flows.all.iter().filter(|flow| leaves(flow, &scene.addresses)) {
        let socket = by_port.get(&flow.from.port());
        // Where sockets are missing in the list, one that is not there may be the proxy's.
        let is_proxys = socket.map_or(scene.udp.is_cut, |socket| proxy.owns(socket));
        if is_proxys || !known.insert((flow.from, flow.to)) {
            continue;
        }
        if !has_room(found) {
            return;
        }
        let inode = socket.map_or(0, |socket| socket.inode);
        let cgroup = socket.and_then(|socket| socket.cgroup);
        found.push(Suspect { way: Way::UdpPeer, local: flow.from, remote: flow.to, inode, cgroup });
    }
}

/// What goes there never leaves the pod, or is left by the redirect.
fn is_left_alone(addresses: &HashSet<IpAddr>, ip: IpAddr) -> bool {
    addresses.contains(&ip) || is_never_captured(ip)
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
mod tests;
