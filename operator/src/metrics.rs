//! The operator's counters, as Prometheus reads them. Handles are cheap to clone; every label value is from a
//! fixed set, so that nobody outside can make the table grow.

use cinch_reason::Reason;
use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::sync::Arc;

type Label = [(&'static str, &'static str); 1];

/// All metrics of this process.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    issued: Family<Label, Counter>,
    refused: Family<Label, Counter>,
    connections: Family<Label, Counter>,
    /// 1 while this process leads.
    pub leader: Gauge,
    /// Bound control streams.
    pub sessions: Gauge,
    /// Reports of evidence that arrived.
    pub evidence: Counter,
    /// Policies that a proxy could not use.
    pub nacks: Counter,
}

/// How a certificate was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IssueKind {
    /// By a pod's token.
    First,
    /// Over a bound stream.
    Renewal,
}

impl IssueKind {
    /// The word in metrics and the audit line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Renewal => "renewal",
        }
    }
}

/// What became of an accepted control connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectionEnd {
    /// Over the limit of connections; dropped at once.
    Limit,
    /// No TLS handshake, or none in time.
    Handshake,
    /// The certificate was refused.
    Certificate,
    /// Bytes that are no message, or a message out of place.
    Garbage,
    /// Silent for too long.
    Timeout,
    /// The peer closed it.
    Closed,
    /// A first certificate was asked for and answered.
    Answered,
    /// We refused what was asked.
    Refused,
    /// The peer read too slowly.
    Slow,
    /// A newer stream of the same pod took its place.
    Superseded,
    /// The certificate of the stream ended.
    Expired,
    /// This operator ends.
    Shutdown,
}

impl ConnectionEnd {
    /// The word in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Handshake => "handshake",
            Self::Certificate => "certificate",
            Self::Garbage => "garbage",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Slow => "slow",
            Self::Superseded => "superseded",
            Self::Expired => "expired",
            Self::Shutdown => "shutdown",
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry with all metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self {
            registry: Arc::new(Mutex::new(Registry::with_prefix("cinch_operator"))),
            issued: Family::default(),
            refused: Family::default(),
            connections: Family::default(),
            leader: Gauge::default(),
            sessions: Gauge::default(),
            evidence: Counter::default(),
            nacks: Counter::default(),
        };
        metrics.register(|registry| {
            let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
            registry.register("build", "The version of the operator", version);
            registry.register(
                "certificates_issued",
                "Certificates issued to workloads",
                metrics.issued.clone(),
            );
            registry.register(
                "certificates_refused",
                "Requests for certificates that were refused, by reason",
                metrics.refused.clone(),
            );
            registry.register(
                "control_connections",
                "Control connections that ended, by how",
                metrics.connections.clone(),
            );
            registry.register("leader", "1 while this operator leads", metrics.leader.clone());
            registry.register("control_sessions", "Proxies with a bound stream", metrics.sessions.clone());
            registry.register("evidence_reports", "Reports of evidence received", metrics.evidence.clone());
            registry.register("policy_nacks", "Policies that a proxy could not use", metrics.nacks.clone());
        });
        metrics
    }

    /// Lets another room add its own metrics.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock());
    }

    /// Counts an issued certificate.
    pub fn issued(&self, kind: IssueKind) {
        self.issued.get_or_create(&[("kind", kind.as_str())]).inc();
    }

    /// Counts a refused request.
    pub fn refused(&self, reason: Reason) {
        self.refused.get_or_create(&[("reason", reason.as_str())]).inc();
    }

    /// Counts an ended control connection.
    pub fn connection(&self, end: ConnectionEnd) {
        self.connections.get_or_create(&[("end", end.as_str())]).inc();
    }

    /// How many control connections ended so.
    #[must_use]
    pub fn connections(&self, end: ConnectionEnd) -> u64 {
        self.connections.get_or_create(&[("end", end.as_str())]).get()
    }

    /// The text that Prometheus scrapes (OpenMetrics 1.0).
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String never fails.
        let _ = encode(&mut text, &self.registry.lock());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_in_the_text() {
        let metrics = Metrics::new();
        metrics.issued(IssueKind::First);
        metrics.refused(Reason::PodMismatch);
        metrics.connection(ConnectionEnd::Garbage);
        let text = metrics.encode();
        for line in [
            "cinch_operator_certificates_issued_total{kind=\"first\"} 1",
            "cinch_operator_certificates_refused_total{reason=\"PodMismatch\"} 1",
            "cinch_operator_control_connections_total{end=\"garbage\"} 1",
            "cinch_operator_leader 0",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
