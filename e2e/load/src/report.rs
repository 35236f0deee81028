//! What a measurement found: counts and latencies go in while it runs, one line of JSON comes out at its end.

use crate::usage::{Memory, Usage};
use serde::Serialize;
use std::time::{Duration, Instant};

/// What is counted while a window is open.
#[derive(Debug, Default)]
pub struct Tally {
    /// Whether anything counts yet.
    pub counting: bool,
    /// When each answer's request was due or sent, to its last byte.
    latencies: Vec<Duration>,
    bytes: u64,
    errors: u64,
    last_error: Option<String>,
}

impl Tally {
    /// One that counts from the start.
    #[must_use]
    pub fn counting() -> Self {
        Self { counting: true, ..Self::default() }
    }

    /// One more whole answer.
    pub fn answered(&mut self, since: Instant) {
        if self.counting {
            self.latencies.push(since.elapsed());
        }
    }

    /// So many more bytes.
    pub fn moved(&mut self, bytes: usize) {
        if self.counting {
            self.bytes += bytes as u64;
        }
    }

    /// Something failed. Failures count also before the window: nothing should fail at all.
    pub fn failed(&mut self, error: &anyhow::Error) {
        self.errors += 1;
        self.last_error = Some(format!("{error:#}"));
    }

    /// Adds what another thread counted.
    pub fn add(&mut self, other: Tally) {
        self.latencies.extend(other.latencies);
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.last_error = other.last_error.or(self.last_error.take());
    }

    /// How many answers.
    #[must_use]
    pub fn done(&self) -> usize {
        self.latencies.len()
    }
}

/// The line.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// How long the window was open.
    pub seconds: f64,
    /// Whole answers.
    pub done: usize,
    /// Failures, and the last one's words.
    pub errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Bytes that were moved, where that is what is measured.
    pub bytes: u64,
    /// Latencies in microseconds.
    pub p50: f64,
    pub p99: f64,
    pub longest: f64,
    /// Seconds on the processor of each watched process.
    pub processor: Vec<f64>,
    /// Memory of each watched process at the moments that the measurement has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<Vec<Memory>>,
}

impl Report {
    /// What was counted since `start`.
    #[must_use]
    pub fn of(tally: Tally, start: &Usage, pids: &[u32]) -> Self {
        let (seconds, processor) = start.since(pids);
        Self::over(tally, seconds, processor)
    }

    /// What was counted in a window that is closed already.
    #[must_use]
    pub fn over(mut tally: Tally, seconds: f64, processor: Vec<f64>) -> Self {
        tally.latencies.sort_unstable();
        let at = |percent| quantile(&tally.latencies, percent);
        Self {
            seconds,
            done: tally.latencies.len(),
            errors: tally.errors,
            last_error: tally.last_error,
            bytes: tally.bytes,
            p50: at(50),
            p99: at(99),
            longest: at(100),
            processor,
            memory: Vec::new(),
        }
    }

    /// Prints it.
    ///
    /// # Errors
    /// When nobody reads it any more.
    pub fn print(&self) -> anyhow::Result<()> {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(self)?)?;
        out.flush()?;
        Ok(())
    }
}

/// In microseconds: the smallest of sorted values that so many of a hundred do not exceed.
fn quantile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_answered_in_the_window_counts_but_every_failure() {
        let mut tally = Tally::default();
        tally.answered(Instant::now());
        tally.moved(7);
        tally.failed(&anyhow::anyhow!("early"));
        tally.counting = true;
        tally.answered(Instant::now());
        tally.moved(5);
        let mut other = Tally::counting();
        other.answered(Instant::now());
        tally.add(other);
        let report = Report::over(tally, 1.0, vec![]);
        assert_eq!((report.done, report.bytes, report.errors), (2, 5, 1));
        assert_eq!(report.last_error.as_deref(), Some("early"));
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let sorted: Vec<Duration> = (1..=200).map(Duration::from_micros).collect();
        assert_eq!([50, 99, 100].map(|percent| quantile(&sorted, percent).round() as u64), [100, 198, 200]);
        assert_eq!(quantile(&[], 50), 0.0);
    }
}
