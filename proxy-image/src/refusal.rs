//! Every refusal leaves a count by its reason and, as long as there are few, a line in the log. A flood of them
//! costs counters only.

use crate::path_metrics::{Direction, PathMetrics};
use cinch_reason::Reason;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Lines per second; more of them tell nothing new.
const LINES: u64 = 10;
/// Bits of the counter within the second.
const COUNT_BITS: u32 = 16;

/// Second since 1970 in the upper bits, lines in it in the lower ones.
static WINDOW: AtomicU64 = AtomicU64::new(0);

/// Counts and tells a refused connection.
pub fn refused(
    metrics: &PathMetrics,
    direction: Direction,
    reason: Reason,
    (from, to): (SocketAddr, SocketAddr),
    detail: &str,
) {
    metrics.count_refused(direction, reason);
    if may_tell() {
        tracing::info!(%reason, ?direction, %from, %to, detail, "connection refused");
    }
}

/// Counts and tells a connection that was open and had to end.
pub fn cut(metrics: &PathMetrics, direction: Direction, reason: Reason, from: SocketAddr, to: SocketAddr) {
    metrics.count_cut(direction, reason);
    if may_tell() {
        tracing::info!(%reason, ?direction, %from, %to, "connection cut");
    }
}

/// Whether this second still has room for a line.
#[must_use]
pub fn may_tell() -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    room(&WINDOW, now)
}

fn room(window: &AtomicU64, now: u64) -> bool {
    let start = now << COUNT_BITS;
    let before = window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
        if held >> COUNT_BITS == now { (held - start < LINES).then_some(held + 1) } else { Some(start + 1) }
    });
    before.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_room_for_few_lines_and_the_next_one_again() {
        let window = AtomicU64::new(0);
        assert_eq!((0..50).filter(|_| room(&window, 100)).count(), 10);
        assert_eq!((0..50).filter(|_| room(&window, 101)).count(), 10);
    }
}
