//! When a source of keys is fetched next. Pure; time and chance are given.

use std::time::{Duration, Instant};

/// The times that an installation decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timing {
    /// Between two fetches that succeed.
    pub(super) refresh: Duration,
    /// After the first failure; doubled by each further one.
    pub(super) retry: Duration,
}

/// An issuer's `Cache-Control` may ask for more frequent fetches, down to this. It never makes them rarer: a key
/// that was withdrawn must go.
const LEAST_REFRESH: Duration = Duration::from_secs(60);
/// Longest pause after failures.
const MOST_RETRY: Duration = Duration::from_secs(3600);
/// Anybody can send tokens with made-up `kid`s: at most one extra fetch in this time.
const LEAST_EXTRA: Duration = Duration::from_secs(30);

/// When to fetch one source.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    due: Instant,
    /// The begin of the last fetch.
    begun: Option<Instant>,
    failures: u32,
}

impl Schedule {
    /// At once.
    pub(super) fn new(now: Instant) -> Self {
        Schedule { due: now, begun: None, failures: 0 }
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// A fetch begins. Until it ends nothing is due that was due before.
    pub(super) fn begin(&mut self, now: Instant, timing: &Timing) {
        self.begun = Some(now);
        self.due = now + timing.refresh;
    }

    /// It succeeded; `max_age` is what the answer's `Cache-Control` says. `chance` is between 0 and 1.
    pub(super) fn succeeded(
        &mut self,
        now: Instant,
        max_age: Option<Duration>,
        timing: &Timing,
        chance: f64,
    ) {
        self.failures = 0;
        let least = LEAST_REFRESH.min(timing.refresh);
        let pause = max_age.map_or(timing.refresh, |age| age.clamp(least, timing.refresh));
        self.due = now + spread(pause, chance);
    }

    /// It failed.
    pub(super) fn failed(&mut self, now: Instant, timing: &Timing, chance: f64) {
        let doubled = timing.retry.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        self.due = now + spread(doubled.min(MOST_RETRY), chance);
    }

    /// A token named a key that is not held: fetch at once, or as soon as the limit allows. Whether that is earlier
    /// than planned.
    pub(super) fn asked(&mut self, now: Instant, timing: &Timing) -> bool {
        // A source that fails is not asked more often because somebody sends tokens.
        let least = if self.failures > 0 { timing.retry.max(LEAST_EXTRA) } else { LEAST_EXTRA };
        let earliest = self.begun.map_or(now, |begun| (begun + least).max(now));
        let sooner = earliest < self.due;
        self.due = self.due.min(earliest);
        sooner
    }
}

/// A tenth more or less, so that sources and operators do not fetch all at once.
fn spread(pause: Duration, chance: f64) -> Duration {
    pause.mul_f64(0.9 + 0.2 * chance.clamp(0.0, 1.0))
}

/// The `max-age` of a `Cache-Control`; zero where the answer may not be kept.
pub(super) fn max_age(cache_control: &str) -> Option<Duration> {
    let mut age = None;
    for directive in cache_control.split(',') {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" => return Some(Duration::ZERO),
            "max-age" => age = value.trim().trim_matches('"').parse().ok().map(Duration::from_secs),
            _ => {}
        }
    }
    age
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const TIMING: Timing = Timing { refresh: Duration::from_secs(1200), retry: MINUTE };

    fn after(schedule: &Schedule, now: Instant) -> u64 {
        schedule.due().duration_since(now).as_secs()
    }

    #[test]
    fn a_success_is_refreshed_in_twenty_minutes_or_as_the_issuer_asks_within_bounds() {
        let now = Instant::now();
        for (age, seconds) in [(None, 1200), (Some(300), 300), (Some(0), 60), (Some(86_400), 1200)] {
            let mut schedule = Schedule::new(now);
            schedule.begin(now, &TIMING);
            schedule.succeeded(now, age.map(Duration::from_secs), &TIMING, 0.5);
            assert_eq!(after(&schedule, now), seconds, "{age:?}");
        }
    }

    #[test]
    fn failures_double_the_pause_up_to_an_hour_and_a_success_forgets_them() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            schedule.failed(now, &TIMING, 0.5);
            assert_eq!(after(&schedule, now), minutes * 60);
        }
        for _ in 0..100 {
            schedule.failed(now, &TIMING, 1.0);
        }
        assert_eq!(after(&schedule, now), 3960);
        schedule.succeeded(now, None, &TIMING, 0.5);
        schedule.failed(now, &TIMING, 0.5);
        assert_eq!(after(&schedule, now), 60);
    }

    #[test]
    fn chance_moves_a_fetch_by_a_tenth_at_most() {
        let now = Instant::now();
        for (chance, seconds) in [(0.0, 1080), (1.0, 1320), (7.0, 1320)] {
            let mut schedule = Schedule::new(now);
            schedule.succeeded(now, None, &TIMING, chance);
            assert_eq!(after(&schedule, now), seconds);
        }
    }

    #[test]
    fn an_unknown_key_brings_a_fetch_at_once_and_then_one_each_thirty_seconds() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        schedule.begin(start, &TIMING);
        schedule.succeeded(start, None, &TIMING, 0.5);
        let now = start + MINUTE;
        assert!(schedule.asked(now, &TIMING));
        assert_eq!(schedule.due(), now);
        schedule.begin(now, &TIMING);
        schedule.succeeded(now, None, &TIMING, 0.5);
        let later = now + Duration::from_secs(10);
        assert!(schedule.asked(later, &TIMING));
        assert_eq!(schedule.due(), now + LEAST_EXTRA, "late, but not forgotten");
        assert!(!schedule.asked(later, &TIMING), "a second question changes nothing");
    }

    #[test]
    fn an_unknown_key_does_not_hurry_a_source_that_fails() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        schedule.begin(now, &TIMING);
        for _ in 0..7 {
            schedule.failed(now, &TIMING, 0.5);
        }
        assert!(schedule.asked(now, &TIMING));
        assert_eq!(after(&schedule, now), 60);
    }

    #[test]
    fn cache_control_is_read_as_servers_write_it() {
        for (text, seconds) in [
            ("public, max-age=19800, must-revalidate", Some(19_800)),
            ("Max-Age=\"5\"", Some(5)),
            ("max-age=60, no-store", Some(0)),
            ("no-cache", Some(0)),
            ("private", None),
            ("max-age=-1", None),
            ("", None),
        ] {
            assert_eq!(max_age(text), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
