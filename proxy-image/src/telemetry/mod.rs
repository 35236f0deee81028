//! What connections and requests tell of themselves: metrics by Istio's names and labels, and lines of the access
//! log. In go their facts, when they begin and when they are over; out go the metrics page and the log.
//!
//! A proxy looks its handles up once for a connection. Labels are bounded: beyond so many combinations the next ones
//! are counted together, under `other`, and that is counted too.
//!
//! A workload is named by its service account, because that is what its identity proves: in namespaces where
//! workloads have accounts of their own (the default), account and workload have the same name.

mod collector;
mod connection;
pub mod flags;
mod histogram;
mod request;
mod table;
#[cfg(test)]
mod tests;

pub use connection::ConnectionRecord;
pub use request::{Handles, Told};

use crate::access_log::{AccessLog, Ends, Reporter};
use cinch_identity::SpiffeId;
use collector::Page;
use histogram::{DURATIONS, Histogram, SIZES};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use table::{Kind, Table};

/// Combinations of labels that are counted each by itself, of connections and of answers.
const COUNTED: usize = 512;
/// The same of durations and sizes, each of which is forty lines of the page.
const MEASURED: usize = 64;

/// The word where more combinations came than are told apart.
const OTHER: &str = "other";

/// One for the process. The default one knows no identity and writes no log.
#[derive(Debug, Clone, Default)]
pub struct Telemetry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    own: OnceLock<SpiffeId>,
    log: AccessLog,
    connections: Table<TcpKind, TcpSeries>,
    answers: Table<AnswerKind, AnswerSeries>,
    measures: Table<MeasureKind, MeasureSeries>,
    overflows: Counter,
}

impl Default for Shared {
    fn default() -> Self {
        let overflows = Counter::default();
        Shared {
            own: OnceLock::new(),
            log: AccessLog::default(),
            connections: Table::new(COUNTED, overflows.clone()),
            answers: Table::new(COUNTED, overflows.clone()),
            measures: Table::new(MEASURED, overflows.clone()),
            overflows,
        }
    }
}

/// What TCP connections with one peer have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TcpKind {
    reporter: Reporter,
    security: &'static str,
    flags: &'static str,
}

/// What the app's answers, or ours, to one peer have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct AnswerKind {
    protocol: &'static str,
    security: &'static str,
    /// `None`: several, beyond the bound.
    code: Option<u16>,
    grpc: Option<u8>,
    flags: &'static str,
}

/// What is measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MeasureKind {
    protocol: &'static str,
    security: &'static str,
}

impl Kind for TcpKind {
    fn other(self) -> Self {
        TcpKind { security: OTHER, flags: OTHER, ..self }
    }
}

impl Kind for AnswerKind {
    fn other(self) -> Self {
        AnswerKind { protocol: OTHER, security: OTHER, code: None, grpc: None, flags: OTHER }
    }
}

impl Kind for MeasureKind {
    fn other(self) -> Self {
        MeasureKind { protocol: OTHER, security: OTHER }
    }
}

#[derive(Debug, Default)]
struct TcpSeries {
    opened: AtomicU64,
    closed: AtomicU64,
    /// Bytes from the client.
    received: AtomicU64,
    /// Bytes to the client.
    sent: AtomicU64,
}

#[derive(Debug, Default)]
struct AnswerSeries {
    requests: AtomicU64,
}

#[derive(Debug)]
struct MeasureSeries {
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

impl Default for MeasureSeries {
    fn default() -> Self {
        MeasureSeries {
            duration: Histogram::new(&DURATIONS),
            request_bytes: Histogram::new(&SIZES),
            response_bytes: Histogram::new(&SIZES),
        }
    }
}

/// The two ways in which a connection leaves the pod, in Istio's words.
const fn security(is_mutual: bool) -> &'static str {
    if is_mutual { "mutual_tls" } else { "none" }
}

impl Telemetry {
    /// With a log.
    #[must_use]
    pub fn with_log(log: AccessLog) -> Telemetry {
        Telemetry(Arc::new(Shared { log, ..Shared::default() }))
    }

    /// Says who the pod is. It is said once: a pod never becomes another.
    pub fn set_own(&self, identity: SpiffeId) {
        // A second time would say the same.
        let _ = self.0.own.set(identity);
    }

    /// The pod's SPIFFE ID, once it is known.
    #[must_use]
    pub fn own(&self) -> Option<&str> {
        self.0.own.get().map(SpiffeId::as_str)
    }

    /// The access log.
    #[must_use]
    pub fn log(&self) -> &AccessLog {
        &self.0.log
    }

    /// The ends of an inbound connection, from what is known of its peer.
    #[must_use]
    pub fn inbound<'a>(&'a self, from: SocketAddr, to: SocketAddr, peer: Option<&'a str>) -> Ends<'a> {
        let (reporter, destination) = (Reporter::Destination, self.own());
        let is_mutual = peer.is_some();
        Ends { reporter, from, to, upstream: None, source: peer, destination, is_mutual }
    }

    /// The ends of an outbound connection.
    #[must_use]
    pub fn outbound<'a>(&'a self, from: SocketAddr, to: SocketAddr, peer: Option<&'a str>) -> Ends<'a> {
        let (reporter, source) = (Reporter::Source, self.own());
        let is_mutual = peer.is_some();
        Ends { reporter, from, to, upstream: None, source, destination: peer, is_mutual }
    }

    /// Registers the metrics; `registry` should have Istio's prefix, `istio`.
    pub fn register_istio(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(Page(self.clone())));
    }

    /// Registers what telemetry says of itself, under our own prefix.
    pub fn register_own(&self, registry: &mut Registry) {
        let help =
            "Connections and requests that are counted under other labels than their own, being too many";
        registry.register("telemetry_overflows", help, self.0.overflows.clone());
        self.0.log.register(registry);
    }
}
