//! The network namespace of the calling thread as the kernel lists it: its TCP and UDP sockets (sock_diag(7)), the
//! UDP flows that connection tracking knows, and its addresses (rtnetlink(7)).
//!
//! Bytes of the kernel go in, [`Socket`]s, [`Flow`]s and addresses come out.

use crate::bounds::{Budget, Listed, MOST_LISTED};
use crate::netlink::{Wanted, attribute, dump};
use rustix::net::netlink::{NETFILTER, SOCK_DIAG};
use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// linux/inet_diag.h, `struct inet_diag_req_v2`: head and an empty socket id.
const SOCKET_ID: usize = 48;
/// `struct inet_diag_msg`.
const SOCKET_MESSAGE: usize = 72;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// include/net/tcp_states.h
const ESTABLISHED: u8 = 1;
const LISTENING: u8 = 10;

// linux/netfilter/nfnetlink_conntrack.h
const CONNTRACK_GET: u16 = 1 << 8 | 1;
const FAMILY_HEADER: usize = 4;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4: [u16; 2] = [1, 2];
const CTA_IP_V6: [u16; 2] = [3, 4];
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_PORTS: [u16; 2] = [2, 3];

/// linux/rtnetlink.h and linux/if_addr.h; the head is a `struct ifaddrmsg`.
const RTM_GETADDR: u16 = 22;
const ADDRESS_HEADER: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// The two protocols that pods speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// How a socket stands. UDP has only `Established`, when connected, and `Other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Open both ways.
    Established,
    /// It waits for connections.
    Listening,
    /// Anything else.
    Other,
}

/// One socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// How it stands.
    pub state: State,
    /// Its own end.
    pub local: SocketAddr,
    /// The other end; unspecified when there is none.
    pub remote: SocketAddr,
    /// By which a process' descriptors name it; 0 when no process holds it.
    pub inode: u32,
    /// The cgroup in which it was opened; `None` before Linux 5.7.
    pub cgroup: Option<u64>,
}

/// A UDP exchange that connection tracking has seen begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Who spoke first.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
}

/// The sockets of `protocol` that are to `keep`, of both families; of TCP only those that are open or listen. The
/// kernel walks a table of all its namespaces for each family: half a millisecond, and as long again for other
/// states.
///
/// # Errors
/// The system's error; `NotFound` where this kernel can't list them.
pub fn sockets(
    protocol: Protocol,
    budget: &mut Budget,
    keep: impl Fn(&Socket) -> bool,
) -> io::Result<Listed<Socket>> {
    let mut found = Listed::default();
    let mut list = |family: i32| {
        dump(Some(SOCK_DIAG), SOCK_DIAG_BY_FAMILY, &question(family, protocol), |message| {
            found.take(socket(protocol, message).filter(&keep), MOST_LISTED, budget)
        })
    };
    list(libc::AF_INET)?;
    absent_is_none(list(libc::AF_INET6))?;
    Ok(found)
}

/// The UDP flows of the namespace that are to `keep`; none where connection tracking can't be asked. The kernel
/// walks the table of all its namespaces, which takes it some milliseconds.
///
/// # Errors
/// The system's error.
pub fn flows(budget: &mut Budget, keep: impl Fn(&Flow) -> bool) -> io::Result<Listed<Flow>> {
    let mut found = Listed::default();
    // Of no family: of both.
    let listed = dump(Some(NETFILTER), CONNTRACK_GET, &[0; FAMILY_HEADER], |message| {
        found.take(flow(message).filter(&keep), MOST_LISTED, budget)
    });
    absent_is_none(listed)?;
    Ok(found)
}

/// The addresses of the namespace's devices.
///
/// # Errors
/// The system's error.
pub fn addresses() -> io::Result<HashSet<IpAddr>> {
    let mut found = HashSet::new();
    dump(None, RTM_GETADDR, &[0; ADDRESS_HEADER], |message| {
        found.extend(own_address(message));
        Wanted::More
    })?;
    Ok(found)
}

fn absent_is_none(listed: io::Result<()>) -> io::Result<()> {
    match listed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        listed => listed,
    }
}

fn question(family: i32, protocol: Protocol) -> Vec<u8> {
    let mut question = vec![u8::try_from(family).unwrap_or_default(), protocol.number(), 0, 0];
    let states = match protocol {
        Protocol::Tcp => 1 << ESTABLISHED | 1 << LISTENING,
        Protocol::Udp => u32::MAX,
    };
    question.extend(states.to_ne_bytes());
    question.extend([0; SOCKET_ID]);
    question
}

/// One message of the list; `None` when it is cut short.
fn socket(protocol: Protocol, message: &[u8]) -> Option<Socket> {
    let [family, state, ..] = *message else { return None };
    let id = message.get(4..)?;
    let port = |at: usize| Some(u16::from_be_bytes(*id.get(at..)?.first_chunk()?));
    let address = |at: usize| address(family, id.get(at..)?);
    let state = match state {
        ESTABLISHED => State::Established,
        LISTENING => State::Listening,
        _ => State::Other,
    };
    let cgroup = attribute(message.get(SOCKET_MESSAGE..)?, INET_DIAG_CGROUP_ID);
    Some(Socket {
        protocol,
        state,
        local: SocketAddr::new(address(4)?, port(0)?),
        remote: SocketAddr::new(address(20)?, port(2)?),
        inode: u32::from_ne_bytes(*message.get(SOCKET_MESSAGE - 4..)?.first_chunk()?),
        cgroup: cgroup.and_then(|id| Some(u64::from_ne_bytes(*id.first_chunk()?))),
    })
}

/// Mapped addresses are those of IPv4: a socket of one family talks to one of the other.
fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    if i32::from(family) == libc::AF_INET {
        return Some(IpAddr::from(*bytes.first_chunk::<4>()?));
    }
    Some(IpAddr::from(*bytes.first_chunk::<16>()?).to_canonical())
}

/// On point-to-point links the local address is apart: the other one is the peer's.
fn own_address(message: &[u8]) -> Option<IpAddr> {
    let attributes = message.get(ADDRESS_HEADER..)?;
    let own = attribute(attributes, IFA_LOCAL).or_else(|| attribute(attributes, IFA_ADDRESS))?;
    address(*message.first()?, own)
}

/// One message of connection tracking; `None` unless it is about UDP.
fn flow(message: &[u8]) -> Option<Flow> {
    let tuple = attribute(message.get(FAMILY_HEADER..)?, CTA_TUPLE_ORIG)?;
    let protocol = attribute(tuple, CTA_TUPLE_PROTO)?;
    if attribute(protocol, CTA_PROTO_NUM)?.first() != Some(&Protocol::Udp.number()) {
        return None;
    }
    let addresses = attribute(tuple, CTA_TUPLE_IP)?;
    let end = |at: usize| {
        let v4 = || Some(IpAddr::from(*attribute(addresses, *CTA_IP_V4.get(at)?)?.first_chunk::<4>()?));
        let v6 = || Some(IpAddr::from(*attribute(addresses, *CTA_IP_V6.get(at)?)?.first_chunk::<16>()?));
        let port = attribute(protocol, *CTA_PROTO_PORTS.get(at)?)?.first_chunk()?;
        Some(SocketAddr::new(v4().or_else(v6)?, u16::from_be_bytes(*port)))
    };
    Some(Flow { from: end(0)?, to: end(1)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
    use std::time::{Duration, Instant};

    /// This thread's namespace is that of the machine: only our own sockets are looked for.
    #[test]
    fn the_kernel_lists_our_sockets_with_their_ends_and_states() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let sockets = |protocol| {
            let mut budget = Budget::new(Instant::now() + Duration::from_secs(3600), 0);
            sockets(protocol, &mut budget, |socket| socket.local.ip().is_loopback()).unwrap().all
        };
        let tcp = sockets(Protocol::Tcp);
        let of = |local, state| tcp.iter().find(|s| s.local == local && s.state == state);
        assert!(of(listener.local_addr().unwrap(), State::Listening).is_some());
        let found = of(client.local_addr().unwrap(), State::Established).unwrap();
        assert_eq!(found.remote, listener.local_addr().unwrap());
        assert!(found.inode > 0 && found.cgroup.is_some_and(|id| id > 0), "{found:?}");

        let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let speaker = UdpSocket::bind("[::]:0").unwrap();
        let to = SocketAddr::new("::ffff:127.0.0.1".parse().unwrap(), peer.local_addr().unwrap().port());
        speaker.connect(to).unwrap();
        let udp = sockets(Protocol::Udp);
        let found = udp.iter().find(|s| s.remote == peer.local_addr().unwrap()).unwrap();
        assert_eq!(
            (found.state, found.local.port()),
            (State::Established, speaker.local_addr().unwrap().port())
        );
        assert!(udp.iter().any(|s| s.local == peer.local_addr().unwrap() && s.state == State::Other));
        assert!(addresses().unwrap().contains(&Ipv4Addr::LOCALHOST.into()));
    }

    #[test]
    fn messages_cut_anywhere_are_no_socket_and_no_panic() {
        let mut message = vec![2, 1, 0, 0, 0x1f, 0x90, 0, 80];
        message.resize(SOCKET_MESSAGE, 0);
        message.extend([12, 0, 21, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        let whole = socket(Protocol::Tcp, &message).unwrap();
        assert_eq!((whole.local.port(), whole.remote.port(), whole.cgroup), (8080, 80, Some(7)));
        for cut in 0..message.len() {
            let found = socket(Protocol::Tcp, &message[..cut]);
            assert_eq!(found.is_some(), cut >= SOCKET_MESSAGE, "{cut}");
            assert!(found.is_none_or(|found| found.cgroup.is_none()));
            let _ = flow(&message[..cut]);
        }
    }

    fn nest(kind: u8, inner: &[u8]) -> Vec<u8> {
        let length = u8::try_from(4 + inner.len()).unwrap();
        let mut out = vec![length, 0, kind, 0x80];
        out.extend(inner);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    #[test]
    fn only_flows_of_udp_are_taken() {
        let message = |protocol: u8| {
            let addresses = [nest(1, &[10, 0, 0, 2]), nest(2, &[10, 0, 0, 9])].concat();
            let ports = [nest(1, &[protocol]), nest(2, &[0x80, 0]), nest(3, &[1, 187])].concat();
            [vec![2, 0, 0, 0], nest(1, &[nest(1, &addresses), nest(2, &ports)].concat())].concat()
        };
        let udp = flow(&message(17)).unwrap();
        assert_eq!(
            (udp.from.to_string(), udp.to.to_string()),
            ("10.0.0.2:32768".into(), "10.0.0.9:443".into())
        );
        assert_eq!(flow(&message(6)), None);
        for cut in 0..message(17).len() {
            let _ = flow(&message(17)[..cut]);
        }
    }
}
