//! Metrics of the data path: handles that count, and their registration. Connections look their handles up once,
//! when they open.

use crate::access_log::AccessLog;
use crate::copy::End;
use crate::http_filter::HttpMetrics;
use crate::limits::Refusals;
use crate::live::Denial;
use crate::telemetry::{ConnectionRecord, Telemetry};
use cinch_reason::Reason;
use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::HashSet;
use std::fmt::{self, Write as _};

/// Which side of the pod a connection is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the pod's apps.
    Inbound,
    /// From the pod's apps.
    Outbound,
}

/// What carries a connection outside of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A `cinch/1` tunnel.
    Tunnel,
    /// TCP as the app made it.
    Plaintext,
    /// From the pod to itself, in process.
    Local,
}

/// How something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// As intended.
    Ok,
    /// Not so.
    Failed,
}

/// A word as label value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Word(pub &'static str);

macro_rules! label_values {
    ($($type:ty { $($variant:pat => $word:literal),* $(,)? })*) => {
        $(impl EncodeLabelValue for $type {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
                encoder.write_str(match self { $($variant => $word),* })
            }
        })*
    };
}

label_values! {
    Direction { Direction::Inbound => "inbound", Direction::Outbound => "outbound" }
    Transport { Transport::Tunnel => "tunnel", Transport::Plaintext => "plaintext", Transport::Local => "local" }
    Outcome { Outcome::Ok => "ok", Outcome::Failed => "failed" }
}

impl EncodeLabelValue for Word {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.write_str(self.0)
    }
}

/// Labels of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConnectionLabels {
    /// Side of the pod.
    pub direction: Direction,
    /// What carries it.
    pub transport: Transport,
}

/// Labels of a refused or cut connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusalLabels {
    /// Side of the pod.
    pub direction: Direction,
    /// A word of the reason table.
    pub reason: Word,
}

/// Labels of a handshake.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HandshakeLabels {
    /// Side of the pod.
    pub direction: Direction,
    /// Whether it came to a tunnel.
    pub outcome: Outcome,
}

/// A side of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DirectionLabels {
    /// Side of the pod.
    pub direction: Direction,
}

/// The name of a limit, as in [`crate::limits::Limits`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LimitLabels {
    /// The field's name.
    pub limit: Word,
}

/// Labels of a decision on an inbound connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DecisionLabels {
    /// `allow` or `deny`.
    pub decision: Word,
    /// A word of the reason table.
    pub reason: Word,
}

/// Labels of what one policy said.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PolicyLabels {
    /// `namespace/name`; `other` once there are too many of them.
    pub policy: String,
    /// The rule that denied, from 0; `audit` or `dry-run` for what is only reported.
    pub rule: String,
}

/// A word of the reason table as the only label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    /// The word.
    pub reason: Word,
}

/// Policies and rules that are counted each by itself: users write them, so there is a bound.
const COUNTED_POLICIES: usize = 512;

/// All metric handles of the data path.
#[derive(Debug, Default)]
pub struct PathMetrics {
    /// App connections that reached their other side.
    pub connections: Family<ConnectionLabels, Counter>,
    /// Of these, open now.
    pub connections_open: Family<ConnectionLabels, Gauge>,
    /// App connections that were accepted and have not yet reached their other side.
    pub connections_opening: Gauge,
    /// Bytes that apps sent.
    pub sent_bytes: Family<ConnectionLabels, Counter>,
    /// Bytes that apps received.
    pub received_bytes: Family<ConnectionLabels, Counter>,
    /// Connections that were refused.
    pub refused: Family<RefusalLabels, Counter>,
    /// Open connections that a change of mode or policy cut.
    pub cut: Family<RefusalLabels, Counter>,
    /// Decisions of policies on inbound connections when they were opened.
    pub decisions: Family<DecisionLabels, Counter>,
    /// Denials by single policies.
    pub denials: Family<PolicyLabels, Counter>,
    /// What AUDIT policies and dry runs matched.
    pub reports: Family<PolicyLabels, Counter>,
    /// Connections that would be denied were the dry runs enforced.
    pub would_deny: Family<ReasonLabels, Counter>,
    /// The labels of `denials` and `reports` so far.
    counted: Mutex<HashSet<PolicyLabels>>,
    /// TLS handshakes of tunnels.
    pub handshakes: Family<HandshakeLabels, Counter>,
    /// Tunnels open now.
    pub tunnels: Family<DirectionLabels, Gauge>,
    /// Tunnels in the pool now.
    pub tunnels_idle: Gauge,
    /// App connections that took a tunnel from the pool.
    pub tunnels_reused: Counter,
    /// App connections that went on to another tunnel or endpoint.
    pub retries: Counter,
    /// Tunnels closed for bytes that break the protocol.
    pub protocol_errors: Family<DirectionLabels, Counter>,
    /// Connections that were still open when the certificate of their tunnel ran out.
    pub outlived_certificate: Counter,
    /// Bytes that copies keep for slow sides, beyond what each may keep anyway.
    pub kept_bytes: Gauge,
    /// Refusals by a limit.
    pub limit_refusals: Refusals,
    /// Requests of connections that are read as HTTP.
    pub http: HttpMetrics,
    /// The same by Istio's names, and the access log.
    pub telemetry: Telemetry,
}

impl PathMetrics {
    /// Nothing counted yet; requests and connections are told to `log`.
    #[must_use]
    pub fn with_log(log: AccessLog) -> Self {
        PathMetrics { telemetry: Telemetry::with_log(log), ..PathMetrics::default() }
    }

    /// Registers every handle, under the prefix that `registry` has.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry;
        r.register("connections", "App connections that reached their other side", self.connections.clone());
        r.register("connections_open", "App connections open now", self.connections_open.clone());
        r.register(
            "connections_opening",
            "App connections on their way to the other side",
            self.connections_opening.clone(),
        );
        r.register("sent_bytes", "Bytes that the apps of the pod sent", self.sent_bytes.clone());
        r.register("received_bytes", "Bytes that the apps of the pod received", self.received_bytes.clone());
        r.register("connections_refused", "Connections refused, by reason", self.refused.clone());
        r.register("connections_cut", "Open connections cut by a change of mode or policy", self.cut.clone());
        r.register(
            "policy_decisions",
            "Decisions of policies on inbound connections at their opening",
            self.decisions.clone(),
        );
        r.register(
            "policy_denials",
            "Denials of inbound connections by policy and rule",
            self.denials.clone(),
        );
        r.register(
            "policy_reports",
            "Inbound connections that AUDIT policies and dry runs match",
            self.reports.clone(),
        );
        r.register(
            "policy_would_deny",
            "Inbound connections that would be denied were the dry runs enforced",
            self.would_deny.clone(),
        );
        r.register("tunnel_handshakes", "TLS handshakes of tunnels", self.handshakes.clone());
        r.register("tunnels_open", "Tunnels open now", self.tunnels.clone());
        r.register("tunnels_idle", "Tunnels in the pool now", self.tunnels_idle.clone());
        r.register(
            "tunnels_reused",
            "App connections that took a pooled tunnel",
            self.tunnels_reused.clone(),
        );
        r.register(
            "tunnel_retries",
            "App connections moved to another tunnel or endpoint",
            self.retries.clone(),
        );
        r.register(
            "protocol_errors",
            "Tunnels closed for a breach of protocol",
            self.protocol_errors.clone(),
        );
        r.register(
            "outlived_certificate",
            "Connections open past the expiry of their tunnel's certificate",
            self.outlived_certificate.clone(),
        );
        r.register("kept_bytes", "Bytes kept for slow sides beyond their floors", self.kept_bytes.clone());
        self.limit_refusals.register(r);
        self.http.register(r);
        self.telemetry.register_own(r);
    }

    /// Counts a refused connection.
    pub fn count_refused(&self, direction: Direction, reason: Reason) {
        self.refused.get_or_create(&RefusalLabels { direction, reason: Word(reason.as_str()) }).inc();
    }

    /// Counts a cut connection.
    pub fn count_cut(&self, direction: Direction, reason: Reason) {
        self.cut.get_or_create(&RefusalLabels { direction, reason: Word(reason.as_str()) }).inc();
    }

    /// Counts what policies decided on a connection at its opening.
    pub fn count_decision(&self, decision: Result<Reason, Reason>) {
        let (decision, reason) = match decision {
            Ok(reason) => ("allow", reason),
            Err(reason) => ("deny", reason),
        };
        let labels = DecisionLabels { decision: Word(decision), reason: Word(reason.as_str()) };
        self.decisions.get_or_create(&labels).inc();
    }

    /// Counts a denial on the policy and rule that said it.
    pub fn count_denial(&self, policy: &str, rule: Option<u32>) {
        let rule = rule.map(|rule| rule.to_string()).unwrap_or_default();
        self.denials.get_or_create(&self.bounded(policy, &rule)).inc();
    }

    /// Counts that a policy which decides nothing matched; `kind` is `audit` or `dry-run`.
    pub fn count_report(&self, policy: &str, kind: &'static str) {
        self.reports.get_or_create(&self.bounded(policy, kind)).inc();
    }

    /// Counts a connection that would be denied were the dry runs enforced.
    pub fn count_would_deny(&self, reason: Reason) {
        self.would_deny.get_or_create(&ReasonLabels { reason: Word(reason.as_str()) }).inc();
    }

    fn bounded(&self, policy: &str, rule: &str) -> PolicyLabels {
        let labels = PolicyLabels { policy: policy.to_owned(), rule: rule.to_owned() };
        let mut counted = self.counted.lock();
        if counted.contains(&labels) || counted.len() < COUNTED_POLICIES && counted.insert(labels.clone()) {
            return labels;
        }
        PolicyLabels { policy: "other".to_owned(), rule: String::new() }
    }

    /// App connections that are open or on their way to the other side: their client may have said all it wants to
    /// and be gone.
    #[must_use]
    pub fn open_connections(&self) -> i64 {
        let all = [Direction::Inbound, Direction::Outbound].into_iter().flat_map(|direction| {
            let transports = [Transport::Tunnel, Transport::Plaintext, Transport::Local];
            transports.map(|transport| ConnectionLabels { direction, transport })
        });
        let open: i64 = all.map(|labels| self.connections_open.get_or_create(&labels).get()).sum();
        open + self.connections_opening.get()
    }

    /// Counts a refusal by the limit called `name`, and tells the log now and then.
    pub fn count_limit(&self, name: &'static str) {
        self.limit_refusals.count(name);
    }

    /// Counts a finished handshake.
    pub fn count_handshake(&self, direction: Direction, outcome: Outcome) {
        self.handshakes.get_or_create(&HandshakeLabels { direction, outcome }).inc();
    }

    /// Counts a breach of protocol in a tunnel.
    pub fn count_protocol_error(&self, direction: Direction) {
        self.protocol_errors.get_or_create(&DirectionLabels { direction }).inc();
    }

    /// Counts an app connection as on its way until the guard is dropped.
    #[must_use]
    pub fn opening(&self) -> OpenGauge {
        OpenGauge::new(self.connections_opening.clone())
    }

    /// Counts a tunnel as open until the guard is dropped.
    #[must_use]
    pub fn tunnel_open(&self, direction: Direction) -> OpenGauge {
        OpenGauge::new(self.tunnels.get_or_create_owned(&DirectionLabels { direction }))
    }

    /// Tunnels that are open, in use or not.
    #[must_use]
    pub fn open_tunnels(&self, direction: Direction) -> i64 {
        self.tunnels.get_or_create(&DirectionLabels { direction }).get()
    }

    /// The handles of one app connection, looked up once; it counts as open until they are dropped.
    #[must_use]
    pub fn connection(&self, direction: Direction, transport: Transport) -> ConnectionMetrics {
        self.connections.get_or_create(&ConnectionLabels { direction, transport }).inc();
        self.connection_uncounted(direction, transport)
    }

    /// As [`PathMetrics::connection`], for one that is open and may still turn out to be something else: it is not
    /// counted among those that reached their other side.
    #[must_use]
    pub fn connection_uncounted(&self, direction: Direction, transport: Transport) -> ConnectionMetrics {
        let labels = ConnectionLabels { direction, transport };
        ConnectionMetrics {
            sent: self.sent_bytes.get_or_create_owned(&labels),
            received: self.received_bytes.get_or_create_owned(&labels),
            record: None,
            _open: OpenGauge::new(self.connections_open.get_or_create_owned(&labels)),
        }
    }
}

/// The handles of one app connection.
#[derive(Debug)]
pub struct ConnectionMetrics {
    sent: Counter,
    received: Counter,
    /// `None` for one whose requests are told instead.
    record: Option<Box<ConnectionRecord>>,
    _open: OpenGauge,
}

impl ConnectionMetrics {
    /// From now on also counts and tells the connection as `record` has it.
    #[must_use]
    pub fn with_record(self, record: Option<Box<ConnectionRecord>>) -> Self {
        ConnectionMetrics { record, ..self }
    }

    /// The app sent so many bytes.
    pub fn count_sent(&self, bytes: usize) {
        self.sent.inc_by(bytes as u64);
        if let Some(record) = &self.record {
            record.app_sent(bytes as u64);
        }
    }

    /// The app received so many bytes.
    pub fn count_received(&self, bytes: usize) {
        self.received.inc_by(bytes as u64);
        if let Some(record) = &self.record {
            record.app_received(bytes as u64);
        }
    }

    /// Says how the copy of the connection ended, and by what it was cut.
    pub fn ended(&self, end: End, denial: Option<&Denial>) {
        if let Some(record) = &self.record {
            record.ended(end, denial);
        }
    }
}

/// One more of something open, until dropped.
#[derive(Debug)]
pub struct OpenGauge(Gauge);

impl OpenGauge {
    /// Counts one more on `gauge`.
    #[must_use]
    pub fn new(gauge: Gauge) -> OpenGauge {
        gauge.inc();
        OpenGauge(gauge)
    }
}

impl Drop for OpenGauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_counted_each_by_itself_up_to_a_bound() {
        let metrics = PathMetrics::default();
        for number in 0..2 * COUNTED_POLICIES {
            metrics.count_denial(&format!("shop/p{number}"), Some(1));
            metrics.count_denial("shop/p0", Some(1));
        }
        let count = |policy: &str, rule: &str| {
            metrics.denials.get_or_create(&PolicyLabels { policy: policy.into(), rule: rule.into() }).get()
        };
        assert_eq!(count("shop/p0", "1"), 2 * COUNTED_POLICIES as u64 + 1);
        assert_eq!(count("shop/p1", "1"), 1);
        assert_eq!(
            count("other", ""),
            COUNTED_POLICIES as u64,
            "what is beyond the bound is counted together"
        );
    }

    #[test]
    fn every_metric_has_its_name_and_labels() {
        let metrics = PathMetrics::default();
        let mut registry = Registry::with_prefix("cinch");
        metrics.register(&mut registry);
        let open = metrics.connection(Direction::Inbound, Transport::Tunnel);
        open.count_sent(5);
        metrics.count_refused(Direction::Inbound, Reason::StrictPlaintext);
        metrics.count_limit("handshakes");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "cinch_connections_open{direction=\"inbound\",transport=\"tunnel\"} 1",
            "cinch_sent_bytes_total{direction=\"inbound\",transport=\"tunnel\"} 5",
            "cinch_connections_refused_total{direction=\"inbound\",reason=\"StrictPlaintext\"} 1",
            "cinch_limit_refusals_total{limit=\"handshakes\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(open);
        assert_eq!(
            metrics
                .connections_open
                .get_or_create(&ConnectionLabels {
                    direction: Direction::Inbound,
                    transport: Transport::Tunnel
                })
                .get(),
            0
        );
    }
}
