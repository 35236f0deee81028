//! What the kernel knows of the connections of a namespace.

use crate::support::Namespace;
use std::net::{Ipv4Addr, SocketAddrV4};

/// States of TCP as /proc has them (net/tcp_states.h).
pub const ESTABLISHED: u8 = 1;
const TIME_WAIT: u8 = 6;

/// One IPv4 socket.
#[derive(Debug, Clone, Copy)]
pub struct Socket {
    pub local: SocketAddrV4,
    pub remote: SocketAddrV4,
    pub state: u8,
    /// Bytes that came and were not read.
    pub waiting: u32,
    /// Whose it is.
    pub user: u32,
}

/// The TCP sockets of `namespace` that are or were connected, but for those that only keep their port a while.
pub fn sockets(namespace: &Namespace) -> Vec<Socket> {
    // Not /proc/net, which is that of the process's first thread.
    let table = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
    let sockets = table.lines().skip(1).map(socket);
    sockets.filter(|socket| !socket.remote.ip().is_unspecified() && socket.state != TIME_WAIT).collect()
}

fn socket(line: &str) -> Socket {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (_, waiting) = words[4].split_once(':').unwrap();
    Socket {
        local: address(words[1]),
        remote: address(words[2]),
        state: u8::from_str_radix(words[3], 16).unwrap(),
        waiting: u32::from_str_radix(waiting, 16).unwrap(),
        user: words[7].parse().unwrap(),
    }
}

/// The address stands there as the number that its bytes are to this machine.
fn address(text: &str) -> SocketAddrV4 {
    let (ip, port) = text.split_once(':').unwrap();
    let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).unwrap().to_ne_bytes());
    SocketAddrV4::new(ip, u16::from_str_radix(port, 16).unwrap())
}
