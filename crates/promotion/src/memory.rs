//! What one step leaves to the next, and one leader to the next: written into the Posture's status.

use crate::coverage::Track;
use crate::facts::{Counts, Millis, Spec, Word};
use crate::outcome::State;
use cinch_reason::Reason;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// More doublings than this make no difference to anybody.
const MOST_DOUBLINGS: u32 = 10;

/// The machine's memory. Serialise it into status before acting on an outcome. The parts that are not
/// serialised only make a continuing leader more exact than a new one, never more lenient.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// Where the promotion stands.
    pub phase: Phase,
    /// The state that was shown last, so that each change of it is told once.
    pub state: State,
    /// From when quiet time counts; 0: the first window has not begun. It moves to each served plaintext, and
    /// forward by every pause.
    pub quiet_since: Millis,
    /// When the window began: it moves with plaintext and decisions, not with pauses. Names the evidence.
    pub window: Millis,
    /// The clock stands still since then: pods without sidecar, or no pods at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_since: Option<Millis>,
    /// Plaintext was open at the last full look.
    pub open: bool,
    /// Every pod has reported for all time up to here.
    pub observed_through: Millis,
    /// Short names of the pods that had to report then.
    pub reporting: Vec<String>,
    /// Pod-milliseconds of the window for which nobody can speak.
    pub unobserved: Millis,
    /// The same as wall time: pods that were lost together count once.
    pub unobserved_wall: Millis,
    /// When the lock was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked_since: Option<Millis>,
    /// Refusals up to here may be the lock's own, whoever was refused.
    pub locked_until: Millis,
    /// Rollbacks since the last decision of a person.
    pub rollbacks: u32,
    /// The running promotion required injection by itself, so it may take that back.
    pub required_injection: bool,
    /// Workloads that were served plaintext here: `namespace/kind/name`.
    pub served: Vec<String>,
    /// Workloads that were only ever refused before the lock: not served after it, so no reason to go back.
    pub refused: Vec<String>,
    /// All plaintext ever counted, and the sums at the beginning of the window.
    pub total: Counts,
    /// See `total`.
    pub base: Counts,
    /// The newest served plaintext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_served: Option<Millis>,
    /// When TCP was last seen to pass by the proxy of each pod that is there, by short name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub bypass: BTreeMap<String, Millis>,
    /// When the redirect of each pod that is there was last found gone, by short name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub gone: BTreeMap<String, Millis>,
    /// Why the last attempt came to nothing; it stands until the next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<Notice>,
    /// Since when each blocker stands.
    pub since: BTreeMap<Reason, Millis>,

    /// How far each pod has reported; `None` in a new leader.
    #[serde(skip)]
    pub(crate) tracks: Option<BTreeMap<String, Track>>,
    /// What to add to this leader's sums; `None` until all pods have reported to it.
    #[serde(skip)]
    pub(crate) offset: Option<Counts>,
}

/// Why the last attempt came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// The word.
    pub reason: Reason,
    /// What was seen.
    pub detail: String,
    /// The object that it is about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reference: Option<String>,
}

/// Where a promotion stands. Steps are recognised by the namespace's labels, so a repeated or lost write does
/// no harm.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all_fields = "camelCase")]
pub enum Phase {
    /// The gates decide.
    #[default]
    Watching,
    /// Injection is being required; the lock follows when the time has passed.
    Settling {
        /// When injection was seen to be required.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        since: Option<Millis>,
        /// When it was decided.
        decided: Millis,
    },
    /// The lock stands; proxies acknowledge it.
    Acknowledging {
        /// When the lock was seen.
        since: Millis,
    },
    /// The lock is in force and may go back.
    Probation {
        /// When all had acknowledged.
        since: Millis,
    },
    /// The labels are being taken back.
    TakingBack,
    /// Locked for good.
    Strict {
        /// A user set the lock.
        by_user: bool,
    },
    /// A person took the lock away.
    Relaxed {
        /// What `spec.promotion` said then; when it says something else, it begins anew.
        #[serde(default)]
        word: Word,
    },
    /// Rolled back too often.
    NeedsDecision {
        /// What `spec.promotion` said then; when it says something else, it begins anew.
        #[serde(default)]
        word: Word,
    },
}

impl Phase {
    /// The times in it.
    fn times(&mut self) -> impl Iterator<Item = &mut Millis> {
        let (since, decided) = match self {
            Phase::Settling { since, decided } => (since.as_mut(), Some(decided)),
            Phase::Acknowledging { since } | Phase::Probation { since } => (Some(since), None),
            Phase::Watching
            | Phase::TakingBack
            | Phase::Strict { .. }
            | Phase::Relaxed { .. }
            | Phase::NeedsDecision { .. } => (None, None),
        };
        since.into_iter().chain(decided)
    }
}

impl Memory {
    /// Short names ([`short`]) of the pods whose reports are followed, for [`crate::Facts::departures`].
    pub fn tracked(&self) -> impl Iterator<Item = &str> {
        self.tracks.iter().flatten().map(|(uid, _)| uid.as_str())
    }

    /// The quiet period with its doublings: nothing older than that counts.
    #[must_use]
    pub fn period(&self, spec: &Spec) -> Millis {
        spec.quiet.saturating_mul(1 << self.rollbacks.min(MOST_DOUBLINGS))
    }

    /// Whether a promotion of the namespace is under way.
    #[must_use]
    pub fn under_way(&self) -> bool {
        self.under_way_since().is_some()
    }

    /// Whether its promotion keeps others from theirs: while it is under way, but not for longer than `longest`. A spec
    /// may ask for a probation of years, and where nobody reports any more none ends.
    #[must_use]
    pub fn holds_slot(&self, now: Millis, longest: Millis) -> bool {
        self.under_way_since().is_some_and(|since| now < since.saturating_add(longest))
    }

    fn under_way_since(&self) -> Option<Millis> {
        match self.phase {
            Phase::Settling { decided, .. } => Some(decided),
            Phase::Acknowledging { since } | Phase::Probation { since } => Some(since),
            Phase::TakingBack => Some(self.locked_since.unwrap_or(self.window)),
            Phase::Watching | Phase::Strict { .. } | Phase::Relaxed { .. } | Phase::NeedsDecision { .. } => {
                None
            }
        }
    }

    /// Whether `other` differs in anything that the next leader could miss. How far the evidence reaches may
    /// lag by `slack`: a new leader then only takes less for granted.
    #[must_use]
    pub fn needs_writing(&self, written: &Memory, slack: Millis) -> bool {
        if self.observed_through.abs_diff(written.observed_through) > slack {
            return true;
        }
        let mut aligned = self.clone();
        aligned.observed_through = written.observed_through;
        aligned.tracks.clone_from(&written.tracks);
        aligned.offset = written.offset;
        aligned != *written
    }

    /// The clock was set forward by `by`: so much of the time that seems to have passed has not. What waits for time to
    /// pass waits as long as before, and what counts for a time counts as long.
    pub fn skip(&mut self, by: Millis) {
        let later = |time: &mut Millis| *time = time.saturating_add(by);
        if self.quiet_since > 0 {
            later(&mut self.quiet_since);
        }
        self.held_since
            .iter_mut()
            .chain(self.bypass.values_mut())
            .chain(self.gone.values_mut())
            .for_each(later);
        self.phase.times().for_each(later);
    }

    /// Brings back to `now` what seems to come after it: the clock was set back, or another leader's was ahead. Else no
    /// refusal would come after the lock, and no phase would end, until the clock is there again. When something was
    /// last seen stays: it only counts for longer, and must not seem to be news.
    pub(crate) fn not_after(&mut self, now: Millis) {
        let back = |time: &mut Millis| *time = now.min(*time);
        [&mut self.quiet_since, &mut self.window, &mut self.observed_through].into_iter().for_each(back);
        let held = self.held_since.iter_mut().chain(&mut self.locked_since);
        held.chain(self.since.values_mut()).for_each(back);
        self.phase.times().for_each(back);
        self.tracks.iter_mut().flat_map(BTreeMap::values_mut).for_each(|track| track.not_after(now));
    }

    /// Begins a new window at `now`.
    pub(crate) fn restart(&mut self, now: Millis) {
        self.quiet_since = now;
        self.window = now;
        self.unobserved = 0;
        self.unobserved_wall = 0;
        if let Some(since) = &mut self.held_since {
            *since = now.max(*since);
        }
    }
}

/// The part of a pod's UID that is remembered: enough to tell the pods of a namespace apart.
#[must_use]
pub fn short(uid: &str) -> &str {
    uid.get(..13).unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promotion_holds_its_slot_while_it_is_under_way_and_not_for_ever() {
        let longest = 1_000;
        let with = |phase| Memory { phase, locked_since: Some(50), ..Memory::default() };
        let cases = [
            ("settling", with(Phase::Settling { since: None, decided: 100 }), 100),
            ("acknowledging", with(Phase::Acknowledging { since: 200 }), 200),
            ("probation", with(Phase::Probation { since: 300 }), 300),
            ("going back", with(Phase::TakingBack), 50),
        ];
        for (case, memory, since) in cases {
            assert!(memory.under_way() && memory.holds_slot(since + longest - 1, longest), "{case}");
            assert!(!memory.holds_slot(since + longest, longest), "{case}");
        }
        for phase in
            [Phase::Watching, Phase::Strict { by_user: false }, Phase::Relaxed { word: Word::Unwritten }]
        {
            let memory = with(phase);
            assert!(!memory.under_way() && !memory.holds_slot(60, longest));
        }
    }

    #[test]
    fn what_an_earlier_version_noted_of_a_relaxed_namespace_is_no_decision() {
        let read: Phase = serde_json::from_str(r#"{"name": "Relaxed", "generation": 3}"#).unwrap();
        assert_eq!(read, Phase::Relaxed { word: Word::Unknown });
        let written = Phase::Relaxed { word: Word::Written(crate::Policy::Automatic) };
        let text = serde_json::to_string(&written).unwrap();
        assert_eq!(serde_json::from_str::<Phase>(&text).unwrap(), written, "{text}");
    }
}
