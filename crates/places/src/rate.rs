//! How often somebody may ask: a token bucket for each, in a bounded table. Pure; time is given.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// In the table; beyond it those that could ask again anyway are forgotten.
const CAPACITY: usize = 20_000;

/// How often one may ask.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// So often at once.
    pub burst: u32,
    /// One more each.
    pub refill: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn at(self, now: Instant, pace: Pace) -> Self {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() / pace.refill.as_secs_f64();
        Self { tokens: (self.tokens + gained).min(f64::from(pace.burst)), at: now }
    }
}

/// The buckets of all that asked lately.
#[derive(Debug)]
pub struct RateLimit<Key> {
    pace: Pace,
    buckets: HashMap<Key, Bucket>,
}

impl<Key: Clone + Eq + Hash> RateLimit<Key> {
    /// Nobody has asked yet.
    #[must_use]
    pub fn new(pace: Pace) -> Self {
        Self { pace, buckets: HashMap::new() }
    }

    /// Takes one token of `key`.
    ///
    /// # Errors
    /// How long to wait, when there is none.
    pub fn take(&mut self, key: &Key, now: Instant) -> Result<(), Duration> {
        let pace = self.pace;
        let most = f64::from(pace.burst);
        if self.buckets.len() >= CAPACITY {
            self.buckets.retain(|_, bucket| bucket.at(now, pace).tokens < most);
        }
        if self.buckets.len() >= CAPACITY && !self.buckets.contains_key(key) {
            return Err(pace.refill);
        }
        let bucket = self.buckets.entry(key.clone()).or_insert(Bucket { tokens: most, at: now });
        *bucket = bucket.at(now, pace);
        if bucket.tokens < 1.0 {
            return Err(pace.refill.mul_f64((1.0 - bucket.tokens).clamp(0.0, 1.0)));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFILL: Duration = Duration::from_secs(10);

    fn limit() -> RateLimit<String> {
        RateLimit::new(Pace { burst: 5, refill: REFILL })
    }

    #[test]
    fn a_burst_then_one_each_ten_seconds_and_each_for_itself() {
        let (mut limit, start) = (limit(), Instant::now());
        for _ in 0..5 {
            limit.take(&"a".to_owned(), start).unwrap();
        }
        let wait = limit.take(&"a".to_owned(), start).unwrap_err();
        assert!(wait > Duration::from_secs(9) && wait <= REFILL, "{wait:?}");
        limit.take(&"b".to_owned(), start).unwrap();
        assert!(limit.take(&"a".to_owned(), start + Duration::from_secs(9)).is_err());
        limit.take(&"a".to_owned(), start + Duration::from_secs(11)).unwrap();
        assert!(limit.take(&"a".to_owned(), start + Duration::from_secs(12)).is_err());
    }

    #[test]
    fn the_table_is_bounded_and_forgets_those_who_waited() {
        let (mut limit, start) = (limit(), Instant::now());
        for pod in 0..CAPACITY {
            limit.take(&pod.to_string(), start).unwrap();
        }
        assert!(limit.take(&"late".to_owned(), start).is_err());
        limit.take(&"late".to_owned(), start + REFILL * 2).unwrap();
        assert!(limit.buckets.len() < 10);
    }
}
