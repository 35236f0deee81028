//! Pauses between attempts: exponential with full jitter, so that ten thousand proxies that lost one operator do
//! not come back at the same instant.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// Jitter may be small, but never so small that a loop is hot.
const SHORTEST: Duration = Duration::from_millis(20);
/// No hint of an operator holds a proxy off for longer.
const LONGEST_HINT: Duration = Duration::from_secs(60);

/// The state between attempts.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next pause: at least `hint`, spread so that those with the same hint come back apart.
    pub(super) fn next(&mut self, hint: Duration) -> Duration {
        let ceiling = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        hint.min(LONGEST_HINT) + rand::random_range(SHORTEST..=ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_cap_and_are_never_nothing() {
        let mut longest = Duration::ZERO;
        for _ in 0..50 {
            let mut backoff = Backoff::default();
            assert!(backoff.next(Duration::ZERO) <= FIRST);
            for _ in 0..20 {
                let pause = backoff.next(Duration::ZERO);
                assert!((SHORTEST..=LONGEST).contains(&pause), "{pause:?}");
                longest = longest.max(pause);
            }
        }
        assert!(longest > Duration::from_secs(3), "{longest:?}");
    }

    #[test]
    fn a_hint_is_honoured_up_to_a_bound() {
        assert!(Backoff::default().next(Duration::from_secs(3)) >= Duration::from_secs(3));
        assert!(Backoff::default().next(Duration::MAX) <= LONGEST_HINT + FIRST);
    }
}
