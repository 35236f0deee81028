//! Whether a process grows: samples of its resident memory go in, their trend comes out.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// This part of all samples is the process finding its size.
const FIRST_PART: usize = 4;
/// Fewer say nothing of a trend.
const FEWEST: usize = 6;

/// One proxy's samples.
#[derive(Debug)]
pub struct Growth {
    /// Namespace and name of its pod.
    pub pod: String,
    /// The pod's address.
    pub address: IpAddr,
    pid: i32,
    begun: Instant,
    /// Seconds since the beginning, KiB.
    samples: Vec<(f64, f64)>,
}

/// KiB a second; nothing when there are too few samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trend(Option<f64>);

impl Trend {
    /// KiB over a time.
    #[must_use]
    pub fn over(self, time: Duration) -> Option<f64> {
        self.0.map(|slope| slope * time.as_secs_f64())
    }
}

impl Growth {
    /// Of a process, from now on.
    #[must_use]
    pub fn new(pod: String, address: IpAddr, pid: i32) -> Self {
        Self { pod, address, pid, begun: Instant::now(), samples: Vec::new() }
    }

    /// One more.
    ///
    /// # Errors
    /// When the process is gone: it should not have ended.
    pub fn sample(&mut self) -> Result<()> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid));
        let kib = status.ok().and_then(|status| resident(&status));
        let kib = kib.with_context(|| format!("the proxy of {} has ended", self.pod))?;
        self.samples.push((self.begun.elapsed().as_secs_f64(), kib));
        Ok(())
    }

    /// By least squares, without the first part.
    #[must_use]
    pub fn trend(&self) -> Trend {
        let settled = self.samples.get(self.samples.len() / FIRST_PART..).unwrap_or_default();
        Trend((settled.len() >= FEWEST).then(|| slope(settled)))
    }

    /// As JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let hour = self.trend().over(Duration::from_secs(3600));
        json!({"pod": self.pod, "residentKiB": self.samples.iter().map(|(_, kib)| *kib as u64).collect::<Vec<_>>(),
            "trendKiBAnHour": hour})
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = || self.samples.iter().map(|(_, kib)| *kib);
        let (first, last) = (kib().next().unwrap_or_default(), kib().next_back().unwrap_or_default());
        let most = kib().fold(0.0, f64::max);
        write!(f, "{}: {first:.0} KiB at first, {most:.0} at most, {last:.0} at last", self.pod)?;
        match self.trend().over(Duration::from_secs(3600)) {
            Some(hour) => write!(f, "; trend {hour:+.0} KiB an hour"),
            None => write!(f, "; too few samples for a trend"),
        }
    }
}

fn resident(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let (mut over, mut under) = (0.0, 0.0);
    for point in points {
        over += (point.0 - x) * (point.1 - y);
        under += (point.0 - x) * (point.0 - x);
    }
    if under > 0.0 { over / under } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(kib: impl Fn(f64) -> f64) -> Growth {
        let mut growth = Growth::new("soak/a".to_owned(), [10, 0, 0, 1].into(), 1);
        growth.samples = (0..40).map(|at| (f64::from(at) * 10.0, kib(f64::from(at)))).collect();
        growth
    }

    #[test]
    fn a_steady_climb_is_seen_and_a_start_and_noise_are_not() {
        let hour = Duration::from_secs(3600);
        let climbs = growth(|at| 8000.0 + at * 10.0).trend().over(hour).unwrap();
        assert!((climbs - 3600.0).abs() < 1.0, "{climbs}");
        let settles = growth(|at| if at < 10.0 { at * 800.0 } else { 8000.0 + (at % 2.0) * 100.0 });
        let whole = Duration::from_secs(400);
        assert!(settles.trend().over(whole).unwrap().abs() < 100.0, "{settles}");
        let mut few = growth(|_| 1.0);
        few.samples.truncate(5);
        assert_eq!(few.trend(), Trend(None));
    }

    #[test]
    fn this_process_has_memory_and_one_that_is_gone_is_an_error() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut growth = Growth::new("soak/a".to_owned(), [10, 0, 0, 1].into(), own);
        growth.sample().unwrap();
        assert!(growth.samples[0].1 > 100.0);
        growth.pid = i32::MAX;
        assert!(growth.sample().unwrap_err().to_string().contains("soak/a"));
    }
}
