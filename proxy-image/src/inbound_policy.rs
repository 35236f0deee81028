//! What the inbound side enforces: made from the control plane's message or from files, read by the data path.

use crate::config::Protocol;
use crate::http_filter::{MissingKeys, Tokens};
use crate::live::Denial;
use cinch_policy::{Decision, PathNormalization, PortModes, WorkloadPolicies};
use cinch_reason::Reason;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    /// What ports are declared to speak; others are undeclared.
    pub declared: BTreeMap<u16, Protocol>,
    /// What is reported of connections that are not read as HTTP, where that is less than `policies` would: what needs
    /// requests would mislead there.
    pub reports: Option<Arc<WorkloadPolicies>>,
    /// `policies` decide nothing: they are tried or reported, so no request may be other than without them.
    pub only_reports: bool,
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
            declared: BTreeMap::new(),
            reports: None,
            only_reports: false,
            locked: false,
            path_normalization: PathNormalization::default(),
            nack: String::new(),
        }
    }

    /// Keeps the key sets of `former`, the policy in force until `now`, that this one names and did not bring, `within`
    /// from the first policy on that did not bring them.
    pub fn keep_keys_of(&mut self, former: &InboundPolicy, now: Instant, within: Duration) {
        let tokens = self.tokens.as_mut().and_then(Arc::get_mut);
        if let (Some(tokens), Some(former)) = (tokens, &former.tokens) {
            tokens.keep_keys_of(former, now, within);
        }
    }

    /// The key sets that this version names and did not bring, while there is one of before; ordered by source.
    #[must_use]
    pub fn missing_keys(&self) -> Vec<MissingKeys> {
        self.tokens.as_ref().map_or_else(Vec::new, |tokens| tokens.missing())
    }

    /// Whether connections to `port` are read as HTTP whatever policy needs: for metrics and logs of requests.
    #[must_use]
    pub fn speaks_http(&self, port: u16) -> bool {
        self.declared.get(&port).is_some_and(|protocol| *protocol != Protocol::Tcp)
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
