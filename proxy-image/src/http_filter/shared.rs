//! What all connections that are read as HTTP have in common: limits, verified tokens, keys to ask for, and the
//! bound on what they hold together.

use super::held::Holders;
use super::unknown_keys::UnknownKeys;
use crate::limits::Limits;
use crate::path_metrics::PathMetrics;
use cinch_policy::jwt::TokenCache;
use std::sync::Arc;

/// One for the process.
#[derive(Debug)]
pub struct Shared {
    pub(super) limits: Arc<cinch_http::Limits>,
    pub(super) tokens: TokenCache,
    /// What they hold.
    pub(super) held: Arc<Holders>,
    /// Keys that tokens name and no key set holds.
    pub unknown_keys: Arc<UnknownKeys>,
}

impl Shared {
    /// Nothing held, nothing verified.
    #[must_use]
    pub fn new(limits: &Limits, metrics: &PathMetrics) -> Arc<Shared> {
        Arc::new(Shared {
            limits: Arc::new(limits.http.clone()),
            tokens: TokenCache::within(limits.tokens()),
            held: Holders::new(metrics.http.held_bytes.clone(), limits.http_held_bytes),
            unknown_keys: Arc::new(UnknownKeys::within(
                limits.http_unknown_keys,
                metrics.limit_refusals.clone(),
            )),
        })
    }
}
