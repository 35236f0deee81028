//! What one look at a pod may cost. A pod decides how many sockets, flows, processes and descriptors it has; memory
//! and time of the agent belong to all pods of the node.
//!
//! In goes what the kernel lists, one by one; out comes as much of it as there is room and time for, with the word
//! whether something was left.

use crate::netlink::Wanted;
use std::time::{Duration, Instant};

/// Sockets of one protocol, or flows, that a look keeps: some 2 MB.
pub const MOST_LISTED: usize = 20_000;
/// Files of processes that a look reads to find whose the sockets are.
const MOST_READS: usize = 20_000;
/// For one look. A proxy waits 12 s for its answer, and other pods wait for their turn meanwhile.
const LONGEST_LOOK: Duration = Duration::from_secs(2);

/// What is left to one look.
#[derive(Debug)]
pub struct Budget {
    until: Instant,
    reads: usize,
    is_exceeded: bool,
}

impl Budget {
    /// That of a look that begins `now`.
    #[must_use]
    pub fn of_a_look(now: Instant) -> Self {
        Self::new(now + LONGEST_LOOK, MOST_READS)
    }

    /// Time until `until` and so many reads.
    #[must_use]
    pub fn new(until: Instant, reads: usize) -> Self {
        Self { until, reads, is_exceeded: false }
    }

    /// Whether there is time for more.
    pub fn has_time(&mut self) -> bool {
        let has_time = Instant::now() < self.until;
        self.is_exceeded |= !has_time;
        has_time
    }

    /// Whether one more file may be read.
    pub fn take_read(&mut self) -> bool {
        let Some(left) = self.reads.checked_sub(1) else {
            self.is_exceeded = true;
            return false;
        };
        self.reads = left;
        self.has_time()
    }

    /// Whether something was refused.
    #[must_use]
    pub fn is_exceeded(&self) -> bool {
        self.is_exceeded
    }
}

/// What was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<T> {
    /// In the order in which it came.
    pub all: Vec<T>,
    /// There was more than room or time.
    pub is_cut: bool,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { all: Vec::new(), is_cut: false }
    }
}

impl<T> Listed<T> {
    /// Takes one of a list as long as there are fewer than `most`.
    pub fn take(&mut self, item: Option<T>, most: usize, budget: &mut Budget) -> Wanted {
        if !budget.has_time() || (item.is_some() && self.all.len() >= most) {
            self.is_cut = true;
            return Wanted::Enough;
        }
        self.all.extend(item);
        Wanted::More
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ample() -> Budget {
        Budget::new(Instant::now() + Duration::from_secs(3600), 3)
    }

    #[test]
    fn a_list_ends_where_room_or_time_do_and_says_so() {
        let mut budget = ample();
        let mut list = Listed::default();
        for item in [Some(1), None, Some(2), None] {
            assert_eq!(list.take(item, 2, &mut budget), Wanted::More, "{item:?}");
        }
        assert_eq!(list, Listed { all: vec![1, 2], is_cut: false }, "as much as there is room for is whole");
        assert_eq!(list.take(Some(3), 2, &mut budget), Wanted::Enough);
        assert_eq!(list, Listed { all: vec![1, 2], is_cut: true });

        let mut late = Budget::new(Instant::now(), 3);
        let mut list = Listed::default();
        // Also where nothing of the list is kept: to walk it takes time.
        assert_eq!(list.take(None::<u8>, 2, &mut late), Wanted::Enough);
        assert!(list.is_cut && late.is_exceeded());
    }

    #[test]
    fn reads_end_with_their_number_and_with_the_time() {
        let mut budget = ample();
        assert!((0..3).all(|_| budget.take_read()) && !budget.is_exceeded());
        assert!(!budget.take_read() && budget.is_exceeded());
        let mut late = Budget::new(Instant::now(), 3);
        assert!(!late.take_read() && late.is_exceeded());
    }
}
