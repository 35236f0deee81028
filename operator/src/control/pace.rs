//! How often the records of one stream are looked at. Any change of the cluster may change any record, and who
//! subscribes to thousands, or makes the changes, must not take the time of all others. In goes how long a look took; out
//! comes when the next may begin.

use std::time::Duration;
use tokio::time::Instant;

/// After a look, a stream's records rest for so many times what it took: one stream takes a twentieth of a thread.
const REST: u32 = 19;
/// They rest no longer than this, however many they are: a record that has changed leads elsewhere.
const LONGEST: Duration = Duration::from_secs(1);

/// The looks at one stream's records.
#[derive(Debug)]
pub(super) struct Pace {
    not_before: Instant,
}

impl Pace {
    /// The first look may begin at once.
    pub(super) fn new(now: Instant) -> Self {
        Self { not_before: now }
    }

    /// When the next look may begin, if that is not yet.
    pub(super) fn rests_until(&self, now: Instant) -> Option<Instant> {
        (now < self.not_before).then_some(self.not_before)
    }

    /// A look has ended at `now` that took so long.
    pub(super) fn looked(&mut self, now: Instant, took: Duration) {
        self.not_before = now + took.saturating_mul(REST).min(LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_long_rests_long_and_never_longer_than_a_second() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.rests_until(start), None);
        for (took, rest) in [(0, 0), (1, 19), (20, 380), (500, 1000)]
            .map(|(took, rest)| (Duration::from_millis(took), Duration::from_millis(rest)))
        {
            pace.looked(start, took);
            assert_eq!(pace.rests_until(start).unwrap_or(start), start + rest, "{took:?}");
            assert_eq!(pace.rests_until(start + rest), None, "{took:?}");
        }
    }
}
