//! One round over all enrolled namespaces: decide, persist, act.

use super::clock::Clock;
use super::facts::{self, Gathered};
use super::pins::Pins;
use super::record::Record;
use super::watch::Postures;
use super::{Parts, pace, slot, status, workloads, write};
use crate::index::NamespaceInfo;
use cinch_api::names::PROMOTION_ANNOTATION;
use cinch_api::{Posture, PostureStatus};
use cinch_promotion::{Action, Facts, Memory, Millis, Outcome, Slot, State, step};
use kube::ResourceExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// What stands still when rounds do.
const ROOM: &str = "the postures";
/// A status is written at most so often for itself.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// A pod's last word is looked for so long after it has gone.
const GONE_FOR: Duration = Duration::from_secs(30);

/// What this leader knows of one namespace.
#[derive(Default)]
struct Held {
    memory: Memory,
    /// What is in status, as far as we wrote or read it.
    written: Option<(Option<String>, Memory, PostureStatus)>,
    written_at: Option<Instant>,
    /// The pods of the last round.
    pods: BTreeSet<Arc<str>>,
    gone: BTreeMap<Arc<str>, Instant>,
}

/// The controller's state between rounds.
pub(super) struct Room {
    pub(super) parts: Parts,
    pub(super) postures: Postures,
    pins: Pins,
    record: Record,
    clock: Clock,
    held: BTreeMap<String, Held>,
}

impl Room {
    pub(super) fn new(parts: Parts, postures: Postures) -> Self {
        let record = Record::new(parts.client.clone(), &parts.settings.pod.name, &parts.metrics);
        let (pins, clock) = (Pins::default(), Clock::default());
        Room { parts, postures, pins, record, clock, held: BTreeMap::new() }
    }

    /// Everything has been listed once; before, nothing can be said of anything.
    pub(super) fn ready(&self) -> bool {
        self.parts.index.synced() && self.postures.synced()
    }

    /// Looks at every enrolled namespace once; the longest time to wait for the next round.
    pub(super) async fn round(&mut self) -> Duration {
        self.parts.pulse.beat(ROOM);
        self.pins = Pins::now(&self.parts.index);
        let enrolled = self.parts.index.enrolled();
        self.forget_others(&enrolled).await;
        let mut known = Vec::new();
        for namespace in enrolled {
            self.parts.pulse.beat(ROOM);
            let Some(info) = self.parts.index.namespace(&namespace) else { continue };
            match self.postures.of(&namespace) {
                Some(posture) => {
                    self.held.entry(namespace).or_insert_with(|| Held::read(&posture));
                    known.push((info, posture));
                }
                None => {
                    if let Err(error) = write::create(&self.parts.client, &namespace).await {
                        warn!(namespace, %error, "the Posture could not be made and is tried again");
                    }
                }
            }
        }
        let mut next = pace(&self.parts.settings);
        let mut states = Vec::new();
        for (info, posture) in &known {
            self.parts.pulse.beat(ROOM);
            let (state, wake_at) = self.look(info, posture).await;
            states.push(state);
            if let Some(wake_at) = wake_at {
                next = next.min(Duration::from_millis(wake_at.saturating_sub(facts::now())));
            }
        }
        self.record.count(&states);
        next
    }

    /// Namespaces that left: a Posture that only we wrote goes with them, another one falls silent, and our
    /// annotation goes.
    async fn forget_others(&mut self, enrolled: &[String]) {
        self.held.retain(|namespace, _| enrolled.contains(namespace));
        for namespace in self.postures.namespaces() {
            self.parts.pulse.beat(ROOM);
            if enrolled.contains(&namespace) {
                continue;
            }
            let Some(info) = self.parts.index.namespace(&namespace).filter(|info| !info.terminating) else {
                continue;
            };
            let Some(posture) = self.postures.of(&namespace) else { continue };
            let written = if write::is_ours(&posture) {
                write::delete(&self.parts.client, &namespace, &posture).await
            } else if status::speaks(&posture) {
                write::status(&self.parts.client, &namespace, &status::not_enrolled(&posture)).await
            } else {
                Ok(())
            };
            if let Err(error) = written {
                warn!(namespace, %error, "the Posture of a namespace that left could not be cleared and is tried again");
            }
            if info.annotations.contains_key(PROMOTION_ANNOTATION) {
                self.act(&info, Action::FinishProbation).await;
            }
        }
    }

    /// Whether `namespace` may begin a promotion beside all others, whose memories were brought to `now`.
    fn slot(&self, namespace: &str, now: Millis) -> Slot {
        let annotated = |name: &str| {
            let info = self.parts.index.namespace(name);
            info.is_some_and(|info| info.annotations.contains_key(PROMOTION_ANNOTATION))
        };
        let others = self.held.iter().filter(|(name, _)| *name != namespace);
        let others = others.map(|(name, held)| (&held.memory, annotated(name)));
        slot::beside(others, &self.parts.settings.promotion, now)
    }

    /// The time to judge by. Of what a clock that was set forward seems to say nothing counts as observed.
    fn now(&mut self) -> Millis {
        let now = facts::now();
        let skipped = self.clock.set_forward(now, Instant::now());
        if skipped > 0 {
            warn!(
                seconds = skipped / 1_000,
                "the clock was set forward: quiet periods and probations wait as long as before"
            );
            self.held.values_mut().for_each(|held| held.memory.skip(skipped));
        }
        now
    }

    async fn look(&mut self, info: &NamespaceInfo, posture: &Posture) -> (State, Option<Millis>) {
        let name = info.name.to_string();
        // First of all: where the clock was set forward, what others began is as young as before.
        let now = self.now();
        let slot = self.slot(&name, now);
        let Some(held) = self.held.get_mut(&name) else { return (State::Observing, None) };
        let pods = self.parts.index.pods_in(&name);
        held.follow(pods.iter().map(|pod| Arc::clone(&pod.uid)).collect());
        let gone = held.gone.keys().cloned().collect();
        let mut findings = self.pins.of(&name);
        let refused = self.parts.accounts.refused_when_locked(&name);
        findings.extend(workloads::findings(refused, info.host_network_allowed));
        let gathered = Gathered { now, memory: &held.memory, pods, findings, slot, gone };
        let facts = facts::gather(&self.parts, info, posture, gathered);
        let outcome = step(&facts, &held.memory);
        held.memory = outcome.memory.clone();
        let persisted = self.persist(&name, posture, &facts, &outcome).await;
        for event in &outcome.events {
            self.record.tell(&name, posture, event).await;
        }
        if let Some(action) = outcome.action
            && persisted
            && self.still_true(&name, &facts, action).await
        {
            self.act(info, action).await;
        }
        (outcome.state, outcome.wake_at)
    }

    /// Writes the status when it must be; whether the API now holds what the next leader needs.
    async fn persist(&mut self, name: &str, posture: &Posture, facts: &Facts, outcome: &Outcome) -> bool {
        let Some(held) = self.held.get_mut(name) else { return false };
        let before = held.written.as_ref().map(|(_, _, status)| status).or(posture.status.as_ref());
        let broken = self.parts.broken.of(name);
        let status = status::with_policies(status::of(outcome, facts, before), broken, facts, before);
        let uid = posture.uid();
        let (needed, shown) = match &held.written {
            Some((of, memory, written)) if *of == uid => {
                (outcome.memory.needs_writing(memory, slack(facts)), status::shows_the_same(&status, written))
            }
            _ => (true, false),
        };
        if !needed && shown {
            return true;
        }
        let urgent = outcome.action.is_some() || !outcome.events.is_empty();
        let recent = held.written_at.is_some_and(|at| at.elapsed() < WRITE_EVERY);
        if recent && !urgent {
            return !needed;
        }
        held.written_at = Some(Instant::now());
        match write::status(&self.parts.client, name, &status).await {
            Ok(()) => {
                held.written = Some((uid, outcome.memory.clone(), status));
                true
            }
            Err(error) => {
                warn!(namespace = name, %error, "the status of the Posture could not be written and is tried again");
                false
            }
        }
    }

    /// Before a lock, the index must know every pod that the API server knows.
    async fn still_true(&self, namespace: &str, facts: &Facts, action: Action) -> bool {
        if action != Action::Lock {
            return true;
        }
        match write::pods_now(&self.parts.client, namespace).await {
            Ok(listed) => {
                let known: BTreeSet<&str> = facts.pods.iter().map(|pod| pod.uid.as_str()).collect();
                let news = listed.iter().find(|uid| !known.contains(uid.as_str()));
                if let Some(uid) = news {
                    info!(namespace, pod = uid, "a pod came up just now: the lock waits for it");
                }
                news.is_none()
            }
            Err(error) => {
                warn!(namespace, %error, "the pods could not be listed before the lock; tried again");
                false
            }
        }
    }

    async fn act(&self, info: &NamespaceInfo, action: Action) {
        match write::act(&self.parts.client, info, action).await {
            Ok(()) => info!(namespace = &*info.name, ?action, "the namespace was written"),
            // The watch brings what changed, and the next round decides on that.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                debug!(namespace = &*info.name, ?action, "the namespace has changed meanwhile");
            }
            Err(error) => {
                warn!(namespace = &*info.name, ?action, %error, "the namespace could not be written and is tried again");
            }
        }
    }
}

impl Held {
    /// What an earlier leader left in status.
    fn read(posture: &Posture) -> Self {
        let Some(status) = &posture.status else { return Held::default() };
        let value = status.promotion.clone().unwrap_or_default();
        match serde_json::from_value::<Option<Memory>>(value) {
            Ok(memory) => {
                let memory = memory.unwrap_or_default();
                let written = Some((posture.uid(), memory.clone(), status.clone()));
                Held { memory, written, ..Held::default() }
            }
            Err(error) => {
                let namespace = posture.namespace().unwrap_or_default();
                warn!(namespace, %error, "status.promotion can not be read; the quiet period begins anew");
                Held::default()
            }
        }
    }

    /// Notes which pods have gone since the last round.
    fn follow(&mut self, pods: BTreeSet<Arc<str>>) {
        let now = Instant::now();
        self.gone.retain(|_, since| now.duration_since(*since) < GONE_FOR);
        for uid in self.pods.difference(&pods) {
            self.gone.insert(Arc::clone(uid), now);
        }
        self.pods = pods;
    }
}

/// How far the persisted reach of the evidence may lag: a new leader then counts at most this much more of a
/// vanished pod's time as unobserved. A twentieth of the quiet period, between a second and a minute.
fn slack(facts: &Facts) -> Millis {
    (facts.spec.quiet / 20).clamp(1_000, 60_000)
}
