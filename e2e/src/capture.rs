//! What goes over the wire: counts packets between pairs of addresses and looks for words in them.
//!
//! Runs inside a node's network namespace (`cinch-e2e capture`), where each pod's veth ends, and prints one
//! JSON object. Only IPv4 is looked at: the test cluster has no other.

use crate::cluster::Cluster;
use anyhow::{Context, Result, anyhow, ensure};
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
/// The number of TCP in an IP header.
const TCP: u8 = 6;

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

impl Flow {
    /// Counts what another flow has seen as well.
    pub fn add(&mut self, other: &Flow) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.marked += other.marked;
    }
}

/// Flows by `source>destination`; where single ports were asked for, the end that has it is `address:port`.
pub type Flows = BTreeMap<String, Flow>;

/// What crosses the veths of all nodes for so many seconds, with `words` to look for. With `ports` only TCP
/// packets from or to one of them are counted.
///
/// # Errors
/// When a capture can't be run.
pub fn on_all_nodes(cluster: &Cluster, seconds: u64, words: &[&str], ports: &[u16]) -> Result<Flows> {
    let (program, seconds) =
        (cluster.state_dir().join("cinch-e2e").display().to_string(), seconds.to_string());
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let mut command = vec![program.as_str(), "capture", "--seconds", &seconds];
    command.extend(words.iter().flat_map(|word| ["--word", *word]));
    command.extend(ports.iter().flat_map(|port| ["--port", port.as_str()]));
    let nodes = cluster.node_names();
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> =
            nodes.iter().map(|node| scope.spawn(|| cluster.in_node(node, &command))).collect();
        running.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    let mut flows = Flows::new();
    for output in outputs {
        let output = output.map_err(|_| anyhow!("a capture's thread failed"))??;
        ensure!(output.ok(), "the capture failed: {}", output.text());
        let seen: Flows = serde_json::from_str(&output.stdout).context("the capture's answer")?;
        for (pair, flow) in seen {
            flows.entry(pair).or_default().add(&flow);
        }
    }
    Ok(flows)
}

/// Captures on all interfaces for `duration` and prints the flows as JSON.
///
/// # Errors
/// When the packet socket can't be opened (it needs CAP_NET_RAW) or read.
pub fn run(duration: Duration, words: &[String], ports: &[u16]) -> Result<()> {
    let mut socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERY_PROTOCOL)))
        .context("a packet socket (needs root)")?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    // Room for a burst while this process waits for a core.
    socket.set_recv_buffer_size(16 * 1024 * 1024)?;
    let (start, mut flows, mut packet) = (Instant::now(), Flows::new(), vec![0u8; 65_536]);
    while start.elapsed() < duration {
        match socket.read(&mut packet) {
            Ok(length) => note(&mut flows, packet.get(..length).unwrap_or_default(), words, ports),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("the packet socket"),
        }
    }
    println!("{}", serde_json::to_string(&flows)?);
    Ok(())
}

fn note(flows: &mut Flows, frame: &[u8], words: &[String], ports: &[u16]) {
    if frame.get(12..14) != Some(&IPV4_IN_ETHERNET[..]) {
        return;
    }
    let Some(packet) = frame.get(ETHERNET_HEADER..) else { return };
    let (Some(source), Some(destination)) = (address(packet, 12), address(packet, 16)) else { return };
    let Some(pair) = pair(packet, source, destination, ports) else { return };
    let flow = flows.entry(pair).or_default();
    flow.packets += 1;
    flow.bytes += packet.len() as u64;
    let marked =
        words.iter().any(|word| packet.windows(word.len().max(1)).any(|window| window == word.as_bytes()));
    flow.marked += u64::from(marked);
}

/// The flow's name; none for a packet of another port than those asked for.
fn pair(packet: &[u8], source: Ipv4Addr, destination: Ipv4Addr, ports: &[u16]) -> Option<String> {
    if ports.is_empty() {
        return Some(format!("{source}>{destination}"));
    }
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let port = |at: usize| packet.get(header + at..header + at + 2)?.try_into().ok().map(u16::from_be_bytes);
    let asked = |at: usize| port(at).filter(|port| ports.contains(port));
    match (packet.get(9) == Some(&TCP), asked(0), asked(2)) {
        (true, _, Some(port)) => Some(format!("{source}>{destination}:{port}")),
        (true, Some(port), None) => Some(format!("{source}:{port}>{destination}")),
        _ => None,
    }
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
        note(&mut flows, &frame(b"..marker.."), &words, &[]);
        note(&mut flows, &frame(b"..marke"), &words, &[]);
        assert_eq!(flows.len(), 1);
        assert_eq!(flows["10.0.0.1>10.0.0.2"], Flow { packets: 2, bytes: 57, marked: 1 });
    }

    #[test]
    fn with_ports_the_flows_of_others_are_left_out_and_each_direction_names_the_port() {
        let mut flows = Flows::new();
        for (source, destination) in [(40_000u16, 8080u16), (8080, 40_000), (40_000, 8081)] {
            let mut tcp = frame(&[source.to_be_bytes(), destination.to_be_bytes()].concat());
            (tcp[14], tcp[23]) = (0x45, TCP);
            note(&mut flows, &tcp, &[], &[8080]);
        }
        let names: Vec<&str> = flows.keys().map(String::as_str).collect();
        assert_eq!(names, ["10.0.0.1:8080>10.0.0.2", "10.0.0.1>10.0.0.2:8080"]);
    }

    #[test]
    fn short_and_foreign_frames_are_left_out() {
        let mut flows = Flows::new();
        note(&mut flows, &[], &[], &[]);
        note(&mut flows, &frame(b"")[..20], &[], &[8080]);
        note(&mut flows, &[0u8; 60], &[], &[]);
        assert!(flows.is_empty());
    }
}
