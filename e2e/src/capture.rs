//! What goes over the wire: counts packets between pairs of addresses and looks for words in them.
//!
//! Runs inside a node's network namespace (`cinch-e2e capture`), where each pod's veth ends, and prints one
//! JSON object. Only IPv4 is looked at: the test cluster has no other.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::io::Read;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// `ETH_P_ALL` in network byte order, as the packet socket wants its protocol.
const EVERY_PROTOCOL: i32 = (libc::ETH_P_ALL as u16).to_be() as i32;
const IPV4_IN_ETHERNET: [u8; 2] = [0x08, 0x00];
const ETHERNET_HEADER: usize = 14;

/// What was seen between two addresses, in one direction.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Packets, each counted once per interface that it crossed.
    pub packets: u64,
    /// Bytes of IP packets.
    pub bytes: u64,
    /// How many packets held one of the words.
    pub marked: u64,
}

/// Flows by `source>destination`.
pub type Flows = BTreeMap<String, Flow>;

/// Captures on all interfaces for `duration` and prints the flows as JSON.
///
/// # Errors
/// When the packet socket can't be opened (it needs CAP_NET_RAW) or read.
pub fn run(duration: Duration, words: &[String]) -> Result<()> {
    let mut socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERY_PROTOCOL)))
        .context("a packet socket (needs root)")?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    // Room for a burst while this process waits for a core.
    socket.set_recv_buffer_size(16 * 1024 * 1024)?;
    let (start, mut flows, mut packet) = (Instant::now(), Flows::new(), vec![0u8; 65_536]);
    while start.elapsed() < duration {
        match socket.read(&mut packet) {
            Ok(length) => note(&mut flows, packet.get(..length).unwrap_or_default(), words),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("the packet socket"),
        }
    }
    println!("{}", serde_json::to_string(&flows)?);
    Ok(())
}

fn note(flows: &mut Flows, frame: &[u8], words: &[String]) {
    if frame.get(12..14) != Some(&IPV4_IN_ETHERNET[..]) {
        return;
    }
    let Some(packet) = frame.get(ETHERNET_HEADER..) else { return };
    let (Some(source), Some(destination)) = (address(packet, 12), address(packet, 16)) else { return };
    let flow = flows.entry(format!("{source}>{destination}")).or_default();
    flow.packets += 1;
    flow.bytes += packet.len() as u64;
    let marked =
        words.iter().any(|word| packet.windows(word.len().max(1)).any(|window| window == word.as_bytes()));
    flow.marked += u64::from(marked);
}

fn address(packet: &[u8], at: usize) -> Option<Ipv4Addr> {
    packet.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0u8; 12];
        frame.extend(IPV4_IN_ETHERNET);
        frame.extend([0u8; 12]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn a_word_in_a_packet_is_found_and_counted_for_its_direction_alone() {
        let (mut flows, words) = (Flows::new(), vec![String::from("marker")]);
        note(&mut flows, &frame(b"..marker.."), &words);
        note(&mut flows, &frame(b"..marke"), &words);
        assert_eq!(flows.len(), 1);
        assert_eq!(flows["10.0.0.1>10.0.0.2"], Flow { packets: 2, bytes: 57, marked: 1 });
    }

    #[test]
    fn short_and_foreign_frames_are_left_out() {
        let mut flows = Flows::new();
        note(&mut flows, &[], &[]);
        note(&mut flows, &frame(b"")[..20], &[]);
        note(&mut flows, &[0u8; 60], &[]);
        assert!(flows.is_empty());
    }
}
