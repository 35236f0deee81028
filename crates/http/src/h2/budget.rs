//! What a side may say that costs work and moves nothing: PING, SETTINGS, empty DATA, frames that are dropped.

use super::frame::Fault;
use crate::Limits;
use std::time::{Duration, Instant};

/// Frames without use that a side may still send. Every frame that moves something earns one: clients that measure
/// the path send a PING for what they receive, and are no flood.
#[derive(Debug)]
pub(super) struct Budget {
    burst: u32,
    per_second: u32,
    left: u32,
    since: Instant,
}

impl Budget {
    pub(super) fn new(limits: &Limits, now: Instant) -> Budget {
        let (burst, per_second) = (limits.idle_frames, limits.idle_frames_per_second);
        Budget { burst, per_second, left: burst, since: now }
    }

    /// A frame moved something.
    pub(super) fn earn(&mut self) {
        self.left = self.burst.min(self.left + 1);
    }

    /// A frame moved nothing; `flood` is what to say when there were too many.
    pub(super) fn spend(&mut self, now: Instant, flood: &'static str) -> Result<(), Fault> {
        if self.left == 0 {
            let seconds = now.saturating_duration_since(self.since).as_secs();
            let earned = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(self.per_second);
            self.left = earned.min(self.burst);
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
        let (start, limits) = (Instant::now(), Limits { idle_frames: 300, ..Limits::default() });
        let mut budget = Budget::new(&limits, start);
        for _ in 0..300 {
            assert_eq!(budget.spend(start, "flood"), Ok(()));
        }
        assert_eq!(budget.spend(start, "flood"), Err(Fault::calm("http.idle_frames", "flood")));
        let later = start + Duration::from_secs(2);
        for _ in 0..2 * limits.idle_frames_per_second {
            assert_eq!(budget.spend(later, "flood"), Ok(()));
        }
        assert_eq!(budget.spend(later, "flood"), Err(Fault::calm("http.idle_frames", "flood")));
    }

    #[test]
    fn rule_12_pings_beside_traffic_and_keepalives_for_days_are_no_flood() {
        let mut now = Instant::now();
        let mut budget = Budget::new(&Limits::default(), now);
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
