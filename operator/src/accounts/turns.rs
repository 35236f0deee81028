//! In which order steps are carried out: one of each namespace, then the next of each, so that nobody's thousand workloads
//! stand before another's one. Steps that were not tried yet come first, then those that were tried the longest ago:
//! what fails each time keeps nothing else waiting. In go the steps of a plan; out comes the next.

use super::plan::{Step, Wanted};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Steps between two plans, whatever becomes of them. Who comes meanwhile waits for no more than these: the webhook
/// waits for 2 s.
const IN_A_ROUND: usize = 64;
/// So long a round may last where the API server is slow.
const ROUND: Duration = Duration::from_millis(500);
/// The round in which a step was passed over that was never tried.
const PASSED_OVER: u64 = 1;

/// In which round each step of the last plan was tried last, by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Tried {
    round: u64,
    steps: BTreeMap<(String, String), u64>,
}

/// A step, and in which round it was tried last; 0: never.
type Due<'a> = (u64, &'a Step);

/// The steps of a round that are still to be tried.
#[derive(Debug)]
pub(super) struct Turns<'a> {
    tried: &'a mut Tried,
    queues: VecDeque<VecDeque<Due<'a>>>,
    /// The namespace whose turn it is, with what comes after the step at hand.
    at_hand: Option<VecDeque<Due<'a>>>,
    done: usize,
    end: Instant,
}

impl<'a> Turns<'a> {
    /// All of a plan, in a round that begins `now`.
    pub(super) fn new(steps: &'a [Step], tried: &'a mut Tried, now: Instant) -> Self {
        tried.round = tried.round.max(PASSED_OVER) + 1;
        let planned: BTreeSet<_> = steps.iter().map(key).collect();
        tried.steps.retain(|step, _| planned.contains(step));
        let mut by_namespace: BTreeMap<&str, Vec<Due<'_>>> = BTreeMap::new();
        for step in steps {
            let last = tried.steps.get(&key(step)).copied().unwrap_or_default();
            by_namespace.entry(&wanted(step).namespace).or_default().push((last, step));
        }
        let mut queues: Vec<_> = by_namespace.into_values().collect();
        for queue in &mut queues {
            queue.sort_by_key(|(last, _)| *last);
        }
        queues.sort_by_key(|queue| {
            let rounds = || queue.iter().map(|(last, _)| *last);
            if rounds().any(|last| last == 0) { 0 } else { rounds().max().unwrap_or_default() }
        });
        let queues = queues.into_iter().map(VecDeque::from).collect();
        Self { tried, queues, at_hand: None, done: 0, end: now + ROUND }
    }

    /// The next step, until the round is over. The namespace of the one before comes last again.
    pub(super) fn next(&mut self, now: Instant) -> Option<&'a Step> {
        self.queues.extend(self.at_hand.take().filter(|rest| !rest.is_empty()));
        if self.done >= IN_A_ROUND || now >= self.end {
            return None;
        }
        let mut queue = self.queues.pop_front()?;
        let (_, step) = queue.pop_front()?;
        self.done += 1;
        self.tried.steps.insert(key(step), self.tried.round);
        self.at_hand = Some(queue);
        Some(step)
    }

    /// The step at hand failed in a way that others of its namespace would, such as by a quota: they are for the next
    /// round, and come first there.
    pub(super) fn stop_namespace(&mut self) {
        for (last, step) in self.at_hand.take().into_iter().flatten() {
            self.tried.steps.insert(key(step), last.max(PASSED_OVER));
        }
    }

    /// Whether steps were never tried, though they might have been carried out.
    pub(super) fn is_more(&self) -> bool {
        self.queues.iter().flatten().any(|(last, _)| *last == 0)
    }

    /// Whether none are left.
    pub(super) fn is_done(&self) -> bool {
        self.queues.is_empty()
    }
}

/// What a step is about.
pub(super) fn wanted(step: &Step) -> &Wanted {
    let (Step::Create(wanted) | Step::Correct(wanted, _)) = step;
    wanted
}

fn key(step: &Step) -> (String, String) {
    let Wanted { namespace, name, .. } = wanted(step);
    (namespace.clone(), name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cinch_injection::{Owner, OwnerKind};

    fn steps(namespace: &str, count: usize) -> Vec<Step> {
        let wanted = |number: usize| Wanted {
            namespace: namespace.to_owned(),
            name: format!("{number:03}"),
            owner: Owner { kind: OwnerKind::Deployment, name: "web".to_owned() },
            owner_api_version: String::new(),
            owner_uid: String::new(),
            automount: None,
            pull_secrets: Vec::new(),
        };
        (0..count).map(|number| Step::Create(wanted(number))).collect()
    }

    /// Plays the next round, in which the first step of namespaces stops them whose names begin with `stopped`.
    fn next_round(tried: &mut Tried, steps: &[Step], stopped: Option<&str>) -> (Vec<String>, bool) {
        let now = Instant::now();
        let (mut turns, mut asked) = (Turns::new(steps, tried, now), Vec::new());
        while let Some(step) = turns.next(now) {
            let Wanted { namespace, name, .. } = wanted(step);
            asked.push(format!("{namespace}/{name}"));
            if stopped.is_some_and(|stopped| namespace.starts_with(stopped)) {
                turns.stop_namespace();
            }
        }
        (asked, turns.is_more())
    }

    fn round(steps: &[Step], stopped: Option<&str>) -> (Vec<String>, bool) {
        next_round(&mut Tried::default(), steps, stopped)
    }

    #[test]
    fn namespaces_take_turns_and_a_round_ends() {
        let all = [steps("greedy", 5_000), steps("shop", 2), steps("bank", 1)].concat();
        let (tried, more) = round(&all, None);
        assert_eq!(tried[..5], ["bank/000", "greedy/000", "shop/000", "greedy/001", "shop/001"]);
        assert_eq!((tried.len(), more), (IN_A_ROUND, true));
        assert!(!round(&steps("shop", IN_A_ROUND), None).1);
    }

    #[test]
    fn a_namespace_that_may_have_no_more_is_asked_for_once_a_round() {
        let all = [steps("greedy", 5_000), steps("shop", 2)].concat();
        let (tried, more) = round(&all, Some("greedy"));
        assert_eq!(
            (tried, more),
            (["greedy/000", "shop/000", "shop/001"].map(str::to_owned).to_vec(), false)
        );
    }

    #[test]
    fn who_fails_each_time_keeps_nobody_waiting_who_was_not_tried() {
        let failing: Vec<Step> = (0..100).flat_map(|number| steps(&format!("greedy-{number}"), 3)).collect();
        let (mut tried, mut all) = (Tried::default(), [failing.clone(), steps("shop", 1)].concat());
        let mut next = |all: &[Step]| next_round(&mut tried, all, Some("greedy"));
        let (asked, more) = next(&all);
        assert_eq!((asked.len(), more), (IN_A_ROUND, true), "what fails is asked for too");
        let (asked, more) = next(&all);
        assert!(asked.contains(&"shop/000".to_owned()) && !more, "{asked:?}");
        all.extend(steps("web", 1));
        assert_eq!(next(&all).0[0], "web/000");
        let later: BTreeSet<String> = (0..8).flat_map(|_| next(&failing).0).collect();
        assert_eq!(later.len(), 300, "each of them has its turn");
    }

    #[test]
    fn a_step_that_fails_each_time_keeps_none_of_its_namespace_waiting() {
        let (mut tried, all) = (Tried::default(), steps("shop", 3));
        let mut next = || next_round(&mut tried, &all, Some("shop")).0;
        let expected = ["000", "001", "002", "000"].map(|name| format!("shop/{name}"));
        assert_eq!([next(), next(), next(), next()].concat(), expected);
    }

    #[test]
    fn a_round_ends_by_time_as_well() {
        let (all, mut tried, now) = (steps("shop", 3), Tried::default(), Instant::now());
        let mut turns = Turns::new(&all, &mut tried, now);
        assert!(turns.next(now).is_some() && turns.next(now + ROUND).is_none());
        assert!(turns.is_more() && !turns.is_done());
    }
}
