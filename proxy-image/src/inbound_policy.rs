//! What the inbound side enforces: made from the control plane's message or from files, read by the data path.

use crate::http_filter::Tokens;
use crate::live::Denial;
use cinch_policy::{Decision, PathNormalization, PortModes, WorkloadPolicies};
use cinch_reason::Reason;
use std::sync::Arc;

/// What the inbound side enforces, as one version.
#[derive(Clone)]
pub struct InboundPolicy {
    /// As the control plane counts it.
    pub version: u64,
    /// Which port accepts what, the lock included.
    pub modes: PortModes,
    /// Authorization policies; `None`: there are none, everything that the mode lets in is allowed.
    pub policies: Option<Arc<WorkloadPolicies>>,
    /// Which tokens are accepted; `None`: no RequestAuthentication selects the workload.
    pub tokens: Option<Arc<Tokens>>,
    /// Policies (`namespace/name`) that this version could not use as they are meant, and why they refuse.
    pub unusable: Vec<(Arc<str>, Reason)>,
    /// The namespace carries the lock.
    pub locked: bool,
    /// How policies read paths.
    pub path_normalization: PathNormalization,
    /// What the operator must be told: a line `namespace/name: what is wrong` for each policy that is not in force
    /// as meant; empty when all are.
    pub nack: String,
}

impl InboundPolicy {
    /// Modes alone: without policies, without the lock.
    #[must_use]
    pub fn of_modes(version: u64, modes: PortModes) -> Self {
        InboundPolicy {
            version,
            modes,
            policies: None,
            tokens: None,
            unusable: Vec::new(),
            locked: false,
            path_normalization: PathNormalization::default(),
            nack: String::new(),
        }
    }

    /// A denial as it is counted and told.
    #[must_use]
    pub fn denial(&self, decision: &Decision<'_>) -> Denial {
        let policy = decision.policy.cloned();
        let stands_in = self.unusable.iter().find(|(name, _)| Some(name) == policy.as_ref());
        match stands_in {
            // It is not what the policy says that refuses, but that we can't tell what it says.
            Some((_, reason)) => Denial { reason: *reason, policy, rule: None },
            None => Denial { reason: decision.reason, policy, rule: decision.rule },
        }
    }
}
