//! What the agent counts, for Prometheus.

use crate::look::Look;
use cinch_reason::Reason;
use cinch_redirect::sighting::Way;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Passed {
    way: &'static str,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    requests: Family<Outcome, Counter>,
    seconds: Histogram,
    pods: Gauge,
    looks: Histogram,
    failed_looks: Counter,
    cut_looks: Counter,
    skipped_looks: Counter,
    set_again: Counter,
    sightings: Family<Passed, Counter>,
}

/// All metrics and their registry; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

impl Default for Metrics {
    fn default() -> Self {
        // From a proof alone to the two timeouts of a visit.
        let buckets = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0];
        let requests = Family::<Outcome, Counter>::default();
        let (seconds, pods) = (Histogram::new(buckets), Gauge::default());
        let looks = Histogram::new([0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.02, 0.1, 0.5, 2.0]);
        let (failed_looks, sightings) = (Counter::default(), Family::<Passed, Counter>::default());
        let (cut_looks, skipped_looks, set_again) =
            (Counter::default(), Counter::default(), Counter::default());
        let mut registry = Registry::with_prefix("cinch_node");
        registry.register("requests", "Requests of pods by outcome; empty reason: done", requests.clone());
        registry.register(
            "request_seconds",
            "Time from a request's connection to its answer",
            seconds.clone(),
        );
        registry.register("pods", "Pods that have a socket", pods.clone());
        registry.register("look_seconds", "Time of a look at what passes by a pod's proxy", looks.clone());
        registry.register("looks_failed", "Looks that the kernel refused", failed_looks.clone());
        registry.register("looks_cut", "Looks that reached a bound and left the rest", cut_looks.clone());
        registry.register(
            "looks_skipped",
            "Looks that did not get their turn in time",
            skipped_looks.clone(),
        );
        registry.register(
            "redirects_set_again",
            "Redirects that had been in force, were found gone and set again",
            set_again.clone(),
        );
        registry.register("bypass_sightings", "What looks have seen pass by a proxy", sightings.clone());
        Self(Arc::new(Inner {
            registry,
            requests,
            seconds,
            pods,
            looks,
            failed_looks,
            cut_looks,
            skipped_looks,
            set_again,
            sightings,
        }))
    }
}

impl Metrics {
    /// Counts a request.
    pub fn answered(&self, outcome: Result<(), Reason>, took: Duration) {
        let reason = outcome.err().map_or("", |reason| reason.as_str());
        self.0.requests.get_or_create(&Outcome { reason }).inc();
        self.0.seconds.observe(took.as_secs_f64());
    }

    /// Times a look and counts what it has seen.
    ///
    /// # Errors
    /// Those of `look`.
    pub fn looked(&self, look: impl FnOnce() -> io::Result<Look>) -> io::Result<Look> {
        let begin = Instant::now();
        let seen = look();
        self.0.looks.observe(begin.elapsed().as_secs_f64());
        match &seen {
            Err(_) => drop(self.0.failed_looks.inc()),
            Ok(look) => {
                self.0.cut_looks.inc_by(u64::from(look.is_short));
                for sighting in &look.sightings.seen {
                    self.0.sightings.get_or_create(&Passed { way: word(sighting.way) }).inc();
                }
            }
        }
        seen
    }

    /// Counts a look that was asked for and did not take place.
    pub fn skipped_look(&self) {
        self.0.skipped_looks.inc();
    }

    /// Counts a redirect that was gone, if it was.
    pub fn set_again(&self, was_gone: bool) {
        self.0.set_again.inc_by(u64::from(was_gone));
    }

    /// How many pods have a socket.
    pub fn set_pods(&self, count: usize) {
        self.0.pods.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The page.
    #[must_use]
    pub fn text(&self) -> String {
        let mut page = String::new();
        // Writing to a string can't fail.
        let _ = prometheus_client::encoding::text::encode(&mut page, &self.0.registry);
        page
    }
}

fn word(way: Way) -> &'static str {
    match way {
        Way::Outbound => "outbound",
        Way::Inbound => "inbound",
        Way::UdpPeer => "udp_peer",
        Way::UdpListener => "udp_listener",
    }
}
