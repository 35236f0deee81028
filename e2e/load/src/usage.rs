//! What other processes used, as the kernel counted it: time on the processor by the scheduler's own sums, and
//! memory. In go process numbers, out come nanoseconds and KiB.

use serde::Serialize;
use std::fs;
use std::path::Path;
use std::time::Instant;

/// Processor time of some processes, and when it was read.
#[derive(Debug, Clone)]
pub struct Usage {
    at: Instant,
    processor: Vec<u64>,
}

impl Usage {
    /// As it is now.
    #[must_use]
    pub fn now(pids: &[u32]) -> Self {
        Self { at: Instant::now(), processor: pids.iter().map(|pid| processor_ns(*pid)).collect() }
    }

    /// Seconds since then, and the seconds on the processor of each process since then.
    #[must_use]
    pub fn since(&self, pids: &[u32]) -> (f64, Vec<f64>) {
        let now = Self::now(pids);
        let used = now.processor.iter().zip(&self.processor).map(|(now, then)| now.saturating_sub(*then));
        (now.at.duration_since(self.at).as_secs_f64(), used.map(|ns| ns as f64 / 1e9).collect())
    }
}

/// All threads of a process. It includes the kernel's work in their name: system calls, and packets that are
/// delivered in their time slices.
fn processor_ns(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| first_number(&fs::read_to_string(thread.path().join("schedstat")).ok()?))
        .sum()
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// Memory of one process, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Resident, pages of files included.
    pub resident: u64,
    /// Of it, what no other process has and what would not be there without this one.
    pub private: u64,
}

/// The memory of each process; zero of one that is gone.
#[must_use]
pub fn memory(pids: &[u32]) -> Vec<Memory> {
    pids.iter()
        .map(|pid| {
            memory_in(
                &fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("smaps_rollup"))
                    .unwrap_or_default(),
            )
        })
        .collect()
}

/// Private means anonymous: pages of the program's file that nobody else happens to run are not its own.
fn memory_in(rollup: &str) -> Memory {
    let field = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(first_number).unwrap_or_default()
    };
    Memory { resident: field("Rss:"), private: field("Anonymous:") }
}

/// Thousands of connections need more files than shells allow at first.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Without the right to more, the load says which connection failed.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_table() {
        let rollup = "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:            5120 kB\nPss:  4000 kB\nAnonymous:       640 kB\n";
        assert_eq!(memory_in(rollup), Memory { resident: 5120, private: 640 });
        assert_eq!(memory_in(""), Memory { resident: 0, private: 0 });
    }

    #[test]
    fn work_of_this_process_is_seen() {
        let pids = [std::process::id()];
        let before = Usage::now(&pids);
        let mut sum = 0_u64;
        while before.since(&pids).1 == [0.0] {
            sum = sum.wrapping_mul(31).wrapping_add(1);
        }
        let (seconds, used) = before.since(&pids);
        assert!(seconds > 0.0 && used.len() == 1 && used[0] > 0.0, "{seconds} {used:?} {sum}");
        assert_eq!(Usage::now(&[0]).since(&[0]).1, [0.0], "a process that is not there has used nothing");
    }
}
