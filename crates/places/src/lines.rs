//! How often the log has a line about something that anybody may bring about as often as he likes. In go what it is
//! and the time, out comes whether to say it, and how often it went unsaid. Pure; time is given.

use crate::rate::{Pace, RateLimit};
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// So many lines at once show who it is and what he tries; one more a second shows whether it goes on.
const PACE: Pace = Pace { burst: 10, refill: Duration::from_secs(1) };

/// Lines about each of a few things.
#[derive(Debug)]
pub struct Lines<Key> {
    limit: RateLimit<Key>,
    unsaid: HashMap<Key, u64>,
}

impl<Key: Clone + Eq + Hash> Default for Lines<Key> {
    fn default() -> Self {
        Self { limit: RateLimit::new(PACE), unsaid: HashMap::new() }
    }
}

impl<Key: Clone + Eq + Hash> Lines<Key> {
    /// `what` has come to pass at `now`: how often it did without a line since the last one, when there is one to be
    /// written; `None` when not. The words for `what` have to be of a fixed set.
    pub fn say(&mut self, what: &Key, now: Instant) -> Option<u64> {
        let unsaid = self.unsaid.entry(what.clone()).or_default();
        if self.limit.take(what, now).is_err() {
            *unsaid += 1;
            return None;
        }
        Some(std::mem::take(unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_at_once_are_said_then_one_a_second_that_tells_how_many_were_not() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let said: Vec<_> = (0..100).filter_map(|_| lines.say(&"garbage", start)).collect();
        assert_eq!(said, [0; 10]);
        assert_eq!(lines.say(&"handshake", start), Some(0), "each has its own lines");
        let later = start + Duration::from_secs(1);
        assert_eq!([lines.say(&"garbage", later), lines.say(&"garbage", later)], [Some(90), None]);
        assert_eq!(lines.say(&"garbage", later + Duration::from_secs(1)), Some(1));
    }
}
