//! Who held an address until lately. A report may name a client whose pod has gone since: its IP is
//! remembered with the workload for ten minutes, bounded.

use super::model::{PodInfo, WorkloadName};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long a gone pod's IPs are remembered: far longer than reports come late.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Addresses remembered at most; beyond it the oldest half goes.
const CAPACITY: usize = 16_384;

#[derive(Debug)]
struct Gone {
    workload: WorkloadName,
    created_unix_ms: u64,
    until: Instant,
}

/// IPs of pods that have gone.
#[derive(Debug, Default)]
pub(super) struct Memory {
    gone: HashMap<IpAddr, Gone>,
}

impl Memory {
    /// Remembers that `pod` held `ip` until `now`.
    pub(super) fn remember(&mut self, ip: IpAddr, pod: &PodInfo, now: Instant) {
        if self.gone.len() >= CAPACITY {
            self.make_room(now);
        }
        let gone = Gone {
            workload: pod.workload.clone(),
            created_unix_ms: pod.workload_created_unix_ms,
            until: now + REMEMBERED,
        };
        self.gone.insert(ip, gone);
    }

    /// The workload that held `ip`, and when it was created.
    pub(super) fn recall(&self, ip: IpAddr, now: Instant) -> Option<(WorkloadName, u64)> {
        let gone = self.gone.get(&ip).filter(|gone| now < gone.until)?;
        Some((gone.workload.clone(), gone.created_unix_ms))
    }

    fn make_room(&mut self, now: Instant) {
        self.gone.retain(|_, gone| now < gone.until);
        if self.gone.len() < CAPACITY {
            return;
        }
        let mut times: Vec<Instant> = self.gone.values().map(|gone| gone.until).collect();
        let middle = times.len() / 2;
        let (_, median, _) = times.select_nth_unstable(middle);
        let median = *median;
        self.gone.retain(|_, gone| gone.until > median);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{indexed_pod, ip};
    use super::*;

    #[test]
    fn an_address_is_forgotten_after_ten_minutes() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        memory.remember(ip("10.1.0.5"), &indexed_pod("web"), now);
        let at = |seconds| memory.recall(ip("10.1.0.5"), now + Duration::from_secs(seconds)).is_some();
        assert!(at(0) && at(599) && !at(600));
        assert!(memory.recall(ip("10.1.0.6"), now).is_none());
    }

    #[test]
    fn the_memory_is_bounded_even_when_all_is_of_one_moment() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let pod = indexed_pod("web");
        for number in 0..u32::try_from(2 * CAPACITY).unwrap() {
            memory.remember(IpAddr::from((number + 1).to_be_bytes()), &pod, now);
        }
        assert!(memory.gone.len() <= CAPACITY);
    }
}
