//! What the webhook counts, for Prometheus.

use cinch_reason::Reason;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReviewLabels {
    outcome: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// All metrics and their registry.
pub struct Metrics {
    registry: Registry,
    reviews: Family<ReviewLabels, Counter>,
    seconds: Histogram,
    waits: Counter,
    watch_failures: Family<KindLabel, Counter>,
    handshake_failures: Counter,
    connections_refused: Counter,
    certificate_failures: Counter,
    connections: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a tenth of the p99 that is aimed at (2 ms) to the time after which a review is given up.
        let buckets = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 0.5, 1.0, 2.0, 2.5];
        let mut metrics = Self {
            registry: Registry::with_prefix("cinch_webhook"),
            reviews: Family::default(),
            seconds: Histogram::new(buckets),
            waits: Counter::default(),
            watch_failures: Family::default(),
            handshake_failures: Counter::default(),
            connections_refused: Counter::default(),
            certificate_failures: Counter::default(),
            connections: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("reviews", "Admission reviews by outcome and reason", self.reviews.clone());
        registry.register(
            "review_seconds",
            "Time from the request's head to the answer",
            self.seconds.clone(),
        );
        registry.register(
            "waits",
            "Reviews that waited for an account, trust bundle or Job",
            self.waits.clone(),
        );
        registry.register("watch_failures", "Failed watches of the API by kind", self.watch_failures.clone());
        registry.register(
            "handshake_failures",
            "TLS handshakes that failed",
            self.handshake_failures.clone(),
        );
        let text = "Connections closed because there were too many";
        registry.register("connections_refused", text, self.connections_refused.clone());
        let text = "Serving certificates that could not be used";
        registry.register("certificate_failures", text, self.certificate_failures.clone());
        registry.register("connections", "Open connections of API servers", self.connections.clone());
    }

    /// A review was answered.
    pub fn reviewed(&self, outcome: &'static str, reason: Reason, took: Duration) {
        self.reviews.get_or_create(&ReviewLabels { outcome, reason: reason.as_str() }).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// How often a review had this outcome and reason.
    #[must_use]
    pub fn reviews_with(&self, outcome: &'static str, reason: Reason) -> u64 {
        self.reviews.get_or_create(&ReviewLabels { outcome, reason: reason.as_str() }).get()
    }

    /// A review waits for something to appear.
    pub fn waited(&self) {
        self.waits.inc();
    }

    /// A watch failed.
    pub fn watch_failed(&self, kind: &'static str) {
        self.watch_failures.get_or_create(&KindLabel { kind }).inc();
    }

    /// A TLS handshake failed.
    pub fn handshake_failed(&self) {
        self.handshake_failures.inc();
    }

    /// A connection was closed because there were too many.
    pub fn connection_refused(&self) {
        self.connections_refused.inc();
    }

    /// The serving certificate could not be used.
    pub fn certificate_failed(&self) {
        self.certificate_failures.inc();
    }

    /// A connection was opened; it is counted until the guard is dropped.
    #[must_use]
    pub fn connected(&self) -> Connected {
        self.connections.inc();
        Connected(self.connections.clone())
    }

    /// The text that Prometheus reads.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String can not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

/// An open connection.
pub struct Connected(Gauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}
