//! Who there is: a client that dials two servers, and a stranger without a proxy who can ask each for its metrics. Each
//! pair has a link of its own.

use crate::WAIT;
use crate::kernel::{Socket, sockets};
use crate::proxies::{Files, Proxy};
use crate::support::Namespace;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};

/// Towards the first server.
pub const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(10, 11, 0, 1);
pub const FIRST_IP: Ipv4Addr = Ipv4Addr::new(10, 11, 0, 2);
pub const SECOND_IP: Ipv4Addr = Ipv4Addr::new(10, 12, 0, 2);
/// Towards the stranger.
pub const CLIENT_SIDE_IP: Ipv4Addr = Ipv4Addr::new(10, 14, 0, 2);
pub const FIRST_SIDE_IP: Ipv4Addr = Ipv4Addr::new(10, 13, 0, 2);

/// The namespaces and what runs in them; all ends with this.
pub struct Scene {
    pub client: Namespace,
    pub first: Namespace,
    pub second: Namespace,
    pub stranger: Namespace,
    pub client_proxy: Proxy,
    pub first_proxy: Proxy,
    _second_proxy: Proxy,
    _files: Files,
}

impl Scene {
    /// `settings`: of all proxies. `also`: more that the first server has, as a CIDR; `prepare` is run in its place
    /// before its proxy starts.
    pub fn start(settings: &str, also: Option<&str>, prepare: impl FnOnce(&Namespace, &Files)) -> Scene {
        let (client, first) = (Namespace::new(), Namespace::new());
        let (second, stranger) = (Namespace::new(), Namespace::new());
        link((&client, "eth0", "10.11.0.1"), (&first, "eth0", "10.11.0.2"));
        link((&client, "eth1", "10.12.0.1"), (&second, "eth0", "10.12.0.2"));
        link((&stranger, "eth0", "10.13.0.1"), (&first, "eth1", "10.13.0.2"));
        link((&stranger, "eth1", "10.14.0.1"), (&client, "eth2", "10.14.0.2"));
        for (namespace, gateway) in [(&client, "10.11.0.2"), (&first, "10.11.0.1"), (&second, "10.12.0.1")] {
            namespace.ip(&format!("route add default via {gateway}"));
        }
        let files = Files::new();
        prepare(&first, &files);
        let peers: Vec<(&str, &str)> = [("10.11.0.2", "first"), ("10.12.0.2", "second")]
            .into_iter()
            .chain(also.map(|network| (network, "first")))
            .collect();
        Scene {
            first_proxy: Proxy::start(&first, &files, "first", settings, &[]),
            _second_proxy: Proxy::start(&second, &files, "second", settings, &[]),
            client_proxy: Proxy::start(&client, &files, "client", settings, &peers),
            client,
            first,
            second,
            stranger,
            _files: files,
        }
    }

    /// From now on no packet passes between the client and the first server: each knows a wrong address of the other's
    /// device, and nobody tells them.
    pub fn part(&self) {
        for (namespace, other) in [(&self.client, FIRST_IP), (&self.first, CLIENT_IP)] {
            namespace.ip(&format!("neigh replace {other} lladdr 02:00:00:00:00:99 dev eth0 nud permanent"));
        }
    }

    /// As if nothing had happened.
    pub fn join(&self) {
        for (namespace, other) in [(&self.client, FIRST_IP), (&self.first, CLIENT_IP)] {
            namespace.ip(&format!("neigh del {other} dev eth0"));
        }
    }

    /// A connection that the client's app makes.
    pub fn dial(&self, to: SocketAddrV4) -> TcpStream {
        self.client.run(move || {
            let stream = TcpStream::connect_timeout(&to.into(), WAIT).unwrap();
            stream.set_read_timeout(Some(WAIT)).unwrap();
            stream.set_nodelay(true).unwrap();
            stream
        })
    }

    /// The client's connections to the first server, those of its apps among them.
    pub fn towards_first(&self) -> Vec<Socket> {
        let mut all = sockets(&self.client);
        all.retain(|socket| *socket.remote.ip() == FIRST_IP);
        all
    }

    /// The connections of the first server's proxy with the client.
    pub fn with_client(&self) -> Vec<Socket> {
        let mut all = sockets(&self.first);
        all.retain(|socket| *socket.remote.ip() == CLIENT_IP);
        all
    }

    /// The metrics of the proxy that the stranger reaches at `ip`.
    pub fn metrics(&self, ip: Ipv4Addr) -> Page {
        Page(self.stranger.run(move || {
            let mut stream = TcpStream::connect((ip, 15020)).unwrap();
            stream.set_read_timeout(Some(WAIT)).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        }))
    }
}

/// A page of metrics.
pub struct Page(String);

impl Page {
    /// The value of the series that is written so; 0 where there is none.
    pub fn value(&self, series: &str) -> u64 {
        let line = self.0.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    /// What the limit called `name` has refused.
    pub fn limit(&self, name: &str) -> u64 {
        self.value(&format!("cinch_limit_refusals_total{{limit=\"{name}\"}}"))
    }

    /// Outbound connections that were refused for `reason`.
    pub fn refused(&self, reason: &str) -> u64 {
        self.value(&format!("cinch_connections_refused_total{{direction=\"outbound\",reason=\"{reason}\"}}"))
    }
}

/// A device of a name, with an address, in a namespace.
type End<'a> = (&'a Namespace, &'a str, &'a str);

fn link(a: End<'_>, b: End<'_>) {
    a.0.ip(&format!("link add {} type veth peer name {} netns {}", a.1, b.1, b.0.thread()));
    for (namespace, device, address) in [a, b] {
        namespace.ip(&format!("addr add {address}/24 dev {device}"));
        namespace.ip(&format!("link set {device} up"));
    }
}
