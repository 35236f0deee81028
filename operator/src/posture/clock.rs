//! Whether the node's clock was set forward. In go its time and that of a clock that only runs; out comes how much of what
//! seems to have passed has not.

use cinch_promotion::Millis;
use std::time::Instant;

/// Two clocks of one machine differ by no more, however they are slewed and however long a round waits between both.
const BLUR: Millis = 2_000;

/// What both clocks said last.
#[derive(Debug, Default)]
pub(super) struct Clock {
    last: Option<(Millis, Instant)>,
}

impl Clock {
    /// By how much the clock was set forward since it was last asked. While a machine sleeps, only the node's clock goes
    /// on: nobody was observed then. When it is set back, each step brings back with it what would lie ahead.
    pub(super) fn set_forward(&mut self, wall: Millis, now: Instant) -> Millis {
        let last = self.last.replace((wall, now));
        let Some((wall_then, then)) = last else { return 0 };
        let passed = u64::try_from(now.duration_since(then).as_millis()).unwrap_or(u64::MAX);
        let gained = wall.saturating_sub(wall_then).saturating_sub(passed);
        if gained > BLUR { gained } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_what_the_clock_gained_was_set_forward() {
        let start = Instant::now();
        let mut clock = Clock::default();
        let mut after = |seconds: u64, wall: Millis| {
            clock.set_forward(1_000_000 + wall, start + Duration::from_secs(seconds))
        };
        assert_eq!(after(0, 0), 0, "nothing is known of before");
        assert_eq!(after(10, 10_000), 0);
        assert_eq!(after(20, 21_500), 0, "a little");
        assert_eq!(after(30, 3_631_500), 3_600_000, "an hour");
        assert_eq!(after(40, 3_641_500), 0, "told once");
        assert_eq!(after(50, 41_500), 0, "set back");
        assert_eq!(after(60, 3_651_500), 3_600_000, "and forward again");
    }
}
