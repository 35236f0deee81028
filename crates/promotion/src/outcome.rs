//! What comes out: the state to show, and what to do.

use crate::facts::{Counts, Millis, Source};
use crate::memory::Memory;
use cinch_reason::Reason;
use serde::{Deserialize, Serialize};

/// The result of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Where the namespace stands.
    pub state: State,
    /// Persist it before doing anything else.
    pub memory: Memory,
    /// Everything that stands against a promotion, the most important first.
    pub blockers: Vec<Blocker>,
    /// The gates, one by one.
    pub conditions: Vec<Condition>,
    /// Pods by what is known of them.
    pub pods: PodTally,
    /// Plaintext since the window began.
    pub plaintext: Counts,
    /// Who sends plaintext: at most 20, the most served first.
    pub offenders: Vec<Source>,
    /// What stays outside the mesh and was accepted as such.
    pub debt: Vec<(Reason, String)>,
    /// For what the counts speak.
    pub evidence: Evidence,
    /// What to do with the namespace now. Doing it twice does no harm.
    pub action: Option<Action>,
    /// What to tell, once.
    pub events: Vec<Event>,
    /// When the next thing is due without anything changing.
    pub wake_at: Option<Millis>,
}

/// Where a namespace stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum State {
    #[default]
    Observing,
    Blocked,
    Eligible,
    Probation,
    Strict,
    RolledBack,
    Relaxed,
}

/// One thing that stands against a promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// The word.
    pub reason: Reason,
    /// What was seen, in a few words; may be empty.
    pub detail: String,
    /// The first object that it is about.
    pub reference: Option<String>,
    /// Since when it stands.
    pub since: Millis,
}

/// A gate's condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Which.
    pub kind: ConditionKind,
    /// Whether it holds.
    pub holds: bool,
    /// Why.
    pub reason: Reason,
    /// What was seen, in a few words; may be empty.
    pub detail: String,
}

/// The conditions of a Posture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ConditionKind {
    Ready,
    Injected,
    Reporting,
    Quiet,
    Unpinned,
    Strict,
}

impl ConditionKind {
    /// The word in status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ConditionKind::Ready => "Ready",
            ConditionKind::Injected => "Injected",
            ConditionKind::Reporting => "Reporting",
            ConditionKind::Quiet => "Quiet",
            ConditionKind::Unpinned => "Unpinned",
            ConditionKind::Strict => "Strict",
        }
    }
}

/// Pods by what is known of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PodTally {
    /// Pods that count: not ended, able to have a sidecar.
    pub total: usize,
    /// Of these, with the sidecar.
    pub injected: usize,
    /// Of these, with a recent report of a proxy that proves its redirect.
    pub reporting: usize,
}

/// For what the counts speak.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Every pod has reported for all time up to here.
    pub observed_through: Millis,
    /// Pod-seconds of the window for which nobody can speak.
    pub unobserved_seconds: u64,
    /// Names this evidence for an approval: another window has another one.
    pub hash: String,
}

/// What to do with the namespace. Every action is one patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Label `injection: required` and annotation `promotion` with this time.
    RequireInjection {
        /// When the promotion began.
        started: Millis,
    },
    /// Label `mode: STRICT`, after a consistent look at the pods, if the namespace is unchanged.
    Lock,
    /// Remove the label `mode` and the annotation together.
    TakeBack {
        /// What becomes of the label `injection`.
        injection: Injection,
    },
    /// Remove the annotation: from now on only a person can go back.
    FinishProbation,
}

/// What becomes of the label `injection` when a promotion is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injection {
    /// It was required before; it stays.
    Keep,
    /// This promotion set it; it goes.
    TakeBack,
}

/// Something to tell once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The word.
    pub reason: Reason,
    /// Good or bad news.
    pub kind: EventKind,
    /// What was seen, in a few words; may be empty.
    pub detail: String,
}

/// Kubernetes' two types of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum EventKind {
    Normal,
    Warning,
}
