//! The outcome of a step as people read it: state, blockers, conditions, offenders.

use crate::bypass;
use crate::clock;
use crate::facts::{Facts, Millis, PodClass, Source};
use crate::gates::{Gate, Weight};
use crate::machine::Turn;
use crate::memory::{Memory, Notice, Phase};
use crate::outcome::{
    Blocker, Condition, ConditionKind, Event, EventKind, Evidence, Outcome, PodTally, State,
};
use cinch_reason::Reason;
use std::collections::BTreeMap;

/// Offenders beyond this many are only counted.
const OFFENDERS: usize = 20;

/// Names the evidence of the running window, for approvals: FNV-1a over what makes it another one.
pub(crate) fn evidence_hash(memory: &Memory, facts: &Facts) -> String {
    let text = format!("{}/{}/{}", facts.namespace.name, memory.window, memory.rollbacks);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

pub(crate) fn outcome(mut turn: Turn<'_>) -> Outcome {
    let state = state(&turn);
    let conditions = conditions(&turn, state);
    let blockers = blockers(&mut turn);
    announce(&mut turn, state, &blockers);
    turn.memory.state = state;
    let evidence = Evidence {
        observed_through: turn.memory.observed_through,
        unobserved_seconds: turn.memory.unobserved / 1_000,
        hash: evidence_hash(&turn.memory, turn.facts),
    };
    Outcome {
        state,
        blockers,
        conditions,
        pods: tally(&turn),
        plaintext: turn.quiet.counted,
        offenders: offenders(turn.facts, &turn.memory),
        debt: debt(turn.facts, &turn.memory),
        evidence,
        action: turn.action,
        wake_at: wake_at(&turn),
        events: turn.events,
        memory: turn.memory,
    }
}

fn state(turn: &Turn<'_>) -> State {
    let rolled_back = matches!(&turn.memory.notice, Some(Notice { reason: Reason::PromotionRolledBack, .. }));
    match turn.memory.phase {
        Phase::Watching | Phase::TakingBack if rolled_back => State::RolledBack,
        Phase::Watching if !turn.all_gates_hold() => State::Blocked,
        Phase::Watching if turn.quiet.elapsed => State::Eligible,
        Phase::Watching | Phase::TakingBack => State::Observing,
        Phase::Settling { .. } | Phase::Acknowledging { .. } => State::Eligible,
        Phase::Probation { .. } => State::Probation,
        Phase::Strict { .. } => State::Strict,
        Phase::Relaxed { .. } => State::Relaxed,
        Phase::NeedsDecision { .. } => State::RolledBack,
    }
}

/// The notice of the last attempt, then the gates; nothing once the namespace is locked for good.
fn blockers(turn: &mut Turn<'_>) -> Vec<Blocker> {
    let mut gates: Vec<Gate> = Vec::new();
    if !matches!(turn.memory.phase, Phase::Strict { .. }) {
        gates.extend(turn.memory.notice.iter().map(|notice| Gate {
            reason: notice.reason,
            weight: Weight::Waits,
            detail: notice.detail.clone(),
            reference: notice.reference.clone(),
        }));
        gates.append(&mut turn.gates);
        // A person's word comes first: nothing else matters until it is heard.
        gates.sort_by_key(|gate| !matches!(gate.reason, Reason::NeedsDecision | Reason::RelaxedByUser));
    }
    let known = std::mem::take(&mut turn.memory.since);
    let since_of = |reason| known.get(&reason).copied().unwrap_or(turn.facts.now);
    let blockers: Vec<Blocker> = gates
        .into_iter()
        .map(|gate| Blocker {
            reason: gate.reason,
            detail: gate.detail,
            reference: gate.reference,
            since: since_of(gate.reason),
        })
        .collect();
    turn.memory.since =
        blockers.iter().map(|blocker| (blocker.reason, blocker.since)).collect::<BTreeMap<_, _>>();
    blockers
}

/// Tells of states that no step of the promotion tells of by itself.
fn announce(turn: &mut Turn<'_>, state: State, blockers: &[Blocker]) {
    if state == turn.memory.state {
        return;
    }
    let event = match (state, blockers.first()) {
        (State::Eligible, _) => {
            Event { reason: Reason::PromotionEligible, kind: EventKind::Normal, detail: String::new() }
        }
        // One that was told already in this step is not told twice.
        (State::Blocked, Some(first)) if turn.events.iter().all(|event| event.reason != first.reason) => {
            Event { reason: first.reason, kind: EventKind::Warning, detail: first.detail.clone() }
        }
        _ => return,
    };
    turn.events.insert(0, event);
}

fn tally(turn: &Turn<'_>) -> PodTally {
    let count =
        |wanted: &[PodClass]| turn.facts.pods.iter().filter(|pod| wanted.contains(&pod.class)).count();
    let injected = count(&[PodClass::NotStarted, PodClass::Started]);
    PodTally {
        total: injected + count(&[PodClass::NotInjected]),
        injected,
        reporting: turn.coverage.reporting,
    }
}

/// What stays outside the mesh and is no reason to wait.
fn debt(facts: &Facts, memory: &Memory) -> Vec<(Reason, String)> {
    let mut debt = host_network(facts);
    let udp = bypass::of_udp(memory, facts);
    if let Some((pod, first)) = udp.first() {
        debt.push((Reason::UdpOutsideMesh, format!("{}: {} ({})", udp.len(), pod.name, first.what)));
    }
    debt
}

fn host_network(facts: &Facts) -> Vec<(Reason, String)> {
    let outside: Vec<&str> = facts
        .pods
        .iter()
        .filter(|pod| pod.class == PodClass::Unmeshable)
        .map(|pod| pod.name.as_str())
        .collect();
    if outside.is_empty() {
        return Vec::new();
    }
    let some = outside.iter().take(3).copied().collect::<Vec<_>>().join(", ");
    vec![(Reason::HostNetworkPods, format!("{}: {some}", outside.len()))]
}

/// Sources that were seen within the quiet period or the probation, the most served first.
fn offenders(facts: &Facts, memory: &Memory) -> Vec<Source> {
    let reach = clock::period(memory, facts).max(facts.spec.probation);
    let cutoff = facts.now.saturating_sub(reach);
    let mut list: Vec<Source> = facts
        .plaintext
        .sources
        .iter()
        .filter(|source| source.open > 0 || source.last_seen.is_some_and(|seen| seen >= cutoff))
        .cloned()
        .collect();
    list.sort_by(|a, b| {
        let weight = |source: &Source| (source.counts.served, source.counts.denied, source.last_seen);
        weight(b).cmp(&weight(a)).then_with(|| (&a.name, a.port).cmp(&(&b.name, b.port)))
    });
    list.truncate(OFFENDERS);
    list
}

fn conditions(turn: &Turn<'_>, state: State) -> Vec<Condition> {
    let first_of = |reasons: &[Reason]| turn.gates.iter().find(|gate| reasons.contains(&gate.reason));
    let gate = |kind, reasons: &[Reason], good: Reason| match first_of(reasons) {
        Some(gate) => Condition { kind, holds: false, reason: gate.reason, detail: gate.detail.clone() },
        None => Condition { kind, holds: true, reason: good, detail: String::new() },
    };
    let plain = |kind, holds, reason| Condition { kind, holds, reason, detail: String::new() };
    let unreported = [
        Reason::PodsNotReporting,
        Reason::RedirectMissing,
        Reason::RedirectUnconfirmed,
        Reason::BypassUnknown,
        Reason::RedirectByInit,
        Reason::NodeUnreachable,
        Reason::NoEvidence,
        Reason::UnobservedTime,
    ];
    let mut quiet = gate(
        ConditionKind::Quiet,
        &[Reason::PlaintextOpen, Reason::PlaintextServed],
        Reason::PromotionEligible,
    );
    if quiet.holds && !turn.quiet.elapsed && !turn.facts.namespace.locked {
        quiet = plain(ConditionKind::Quiet, false, Reason::QuietPeriod);
    }
    let mut reporting = gate(ConditionKind::Reporting, &unreported, Reason::Observing);
    if reporting.holds && !turn.coverage.is_full() {
        reporting = plain(ConditionKind::Reporting, false, Reason::PodsNotReporting);
    }
    vec![
        plain(ConditionKind::Ready, true, Reason::Observing),
        gate(
            ConditionKind::Injected,
            &[
                Reason::PodsNotInjected,
                Reason::HostNetworkPods,
                Reason::BypassSeen,
                Reason::RedirectWasGone,
                Reason::WorkloadNotInjectable,
                Reason::CouldUndoRedirect,
            ],
            Reason::Injected,
        ),
        reporting,
        quiet,
        gate(ConditionKind::Unpinned, &[Reason::PinnedByPolicy], Reason::Observing),
        strict(turn, state),
    ]
}

fn strict(turn: &Turn<'_>, state: State) -> Condition {
    let (holds, reason) = match (&turn.memory.phase, state) {
        (Phase::Strict { by_user: true }, _) => (true, Reason::LockedByUser),
        (Phase::Strict { .. }, _) => (true, Reason::Strict),
        (Phase::Probation { .. }, _) => (true, Reason::PromotionStarted),
        (Phase::Acknowledging { .. }, _) => (false, Reason::AwaitingAcknowledgement),
        (Phase::Relaxed { .. }, _) => (false, Reason::RelaxedByUser),
        (Phase::NeedsDecision { .. }, _) => (false, Reason::NeedsDecision),
        (_, State::RolledBack) => (false, Reason::PromotionRolledBack),
        (_, State::Eligible) => (false, Reason::PromotionEligible),
        _ => (false, Reason::Observing),
    };
    Condition { kind: ConditionKind::Strict, holds, reason, detail: String::new() }
}

/// When something is due although nothing changes.
fn wake_at(turn: &Turn<'_>) -> Option<Millis> {
    let spec = &turn.facts.spec;
    let at = match turn.memory.phase {
        Phase::Watching => turn.quiet.due_at,
        Phase::Settling { since, .. } => since.map(|since| since.saturating_add(spec.settle)),
        Phase::Probation { since } => Some(since.saturating_add(spec.probation)),
        _ => None,
    };
    at.filter(|at| *at > turn.facts.now)
}
