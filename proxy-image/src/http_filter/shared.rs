//! What all connections that are read as HTTP have in common: limits, verified tokens, keys to ask for, and the
//! bound on what they hold together.

use super::unknown_keys::UnknownKeys;
use crate::limits::Limits;
use crate::path_metrics::PathMetrics;
use cinch_policy::jwt::TokenCache;
use prometheus_client::metrics::gauge::Gauge;
use std::sync::Arc;

/// One for the process.
#[derive(Debug)]
pub struct Shared {
    pub(super) limits: Arc<cinch_http::Limits>,
    pub(super) tokens: TokenCache,
    held: Gauge,
    /// So many bytes of heads may be held by all connections together.
    bound: usize,
    /// Keys that tokens name and no key set holds.
    pub unknown_keys: Arc<UnknownKeys>,
}

impl Shared {
    /// Nothing held, nothing verified.
    #[must_use]
    pub fn new(limits: &Limits, metrics: &PathMetrics) -> Arc<Shared> {
        Arc::new(Shared {
            limits: Arc::new(limits.http.clone()),
            tokens: TokenCache::default(),
            held: metrics.http.held_bytes.clone(),
            bound: limits.http_held_bytes,
            unknown_keys: Arc::default(),
        })
    }
}

/// What one connection holds, given back when it ends.
#[derive(Debug)]
pub(super) struct Held<'a> {
    shared: &'a Shared,
    bytes: usize,
}

impl<'a> Held<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Held { shared, bytes: 0 }
    }

    /// Says what the connection holds now. `false`: it holds more than before, and all together hold too much.
    pub(super) fn now(&mut self, bytes: usize) -> bool {
        if bytes == self.bytes {
            return true;
        }
        let (grown, change) = (bytes > self.bytes, signed(bytes) - signed(self.bytes));
        self.bytes = bytes;
        let before = self.shared.held.inc_by(change);
        !grown || before + change <= signed(self.shared.bound)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shared.held.dec_by(signed(self.bytes));
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_beyond_the_bound_is_told_and_given_back() {
        let limits = Limits { http_held_bytes: 100, ..Limits::default() };
        let shared = Shared::new(&limits, &PathMetrics::default());
        let (mut one, mut other) = (Held::new(&shared), Held::new(&shared));
        assert!(one.now(60) && other.now(40));
        assert!(!other.now(41), "who grows beyond it");
        assert!(one.now(59) && other.now(41), "who does not grow is left alone");
        drop(one);
        assert!(other.now(100));
        drop(other);
        assert_eq!(shared.held.get(), 0);
    }
}
