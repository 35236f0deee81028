//! What is watched while a connection is copied: its bytes, for metrics and evidence, and the order to cut it.

use crate::copy::{End, Observer, Which};
use crate::evidence::Accepted;
use crate::live::Registered;
use crate::path_metrics::ConnectionMetrics;
use cinch_reason::Reason;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;
use tokio::time::{Sleep, sleep};

/// Watches the copy of one connection. The first side is the network, the second the app.
pub struct Watch<'a> {
    metrics: &'a ConnectionMetrics,
    registered: Option<&'a Registered>,
    accepted: Option<&'a mut Accepted>,
    doubt: Option<Box<Doubt>>,
}

/// Whether what the app says to a client that is silent is plaintext served, is not known yet.
struct Doubt {
    until: Pin<Box<Sleep>>,
    app_spoke: bool,
}

impl<'a> Watch<'a> {
    /// Counts into `metrics`.
    #[must_use]
    pub fn new(metrics: &'a ConnectionMetrics) -> Self {
        Watch { metrics, registered: None, accepted: None, doubt: None }
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

    /// What the app says is noted as served once the client says something, or has said nothing for so long.
    #[must_use]
    pub fn doubting(mut self, limit: Duration) -> Self {
        self.doubt = Some(Box::new(Doubt { until: Box::pin(sleep(limit)), app_spoke: false }));
        self
    }

    /// The app said something, and it is not noted as served.
    #[must_use]
    pub fn still_doubts(self) -> bool {
        self.doubt.is_some_and(|doubt| doubt.app_spoke)
    }

    fn served(&mut self) {
        if let Some(accepted) = &mut self.accepted {
            accepted.served();
        }
    }
}

impl Observer for Watch<'_> {
    fn moved(&mut self, from: Which, bytes: usize) {
        match (&mut self.doubt, from) {
            (Some(doubt), Which::Second) => doubt.app_spoke = true,
            _ => {
                self.doubt = None;
                self.served();
            }
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
        let is_over = self.doubt.as_mut().is_some_and(|doubt| doubt.until.as_mut().poll(cx).is_ready());
        if is_over && self.doubt.take().is_some_and(|doubt| doubt.app_spoke) {
            self.served();
        }
        Some(self.registered?.poll_cut(cx)?.reason)
    }
}
