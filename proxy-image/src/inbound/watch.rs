//! What is watched while a connection is copied: its bytes, for metrics and evidence, and the order to cut it.

use crate::copy::{End, Observer, Which};
use crate::evidence::Accepted;
use crate::live::Registered;
use crate::path_metrics::ConnectionMetrics;
use cinch_reason::Reason;
use std::task::Context;

/// Watches the copy of one connection. The first side is the network, the second the app.
pub struct Watch<'a> {
    metrics: &'a ConnectionMetrics,
    registered: Option<&'a Registered>,
    accepted: Option<&'a mut Accepted>,
}

impl<'a> Watch<'a> {
    /// Counts into `metrics`.
    #[must_use]
    pub fn new(metrics: &'a ConnectionMetrics) -> Self {
        Watch { metrics, registered: None, accepted: None }
    }

    /// Also obeys the judgement on `registered`.
    #[must_use]
    pub fn judged(mut self, registered: &'a Registered) -> Self {
        self.registered = Some(registered);
        self
    }

    /// Also notes in `accepted` that plaintext was served.
    #[must_use]
    pub fn witnessed(mut self, accepted: &'a mut Accepted) -> Self {
        self.accepted = Some(accepted);
        self
    }
}

impl Observer for Watch<'_> {
    fn moved(&mut self, from: Which, bytes: usize) {
        if let Some(accepted) = &mut self.accepted {
            accepted.served();
        }
        match from {
            Which::First => self.metrics.count_received(bytes),
            Which::Second => self.metrics.count_sent(bytes),
        }
    }

    fn ended(&mut self, end: End) {
        self.metrics.ended(end, self.registered.and_then(Registered::denial));
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Option<Reason> {
        Some(self.registered?.poll_cut(cx)?.reason)
    }
}
