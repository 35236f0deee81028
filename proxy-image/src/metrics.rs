//! The metrics page: the data path's handles, and what only the control side knows, read when somebody asks.

use crate::discovery::DiscoveryMetrics;
use crate::evidence::Evidence;
use crate::health::Readiness;
use crate::limits::{Limits, Refusals};
use crate::path_metrics::PathMetrics;
use crate::process::{descriptor_limit, open_descriptors, resident_bytes};
use parking_lot::Mutex;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a proof or certificate that never was is shown as, in seconds: far from any real age.
const NEVER: i64 = -1;

/// The pages of the last second.
#[derive(Debug, Default)]
struct Pages {
    since: Option<Instant>,
    made: u32,
    last: Arc<str>,
}

/// Counters of the control side.
#[derive(Debug, Clone, Default)]
pub struct ControlMetrics {
    /// 1 while the control stream stands.
    pub connected: Gauge,
    /// Streams that stood so far.
    pub streams: Counter,
    /// Attempts that failed.
    pub failures: Counter,
    /// When the certificate ends, in seconds since 1970.
    pub certificate_expiry: Gauge,
    /// Certificates received.
    pub certificates: Counter,
    /// Self-tests of the outbound redirect that failed.
    pub self_test_failures: Counter,
    /// Since when the longest missing key set of tokens has come with no policy.
    pub keys_missing_since: Arc<Mutex<Option<Instant>>>,
    /// The records of discovery.
    pub discovery: DiscoveryMetrics,
}

/// The page.
pub struct Metrics {
    registry: Registry,
    /// With Istio's names, which have another prefix.
    istio: Registry,
    evidence: Arc<Evidence>,
    readiness: Arc<Readiness>,
    ready: Gauge,
    memory: Gauge,
    descriptors: Gauge,
    descriptor_limit: Gauge,
    inbound_proof: Gauge,
    outbound_proof: Gauge,
    agent_proof: Gauge,
    keys_missing_since: Arc<Mutex<Option<Instant>>>,
    keys_missing: Gauge,
    pages: Mutex<Pages>,
    /// Pages that are made in a second; who asks more often gets the last one.
    per_second: u32,
    limits: Refusals,
}

impl Metrics {
    /// Registers everything.
    #[must_use]
    pub fn new(
        evidence: Arc<Evidence>,
        readiness: Arc<Readiness>,
        path: &PathMetrics,
        control: &ControlMetrics,
    ) -> Self {
        let mut registry = Registry::with_prefix("cinch");
        path.register(&mut registry);
        control.register(&mut registry);
        let mut istio = Registry::with_prefix("istio");
        path.telemetry.register_istio(&mut istio);
        let this = Self {
            istio,
            evidence,
            readiness,
            ready: Gauge::default(),
            memory: Gauge::default(),
            descriptors: Gauge::default(),
            descriptor_limit: Gauge::default(),
            inbound_proof: Gauge::default(),
            outbound_proof: Gauge::default(),
            agent_proof: Gauge::default(),
            keys_missing_since: control.keys_missing_since.clone(),
            keys_missing: Gauge::default(),
            pages: Mutex::default(),
            per_second: Limits::default().metrics_per_second,
            limits: path.limit_refusals.clone(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register("ready", "1 when nothing is missing", this.ready.clone());
        r.register_with_unit("resident_memory", "Memory in use", Unit::Bytes, this.memory.clone());
        r.register("open_descriptors", "File descriptors in use", this.descriptors.clone());
        let help = "File descriptors that the process may have: the system's hard limit";
        r.register("max_descriptors", help, this.descriptor_limit.clone());
        let (inbound, outbound) = (this.inbound_proof.clone(), this.outbound_proof.clone());
        let help = "Age of the last proof that the redirect works; -1: never proved";
        r.register_with_unit("inbound_redirect_proof_age", help, Unit::Seconds, inbound);
        r.register_with_unit("outbound_redirect_proof_age", help, Unit::Seconds, outbound);
        let help = "Age of the last answer of the node agent that the redirect is in force; -1: none";
        r.register_with_unit("agent_redirect_proof_age", help, Unit::Seconds, this.agent_proof.clone());
        let help = "Since the first policy that came without keys of tokens that it names; -1: none does";
        r.register_with_unit("token_keys_missing_age", help, Unit::Seconds, this.keys_missing.clone());
        Self { registry, ..this }
    }

    /// With so many pages made in a second.
    #[must_use]
    pub fn at_most(self, per_second: u32) -> Self {
        Self { per_second, ..self }
    }

    /// The page as OpenMetrics text, for somebody who asks at `now`.
    #[must_use]
    pub fn page(&self, now: Instant) -> Arc<str> {
        let mut pages = self.pages.lock();
        if pages.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            (pages.since, pages.made) = (Some(now), 0);
        }
        if pages.made < self.per_second {
            pages.made += 1;
            pages.last = self.render().into();
        } else {
            self.limits.count("metrics_per_second");
        }
        pages.last.clone()
    }

    /// What its limits refuse.
    #[cfg(test)]
    pub(crate) fn limits(&self) -> &Refusals {
        &self.limits
    }

    fn render(&self) -> String {
        self.ready.set(i64::from(self.readiness.missing().is_empty()));
        self.memory.set(i64::try_from(resident_bytes()).unwrap_or(i64::MAX));
        self.descriptors.set(i64::try_from(open_descriptors()).unwrap_or(i64::MAX));
        let limit = descriptor_limit().unwrap_or_default();
        self.descriptor_limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
        self.inbound_proof.set(seconds(self.evidence.inbound_proof_age()));
        self.outbound_proof.set(seconds(self.evidence.outbound_proof_age()));
        self.agent_proof.set(seconds(self.evidence.agent_proof_age()));
        self.keys_missing.set(seconds(self.keys_missing_since.lock().map(|since| since.elapsed())));
        let mut page = String::new();
        // Writing to a string can't fail.
        let _ = text::encode_registry(&mut page, &self.registry)
            .and_then(|()| text::encode(&mut page, &self.istio));
        page
    }
}

impl ControlMetrics {
    fn register(&self, r: &mut Registry) {
        r.register("control_connected", "1 while the control stream stands", self.connected.clone());
        r.register("control_streams", "Control streams that stood", self.streams.clone());
        r.register("control_failures", "Failed attempts to reach the operator", self.failures.clone());
        let help = "When the certificate ends, since 1970; 0: there is none";
        r.register_with_unit("certificate_expiry", help, Unit::Seconds, self.certificate_expiry.clone());
        r.register("certificates", "Certificates received", self.certificates.clone());
        let help = "Dials of the self-test that did not come back through the redirect";
        r.register("self_test_failures", help, self.self_test_failures.clone());
        r.register(
            "discovery_records",
            "Addresses in the cache of discovery",
            self.discovery.records.clone(),
        );
        r.register("discovery_evictions", "Records evicted for others", self.discovery.evictions.clone());
        let help = "Connections refused because the operator did not answer in time";
        r.register("discovery_unanswered", help, self.discovery.unanswered.clone());
    }
}

fn seconds(age: Option<Duration>) -> i64 {
    age.map_or(NEVER, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX))
}
