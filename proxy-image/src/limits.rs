//! Every bound of the data path, by name. Nothing in the proxy grows without one, and each refusal is counted
//! under the limit's name.

use std::time::Duration;

/// The bounds of the data path. Times are per step, counts per process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// TLS handshakes under way at once, for each side.
    pub handshakes: usize,
    /// Of these, from or to one peer address: a single peer can't take all places.
    pub handshakes_per_source: usize,
    /// Connections that wait for a place to shake hands.
    pub handshakes_waiting: usize,
    /// From a peer's first byte to the end of the handshake, and from there to its first OPEN.
    pub handshake_timeout: Duration,
    /// From a tunnel's OPEN to its OPENED, as the client sees it: policy and the connect to the app.
    pub open_timeout: Duration,
    /// To connect to an app or another destination.
    pub connect_timeout: Duration,
    /// A client that is silent so long on a PERMISSIVE port is taken to wait for the server's first word.
    pub silence: Duration,
    /// App connections and tunnels open at once, for each side.
    pub connections: usize,
    /// Idle tunnels that the pool holds to one peer.
    pub idle_tunnels_per_peer: usize,
    /// Idle tunnels that the pool holds in all.
    pub idle_tunnels: usize,
    /// How long a client keeps an idle tunnel.
    pub client_idle: Duration,
    /// How long a server keeps an idle tunnel: longer than clients, so that they close first and no OPEN meets
    /// a closing tunnel.
    pub server_idle: Duration,
    /// A tunnel older than this takes no further connection.
    pub tunnel_age: Duration,
    /// How long a draining server waits for the client to close, and a reset stream for its answer.
    pub settle: Duration,
    /// Sources of plaintext that evidence names.
    pub evidence_sources: usize,
    /// Bounds of one connection that is read as HTTP.
    pub http: cinch_http::Limits,
    /// Such a connection says its first bytes within this time, or it is closed.
    pub http_first_byte: Duration,
    /// How long the last bytes of such a connection may take to leave once it is over.
    pub http_flush: Duration,
    /// Bytes of heads that all such connections hold together.
    pub http_held_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            handshakes: 64,
            handshakes_per_source: 16,
            handshakes_waiting: 1024,
            handshake_timeout: Duration::from_secs(5),
            open_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            silence: Duration::from_millis(100),
            connections: 16_384,
            idle_tunnels_per_peer: 64,
            idle_tunnels: 1024,
            client_idle: Duration::from_secs(15),
            server_idle: Duration::from_secs(45),
            tunnel_age: Duration::from_secs(3600),
            settle: Duration::from_secs(2),
            evidence_sources: 4096,
            http: cinch_http::Limits::default(),
            http_first_byte: Duration::from_secs(10),
            http_flush: Duration::from_secs(60),
            http_held_bytes: 32 * 1024 * 1024,
        }
    }
}
