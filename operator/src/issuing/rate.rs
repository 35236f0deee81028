//! How often a pod may ask: a token bucket for each, in a bounded table. Pure; time is given.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Requests that a pod may make at once: a proxy that restarts a few times is no attacker.
const BURST: f64 = 5.0;
/// One more each.
const REFILL: Duration = Duration::from_secs(10);
/// Pods in the table; beyond it those that could ask again anyway are forgotten.
const CAPACITY: usize = 20_000;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn at(self, now: Instant) -> Self {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() / REFILL.as_secs_f64();
        Self { tokens: (self.tokens + gained).min(BURST), at: now }
    }
}

/// The buckets of all pods that asked lately.
#[derive(Debug, Default)]
pub struct RateLimit {
    buckets: HashMap<String, Bucket>,
}

impl RateLimit {
    /// Takes one token of `pod_uid`.
    ///
    /// # Errors
    /// How long to wait, when there is none.
    pub fn take(&mut self, pod_uid: &str, now: Instant) -> Result<(), Duration> {
        if self.buckets.len() >= CAPACITY {
            self.buckets.retain(|_, bucket| bucket.at(now).tokens < BURST);
        }
        if self.buckets.len() >= CAPACITY && !self.buckets.contains_key(pod_uid) {
            return Err(REFILL);
        }
        let full = Bucket { tokens: BURST, at: now };
        let bucket = self.buckets.entry(pod_uid.to_owned()).or_insert(full);
        *bucket = bucket.at(now);
        if bucket.tokens < 1.0 {
            return Err(REFILL.mul_f64((1.0 - bucket.tokens).clamp(0.0, 1.0)));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_each_ten_seconds_and_each_pod_for_itself() {
        let (mut limit, start) = (RateLimit::default(), Instant::now());
        for _ in 0..5 {
            limit.take("a", start).unwrap();
        }
        let wait = limit.take("a", start).unwrap_err();
        assert!(wait > Duration::from_secs(9) && wait <= REFILL, "{wait:?}");
        limit.take("b", start).unwrap();
        assert!(limit.take("a", start + Duration::from_secs(9)).is_err());
        limit.take("a", start + Duration::from_secs(11)).unwrap();
        assert!(limit.take("a", start + Duration::from_secs(12)).is_err());
    }

    #[test]
    fn the_table_is_bounded_and_forgets_those_who_waited() {
        let (mut limit, start) = (RateLimit::default(), Instant::now());
        for pod in 0..CAPACITY {
            limit.take(&pod.to_string(), start).unwrap();
        }
        assert!(limit.take("late", start).is_err());
        limit.take("late", start + REFILL * 2).unwrap();
        assert!(limit.buckets.len() < 10);
    }
}
