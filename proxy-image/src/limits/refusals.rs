//! What limits refuse. In goes the name of a limit, out come a counter of its own and now and then a line in the log.
//! A limit is called as its setting ([`crate::limits::Limits`]), in snake case.

use crate::path_metrics::{LimitLabels, PathMetrics, Word};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// At most one line for each limit in this time; the count of what was refused since the last is in it.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Counts and tells. One for the process, shared by its clones.
#[derive(Debug, Clone, Default)]
pub struct Refusals {
    counted: Family<LimitLabels, Counter>,
    told: Arc<Mutex<Told>>,
}

impl Refusals {
    /// `limit` has refused something. Floods cost a counter only.
    pub fn count(&self, limit: &'static str) {
        self.count_many(limit, 1);
    }

    /// `limit` has refused so much at once.
    pub fn count_many(&self, limit: &'static str, many: u64) {
        self.counted.get_or_create(&LimitLabels { limit: Word(limit) }).inc_by(many);
        let refused = self.told.lock().note(limit, many, Instant::now());
        if let Some(refused) = refused {
            tracing::warn!(limit, refused, "a limit refuses connections or requests (proxy.settings.limits)");
        }
    }

    /// How often `limit` has refused something.
    #[must_use]
    pub fn of(&self, limit: &'static str) -> u64 {
        self.counted.get(&LimitLabels { limit: Word(limit) }).map_or(0, |counter| counter.get())
    }

    /// Registers the counters, under the prefix that `registry` has.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("limit_refusals", "Refusals by a limit, by its name", self.counted.clone());
    }
}

/// Counts an app or endpoint that did not take a connection within `connect_timeout`.
pub fn note_connect(metrics: &PathMetrics, error: &io::Error) {
    if error.kind() == io::ErrorKind::TimedOut {
        metrics.count_limit("connect_timeout");
    }
}

/// When each limit last had its line, and how often it refused since.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<&'static str, (Instant, u64)>);

impl Told {
    /// How many refusals a line should tell of now, after so `many` more, if one is due.
    pub(super) fn note(&mut self, limit: &'static str, many: u64, now: Instant) -> Option<u64> {
        let Some((last, since)) = self.0.get_mut(limit) else {
            self.0.insert(limit, (now, 0));
            return Some(many);
        };
        *since += many;
        if now.saturating_duration_since(*last) < BETWEEN_LINES {
            return None;
        }
        *last = now;
        Some(std::mem::take(since))
    }
}
