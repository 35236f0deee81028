//! In which order steps are carried out: one of each namespace, then the next of each, so that nobody's thousand workloads
//! stand before another's one. In go the steps of a plan, and what became of each; out comes the next.

use super::plan::{Step, Wanted};
use std::collections::{BTreeMap, VecDeque};

/// Steps between two plans. Who comes meanwhile waits for no more than these: the webhook waits for 2 s.
const IN_A_ROUND: usize = 64;

/// The steps of a round that are still to be tried.
#[derive(Debug)]
pub(super) struct Turns<'a> {
    queues: VecDeque<VecDeque<&'a Step>>,
    /// The namespace whose turn it is, with what comes after the step at hand.
    at_hand: Option<VecDeque<&'a Step>>,
    done: usize,
}

impl<'a> Turns<'a> {
    /// All of a plan.
    pub(super) fn new(steps: &'a [Step]) -> Self {
        let mut by_namespace: BTreeMap<&str, VecDeque<&Step>> = BTreeMap::new();
        for step in steps {
            let (Step::Create(wanted) | Step::Correct(wanted, _)) = step;
            let Wanted { namespace, .. } = wanted;
            by_namespace.entry(namespace).or_default().push_back(step);
        }
        Self { queues: by_namespace.into_values().collect(), at_hand: None, done: 0 }
    }

    /// The next step, until the round is over. The namespace of the one before comes last again.
    pub(super) fn next(&mut self) -> Option<&'a Step> {
        self.queues.extend(self.at_hand.take().filter(|rest| !rest.is_empty()));
        if self.done >= IN_A_ROUND {
            return None;
        }
        let mut queue = self.queues.pop_front()?;
        let step = queue.pop_front();
        self.at_hand = Some(queue);
        step
    }

    /// The step at hand was carried out.
    pub(super) fn succeeded(&mut self) {
        self.done += 1;
    }

    /// The step at hand failed in a way that others of its namespace would, such as by a quota: they are for the next
    /// round.
    pub(super) fn stop_namespace(&mut self) {
        self.at_hand = None;
    }

    /// Whether steps were not tried, though they might have been carried out.
    pub(super) fn is_more(&self) -> bool {
        !self.queues.is_empty()
    }
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

    /// Plays a round in which all steps of namespaces fail whose names begin with `failing`.
    fn round(steps: &[Step], failing: Option<&str>) -> (Vec<String>, bool) {
        let (mut turns, mut tried) = (Turns::new(steps), Vec::new());
        while let Some(step) = turns.next() {
            let (Step::Create(wanted) | Step::Correct(wanted, _)) = step;
            tried.push(format!("{}/{}", wanted.namespace, wanted.name));
            let fails = failing.is_some_and(|failing| wanted.namespace.starts_with(failing));
            if fails { turns.stop_namespace() } else { turns.succeeded() }
        }
        (tried, turns.is_more())
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
    fn namespaces_whose_steps_fail_do_not_use_up_the_round() {
        let failing: Vec<Step> = (0..100).flat_map(|number| steps(&format!("greedy-{number}"), 1)).collect();
        let (tried, _) = round(&[failing, steps("shop", 1)].concat(), Some("greedy"));
        assert_eq!((tried.len(), tried.last().map(String::as_str)), (101, Some("shop/000")));
    }
}
