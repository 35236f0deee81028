//! What the evidence store answers with: counts by source, per pod and per namespace. Times are Unix
//! milliseconds of the operator's clock (arrival minus the reported age), so proxies' clocks don't matter.

use crate::index::SourceName;
use cinch_control::v1;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// Plaintext connections by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Allowed, accepted by the app, and at least one byte went either way.
    pub served: u64,
    /// Refused by mode or policy.
    pub denied: u64,
    /// The app did not listen.
    pub no_listener: u64,
    /// Not one byte went either way.
    pub empty: u64,
    /// Served because of an exemption.
    pub exempt: u64,
    /// Open now; a gauge, not a counter.
    pub open: u64,
}

impl Counts {
    /// The counts of a report.
    #[must_use]
    pub fn from_wire(wire: &v1::PlaintextCounts) -> Self {
        Self {
            served: wire.served,
            denied: wire.denied,
            no_listener: wire.no_listener,
            empty: wire.empty,
            exempt: wire.exempt,
            open: wire.open,
        }
    }

    /// Adds the counters and the gauge of `other`.
    pub fn add(&mut self, other: &Self) {
        self.served = self.served.saturating_add(other.served);
        self.denied = self.denied.saturating_add(other.denied);
        self.no_listener = self.no_listener.saturating_add(other.no_listener);
        self.empty = self.empty.saturating_add(other.empty);
        self.exempt = self.exempt.saturating_add(other.exempt);
        self.open = self.open.saturating_add(other.open);
    }

    /// What the counters grew by since `earlier`; `open` stays as it is in `self`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            served: self.served.saturating_sub(earlier.served),
            denied: self.denied.saturating_sub(earlier.denied),
            no_listener: self.no_listener.saturating_sub(earlier.no_listener),
            empty: self.empty.saturating_sub(earlier.empty),
            exempt: self.exempt.saturating_sub(earlier.exempt),
            open: self.open,
        }
    }

    /// The counters without the gauge: what is left of a proxy that has ended.
    #[must_use]
    pub const fn closed(self) -> Self {
        Self { open: 0, ..self }
    }

    /// Something was served, refused or is open: what promotion and rollback must name. Nobody has to know who only
    /// knocked.
    #[must_use]
    pub const fn decide(&self) -> bool {
        self.served > 0 || self.denied > 0 || self.open > 0
    }

    /// No connection was ever counted.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// Plaintext of one source to one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceEvidence {
    /// Who it was, resolved when the report arrived. Pods of one workload are one source.
    pub source: SourceName,
    /// The app's port.
    pub port: u16,
    /// What became of the connections.
    pub counts: Counts,
    /// The newest connection of any kind.
    pub last_seen_unix_ms: Option<u64>,
    /// The newest served connection.
    pub last_served_unix_ms: Option<u64>,
    /// The newest refused connection.
    pub last_denied_unix_ms: Option<u64>,
    /// The newest of these that policies would have let through: only the mode refused it.
    pub last_denied_by_mode_unix_ms: Option<u64>,
    /// UID of the pod that saw it last, of those that are there; only in the evidence of a namespace.
    pub seen_by: Option<Arc<str>>,
}

impl SourceEvidence {
    /// A source of which nothing was seen yet.
    #[must_use]
    pub const fn new(source: SourceName, port: u16) -> Self {
        let counts = Counts { served: 0, denied: 0, no_listener: 0, empty: 0, exempt: 0, open: 0 };
        Self {
            source,
            port,
            counts,
            last_seen_unix_ms: None,
            last_served_unix_ms: None,
            last_denied_unix_ms: None,
            last_denied_by_mode_unix_ms: None,
            seen_by: None,
        }
    }

    /// Adds what `other` counted; times become the newer of both.
    pub fn merge(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        self.last_seen_unix_ms = self.last_seen_unix_ms.max(other.last_seen_unix_ms);
        self.last_served_unix_ms = self.last_served_unix_ms.max(other.last_served_unix_ms);
        self.last_denied_unix_ms = self.last_denied_unix_ms.max(other.last_denied_unix_ms);
        self.last_denied_by_mode_unix_ms =
            self.last_denied_by_mode_unix_ms.max(other.last_denied_by_mode_unix_ms);
    }
}

/// Traffic of a pod that does not meet its proxy, as the node agent saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BypassEvidence {
    /// How it passes by.
    pub way: v1::bypass::Way,
    /// The other end, resolved when the report arrived; `None` for a listener.
    pub peer: Option<SourceName>,
    /// The port that is served, on whichever side.
    pub port: u16,
    /// The kernel's name of the process; empty when it was not found.
    pub process: String,
    /// Its container; empty when it is none of the pod's.
    pub container: String,
    /// When it was seen last.
    pub last_seen_unix_ms: u64,
}

impl BypassEvidence {
    /// Whether it is TCP, which the proxy should have met.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        matches!(self.way, v1::bypass::Way::Outbound | v1::bypass::Way::Inbound)
    }

    /// Whether `other` is about the same.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        let of = |this: &Self| (this.way, this.port);
        of(self) == of(other)
            && self.peer == other.peer
            && self.process == other.process
            && self.container == other.container
    }
}

impl fmt::Display for BypassEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let process = if self.process.is_empty() { "a process" } else { &self.process };
        match self.container.as_str() {
            "" => write!(f, "{process} of no container of the pod")?,
            container => write!(f, "{process} in {container}")?,
        }
        let protocol = if self.is_tcp() { "TCP" } else { "UDP" };
        match (&self.peer, self.way) {
            (Some(peer), v1::bypass::Way::Inbound) => {
                write!(f, ", {protocol} from {peer} to port {}", self.port)
            }
            (Some(peer), _) => write!(f, ", {protocol} to {peer} port {}", self.port),
            (None, _) => write!(f, ", {protocol} at port {}", self.port),
        }
    }
}

/// When and how a pod reported last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastReport {
    /// On the monotonic clock: for "how long ago".
    pub received_at: Instant,
    /// On the wall clock: for status.
    pub received_unix_ms: u64,
    /// The proxy said that it ends now.
    pub final_report: bool,
}

/// All that a pod's proxies have said, added up over restarts of the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEvidence {
    /// The pod.
    pub pod_uid: Arc<str>,
    /// The running proxy.
    pub boot_id: u64,
    /// Its newest report.
    pub sequence: u64,
    /// How long it ran at that report.
    pub uptime_ms: u64,
    /// When the newest report came, and whether it was the last one.
    pub last_report: LastReport,
    /// Sums over all proxies of this pod; `open` is of the running one.
    pub totals: Counts,
    /// The newest served connection of any source.
    pub last_served_unix_ms: Option<u64>,
    /// The policy that the proxy enforces.
    pub policy_version: u64,
    /// Age of the proof that the inbound redirect works, at the report; `None`: never proved.
    pub inbound_proof_age_ms: Option<u64>,
    /// Age of the proof that the outbound redirect works, at the report; `None`: never proved.
    pub outbound_proof_age_ms: Option<u64>,
    /// Sources that are only in the totals because a table was full.
    pub sources_dropped: u64,
    /// Time between the last word of a proxy that ended without a final report and the start of its successor.
    pub unreported_ms: u64,
    /// What the node agent saw pass by, TCP first and of that the newest.
    pub bypass: Vec<BypassEvidence>,
    /// When the node agent last saw all of the pod's TCP, whichever proxy told it; `None`: never.
    pub last_look_unix_ms: Option<u64>,
    /// The newest look of the node agent was cut: it does not say that nothing passes by.
    pub look_was_cut: bool,
    /// Age of the node agent's last word that the redirect is in force, at the report; `None`: it never said so to
    /// this proxy.
    pub agent_proof_age_ms: Option<u64>,
    /// How often the redirect of this proxy was gone and was set again.
    pub set_again: u64,
    /// When the redirect was last found gone, whichever proxy told it; `None`: never.
    pub last_set_again_unix_ms: Option<u64>,
}

/// A pod that has gone from the API, and how it took its leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VanishedPod {
    /// The pod.
    pub pod_uid: Arc<str>,
    /// Its last report.
    pub last_report: LastReport,
    /// When it was found to be gone.
    pub gone_unix_ms: u64,
}

/// A namespace's plaintext since this operator leads: pods there are and pods there were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceEvidence {
    /// Sums over all pods; `open` only of those that are there.
    pub totals: Counts,
    /// The newest served connection of any source.
    pub last_served_unix_ms: Option<u64>,
    /// By workload and port, sorted: most served first, then most denied.
    pub sources: Vec<SourceEvidence>,
    /// Sources that are only in the totals because a table was full.
    pub sources_dropped: u64,
    /// The pods that vanished most recently, newest last; bounded.
    pub vanished: Vec<VanishedPod>,
}
