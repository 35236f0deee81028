//! Every refusal leaves a count by its reason and an entry in the access log, which loses no denial. Where there is no
//! access log, the proxy's own has a line instead, as long as there are few.

use crate::access_log::{Ends, Entry, Ruling};
use crate::live::Denial;
use crate::path_metrics::{Direction, PathMetrics};
use crate::telemetry::{Telemetry, flags};
use cinch_policy::Report;
use cinch_reason::Reason;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    let telemetry = &metrics.telemetry;
    let ends = match direction {
        Direction::Inbound => telemetry.inbound(from, to, None),
        Direction::Outbound => telemetry.outbound(from, to, None),
    };
    tell_connection(telemetry, ends, &Denial::of(reason), detail);
    if tells_itself(metrics) {
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
    let telemetry = &metrics.telemetry;
    tell_connection(telemetry, telemetry.inbound(from, to, peer), denial, "");
    if tells_itself(metrics) {
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
    if tells_itself(metrics) {
        let policy = denial.and_then(|denial| denial.policy.as_deref()).unwrap_or_default();
        let rule = denial.and_then(|denial| denial.rule);
        tracing::info!(%reason, policy, rule, %from, %to, "connection cut");
    }
}

/// Counts and tells an outbound connection that was open and had to end, for `reason`.
pub fn cut_outbound(metrics: &PathMetrics, reason: Reason, from: SocketAddr, to: SocketAddr) {
    metrics.count_cut(Direction::Outbound, reason);
    if tells_itself(metrics) {
        tracing::info!(%reason, %from, %to, "connection cut");
    }
}

/// Tells the access log of an inbound connection that was read as HTTP and cut while no request was under way.
pub(crate) fn tell_cut(
    telemetry: &Telemetry,
    (from, to): (SocketAddr, SocketAddr),
    peer: Option<&str>,
    denial: &Denial,
) {
    tell_connection(telemetry, telemetry.inbound(from, to, peer), denial, "");
}

/// Tells the access log of a connection that was refused.
fn tell_connection(telemetry: &Telemetry, ends: Ends<'_>, denial: &Denial, detail: &str) {
    let Denial { reason, policy, rule } = denial;
    let decision = flags::decision(*reason);
    let ruling = Ruling { decision, reason: *reason, policy: policy.as_ref(), rule: *rule, detail };
    let entry = Entry {
        ends,
        head: None,
        code: 0,
        grpc: None,
        flags: flags::of_refusal(*reason),
        ruling: Some(ruling),
        received: 0,
        sent: 0,
        duration: Duration::ZERO,
    };
    telemetry.log().tell(&entry, false);
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

/// Whether the proxy's own log has a line about a refusal: where no access log tells of it.
pub(crate) fn tells_itself(metrics: &PathMetrics) -> bool {
    !metrics.telemetry.log().is_on() && may_tell()
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
