//! What the node agent saw pass by a pod's proxy, as it stands in its answer: values in, bytes out, and back.
//!
//! ```text
//! count:u8 more:u16  count times: way:u8  length:u8 address  port:u16  length:u8 process  length:u8 container
//! ```
//!
//! An address has 0, 4 or 16 bytes. Entries of a way that this program does not know are passed over.

use std::net::IpAddr;

/// No answer names more; what is beyond is counted.
pub const MOST_SIGHTINGS: usize = 32;
/// The kernel's own names of processes have at most 15 bytes (`PR_SET_NAME`).
const LONGEST_PROCESS: usize = 15;
/// Names of containers are DNS labels (RFC 1123).
const LONGEST_CONTAINER: usize = 63;
const HEAD: usize = 3;
const LONGEST_ENTRY: usize = 1 + 1 + 16 + 2 + 1 + LONGEST_PROCESS + 1 + LONGEST_CONTAINER;
/// No list is longer, in bytes.
pub(crate) const LONGEST_LIST: usize = HEAD + MOST_SIGHTINGS * LONGEST_ENTRY;

/// In which way something passes by the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// A TCP connection that a process of the pod has opened.
    Outbound,
    /// A TCP connection that a process of the pod has accepted from outside.
    Inbound,
    /// A process of the pod sends UDP to this peer, and not for DNS.
    UdpPeer,
    /// A process of the pod waits for UDP at this port.
    UdpListener,
}

impl Way {
    /// Whether it is a TCP connection, which the proxy should have met.
    #[must_use]
    pub fn is_tcp(self) -> bool {
        matches!(self, Self::Outbound | Self::Inbound)
    }

    const ALL: [Self; 4] = [Self::Outbound, Self::Inbound, Self::UdpPeer, Self::UdpListener];

    /// The byte of the wire, also in what proxies report.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Outbound => 1,
            Self::Inbound => 2,
            Self::UdpPeer => 3,
            Self::UdpListener => 4,
        }
    }

    /// The way of a byte of the wire.
    #[must_use]
    pub fn of_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|way| way.number() == number)
    }
}

/// One thing that passes by the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sighting {
    /// How it does.
    pub way: Way,
    /// The other end; `None` for a listener.
    pub peer: Option<IpAddr>,
    /// The port that is served: the peer's outbound, the pod's own inbound and for a listener.
    pub port: u16,
    /// The kernel's name of the process; empty when it was not found.
    pub process: String,
    /// The container that it runs in; empty when it is none of the pod's.
    pub container: String,
}

/// What one look at a pod has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sightings {
    /// At most [`MOST_SIGHTINGS`].
    pub seen: Vec<Sighting>,
    /// How many there were besides.
    pub more: u16,
    /// The look left TCP unseen, or may have: that nothing of it is named does not say that there is none. It stands
    /// among the flags of the answer, behind the list.
    pub is_cut: bool,
}

impl Sightings {
    /// Keeps the first of `all` and counts the others; TCP comes first.
    #[must_use]
    pub fn of(mut all: Vec<Sighting>) -> Self {
        all.sort_unstable();
        all.dedup();
        let more = all.len().saturating_sub(MOST_SIGHTINGS);
        all.truncate(MOST_SIGHTINGS);
        Self { seen: all, more: u16::try_from(more).unwrap_or(u16::MAX), is_cut: false }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let seen = self.seen.get(..MOST_SIGHTINGS).unwrap_or(&self.seen);
        let mut out = vec![u8::try_from(seen.len()).unwrap_or(u8::MAX)];
        out.extend(self.more.to_be_bytes());
        for sighting in seen {
            out.push(sighting.way.number());
            match sighting.peer {
                None => put(&mut out, &[]),
                Some(IpAddr::V4(ip)) => put(&mut out, &ip.octets()),
                Some(IpAddr::V6(ip)) => put(&mut out, &ip.octets()),
            }
            out.extend(sighting.port.to_be_bytes());
            put(&mut out, crate::request::cut(&sighting.process, LONGEST_PROCESS).as_bytes());
            put(&mut out, crate::request::cut(&sighting.container, LONGEST_CONTAINER).as_bytes());
        }
        out
    }

    /// Takes a list from the front of `bytes`; `None` when there is none. An agent of before does not say whether its
    /// look was cut, so that one with more than it names may have been.
    pub(crate) fn take(bytes: &mut &[u8]) -> Option<Self> {
        let count = take_u8(bytes)?;
        let more = take_u16(bytes)?;
        let mut seen = Vec::new();
        for _ in 0..count {
            let way = Way::of_number(take_u8(bytes)?);
            let peer = address(take(bytes)?)?;
            let port = take_u16(bytes)?;
            let (process, container) = (text(take(bytes)?), text(take(bytes)?));
            seen.extend(way.map(|way| Sighting { way, peer, port, process, container }));
        }
        Some(Self { seen, more, is_cut: more > 0 })
    }
}

/// Callers keep within a byte's length.
fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(bytes);
}

fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first()?;
    let (value, rest) = rest.split_at_checked(usize::from(*length))?;
    *bytes = rest;
    Some(value)
}

fn take_u8(bytes: &mut &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*first)
}

fn take_u16(bytes: &mut &[u8]) -> Option<u16> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u16::from_be_bytes(*first))
}

/// The outer `None`: no such address.
#[allow(clippy::option_option)]
fn address(bytes: &[u8]) -> Option<Option<IpAddr>> {
    match bytes.len() {
        0 => Some(None),
        4 => Some(Some(IpAddr::from(*bytes.first_chunk::<4>()?))),
        16 => Some(Some(IpAddr::from(*bytes.first_chunk::<16>()?))),
        _ => None,
    }
}

/// Names come from processes of pods, which may call themselves anything.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(mut bytes: &[u8]) -> Option<Sightings> {
        Sightings::take(&mut bytes)
    }

    fn sighting(way: Way, peer: Option<&str>, port: u16) -> Sighting {
        let peer = peer.map(|ip| ip.parse().unwrap());
        Sighting { way, peer, port, process: "curl".into(), container: "app".into() }
    }

    fn some() -> Sightings {
        Sightings::of(vec![
            sighting(Way::UdpListener, None, 9000),
            sighting(Way::UdpPeer, Some("10.0.0.9"), 443),
            sighting(Way::Inbound, Some("fd00::1"), 8080),
            sighting(Way::Outbound, Some("10.0.0.1"), 443),
            sighting(Way::Outbound, Some("10.0.0.1"), 443),
        ])
    }

    #[test]
    fn a_list_comes_back_as_it_was_and_only_when_whole() {
        for list in [some(), Sightings::default()] {
            let wire = list.encode();
            for cut in 0..wire.len() {
                assert_eq!(decode(&wire[..cut]), None, "{cut}");
            }
            assert_eq!(decode(&wire), Some(list.clone()));
            assert_eq!(decode(&[&wire[..], b"more"].concat()), Some(list));
        }
        assert_eq!(some().seen.len(), 4, "each once");
        assert!(some().seen[0].way.is_tcp() && !some().seen[3].way.is_tcp(), "TCP first");
    }

    #[test]
    fn a_list_is_bounded_and_says_what_it_left_out() {
        let all = (0..100).map(|port| sighting(Way::Outbound, Some("fd00::1"), port)).collect();
        let list = Sightings::of(all);
        assert_eq!((list.seen.len(), list.more), (MOST_SIGHTINGS, 68));
        let mut long = list.clone();
        for sighting in &mut long.seen {
            sighting.process = "ä".repeat(100);
            sighting.container = "c".repeat(300);
        }
        let wire = long.encode();
        assert!(wire.len() <= LONGEST_LIST, "{}", wire.len());
        let read = decode(&wire).unwrap();
        assert_eq!((read.seen[0].process.as_str(), read.seen[0].container.len()), ("äääääää", 63));
    }

    #[test]
    fn what_a_newer_agent_saw_is_passed_over() {
        let mut wire = some().encode();
        wire[HEAD] = 77;
        assert_eq!(decode(&wire).unwrap().seen, some().seen[1..]);
        wire[HEAD + 1] = 5;
        assert_eq!(decode(&wire), None, "an address of five bytes");
    }
}
