//! Every refusal leaves a count by its reason and, as long as there are few, a line in the log. A flood of them
//! costs counters only.

use crate::live::Denial;
use crate::path_metrics::{Direction, PathMetrics};
use cinch_policy::Report;
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

/// Counts and tells an inbound connection that mode or policy denies: here, and nowhere else, is said by which
/// policy and rule.
pub fn denied(
    metrics: &PathMetrics,
    denial: &Denial,
    (from, to): (SocketAddr, SocketAddr),
    peer: Option<&str>,
) {
    metrics.count_refused(Direction::Inbound, denial.reason);
    count_denial(metrics, denial);
    if may_tell() {
        let Denial { reason, policy, rule } = denial;
        let (policy, peer) = (policy.as_deref().unwrap_or_default(), peer.unwrap_or_default());
        tracing::info!(%reason, policy, rule, peer, %from, %to, "connection denied");
    }
}

/// Counts and tells an inbound connection that was open and had to end, for `reason`, by `denial`.
pub fn cut(metrics: &PathMetrics, reason: Reason, denial: Option<&Denial>, from: SocketAddr, to: SocketAddr) {
    metrics.count_cut(Direction::Inbound, reason);
    if let Some(denial) = denial {
        count_denial(metrics, denial);
    }
    if may_tell() {
        let policy = denial.and_then(|denial| denial.policy.as_deref()).unwrap_or_default();
        let rule = denial.and_then(|denial| denial.rule);
        tracing::info!(%reason, policy, rule, %from, %to, "connection cut");
    }
}

/// Counts and tells an outbound connection that was open when its tunnel broke.
pub fn broken(metrics: &PathMetrics, from: SocketAddr, to: SocketAddr) {
    let reason = Reason::TunnelBroken;
    metrics.count_cut(Direction::Outbound, reason);
    if may_tell() {
        tracing::info!(%reason, %from, %to, "connection cut");
    }
}

fn count_denial(metrics: &PathMetrics, denial: &Denial) {
    if let Some(policy) = &denial.policy {
        metrics.count_denial(policy, denial.rule);
    }
}

/// Counts and tells what AUDIT policies and dry runs say of an inbound connection.
pub fn reported(metrics: &PathMetrics, report: &Report<'_>, (from, to): (SocketAddr, SocketAddr)) {
    for policy in &report.audit {
        metrics.count_report(policy, "audit");
        if may_tell() {
            tracing::info!(policy = &***policy, %from, %to, "a policy audits the connection");
        }
    }
    for run in report.dry_run.iter().filter(|run| run.matched) {
        metrics.count_report(run.policy, "dry-run");
    }
    if !report.dry_run.is_empty() && !report.would.is_allowed() {
        metrics.count_would_deny(report.would.reason);
        if may_tell() {
            let policy = report.would.policy.map(|policy| &**policy).unwrap_or_default();
            tracing::info!(reason = %report.would.reason, policy, rule = report.would.rule, %from, %to, "with its dry runs enforced, the connection would be denied");
        }
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
