//! What stands against a promotion right now.

use crate::bypass;
use crate::clock::Quiet;
use crate::coverage::Coverage;
use crate::facts::{Facts, Pod, PodClass, Policy, Slot};
use crate::gone;
use crate::memory::{Memory, Phase};
use crate::report::evidence_hash;
use cinch_reason::Reason;

/// How a gate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    /// A gate does not hold.
    Blocks,
    /// All gates hold; the next step waits for something.
    Waits,
}

/// A gate that does not hold.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    pub reason: Reason,
    pub weight: Weight,
    pub detail: String,
    pub reference: Option<String>,
}

impl Gate {
    fn new(reason: Reason, weight: Weight, detail: String) -> Self {
        Gate { reason, weight, detail, reference: None }
    }

    fn of_pods(reason: Reason, pods: &[&Pod], total: usize) -> Option<Self> {
        let first = pods.first()?;
        let reference = Some(format!("pod/{}", first.name));
        let detail = format!("{} of {total}: {}", pods.len(), names(pods));
        Some(Gate { reason, weight: Weight::Blocks, detail, reference })
    }
}

/// The first three names, and how many there are besides.
fn names(pods: &[&Pod]) -> String {
    let mut names: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(3);
    names.truncate(3);
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

/// Every gate that does not hold, the most important first.
pub(crate) fn find(memory: &Memory, facts: &Facts, coverage: &Coverage<'_>, quiet: &Quiet) -> Vec<Gate> {
    let mut gates = Vec::new();
    let of = |class: PodClass| -> Vec<&Pod> { facts.pods.iter().filter(|pod| pod.class == class).collect() };
    let unmeshable = of(PodClass::Unmeshable);
    let counting = facts.pods.iter().filter(|pod| pod.class != PodClass::Ended).count() - unmeshable.len();
    gates.extend(Gate::of_pods(Reason::PodsNotInjected, &of(PodClass::NotInjected), counting));
    if !facts.namespace.host_network_allowed {
        gates.extend(Gate::of_pods(Reason::HostNetworkPods, &unmeshable, facts.pods.len()));
    }
    gates.extend(passed_by(memory, facts, coverage.must_report));
    gates.extend(were_gone(memory, facts, coverage.must_report));
    gates.extend(Gate::of_pods(Reason::PodsNotReporting, &coverage.late, coverage.must_report));
    gates.extend(Gate::of_pods(Reason::RedirectMissing, &coverage.unproved, coverage.must_report));
    gates.extend(Gate::of_pods(Reason::RedirectUnconfirmed, &coverage.unconfirmed, coverage.must_report));
    gates.extend(unlooked(&coverage.unlooked, coverage.must_report));
    gates.extend(by_init(facts, coverage.must_report));
    gates.extend(Gate::of_pods(Reason::NodeUnreachable, &coverage.unreachable, coverage.must_report));
    if coverage.must_report == 0 {
        gates.push(Gate::new(Reason::NoEvidence, Weight::Blocks, String::new()));
    }
    gates.extend(plaintext(memory, facts, quiet));
    gates.extend(facts.findings.iter().map(|finding| Gate {
        reason: finding.reason,
        weight: Weight::Blocks,
        detail: finding.detail.clone(),
        reference: finding.reference.clone(),
    }));
    gates
}

/// Pods of which something passes by the proxy: the lock would neither protect it nor be a proof of anything.
fn passed_by(memory: &Memory, facts: &Facts, total: usize) -> Option<Gate> {
    let pods = bypass::of_tcp(memory, facts);
    let only: Vec<&Pod> = pods.iter().map(|(pod, _)| *pod).collect();
    let mut gate = Gate::of_pods(Reason::BypassSeen, &only, total)?;
    if let Some(seen) = pods.iter().find_map(|(_, seen)| *seen) {
        gate.detail = format!("{} ({})", gate.detail, seen.what);
    }
    Some(gate)
}

/// Pods whose redirect was gone for a while: nobody knows what went past their proxies then.
fn were_gone(memory: &Memory, facts: &Facts, total: usize) -> Option<Gate> {
    let pods = gone::lately(memory, facts);
    let mut gate = Gate::of_pods(Reason::RedirectWasGone, &pods, total)?;
    if let [only] = pods.as_slice() {
        gate.detail = format!("1 of {total}: {}", gone::named(only));
    }
    Some(gate)
}

/// Pods at which nobody has lately looked, or not at all of what they do.
fn unlooked(pods: &[&Pod], total: usize) -> Option<Gate> {
    let mut gate = Gate::of_pods(Reason::BypassUnknown, pods, total)?;
    if pods.iter().any(|pod| pod.report.is_some_and(|report| report.look_was_cut)) {
        gate.detail = format!("{}; more connections than one look takes", gate.detail);
    }
    Some(gate)
}

/// Where there are agents, pods that none of them looks at: an init container has set their redirect, before the
/// installation had agents or past the webhook.
fn by_init(facts: &Facts, total: usize) -> Option<Gate> {
    let unlooked = |pod: &&Pod| pod.class == PodClass::Started && !pod.by_agent;
    let pods: Vec<&Pod> = facts.pods.iter().filter(unlooked).filter(|_| facts.spec.has_agents).collect();
    Gate::of_pods(Reason::RedirectByInit, &pods, total)
}

fn plaintext(memory: &Memory, facts: &Facts, quiet: &Quiet) -> Vec<Gate> {
    let mut gates = Vec::new();
    let mut push = |reason, count: u64, newest: Option<&crate::facts::Source>| {
        let who = newest.map(|source| format!(", {source}")).unwrap_or_default();
        let mut gate = Gate::new(reason, Weight::Blocks, format!("{count}{who}"));
        gate.reference = newest.map(|source| source.name.to_string());
        gates.push(gate);
    };
    let sources = &facts.plaintext.sources;
    if memory.open {
        let newest = sources.iter().filter(|source| source.open > 0).max_by_key(|source| source.last_seen);
        push(Reason::PlaintextOpen, facts.plaintext.open, newest);
    }
    if quiet.counted.served > 0 {
        let served = sources.iter().filter(|source| source.last_served.is_some());
        push(Reason::PlaintextServed, quiet.counted.served, served.max_by_key(|source| source.last_served));
    }
    gates
}

/// What the next step waits for although all gates hold.
pub(crate) fn waits(memory: &Memory, facts: &Facts, coverage: &Coverage<'_>, quiet: &Quiet) -> Vec<Gate> {
    let mut gates = Vec::new();
    let mut wait = |reason, detail: String| gates.push(Gate::new(reason, Weight::Waits, detail));
    match &memory.phase {
        Phase::Watching => {
            if quiet.pause > 0 && !quiet.elapsed {
                wait(Reason::UnobservedTime, format!("{} s", memory.unobserved / 1_000));
            }
            if quiet.elapsed
                && let Some(pods) = unseen(coverage)
            {
                wait(Reason::BypassUnknown, pods);
            }
            if facts.spec.policy == Policy::Paused {
                wait(Reason::PromotionPaused, String::new());
            }
            if quiet.elapsed && facts.spec.policy == Policy::Manual && !approved(memory, facts) {
                wait(Reason::AwaitingApproval, evidence_hash(memory, facts));
            } else if quiet.elapsed && facts.spec.policy != Policy::Paused && facts.slot == Slot::Taken {
                wait(Reason::PromotionSlot, String::new());
            }
        }
        Phase::Settling { .. } => {
            wait(Reason::Settling, String::new());
            if let Some(pods) = unseen(coverage) {
                wait(Reason::BypassUnknown, pods);
            }
        }
        Phase::Acknowledging { .. } => {
            let pending = pending_acknowledgements(facts);
            if let Some(mut gate) =
                Gate::of_pods(Reason::AwaitingAcknowledgement, &pending, coverage.must_report)
            {
                gate.weight = Weight::Waits;
                gates.push(gate);
            }
        }
        Phase::NeedsDecision { .. } => wait(Reason::NeedsDecision, String::new()),
        Phase::Relaxed { .. } => {
            let reason = facts.namespace.relax_reason.clone().unwrap_or_default();
            wait(Reason::RelaxedByUser, reason);
        }
        Phase::Probation { .. } | Phase::TakingBack | Phase::Strict { .. } => {}
    }
    gates
}

/// The pods that the agent has yet to look at for the first time.
fn unseen(coverage: &Coverage<'_>) -> Option<String> {
    let gate = Gate::of_pods(Reason::BypassUnknown, &coverage.unseen, coverage.must_report)?;
    Some(format!("{}; just started", gate.detail))
}

/// Whether a person has approved this very evidence.
pub(crate) fn approved(memory: &Memory, facts: &Facts) -> bool {
    facts.spec.approve.as_deref() == Some(evidence_hash(memory, facts).as_str())
}

/// Pods whose proxy has not yet acknowledged the lock. One that has said its last word serves nobody.
pub(crate) fn pending_acknowledgements(facts: &Facts) -> Vec<&Pod> {
    let ended = |pod: &Pod| pod.report.is_some_and(|report| report.last_word);
    facts
        .pods
        .iter()
        .filter(|pod| pod.class == PodClass::Started && !pod.acknowledged_lock && !ended(pod))
        .collect()
}
