//! Metrics of requests, by Istio's names where they exist. Label sets are bounded: no paths, no methods, no peers.

use crate::path_metrics::Word;
use cinch_reason::Reason;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Labels of an answered request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// Always `destination`: we count where the app is.
    pub reporter: Word,
    /// `http` or `http2`.
    pub request_protocol: Word,
    /// `mutual_tls` or `none`.
    pub connection_security_policy: Word,
    /// `2xx` and its like; `unknown` for an answer that could not be read.
    pub response_code_class: Word,
    /// Why we refused it, a word of the reason table; empty where the app answered.
    pub reason: Word,
}

/// What requests of one connection have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// `http` or `http2`.
    pub protocol: &'static str,
    /// The peer has proved who it is.
    pub is_mutual: bool,
}

impl Kind {
    fn labels(self, class: &'static str, reason: &'static str) -> RequestLabels {
        RequestLabels {
            reporter: Word("destination"),
            request_protocol: Word(self.protocol),
            connection_security_policy: Word(if self.is_mutual { "mutual_tls" } else { "none" }),
            response_code_class: Word(class),
            reason: Word(reason),
        }
    }
}

/// Handles for what requests count.
#[derive(Debug, Default)]
pub struct HttpMetrics {
    /// Requests that were answered, by the app or by us.
    pub requests: Family<RequestLabels, Counter>,
    /// Bytes of heads that connections hold now.
    pub held_bytes: Gauge,
}

impl HttpMetrics {
    /// Registers every handle.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("requests", "HTTP requests answered by the app or refused", self.requests.clone());
        registry.register(
            "http_held_bytes",
            "Bytes of HTTP heads that are held now",
            self.held_bytes.clone(),
        );
    }

    /// Counts a request that we refused with `status`.
    pub(super) fn count_refused(&self, kind: Kind, status: u16, reason: Reason) {
        self.requests.get_or_create(&kind.labels(class(status), reason.as_str())).inc();
    }
}

/// The counters of the answers of one connection's app, each looked up when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Answers([Option<Counter>; 6]);

impl Answers {
    pub(super) fn count(&mut self, metrics: &HttpMetrics, kind: Kind, status: u16) {
        let index = if (100..600).contains(&status) { usize::from(status / 100) } else { 0 };
        if let Some(counter) = self.0.get_mut(index) {
            let lookup = || metrics.requests.get_or_create_owned(&kind.labels(class(status), ""));
            counter.get_or_insert_with(lookup).inc();
        }
    }
}

fn class(status: u16) -> &'static str {
    match status / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        5 => "5xx",
        _ => "unknown",
    }
}
