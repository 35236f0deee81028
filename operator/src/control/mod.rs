//! The control port: proxies connect, get certificates, and keep one stream each over which records, policies
//! and evidence travel.
//!
//! `connection` takes a socket to the point where it is known who speaks, `bound` runs a stream, `session` is
//! its state without I/O, `pace` says how often its records are looked at, `sessions` is the registry that the rest of
//! the operator asks.

mod bound;
pub mod certificate;
mod connection;
mod frames;
mod knocks;
mod pace;
pub mod session;
mod sessions;
mod view;

pub use sessions::{Acked, SessionEntry, Sessions};
pub use view::{ClusterView, LiveView};

use crate::issuing::Issuing;
use crate::metrics::{ConnectionEnd, Metrics};
use cinch_control::v1;
use cinch_control::v1::operator_message::Kind;
use cinch_identity::{TrustBundle, TrustDomain};
use cinch_places::{AtLimit, Limits, Lines, Places};
use knocks::Knocks;
use parking_lot::Mutex;
use rustls::ServerConfig;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

/// Bound streams: twice the proxies that one leader is made for.
pub const MAX_STREAMS: usize = 20_000;
/// How long a stream may be silent at least, however often proxies report.
const MIN_SILENCE: Duration = Duration::from_secs(60);

/// Everything that connections share.
pub struct Control {
    view: Arc<dyn ClusterView>,
    issuing: Issuing,
    sessions: Sessions,
    bundle: watch::Receiver<Arc<TrustBundle>>,
    tls: watch::Receiver<Arc<ServerConfig>>,
    trust_domain: TrustDomain,
    report_interval: Duration,
    metrics: Metrics,
    streams: Semaphore,
    /// Of the log, about connections that came to nothing.
    lines: Mutex<Lines<ConnectionEnd>>,
}

/// What [`Control::new`] is made of.
pub struct Parts {
    /// The cluster.
    pub view: Arc<dyn ClusterView>,
    /// Who issues.
    pub issuing: Issuing,
    /// The registry.
    pub sessions: Sessions,
    /// The trust bundle in force.
    pub bundle: watch::Receiver<Arc<TrustBundle>>,
    /// TLS of the port.
    pub tls: watch::Receiver<Arc<ServerConfig>>,
    /// How often proxies report evidence.
    pub report_interval: Duration,
    /// Counters.
    pub metrics: Metrics,
}

impl Control {
    /// A control port that is not yet listening.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let trust_domain = parts.bundle.borrow().trust_domain().clone();
        Self {
            view: parts.view,
            issuing: parts.issuing,
            sessions: parts.sessions,
            bundle: parts.bundle,
            tls: parts.tls,
            trust_domain,
            report_interval: parts.report_interval,
            metrics: parts.metrics,
            streams: Semaphore::new(MAX_STREAMS),
            lines: Mutex::default(),
        }
    }

    fn welcome(&self) -> Kind {
        Kind::Welcome(v1::Welcome {
            operator_version: env!("CARGO_PKG_VERSION").to_owned(),
            report_interval_ms: u64::try_from(self.report_interval.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Six reports that did not come.
    fn silence(&self) -> Duration {
        (self.report_interval * 6).max(MIN_SILENCE)
    }
}

/// For connections that have not yet shown who they are. All pods of a node may share an address behind translation,
/// so the bound for one is not small. Handshakes take their time where many come at once, so nobody's older one goes
/// for his newer one.
const UNBOUND: Limits = Limits { most: 512, of_one_source: 64, at_limit: AtLimit::Refuse };

/// Accepts until `shutdown`, then lets streams end in an orderly way for a moment.
pub async fn serve(listener: TcpListener, control: Arc<Control>, shutdown: CancellationToken) {
    let (unbound, mut knocks) = (Places::new(UNBOUND), Knocks::default());
    let connections = TaskTracker::new();
    loop {
        let (stream, peer) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors: those that are served go first.
                    warn!(%error, "a control connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let is_pod = |ip| control.view.pod_by_ip(ip).is_some();
        let place = knocks.may_enter(peer.ip(), is_pod, Instant::now()).then(|| unbound.take(peer.ip()));
        let Some(place) = place.flatten() else {
            connection::turned_away(&control, peer);
            continue;
        };
        let (control, shutdown) = (Arc::clone(&control), shutdown.clone());
        connections.spawn(async move { connection::serve(&control, stream, peer, place, &shutdown).await });
    }
    connections.close();
    let _ = tokio::time::timeout(Duration::from_secs(3), connections.wait()).await;
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::pod;
