//! What a side may say that costs work and moves nothing: PING, SETTINGS, empty DATA, frames that are dropped.

use super::frame::Fault;
use std::time::{Duration, Instant};

/// So many at once.
const BURST: u32 = 1000;

/// And so many a second for ever: far above any keepalive.
const PER_SECOND: u32 = 20;

/// Frames without use that a side may still send. Every frame that moves something earns one: clients that measure
/// the path send a PING for what they receive, and are no flood.
#[derive(Debug)]
pub(super) struct Budget {
    left: u32,
    since: Instant,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Budget {
        Budget { left: BURST, since: now }
    }

    /// A frame moved something.
    pub(super) fn earn(&mut self) {
        self.left = BURST.min(self.left + 1);
    }

    /// A frame moved nothing; `flood` is what to say when there were too many.
    pub(super) fn spend(&mut self, now: Instant, flood: &'static str) -> Result<(), Fault> {
        if self.left == 0 {
            let seconds = now.saturating_duration_since(self.since).as_secs();
            let earned = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(PER_SECOND);
            self.left = earned.min(BURST);
            self.since += Duration::from_secs(seconds);
        }
        self.left = self.left.checked_sub(1).ok_or(Fault::calm("http.idle_frames", flood))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_12_a_burst_is_permitted_and_a_flood_is_not() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for _ in 0..BURST {
            assert_eq!(budget.spend(start, "flood"), Ok(()));
        }
        assert_eq!(budget.spend(start, "flood"), Err(Fault::calm("http.idle_frames", "flood")));
        let later = start + Duration::from_secs(2);
        for _ in 0..2 * PER_SECOND {
            assert_eq!(budget.spend(later, "flood"), Ok(()));
        }
        assert_eq!(budget.spend(later, "flood"), Err(Fault::calm("http.idle_frames", "flood")));
    }

    #[test]
    fn rule_12_pings_beside_traffic_and_keepalives_for_days_are_no_flood() {
        let mut now = Instant::now();
        let mut budget = Budget::new(now);
        for _ in 0..100_000 {
            budget.earn();
            assert_eq!(budget.spend(now, "flood"), Ok(()));
        }
        for _ in 0..100_000 {
            now += Duration::from_secs(10);
            assert_eq!(budget.spend(now, "flood"), Ok(()));
        }
    }
}
