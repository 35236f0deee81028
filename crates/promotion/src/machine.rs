//! The steps of a promotion, in order, and the way back.
//!
//! `Watching -> Settling -> Acknowledging -> Probation -> Strict`; `TakingBack` leads from any of the middle
//! ones to `Watching` or `NeedsDecision`; a person leads from the locked ones to `Relaxed`.

use crate::bypass;
use crate::clock::{self, Quiet};
use crate::coverage::{self, Coverage};
use crate::facts::{Facts, Millis, Policy, Slot, Word};
use crate::gates::{self, Gate, Weight};
use crate::gone;
use crate::memory::{Memory, Notice, Phase};
use crate::outcome::{Action, Event, EventKind, Injection, Outcome};
use crate::probation;
use crate::report;
use cinch_reason::Reason;

/// How long proxies may take to acknowledge the lock. A push takes milliseconds; a reconnect some seconds.
const ACKNOWLEDGE_WITHIN: Millis = 30_000;
/// A promotion that can't go on gives its slot back after ten settle times, or this.
const SETTLE_AT_MOST: Millis = 120_000;
/// So many rollbacks, and a person has to decide.
const ROLLBACKS_BEFORE_DECISION: u32 = 2;

/// One step: what `facts` mean after `memory`.
#[must_use]
pub fn step(facts: &Facts, memory: &Memory) -> Outcome {
    let mut memory = memory.clone();
    memory.not_after(facts.now);
    let coverage = coverage::observe(&mut memory, facts);
    probation::remember(&mut memory, facts);
    bypass::remember(&mut memory, facts);
    let gone = gone::remember(&mut memory, facts);
    let quiet = clock::advance(&mut memory, facts, &coverage);
    let gates = gates::find(&memory, facts, &coverage, &quiet);
    let mut turn = Turn { facts, coverage, quiet, gates, memory, action: None, events: Vec::new() };
    if let Some(pods) = gone {
        turn.tell(Reason::RedirectWasGone, EventKind::Warning, pods);
    }
    turn.recognise();
    turn.decide();
    turn.finish()
}

/// A step in progress.
pub(crate) struct Turn<'a> {
    pub facts: &'a Facts,
    pub coverage: Coverage<'a>,
    pub quiet: Quiet,
    pub gates: Vec<Gate>,
    pub memory: Memory,
    pub action: Option<Action>,
    pub events: Vec<Event>,
}

impl Turn<'_> {
    /// Brings the phase in line with the labels: they are the truth, whoever wrote them.
    fn recognise(&mut self) {
        let namespace = &self.facts.namespace;
        match (namespace.locked, namespace.promotion) {
            (true, None) => self.locked_without_us(),
            (true, Some(started)) => self.locked_by_us(started),
            (false, promotion) => self.unlocked(promotion.is_some()),
        }
    }

    /// The lock without a running promotion: ours when it was done, else a person's.
    fn locked_without_us(&mut self) {
        match self.memory.phase {
            Phase::Strict { .. } => {}
            Phase::Probation { .. } | Phase::Acknowledging { .. } => {
                self.memory.phase = Phase::Strict { by_user: false };
            }
            _ => {
                self.memory.locked_since = Some(self.facts.now);
                self.memory.phase = Phase::Strict { by_user: true };
                self.memory.notice = None;
                self.tell(Reason::LockedByUser, EventKind::Normal, String::new());
            }
        }
    }

    fn locked_by_us(&mut self, started: Millis) {
        let now = self.facts.now;
        match self.memory.phase {
            Phase::Settling { .. } => self.memory.phase = Phase::Acknowledging { since: now },
            // The status was lost: what was observed before is gone, the lock and its time are not.
            Phase::Watching => {
                self.memory.locked_since = Some(started);
                self.memory.phase = Phase::Acknowledging { since: now };
            }
            Phase::Relaxed { .. } | Phase::NeedsDecision { .. } => {
                self.memory.phase = Phase::Strict { by_user: true };
            }
            Phase::Acknowledging { .. }
            | Phase::Probation { .. }
            | Phase::TakingBack
            | Phase::Strict { .. } => {}
        }
    }

    fn unlocked(&mut self, annotated: bool) {
        let word = self.facts.spec.word;
        match self.memory.phase {
            // Only `TakingBack` unlocks; anything else was a person.
            Phase::Acknowledging { .. } | Phase::Probation { .. } | Phase::Strict { .. } => {
                self.memory.phase = Phase::Relaxed { word };
                probation::unlocked(&mut self.memory, self.facts.now);
                self.memory.required_injection = false;
                let reason = self.facts.namespace.relax_reason.clone().unwrap_or_default();
                self.tell(Reason::RelaxedByUser, EventKind::Warning, reason);
            }
            Phase::TakingBack if !annotated => self.taken_back(),
            Phase::Relaxed { word: then } | Phase::NeedsDecision { word: then }
                if word.is_decision_since(then) =>
            {
                self.begin_anew();
            }
            // An earlier version noted something else: what stands there now is what stood there then.
            Phase::Relaxed { word: Word::Unknown } => self.memory.phase = Phase::Relaxed { word },
            Phase::NeedsDecision { word: Word::Unknown } => {
                self.memory.phase = Phase::NeedsDecision { word };
            }
            _ => {}
        }
    }

    fn taken_back(&mut self) {
        probation::unlocked(&mut self.memory, self.facts.now);
        self.memory.required_injection = false;
        self.memory.phase = if self.memory.rollbacks >= ROLLBACKS_BEFORE_DECISION {
            self.tell(Reason::NeedsDecision, EventKind::Warning, String::new());
            Phase::NeedsDecision { word: self.facts.spec.word }
        } else {
            Phase::Watching
        };
    }

    /// A person has decided: nothing that was before counts.
    fn begin_anew(&mut self) {
        self.memory.phase = Phase::Watching;
        self.memory.rollbacks = 0;
        self.memory.notice = None;
        self.memory.base = self.memory.total;
        self.memory.restart(self.facts.now);
        self.quiet = clock::advance(&mut self.memory, self.facts, &self.coverage);
        self.gates = gates::find(&self.memory, self.facts, &self.coverage, &self.quiet);
    }

    fn decide(&mut self) {
        match self.memory.phase.clone() {
            Phase::Watching => self.watch(),
            Phase::Settling { since, decided } => self.settle(since, decided),
            Phase::Acknowledging { since } => self.acknowledge(since),
            Phase::Probation { since } => self.probe(since),
            Phase::TakingBack => self.take_back(),
            Phase::Strict { .. } | Phase::Relaxed { .. } if self.facts.namespace.promotion.is_some() => {
                self.action = Some(Action::FinishProbation);
            }
            Phase::NeedsDecision { .. } if self.facts.namespace.promotion.is_some() => self.take_back(),
            Phase::Strict { .. } | Phase::Relaxed { .. } | Phase::NeedsDecision { .. } => {}
        }
    }

    fn watch(&mut self) {
        if self.facts.namespace.promotion.is_some() {
            // A promotion of which nothing is known but its annotation: it had not come to the lock.
            self.action = Some(Action::TakeBack { injection: Injection::Keep });
            return;
        }
        if self.quiet.elapsed {
            self.memory.notice = None;
        }
        let wanted = match self.facts.spec.policy {
            Policy::Automatic => true,
            Policy::Manual => gates::approved(&self.memory, self.facts),
            Policy::Paused => false,
        };
        let ready = self.quiet.elapsed && self.all_gates_hold() && self.coverage.is_full();
        if ready && self.coverage.unseen.is_empty() && wanted && self.facts.slot == Slot::Free {
            self.memory.required_injection = !self.facts.namespace.injection_required;
            self.memory.phase = Phase::Settling { since: None, decided: self.facts.now };
            self.action = Some(Action::RequireInjection { started: self.facts.now });
        }
    }

    fn settle(&mut self, since: Option<Millis>, decided: Millis) {
        let (facts, now) = (self.facts, self.facts.now);
        let settle = facts.spec.settle;
        let overdue = now.saturating_sub(decided) > settle.saturating_mul(10).max(SETTLE_AT_MOST);
        let blocked = self.gates.iter().any(|gate| gate.weight == Weight::Blocks && !is_passing(gate.reason));
        if overdue {
            // Others shall have the slot before it is tried again.
            self.memory.restart(now);
        }
        if blocked || overdue || facts.spec.policy == Policy::Paused {
            self.begin_to_take_back();
            return;
        }
        let in_place = facts.namespace.injection_required && facts.namespace.promotion.is_some();
        let Some(since) = since.or(in_place.then_some(now)) else {
            self.action = Some(Action::RequireInjection { started: decided });
            return;
        };
        self.memory.phase = Phase::Settling { since: Some(since), decided };
        if !in_place {
            self.action = Some(Action::RequireInjection { started: decided });
            return;
        }
        let settled = since.saturating_add(settle);
        let seen = self.coverage.unseen.is_empty() && self.coverage.reaches(settled);
        if now >= settled && self.quiet.elapsed && self.all_gates_hold() && seen {
            self.memory.locked_since.get_or_insert(now);
            self.action = Some(Action::Lock);
        }
    }

    fn acknowledge(&mut self, since: Millis) {
        if self.roll_back_for_broken_client() {
            return;
        }
        let pending = gates::pending_acknowledgements(self.facts);
        if pending.is_empty() && self.coverage.is_full() {
            self.memory.phase = Phase::Probation { since: self.facts.now };
            self.tell(Reason::PromotionStarted, EventKind::Normal, String::new());
        } else if self.facts.now.saturating_sub(since) > ACKNOWLEDGE_WITHIN {
            let detail = pending.iter().map(|pod| pod.name.as_str()).take(3).collect::<Vec<_>>().join(", ");
            let reference = pending.first().map(|pod| format!("pod/{}", pod.name));
            self.tell(Reason::LockNotAcknowledged, EventKind::Warning, detail.clone());
            self.memory.notice = Some(Notice { reason: Reason::LockNotAcknowledged, detail, reference });
            self.memory.restart(self.facts.now);
            self.begin_to_take_back();
        }
    }

    fn probe(&mut self, since: Millis) {
        if self.roll_back_for_broken_client() {
            return;
        }
        let end = since.saturating_add(self.facts.spec.probation);
        // A refusal may still be on its way: the last report of each pod must be younger than the end.
        if self.facts.now >= end && self.coverage.reaches(end) {
            self.memory.phase = Phase::Strict { by_user: false };
            self.memory.rollbacks = 0;
            self.memory.notice = None;
            self.action = Some(Action::FinishProbation);
            self.tell(Reason::PromotionCompleted, EventKind::Normal, String::new());
        }
    }

    fn roll_back_for_broken_client(&mut self) -> bool {
        let Some(source) = probation::broken_client(&self.memory, self.facts) else { return false };
        let detail = source.to_string();
        let reference = Some(source.name.to_string());
        self.tell(Reason::PromotionRolledBack, EventKind::Warning, detail.clone());
        self.memory.notice = Some(Notice { reason: Reason::PromotionRolledBack, detail, reference });
        probation::note_served(&mut self.memory, &source.name);
        self.memory.rollbacks += 1;
        self.memory.restart(self.facts.now);
        self.begin_to_take_back();
        true
    }

    fn begin_to_take_back(&mut self) {
        let untouched = !self.facts.namespace.locked && self.facts.namespace.promotion.is_none();
        self.memory.phase = Phase::TakingBack;
        if untouched {
            self.taken_back();
        } else {
            self.take_back();
        }
    }

    fn take_back(&mut self) {
        let injection = if self.memory.required_injection { Injection::TakeBack } else { Injection::Keep };
        self.action = Some(Action::TakeBack { injection });
    }

    pub(crate) fn all_gates_hold(&self) -> bool {
        !self.gates.iter().any(|gate| gate.weight == Weight::Blocks)
    }

    fn tell(&mut self, reason: Reason, kind: EventKind, detail: String) {
        self.events.push(Event { reason, kind, detail });
    }

    fn finish(mut self) -> Outcome {
        let waits = gates::waits(&self.memory, self.facts, &self.coverage, &self.quiet);
        self.gates.extend(waits);
        report::outcome(self)
    }
}

/// Gates that a running promotion waits out instead of giving up.
fn is_passing(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::PodsNotReporting
            | Reason::RedirectMissing
            | Reason::RedirectUnconfirmed
            | Reason::BypassUnknown
            | Reason::NodeUnreachable
    )
}
