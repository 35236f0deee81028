//! What the node agent has told of a pod by way of its proxies: that the redirect is in force, that it was gone, and
//! when everything that passes by was last seen. Times are kept over restarts of the proxy: a restart mends nothing.

use super::ledger::Clock;
use cinch_control::v1;

/// The agent's word on one pod.
#[derive(Debug, Default)]
pub(super) struct AgentWord {
    /// The last look that saw all TCP.
    pub(super) last_look_unix_ms: Option<u64>,
    pub(super) look_was_cut: bool,
    pub(super) proof_age_ms: Option<u64>,
    pub(super) set_again: u64,
    pub(super) last_set_again_unix_ms: Option<u64>,
}

impl AgentWord {
    /// Takes a report of the running proxy.
    pub(super) fn take(&mut self, report: &v1::Evidence, clock: Clock) {
        let look = report.bypass_look_age_ms.filter(|age| *age != u64::MAX);
        // A proxy that does not say so counts what it was not told, of TCP and UDP alike: it may have been TCP.
        self.look_was_cut = look.is_some() && report.bypass_cut.unwrap_or(report.bypass_dropped > 0);
        if !self.look_was_cut {
            self.last_look_unix_ms = self.last_look_unix_ms.max(look.and_then(|age| clock.ago(age)));
        }
        // Nor does it say when the agent last spoke; but who has looked had found the redirect in force first.
        self.proof_age_ms = report.agent_proof_age_ms.or(look).filter(|age| *age != u64::MAX);
        self.set_again = report.redirect_set_again;
        let set_again = report.redirect_set_again_age_ms.and_then(|age| clock.ago(age));
        self.last_set_again_unix_ms = self.last_set_again_unix_ms.max(set_again);
    }
}
