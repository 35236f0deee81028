//! An outcome as the status of a Posture.

use cinch_api::{
    Blocker, BrokenPolicy, Debt, EvidenceStatus, Offender, PlaintextStatus, PodCounts, Posture, PostureMode,
    PostureState, PostureStatus,
};
use cinch_promotion::{ConditionKind, Facts, Millis, Outcome, Source, SourceName, State};
use cinch_reason::Reason;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// A time of the API from Unix milliseconds; 0 is "never".
pub(super) fn time(millis: Millis) -> Option<Time> {
    let signed = i64::try_from(millis).ok().filter(|millis| *millis > 0)?;
    jiff::Timestamp::from_millisecond(signed).ok().map(Time)
}

/// The status to show; `before` gives the times of conditions that have not changed.
pub(super) fn of(outcome: &Outcome, facts: &Facts, before: Option<&PostureStatus>) -> PostureStatus {
    let memory = &outcome.memory;
    let narrow = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    PostureStatus {
        observed_generation: Some(facts.spec.generation),
        mode: Some(if facts.namespace.locked { PostureMode::Strict } else { PostureMode::Permissive }),
        state: Some(state(outcome.state)),
        quiet_since: time(memory.quiet_since),
        locked_since: memory.locked_since.filter(|_| facts.namespace.locked).and_then(time),
        pods: Some(PodCounts {
            total: narrow(outcome.pods.total),
            injected: narrow(outcome.pods.injected),
            reporting: narrow(outcome.pods.reporting),
        }),
        meshed: Some(format!("{}/{}", outcome.pods.injected, outcome.pods.total)),
        plaintext: Some(PlaintextStatus {
            served: outcome.plaintext.served,
            open: facts.plaintext.open,
            denied: outcome.plaintext.denied,
            no_listener: outcome.plaintext.no_listener,
            empty: outcome.plaintext.empty,
            last_time: memory.last_served.and_then(time),
        }),
        evidence: Some(EvidenceStatus {
            observed_through: time(outcome.evidence.observed_through),
            unobserved_seconds: outcome.evidence.unobserved_seconds,
            hash: outcome.evidence.hash.clone(),
        }),
        blockers: outcome.blockers.iter().filter_map(blocker).collect(),
        blocked_by: blocked_by(outcome),
        offenders: outcome.offenders.iter().map(offender).collect(),
        debt: outcome
            .debt
            .iter()
            .map(|(reason, detail)| Debt { reason: reason.to_string(), message: message(*reason, detail) })
            .collect(),
        policies: Vec::new(),
        conditions: conditions(outcome, facts, before),
        promotion: serde_json::to_value(memory).ok(),
    }
}

/// Word, sentence, what was seen, hint.
pub(super) fn message(reason: Reason, detail: &str) -> String {
    if detail.is_empty() { reason.message() } else { reason.message_with(detail) }
}

/// The machine's state in the API's words.
pub(super) fn state(state: State) -> PostureState {
    match state {
        State::Observing => PostureState::Observing,
        State::Blocked => PostureState::Blocked,
        State::Eligible => PostureState::Eligible,
        State::Probation => PostureState::Probation,
        State::Strict => PostureState::Strict,
        State::RolledBack => PostureState::RolledBack,
        State::Relaxed => PostureState::Relaxed,
    }
}

fn blocker(blocker: &cinch_promotion::Blocker) -> Option<Blocker> {
    Some(Blocker {
        reason: blocker.reason.to_string(),
        message: message(blocker.reason, &blocker.detail),
        since: time(blocker.since)?,
        reference: blocker.reference.clone(),
    })
}

/// `PodsNotInjected +1`: short enough for a column.
fn blocked_by(outcome: &Outcome) -> Option<String> {
    let first = outcome.blockers.first()?.reason;
    Some(match outcome.blockers.len() - 1 {
        0 => first.to_string(),
        more => format!("{first} +{more}"),
    })
}

fn offender(source: &Source) -> Offender {
    let mut offender = Offender {
        port: source.port,
        count: source.counts.served,
        denied: source.counts.denied,
        last_seen: source.last_seen.and_then(time),
        reported_by: source.reported_by.clone(),
        ..Offender::default()
    };
    match &source.name {
        SourceName::Workload { kind, .. } => {
            offender.workload = Some(source.name.to_string());
            offender.kind = Some(kind.clone());
        }
        SourceName::Node(name) => offender.node = Some(name.clone()),
        SourceName::External(address) => offender.external = Some(address.clone()),
    }
    offender
}

fn conditions(outcome: &Outcome, facts: &Facts, before: Option<&PostureStatus>) -> Vec<Condition> {
    outcome
        .conditions
        .iter()
        .map(|of| condition(of.kind.as_str(), of.holds, (of.reason, &of.detail), facts, before))
        .collect()
}

/// A condition, with the time of its last change.
fn condition(
    kind: &str,
    holds: bool,
    (reason, detail): (Reason, &str),
    facts: &Facts,
    before: Option<&PostureStatus>,
) -> Condition {
    let now = || time(facts.now).unwrap_or(Time(jiff::Timestamp::UNIX_EPOCH));
    let status = if holds { "True" } else { "False" };
    let known = before.map(|status| status.conditions.as_slice()).unwrap_or_default();
    let same = known.iter().find(|known| known.type_ == kind && known.status == status);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_string(),
        message: message(reason, detail),
        observed_generation: Some(facts.spec.generation),
        last_transition_time: same.map_or_else(now, |same| same.last_transition_time.clone()),
    }
}

/// The status with the policies that can't be used as they are. They close what they select, which stands against
/// no promotion, but people must see it. While they are not known (`None`), what was told before stays.
pub(super) fn with_policies(
    mut status: PostureStatus,
    broken: Option<Vec<BrokenPolicy>>,
    facts: &Facts,
    before: Option<&PostureStatus>,
) -> PostureStatus {
    let told = || before.map(|status| status.policies.clone()).unwrap_or_default();
    let broken = broken.unwrap_or_else(told);
    let usable = broken.is_empty();
    let reason = if usable { Reason::PoliciesUsable } else { Reason::PoliciesBroken };
    let named: Vec<&str> = broken.iter().map(|policy| policy.reference.as_str()).collect();
    status.conditions.push(condition("PoliciesUsable", usable, (reason, &named.join(", ")), facts, before));
    status.policies = broken;
    status
}

/// Whether a Posture still says something about its namespace.
pub(super) fn speaks(posture: &Posture) -> bool {
    posture.status.as_ref().is_some_and(|status| status.state.is_some() || status.promotion.is_some())
}

/// The status in a namespace that has left the mesh: nothing is known any more, and nothing is remembered.
pub(super) fn not_enrolled(posture: &Posture) -> PostureStatus {
    let generation = posture.metadata.generation;
    let now = time(super::facts::now()).unwrap_or(Time(jiff::Timestamp::UNIX_EPOCH));
    PostureStatus {
        observed_generation: generation,
        blocked_by: Some(Reason::NotEnrolled.to_string()),
        conditions: vec![Condition {
            type_: ConditionKind::Ready.as_str().to_owned(),
            status: "False".to_owned(),
            reason: Reason::NotEnrolled.to_string(),
            message: Reason::NotEnrolled.message(),
            observed_generation: generation,
            last_transition_time: now,
        }],
        ..PostureStatus::default()
    }
}

/// What a reader would notice: everything but how far the evidence reaches and the machine's memory.
pub(super) fn shows_the_same(a: &PostureStatus, b: &PostureStatus) -> bool {
    let readable = |status: &PostureStatus| {
        let mut status = status.clone();
        status.promotion = None;
        if let Some(evidence) = &mut status.evidence {
            evidence.observed_through = None;
        }
        status
    };
    readable(a) == readable(b)
}
