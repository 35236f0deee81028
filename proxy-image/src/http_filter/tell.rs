//! What is counted and logged of requests. Callers learn a status; by which policy and rule is said here only.

use super::metrics::Kind;
use crate::live::Denial;
use crate::path_metrics::PathMetrics;
use crate::refusal;
use cinch_policy::Report;
use std::net::SocketAddr;

/// Bytes of a path in the log.
const PATH: usize = 256;

/// What is told of a request.
pub(super) struct Told<'a> {
    /// From where, and to which own address and port.
    pub(super) ends: (SocketAddr, SocketAddr),
    pub(super) peer: Option<&'a str>,
    pub(super) method: &'a str,
    /// Without the query, which may hold secrets.
    pub(super) path: &'a str,
}

/// Counts and tells a request that is refused.
pub(super) fn denied(
    metrics: &PathMetrics,
    kind: Kind,
    status: u16,
    denial: &Denial,
    request: &Told<'_>,
    detail: &str,
) {
    metrics.http.count_refused(kind, status, denial.reason);
    if let Some(policy) = &denial.policy {
        metrics.count_denial(policy, denial.rule);
    }
    if refusal::tells_itself(metrics) {
        let Denial { reason, policy, rule } = denial;
        let (policy, peer) = (policy.as_deref().unwrap_or_default(), request.peer.unwrap_or_default());
        let ((from, to), method) = (request.ends, request.method);
        // A path is ASCII.
        let path = request.path.get(..PATH).unwrap_or(request.path);
        tracing::info!(%reason, policy, rule, peer, %from, %to, method, path, status, detail, "request denied");
    }
}

/// Counts and tells what AUDIT policies and dry runs say of a request.
pub(super) fn reported(metrics: &PathMetrics, report: &Report<'_>, ends: (SocketAddr, SocketAddr)) {
    refusal::reported(metrics, report, ends);
}
