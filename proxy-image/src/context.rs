//! What the data path knows of its surroundings: in come credentials, policy, discovery and own addresses (the
//! control side writes them), out go evidence and metrics (the control side reads them). Everything is shared
//! through watches and atomics, because the two sides run on threads of their own.

use crate::evidence::Evidence;
use crate::http_filter;
use crate::kept::Kept;
use crate::limits::Limits;
use crate::live::Live;
use crate::path_metrics::PathMetrics;
use crate::proofs::Proofs;
use cinch_identity::{RecordLayer, SpiffeId, Svid, TrustBundle};
use cinch_policy::Mode;
use cinch_reason::Reason;
use futures::future::BoxFuture;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use crate::inbound_policy::InboundPolicy;

/// The port of metrics. Nobody listens on it: the inbound side answers by original destination.
pub const METRICS_PORT: u16 = 15020;
/// The port of health and probes. Nobody listens on it: the inbound side answers by original destination.
pub const HEALTH_PORT: u16 = 15021;

/// The identity that the proxy acts under, and what it trusts.
#[derive(Clone)]
pub struct Credentials {
    /// Grows with each certificate that this process received.
    pub generation: u64,
    /// The version of `bundle`, as the control plane counts it.
    pub bundle_version: u64,
    /// Own certificate and key.
    pub svid: Arc<Svid>,
    /// The roots that peers must chain to.
    pub bundle: Arc<TrustBundle>,
    /// The server side of tunnels: ALPN `cinch/1`, client certificate required.
    pub tunnel_server: Arc<rustls::ServerConfig>,
    /// Who seals the records of tunnels.
    pub records: RecordLayer,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("id", self.svid.id())
            .field("generation", &self.generation)
            .field("bundle_version", &self.bundle_version)
            .finish_non_exhaustive()
    }
}

/// One back end of a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where the app listens: the pod's address and the app's own port.
    pub address: SocketAddr,
    /// The pod has our sidecar, read from its spec.
    pub meshed: bool,
    /// Who the peer must prove to be; always there when `meshed`.
    pub identity: Option<SpiffeId>,
    /// What the port accepts, when meshed.
    pub mode: Mode,
    /// New connections may go there.
    pub ready: bool,
}

/// What stands behind an address that the app dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Not of the mesh: dial it as it is.
    PassThrough,
    /// One of these.
    Endpoints(Arc<[Endpoint]>),
    /// One of these: that which took the last connection, unless that was longer ago.
    Sticky(Arc<[Endpoint]>, Duration),
    /// The connection may not be made.
    Refuse(Reason),
}

/// Answers what stands behind an address.
pub trait Discovery: Send + Sync {
    /// The destination behind `to`, from the cache or from the control plane. Bounded in time.
    fn resolve(&self, to: SocketAddr) -> Pin<Box<dyn Future<Output = Destination> + Send + '_>>;
    /// Asks about `to` anew, because the peer at `endpoint` proved another identity. The next `resolve` leads to the
    /// others of its endpoints, or waits for the answer where there is none. An answer that says the same again is not
    /// believed for a while.
    fn forget(&self, to: SocketAddr, endpoint: &Endpoint);
    /// Whether any destination still leads to `endpoint`. Idle tunnels to one that is gone are of no use to anybody.
    fn leads_to(&self, endpoint: SocketAddr) -> bool {
        let _ = endpoint;
        true
    }
}

/// Serves the ports that nobody listens on.
pub trait VirtualPorts: Send + Sync {
    /// Serves one connection whose original port was [`METRICS_PORT`] or [`HEALTH_PORT`].
    fn serve(&self, port: u16, stream: TcpStream, peer: SocketAddr) -> BoxFuture<'static, ()>;
}

/// All that the data path is given.
pub struct Context {
    /// Own credentials; `None` until the first certificate is there.
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    /// What the peers of live tunnels proved; whoever serves this context lets it follow `credentials`
    /// ([`Proofs::follow`]).
    pub proofs: Arc<Proofs>,
    /// Inbound policy; `None` until the first one is there, which refuses everything.
    pub policy: watch::Receiver<Option<Arc<InboundPolicy>>>,
    /// The open inbound connections; whoever serves this context lets it follow `policy` ([`Live::follow`]).
    pub live: Arc<Live>,
    /// What stands behind addresses.
    pub discovery: Arc<dyn Discovery>,
    /// What was seen of plaintext, and the proofs of the redirect.
    pub evidence: Arc<Evidence>,
    /// Metric handles of the data path.
    pub metrics: Arc<PathMetrics>,
    /// The pod's own addresses.
    pub own_addresses: watch::Receiver<Arc<[IpAddr]>>,
    /// Metrics, health and probes.
    pub probes: Arc<dyn VirtualPorts>,
    /// What all copies keep together.
    pub kept: Arc<Kept>,
    /// What all connections that are read as HTTP have in common.
    pub http: Arc<http_filter::Shared>,
    /// Named limits.
    pub limits: Limits,
    /// Cancelled when the proxy shall end: tunnels drain, open connections finish, and listeners stop when none is
    /// left.
    pub drain: CancellationToken,
    /// Cancelled at the end of the drain: what is open then is cut short.
    pub end: CancellationToken,
}

impl Context {
    /// Whether `ip` is one of the pod's own addresses.
    #[must_use]
    pub fn is_own(&self, ip: IpAddr) -> bool {
        self.own_addresses.borrow().contains(&ip.to_canonical())
    }
}
