//! Whatever happens, in whatever order.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use cinch_promotion::{PodClass, Policy, Slot, State};
use proptest::prelude::*;
use world::{SECOND, START, World};

/// Something that may happen in a second.
#[derive(Debug, Clone)]
enum Happening {
    Nothing,
    Served,
    Scan,
    Refused,
    Open(u64),
    AddMeshed,
    AddUnmeshed,
    RemoveClean(usize),
    RemoveHard(usize),
    Restart(usize),
    Mute(usize, bool),
    NodeDown(usize, bool),
    LeaderChange,
    Wait(u64),
    Policy(u8),
    Slot(bool),
}

fn happening() -> impl Strategy<Value = Happening> {
    let pod = 0..4_usize;
    prop_oneof![
        12 => Just(Happening::Nothing),
        2 => Just(Happening::Served),
        2 => Just(Happening::Scan),
        2 => Just(Happening::Refused),
        1 => (0..2_u64).prop_map(Happening::Open),
        2 => Just(Happening::AddMeshed),
        1 => Just(Happening::AddUnmeshed),
        2 => pod.clone().prop_map(Happening::RemoveClean),
        1 => pod.clone().prop_map(Happening::RemoveHard),
        1 => pod.clone().prop_map(Happening::Restart),
        2 => (pod.clone(), any::<bool>()).prop_map(|(pod, mute)| Happening::Mute(pod, mute)),
        1 => (pod, any::<bool>()).prop_map(|(pod, down)| Happening::NodeDown(pod, down)),
        3 => Just(Happening::LeaderChange),
        6 => (1..12_u64).prop_map(Happening::Wait),
        1 => (0..3_u8).prop_map(Happening::Policy),
        1 => any::<bool>().prop_map(Happening::Slot),
    ]
}

fn nth(world: &World, at: usize) -> Option<String> {
    world.pods.keys().nth(at).cloned()
}

fn happen(world: &mut World, happening: &Happening) {
    let client = World::workload("old", START - 1);
    match happening {
        Happening::Nothing => {}
        Happening::Served => world.plaintext(client),
        Happening::Scan => world.scan(World::workload("scanner", START - 1)),
        Happening::Refused => world.refused(World::workload("hostile", START - 1)),
        Happening::Open(open) => world.hold_open(client, *open),
        Happening::AddMeshed => drop(world.add("more", PodClass::Started)),
        Happening::AddUnmeshed => drop(world.add("bare", PodClass::NotInjected)),
        Happening::RemoveClean(at) => nth(world, *at).iter().for_each(|uid| world.remove(uid, true)),
        Happening::RemoveHard(at) => nth(world, *at).iter().for_each(|uid| world.remove(uid, false)),
        Happening::Restart(at) => nth(world, *at).iter().for_each(|uid| world.restart(uid)),
        Happening::Mute(at, mute) => {
            nth(world, *at)
                .iter()
                .for_each(|uid| world.pods.get_mut(uid).into_iter().for_each(|pod| pod.mute = *mute));
        }
        Happening::NodeDown(at, down) => nth(world, *at)
            .iter()
            .for_each(|uid| world.pods.get_mut(uid).into_iter().for_each(|pod| pod.node_down = *down)),
        Happening::LeaderChange => world.change_leader(),
        Happening::Wait(seconds) => drop(world.run(*seconds)),
        Happening::Policy(which) => {
            world.spec.policy = [Policy::Automatic, Policy::Manual, Policy::Paused][usize::from(*which)];
        }
        Happening::Slot(free) => world.slot = if *free { Slot::Free } else { Slot::Taken },
    }
}

/// Runs a story and checks at each lock what must be true of every lock.
fn check(story: &[Happening]) -> Result<(), TestCaseError> {
    let mut world = World::meshed();
    let mut rollbacks = 0;
    for happening in story {
        happen(&mut world, happening);
        let locked_before = world.locks.len();
        world.now += SECOND;
        let outcome = world.tick();
        rollbacks = rollbacks.max(outcome.memory.rollbacks);
        if world.locks.len() > locked_before {
            let now = world.now;
            let served = world.sources.iter().filter_map(|source| source.last_served).max();
            prop_assert!(
                served.is_none_or(|time| now >= time + world.spec.quiet),
                "served {served:?}, locked {now}"
            );
            prop_assert!(world.sources.iter().all(|source| source.open == 0), "plaintext was open");
            prop_assert!(!world.pods.is_empty(), "no pods, no evidence");
            for pod in world.pods.values() {
                prop_assert_eq!(pod.class, PodClass::Started);
                // A report takes its time: fresh is what three intervals and two seconds allow. But the whole
                // quiet period lies before it.
                let received = pod.heard.map_or(0, |report| report.received);
                let fresh = 3 * world.spec.report_interval + 2 * SECOND;
                prop_assert!(received + fresh >= now, "a pod had not reported");
                prop_assert!(
                    received >= outcome.memory.quiet_since + world.spec.quiet,
                    "a part of the quiet period was not reported"
                );
            }
            prop_assert!(now >= START + world.spec.quiet + world.spec.settle);
            prop_assert!(world.namespace.injection_required, "the lock comes after the requirement");
            prop_assert!(world.spec.policy != Policy::Paused);
        }
        prop_assert!(outcome.state != State::Probation || world.namespace.locked);
        prop_assert!(
            world.namespace.promotion.is_none() || outcome.memory.under_way() || outcome.action.is_some()
        );
        prop_assert!(outcome.blockers.iter().all(|blocker| blocker.since <= world.now));
        prop_assert!(outcome.memory.quiet_since <= world.now);
        prop_assert!(outcome.memory.observed_through <= world.now);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_lock_without_complete_evidence(story in prop::collection::vec(happening(), 1..120)) {
        check(&story)?;
    }

    #[test]
    fn changes_of_leader_never_bring_a_lock_forward(
        story in prop::collection::vec(happening(), 1..60),
        changes in prop::collection::btree_set(0..60_usize, 0..5),
    ) {
        let lock_of = |with_changes: bool| {
            let mut world = World::meshed();
            for (at, happening) in story.iter().enumerate() {
                if !matches!(happening, Happening::LeaderChange) {
                    happen(&mut world, happening);
                }
                if with_changes && changes.contains(&at) {
                    world.change_leader();
                }
                world.now += SECOND;
                world.tick();
                if !world.locks.is_empty() {
                    break;
                }
            }
            if world.locks.is_empty() {
                world.run(200);
            }
            world.locks.first().copied().unwrap_or(u64::MAX)
        };
        // A proxy's start is known to another leader only within a second.
        prop_assert!(lock_of(true).saturating_add(2 * SECOND) >= lock_of(false));
    }

    #[test]
    fn scans_and_refusals_never_delay(at in prop::collection::btree_set(0..40_usize, 0..20)) {
        let mut world = World::meshed();
        for second in 0..40 {
            if at.contains(&second) && !world.namespace.locked {
                world.scan(World::workload("scanner", START - 1));
                world.refused(World::workload("hostile", START - 1));
            }
            world.now += SECOND;
            world.tick();
        }
        prop_assert_eq!(world.actions[0].0, START + 16 * SECOND);
    }

    #[test]
    fn the_same_facts_twice_change_nothing(story in prop::collection::vec(happening(), 1..40)) {
        let mut world = World::meshed();
        for happening in &story {
            happen(&mut world, happening);
            world.now += SECOND;
            world.tick();
        }
        // Labels may follow for a few steps; then standing still is standing still.
        for _ in 0..5 {
            world.tick();
        }
        let once = cinch_promotion::step(&world.facts(), &world.memory);
        let twice = cinch_promotion::step(&world.facts(), &once.memory);
        prop_assert_eq!(&once.memory, &twice.memory);
        prop_assert!(twice.events.is_empty());
    }
}
