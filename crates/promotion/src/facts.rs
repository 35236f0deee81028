//! What goes in: the world as the operator sees it at one moment.

use cinch_reason::Reason;
use serde::{Deserialize, Serialize};

/// A time or a duration in milliseconds; times count from the Unix epoch on the operator's clock.
pub type Millis = u64;

/// Everything that a step may look at.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The time of the step.
    pub now: Millis,
    /// What the Posture and the installation ask for.
    pub spec: Spec,
    /// The namespace's labels and annotations.
    pub namespace: Namespace,
    /// All pods of the namespace.
    pub pods: Vec<Pod>,
    /// What is known of pods that [`crate::Memory::tracked`] names and that are gone.
    pub departures: Vec<Departure>,
    /// The namespace's plaintext.
    pub plaintext: Plaintext,
    /// What stands against a promotion besides pods and plaintext, such as a pinned mode.
    pub findings: Vec<Finding>,
    /// Whether a promotion may begin beside those of other namespaces.
    pub slot: Slot,
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spec {
    /// `metadata.generation` of the Posture.
    pub generation: i64,
    /// What `spec.promotion` itself says, without the installation's default.
    pub word: Word,
    /// The installation has node agents, which look at every pod whose redirect they set.
    pub has_agents: bool,
    /// Who decides.
    pub policy: Policy,
    /// The quiet period, before rollbacks double it.
    pub quiet: Millis,
    /// The time of probation.
    pub probation: Millis,
    /// The time between requiring injection and the lock.
    pub settle: Millis,
    /// How often proxies report.
    pub report_interval: Millis,
    /// The evidence hash that a person approved.
    pub approve: Option<String>,
}

/// What a person has written of who decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// Nobody noted it.
    #[default]
    Unknown,
    /// Nothing.
    Unwritten,
    /// This.
    Written(Policy),
}

impl Word {
    /// Whether a person has decided anew since `then`. A word that was taken away is no decision: others may edit the
    /// spec, and a deleted Posture is made again without a word.
    #[must_use]
    pub fn is_decision_since(self, then: Word) -> bool {
        matches!(self, Word::Written(_)) && then != Word::Unknown && self != then
    }
}

/// Who decides on a promotion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// The evidence alone.
    Automatic,
    /// The evidence and an approval.
    #[default]
    Manual,
    /// Nobody.
    Paused,
}

/// The namespace as its labels and annotations say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Label `cinch.dev/injection: required`.
    pub injection_required: bool,
    /// Label `cinch.dev/mode: STRICT`.
    pub locked: bool,
    /// Annotation `cinch.dev/promotion`: when the running promotion began.
    pub promotion: Option<Millis>,
    /// Label `cinch.dev/host-network: allowed`.
    pub host_network_allowed: bool,
    /// Annotation `cinch.dev/relax-reason`.
    pub relax_reason: Option<String>,
}

/// What a pod means for the evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodClass {
    /// Without the sidecar, and not ended.
    #[default]
    NotInjected,
    /// With the sidecar, which has not started: nothing reaches the app.
    NotStarted,
    /// With a started sidecar: it must report.
    Started,
    /// Succeeded or failed.
    Ended,
    /// It can't have a sidecar: on the host network, static, or Windows.
    Unmeshable,
}

/// A pod.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.name`.
    pub name: String,
    /// What it means for the evidence.
    pub class: PodClass,
    /// It was injected for the node agent, which looks at what passes by its proxy.
    pub by_agent: bool,
    /// Its node is Ready.
    pub node_reachable: bool,
    /// The newest report of its proxy.
    pub report: Option<Report>,
    /// Its proxy has acknowledged the policy with the lock.
    pub acknowledged_lock: bool,
    /// What passes by its proxy, the most important first.
    pub bypass: Vec<Bypass>,
    /// Its redirect was found gone, and set again.
    pub redirect_gone: Option<RedirectGone>,
}

/// A redirect that was gone for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedirectGone {
    /// How often, as far as the running proxy knows.
    pub times: u64,
    /// When it was found so last.
    pub last: Millis,
}

/// Traffic of a pod that was seen to pass by its proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bypass {
    /// What carries it.
    pub transport: Transport,
    /// Process, peer and port, as people read it.
    pub what: String,
    /// When it was seen last.
    pub last_seen: Millis,
}

/// What carries traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// The mesh does: who passes by it is not encrypted, not authorised and not counted.
    Tcp,
    /// The mesh does not.
    Udp,
}

/// The newest report of a proxy. Reports are cumulative over the proxy's life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Changes with every start of the proxy.
    pub boot: u64,
    /// When that proxy started.
    pub boot_started: Millis,
    /// When the report came.
    pub received: Millis,
    /// The proxy said that it ends.
    pub last_word: bool,
    /// How old the last proof was, at the report, that what comes to the pod meets the proxy; `None`: never proved.
    pub inbound_proof_age: Option<Millis>,
    /// The same for what the pod's apps send.
    pub outbound_proof_age: Option<Millis>,
    /// When the node agent last saw all TCP of the pod, whichever run of its proxy told it; `None`: never.
    pub last_look: Option<Millis>,
    /// The agent's newest look did not see all.
    pub look_was_cut: bool,
    /// How old the node agent's word was, at the report, that the redirect is in force; `None`: it gave none.
    pub agent_proof_age: Option<Millis>,
}

/// The last that is known of a pod that is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Departure {
    /// `metadata.uid`.
    pub uid: String,
    /// When its last report came.
    pub through: Millis,
    /// It was a proxy's last word.
    pub last_word: bool,
}

/// Plaintext of a namespace, as far as this leader knows: cumulative, over pods there are and were.
#[derive(Debug, Clone, Default)]
pub struct Plaintext {
    /// Sums.
    pub totals: Counts,
    /// Connections that are open now.
    pub open: u64,
    /// The newest served connection.
    pub last_served: Option<Millis>,
    /// By source and port.
    pub sources: Vec<Source>,
}

/// Plaintext connections by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// Allowed, accepted by the app, and at least one byte passed.
    pub served: u64,
    /// Refused by mode or policy.
    pub denied: u64,
    /// Refused by the app.
    pub no_listener: u64,
    /// Closed without a byte.
    pub empty: u64,
}

impl Counts {
    pub(crate) fn map(self, other: Counts, join: fn(u64, u64) -> u64) -> Counts {
        Counts {
            served: join(self.served, other.served),
            denied: join(self.denied, other.denied),
            no_listener: join(self.no_listener, other.no_listener),
            empty: join(self.empty, other.empty),
        }
    }
}

/// Who a source is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceName {
    /// A workload of the cluster.
    Workload {
        /// Its namespace.
        namespace: String,
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// When it was created, as far as known.
        created: Millis,
    },
    /// A node.
    Node(String),
    /// An address outside the cluster.
    External(String),
}

impl std::fmt::Display for SourceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SourceName::Workload { namespace, name, .. } => write!(f, "{namespace}/{name}"),
            SourceName::Node(name) => write!(f, "node {name}"),
            SourceName::External(address) => write!(f, "{address}"),
        }
    }
}

/// Plaintext of one source to one port, cumulative.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Who.
    pub name: SourceName,
    /// The app's port.
    pub port: u16,
    /// What became of its connections.
    pub counts: Counts,
    /// Connections open now.
    pub open: u64,
    /// The newest connection of any kind.
    pub last_seen: Option<Millis>,
    /// The newest served one.
    pub last_served: Option<Millis>,
    /// The newest refused one.
    pub last_denied: Option<Millis>,
    /// The newest of these that only the mode refused: policies would have let it through.
    pub last_denied_by_mode: Option<Millis>,
    /// A pod that saw it.
    pub reported_by: Option<String>,
}

/// Who, and where to. The port 0 stands for several, or for such at which nothing was served or refused.
impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            0 => write!(f, "{}", self.name),
            port => write!(f, "{} to port {port}", self.name),
        }
    }
}

/// Something that was found to stand against a promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The word.
    pub reason: Reason,
    /// What was seen, in a few words.
    pub detail: String,
    /// The object that it is about, such as `peerauthentication/default`.
    pub reference: Option<String>,
}

/// Whether a promotion may begin beside those of other namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Slot {
    /// It may.
    Free,
    /// Others are under way, or the last one began too recently.
    #[default]
    Taken,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_told_with_its_port_unless_it_knocked_at_several() {
        let source = |port| Source {
            name: SourceName::Node("n1".to_owned()),
            port,
            counts: Counts::default(),
            open: 0,
            last_seen: None,
            last_served: None,
            last_denied: None,
            last_denied_by_mode: None,
            reported_by: None,
        };
        assert_eq!([8080, 0].map(|port| source(port).to_string()), ["node n1 to port 8080", "node n1"]);
    }
}
