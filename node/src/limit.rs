//! How often one pod may ask.

use std::time::{Duration, Instant};

/// A sidecar that starts asks some six times within a second when it is refused.
const BURST: u32 = 20;
/// It never asks more often than once a second after that.
const REFILL: Duration = Duration::from_millis(500);

/// A bucket of tokens, one for each request.
#[derive(Debug)]
pub struct Bucket {
    tokens: u32,
    since: Instant,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { tokens: BURST, since: now }
    }

    /// Whether there was a token to take.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since).as_millis() / REFILL.as_millis();
        let earned = u32::try_from(passed).unwrap_or(BURST).min(BURST);
        self.since = if self.tokens + earned >= BURST { now } else { self.since + REFILL * earned };
        self.tokens = (self.tokens + earned).min(BURST);
        let taken = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_is_never_limited_and_a_loop_is() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let mut at = start;
        // As the sidecar backs off: 20 ms doubled up to a second.
        for step in 0..200 {
            assert!(bucket.take(at), "request {step}");
            at += Duration::from_millis(20 << step.min(6)).min(Duration::from_secs(1));
        }
        let mut bucket = Bucket::new(start);
        let taken = (0..10_000).filter(|ms| bucket.take(start + Duration::from_millis(*ms))).count();
        assert_eq!(taken, 20 + 19, "a burst, then two a second");
    }

    #[test]
    fn a_clock_that_stands_gives_nothing() {
        let now = Instant::now();
        let mut bucket = Bucket::new(now);
        let taken = (0..100).filter(|_| bucket.take(now)).count();
        assert_eq!(taken, 20);
    }
}
