//! The bound on what all copies keep together for sides that take their bytes more slowly than the other side sends
//! them. In goes what each side keeps, out comes how much may be read for it at a time.
//!
//! A connection waits for its own peer and for nobody else: a little may always be read for each side (its floor), so
//! that it goes on when its peer does, whatever others hold. Only what a side keeps beyond that comes out of the common
//! bound. From half of the bound on, no more is read for a side than its socket has room for: a peer that does not read
//! then takes nothing from those who do, and they lose next to nothing. Where all of it is taken, nobody gets more than
//! the floor. Nothing is cut.

use crate::path_metrics::PathMetrics;
use std::sync::Arc;

/// What may always be read for a side at a time. Less would make records and system calls cost more than the bytes.
pub const FLOOR: usize = 4 * 1024;

/// A whole record of a tunnel.
const RECORD: usize = cinch_tunnel::MAX_FRAME + cinch_record::OVERHEAD;

/// What frames and records add to the bytes that were read.
const FRAMING: usize = 256;

/// What all sides keep beyond their floors. One for the process.
#[derive(Debug)]
pub struct Kept {
    bound: i64,
    metrics: Arc<PathMetrics>,
}

/// What one side keeps; given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    of: Arc<Kept>,
    floor: usize,
    /// Of what the side keeps, that which is counted.
    beyond: usize,
}

impl Kept {
    /// Nothing is kept. `bound`: bytes that may be kept beyond the floors.
    #[must_use]
    pub fn new(bound: usize, metrics: &Arc<PathMetrics>) -> Arc<Kept> {
        Arc::new(Kept { bound: signed(bound), metrics: metrics.clone() })
    }

    /// For a side that is given what a TCP connection says.
    #[must_use]
    pub fn share(self: &Arc<Self>) -> Share {
        Share { of: self.clone(), floor: FLOOR, beyond: 0 }
    }

    /// For a side that is given what a tunnel says: nothing of a record can be had before all of it.
    #[must_use]
    pub fn share_of_records(self: &Arc<Self>) -> Share {
        Share { of: self.clone(), floor: RECORD, beyond: 0 }
    }

    fn change(&self, by: i64) {
        let before = self.metrics.kept_bytes.inc_by(by);
        let half = self.bound / 2;
        if before < half && before + by >= half {
            self.metrics.count_limit("kept_bytes");
        }
    }
}

impl Share {
    /// Says what the side keeps now.
    pub fn now(&mut self, bytes: usize) {
        let beyond = bytes.saturating_sub(self.floor + FRAMING);
        if beyond != self.beyond {
            self.of.change(signed(beyond) - signed(self.beyond));
            self.beyond = beyond;
        }
    }

    /// How many bytes may be read for the side now, which keeps none; never none. `room`: what its socket takes at
    /// once. It costs a system call, so it is asked for only when it matters.
    #[must_use]
    pub fn may_read(&self, room: impl FnOnce() -> usize) -> usize {
        let taken = self.of.metrics.kept_bytes.get();
        if taken < self.of.bound / 2 {
            return usize::MAX;
        }
        let room = if taken < self.of.bound { room() } else { 0 };
        room.max(self.floor)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.now(0);
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusals(metrics: &PathMetrics) -> u64 {
        metrics.limit_refusals.of("kept_bytes")
    }

    #[test]
    fn who_is_read_for_gets_less_the_more_others_keep_and_never_nothing() {
        let metrics = Arc::new(PathMetrics::default());
        let kept = Kept::new(200_000, &metrics);
        let (mut slow, other, records) = (kept.share(), kept.share(), kept.share_of_records());
        assert_eq!(other.may_read(|| unreachable!("nobody asks")), usize::MAX);
        slow.now(FLOOR + FRAMING + 99_999);
        assert_eq!((other.may_read(|| 0), refusals(&metrics)), (usize::MAX, 0));
        slow.now(FLOOR + FRAMING + 100_000);
        assert_eq!(refusals(&metrics), 1, "half of it is taken");
        assert_eq!((other.may_read(|| 30_000), other.may_read(|| 0)), (30_000, FLOOR));
        assert_eq!(records.may_read(|| 0), RECORD);
        slow.now(FLOOR + FRAMING + 200_000);
        assert_eq!((other.may_read(|| 30_000), records.may_read(|| 30_000)), (FLOOR, RECORD));
        assert_eq!(refusals(&metrics), 1, "told when it is reached");
        drop(slow);
        assert_eq!((other.may_read(|| 0), metrics.kept_bytes.get()), (usize::MAX, 0));
    }

    #[test]
    fn what_everybody_may_keep_takes_nothing_from_others() {
        let metrics = Arc::new(PathMetrics::default());
        let kept = Kept::new(0, &metrics);
        let mut shares: Vec<Share> = (0..100).map(|_| kept.share()).collect();
        shares.iter_mut().for_each(|share| share.now(FLOOR));
        let mut records = kept.share_of_records();
        records.now(RECORD);
        assert_eq!(metrics.kept_bytes.get(), 0);
        assert_eq!(records.may_read(|| 0), RECORD, "even where there is nothing for all together");
    }
}
