//! Stories of a namespace: each test says what happens and what must come of it.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use cinch_promotion::{Action, ConditionKind, Finding, Injection, PodClass, Policy, Slot, State, Word};
use cinch_reason::Reason;
use world::{SECOND, START, World};

#[test]
fn a_quiet_meshed_namespace_goes_all_the_way_and_in_order() {
    let mut world = World::meshed();
    let done = world.until(State::Strict, 60);
    assert_eq!(world.states, [State::Observing, State::Eligible, State::Probation, State::Strict]);
    assert_eq!(world.events, ["PromotionEligible", "PromotionStarted", "PromotionCompleted"]);
    let kinds: Vec<&str> = world
        .actions
        .iter()
        .map(|(_, action)| match action {
            Action::RequireInjection { .. } => "require",
            Action::Lock => "lock",
            Action::TakeBack { .. } => "take back",
            Action::FinishProbation => "finish",
        })
        .collect();
    assert_eq!(kinds, ["require", "lock", "finish"]);
    assert_eq!(world.actions[0].0, START + 15 * SECOND, "the moment the quiet period has passed");
    assert!(world.locks[0] <= START + 20 * SECOND, "soon after settling");
    assert!(done.blockers.is_empty());
    assert!(
        world.namespace.locked && world.namespace.promotion.is_none() && world.namespace.injection_required
    );
}

#[test]
fn every_gate_holds_the_promotion_by_its_name() {
    type Change = fn(&mut World);
    let cases: [(&str, Change); 8] = [
        ("PodsNotInjected", |world| {
            world.add("old-1", PodClass::NotInjected);
        }),
        ("HostNetworkPods", |world| {
            world.add("agent-1", PodClass::Unmeshable);
        }),
        ("NoEvidence", |world| world.pods.clear()),
        ("PodsNotReporting", |world| world.pods.values_mut().for_each(|pod| pod.mute = true)),
        ("NodeUnreachable", |world| {
            world.pods.values_mut().for_each(|pod| {
                pod.mute = true;
                pod.node_down = true;
            });
        }),
        ("PlaintextOpen", |world| world.hold_open(World::workload("old", START - 1), 1)),
        ("PromotionPaused", |world| world.spec.policy = Policy::Paused),
        ("PinnedByPolicy", |world| {
            world.findings.push(Finding {
                reason: Reason::PinnedByPolicy,
                detail: "default".to_owned(),
                reference: Some("peerauthentication/default".to_owned()),
            });
        }),
    ];
    for (reason, change) in cases {
        let mut world = World::meshed();
        world.run(2);
        change(&mut world);
        let last = world.run(60);
        assert!(World::reasons(&last).contains(&reason), "{reason}: {:?}", last.blockers);
        assert!(world.locks.is_empty(), "{reason} must hold the lock");
        assert!(!world.namespace.injection_required, "{reason} must hold the first label");
    }
}

#[test]
fn pods_without_a_sidecar_are_named() {
    let mut world = World::meshed();
    let mut blocker = |names: &[&str]| {
        names.iter().for_each(|name| drop(world.add(name, PodClass::NotInjected)));
        let last = world.run(2);
        let found: Vec<_> =
            last.blockers.iter().filter(|blocker| blocker.reason == Reason::PodsNotInjected).collect();
        assert_eq!(found.len(), 1, "{:?}", last.blockers);
        (found[0].detail.clone(), found[0].reference.clone().expect("a reference"))
    };
    assert_eq!(blocker(&["old-1"]), ("1 of 3: old-1".to_owned(), "pod/old-1".to_owned()));
    let (detail, reference) = blocker(&["old-5", "old-4", "old-3", "old-2"]);
    assert_eq!((&detail[..], &reference[..]), ("5 of 7: old-1, old-2, old-3 and 2 more", "pod/old-1"));
}

#[test]
fn host_network_pods_that_were_allowed_are_debt() {
    let mut world = World::meshed();
    world.add("agent-1", PodClass::Unmeshable);
    world.namespace.host_network_allowed = true;
    let last = world.until(State::Strict, 60);
    assert_eq!(last.debt.len(), 1);
    assert_eq!((last.pods.total, last.pods.injected), (2, 2));
}

#[test]
fn served_plaintext_blocks_names_its_client_and_moves_the_clock() {
    let mut world = World::meshed();
    world.run(10);
    world.plaintext(World::workload("old-client", START - 1));
    let served_at = world.now;
    let last = world.tick();
    assert_eq!(last.state, State::Blocked);
    assert_eq!(World::reasons(&last), ["PlaintextServed"]);
    assert_eq!(last.blockers[0].reference.as_deref(), Some("legacy/old-client"));
    assert_eq!(last.plaintext.served, 1);
    assert_eq!(last.offenders.len(), 1);
    world.run(14);
    assert!(world.actions.is_empty(), "14 s of 15");
    let due = world.run(1);
    assert_eq!((due.state, due.plaintext.served), (State::Eligible, 0));
    assert_eq!(world.actions[0].0, served_at + 15 * SECOND);
}

#[test]
fn scans_and_refusals_neither_block_nor_move_the_clock() {
    let mut world = World::meshed();
    for _ in 0..15 {
        world.scan(World::workload("scanner", START - 1));
        world.refused(World::workload("hostile", START - 1));
        world.run(1);
    }
    assert_eq!(world.actions[0].0, START + 15 * SECOND);
    let done = world.until(State::Strict, 60);
    assert!(done.blockers.is_empty());
}

#[test]
fn a_client_that_only_a_policy_refused_before_does_not_undo_the_lock() {
    let mut world = World::meshed();
    world.refused(World::workload("hostile", START - 1));
    world.until(State::Probation, 60);
    world.plaintext(World::workload("hostile", START - 1));
    world.until(State::Strict, 60);
}

#[test]
fn who_undoes_a_lock_in_probation_and_who_does_not() {
    use cinch_promotion::SourceName;
    let cases: [(&str, bool, SourceName, State); 5] = [
        ("served before", true, World::workload("old", START - 1), State::RolledBack),
        ("existed before", false, World::workload("old", START - 1), State::RolledBack),
        ("newer than the lock", false, World::workload("new", START + 3_600 * SECOND), State::Strict),
        ("a node", false, SourceName::Node("node-1".to_owned()), State::Strict),
        ("from outside", false, SourceName::External("192.0.2.9".to_owned()), State::Strict),
    ];
    for (case, served_before, name, expected) in cases {
        let mut world = World::meshed();
        world.tick();
        if served_before {
            world.plaintext(name.clone());
        }
        world.until(State::Probation, 60);
        world.run(3);
        world.plaintext(name);
        world.run(25);
        let states = &world.states;
        assert!(states.contains(&expected), "{case}: {states:?}");
        assert_eq!(states.contains(&State::RolledBack), expected == State::RolledBack, "{case}: {states:?}");
    }
}

#[test]
fn whom_policy_refuses_too_undoes_the_lock_only_if_it_was_served_before() {
    for (served_before, expected) in [(false, State::Strict), (true, State::RolledBack)] {
        let mut world = World::meshed();
        let old = World::workload("old", START - 1);
        world.tick();
        if served_before {
            world.plaintext(old.clone());
        }
        world.until(State::Probation, 60);
        world.run(3);
        world.refused(old);
        world.run(25);
        assert!(world.states.contains(&expected), "{served_before}: {:?}", world.states);
        assert_eq!(world.states.contains(&State::RolledBack), served_before, "{:?}", world.states);
    }
}

#[test]
fn a_rollback_takes_back_what_it_set_doubles_the_period_and_the_second_asks_a_person() {
    let mut world = World::meshed();
    let old = World::workload("old-client", START - 1);
    world.until(State::Probation, 60);
    world.plaintext(old.clone());
    let back = world.run(1);
    assert_eq!(back.state, State::RolledBack);
    assert_eq!(World::reasons(&back), ["PromotionRolledBack"]);
    assert_eq!(back.blockers[0].reference.as_deref(), Some("legacy/old-client"));
    assert!(
        !world.namespace.locked && !world.namespace.injection_required && world.namespace.promotion.is_none()
    );
    let rolled_back = world.now;
    world.until(State::Probation, 60);
    assert!(world.locks[1] >= rolled_back + 29 * SECOND, "30 s of quiet instead of 15");
    world.plaintext(old);
    world.run(2);
    let last = world.run(300);
    assert_eq!(last.state, State::RolledBack);
    assert_eq!(World::reasons(&last)[0], "NeedsDecision");
    assert_eq!(world.locks.len(), 2);
    world.spec.generation += 1;
    assert_eq!(world.run(60).state, State::RolledBack, "another edit of the spec is no decision");
    world.spec.word = Word::Written(Policy::Automatic);
    world.until(State::Strict, 60);
    assert_eq!(world.memory.rollbacks, 0);
}

#[test]
fn a_clock_that_is_set_forward_shortens_neither_the_quiet_period_nor_probation() {
    let (mut world, jump) = (World::meshed(), 8 * 24 * 3_600 * SECOND);
    let set_forward = |world: &mut World| {
        world.now += jump;
        world.memory.skip(jump);
    };
    world.run(10);
    set_forward(&mut world);
    world.run(4);
    assert!(world.actions.is_empty(), "14 of 15 s have passed: {:?}", world.actions);
    world.until(State::Eligible, 5);
    set_forward(&mut world);
    world.run(1);
    assert!(world.locks.is_empty(), "the settle time has not passed");
    let start = world.until(State::Probation, 30);
    assert!(start.memory.locked_since.is_some());
    world.run(10);
    set_forward(&mut world);
    assert_eq!(world.run(5).state, State::Probation);
    world.until(State::Strict, 10);
}

#[test]
fn after_the_clock_was_set_back_a_client_that_is_cut_off_still_undoes_the_lock() {
    let mut world = World::meshed();
    let old = World::workload("old-client", START - 1);
    world.tick();
    world.plaintext(old.clone());
    world.until(State::Probation, 60);
    world.run(3);
    world.now -= 3_600 * SECOND;
    assert_eq!(world.run(2).state, State::Probation);
    world.plaintext(old);
    assert_eq!(world.run(1).state, State::RolledBack);
    assert!(!world.namespace.locked);
}

#[test]
fn a_jump_of_the_clock_that_was_corrected_neither_keeps_the_slot_nor_draws_probation_out() {
    let (mut world, jump, longest) = (World::meshed(), 8 * 24 * 3_600 * SECOND, 60 * SECOND);
    world.until(State::Probation, 60);
    world.now += jump;
    world.memory.skip(jump);
    world.run(1);
    world.now -= jump;
    world.run(1);
    assert!(world.memory.under_way() && !world.memory.holds_slot(world.now + longest, longest));
    world.until(State::Strict, 25);
}

#[test]
fn a_lock_that_nobody_acknowledges_is_undone_though_the_clock_was_set_back() {
    let mut world = World::meshed();
    world.pods.values_mut().for_each(|pod| pod.acknowledges = false);
    world.run(25);
    assert!(world.namespace.locked);
    world.now -= 3_600 * SECOND;
    world.run(35);
    assert!(!world.namespace.locked && world.events.contains(&"LockNotAcknowledged".to_owned()));
}

#[test]
fn reports_of_before_the_clock_was_set_back_do_not_end_probation() {
    let mut world = World::meshed();
    world.until(State::Probation, 60);
    world.now -= 3_600 * SECOND;
    world.pods.values_mut().for_each(|pod| pod.mute = true);
    assert_eq!(world.run(40).state, State::Probation, "a refusal may still be on its way");
    world.pods.values_mut().for_each(|pod| pod.mute = false);
    world.until(State::Strict, 2);
}

#[test]
fn injection_that_a_user_required_stays_on_a_rollback() {
    let mut world = World::meshed();
    world.namespace.injection_required = true;
    world.until(State::Probation, 60);
    world.plaintext(World::workload("old", START - 1));
    world.run(2);
    assert!(
        world.actions.iter().any(|(_, action)| *action == Action::TakeBack { injection: Injection::Keep })
    );
    assert!(world.namespace.injection_required && !world.namespace.locked);
}

#[test]
fn after_probation_a_refused_client_changes_nothing() {
    let mut world = World::meshed();
    let old = World::workload("old-client", START - 1);
    world.plaintext(old.clone());
    world.until(State::Strict, 90);
    world.plaintext(old);
    let last = world.run(120);
    assert_eq!(last.state, State::Strict);
    assert!(world.namespace.locked);
    assert_eq!(last.plaintext.denied, 1);
}

#[test]
fn manual_waits_for_an_approval_of_this_very_evidence() {
    let mut world = World::meshed();
    world.spec.policy = Policy::Manual;
    let waiting = world.run(30);
    assert_eq!(waiting.state, State::Eligible);
    assert_eq!(World::reasons(&waiting), ["AwaitingApproval"]);
    let hash = waiting.evidence.hash.clone();
    assert_eq!(waiting.blockers[0].detail, hash);
    world.plaintext(World::workload("old", START - 1));
    world.run(20);
    world.spec.approve = Some(hash);
    let stale = world.run(30);
    assert_eq!(World::reasons(&stale), ["AwaitingApproval"], "the approval is of other evidence");
    world.spec.approve = Some(stale.evidence.hash);
    world.until(State::Strict, 60);
}

#[test]
fn a_taken_slot_makes_an_eligible_namespace_wait() {
    let mut world = World::meshed();
    world.slot = Slot::Taken;
    let waiting = world.run(30);
    assert_eq!(waiting.state, State::Eligible);
    assert_eq!(World::reasons(&waiting), ["PromotionSlot"]);
    world.slot = Slot::Free;
    world.until(State::Strict, 60);
}

#[test]
fn a_lock_that_is_not_acknowledged_is_undone() {
    let mut world = World::meshed();
    world.pods.values_mut().for_each(|pod| pod.acknowledges = false);
    world.run(25);
    assert!(world.namespace.locked);
    let last = world.run(30);
    assert!(!world.namespace.locked && world.namespace.promotion.is_none());
    assert_eq!(World::reasons(&last)[0], "LockNotAcknowledged");
    assert!(!world.states.contains(&State::Probation));
}

#[test]
fn plaintext_while_settling_takes_the_first_label_back() {
    let mut world = World::meshed();
    world.run(16);
    assert!(world.namespace.injection_required);
    world.plaintext(World::workload("old", START - 1));
    let last = world.run(1);
    assert_eq!(last.state, State::Blocked);
    assert!(!world.namespace.injection_required && world.locks.is_empty());
}

#[test]
fn a_lock_by_a_user_is_strict_and_said_to_be_theirs() {
    let mut world = World::meshed();
    world.run(3);
    world.namespace.locked = true;
    let last = world.run(1);
    assert_eq!(last.state, State::Strict);
    assert_eq!(world.events, ["LockedByUser"]);
    let strict =
        last.conditions.iter().find(|condition| condition.kind == ConditionKind::Strict).expect("Strict");
    assert_eq!((strict.holds, strict.reason), (true, Reason::LockedByUser));
}

#[test]
fn a_relaxed_namespace_stays_so_until_the_spec_is_written() {
    for during in [State::Probation, State::Strict] {
        let mut world = World::meshed();
        world.until(during, 90);
        world.namespace.locked = false;
        world.namespace.relax_reason = Some("old billing job".to_owned());
        let last = world.run(120);
        assert_eq!(last.state, State::Relaxed, "{during:?}");
        assert_eq!(World::reasons(&last)[0], "RelaxedByUser");
        assert_eq!(last.blockers[0].detail, "old billing job");
        assert_eq!(world.locks.len(), 1);
        assert!(world.namespace.promotion.is_none(), "the annotation does not stay behind");
        world.spec.generation += 1;
        world.spec.word = Word::Written(Policy::Automatic);
        world.until(State::Strict, 60);
        assert_eq!(world.locks.len(), 2);
    }
}

#[test]
fn a_relaxed_namespace_is_not_promoted_for_an_edit_that_decides_nothing() {
    let mut world = World::meshed();
    world.spec.word = Word::Written(Policy::Automatic);
    world.until(State::Strict, 90);
    world.namespace.locked = false;
    assert_eq!(world.run(3).state, State::Relaxed);
    let mut edit = |what: &str, generation, word| {
        world.spec.generation = generation;
        world.spec.word = word;
        assert_eq!(world.run(120).state, State::Relaxed, "{what}");
    };
    edit("another field", 2, Word::Written(Policy::Automatic));
    edit("the Posture deleted and made again", 1, Word::Unwritten);
    edit("the same word again", 2, Word::Written(Policy::Automatic));
    world.spec.word = Word::Written(Policy::Paused);
    world.spec.policy = Policy::Paused;
    assert_ne!(world.run(3).state, State::Relaxed, "a person has decided");
    assert_eq!(world.locks.len(), 1);
    world.spec.word = Word::Written(Policy::Automatic);
    world.spec.policy = Policy::Automatic;
    world.until(State::Strict, 60);
    assert_eq!(world.locks.len(), 2);
}

#[test]
fn pods_without_sidecar_and_empty_times_stop_the_clock_without_losing_it() {
    let mut world = World::meshed();
    world.run(10);
    let stranger = world.add("job-1", PodClass::NotInjected);
    world.run(7);
    world.pods.remove(&stranger);
    world.run(20);
    let required = world.actions[0].0;
    assert!((START + 21 * SECOND..=START + 24 * SECOND).contains(&required), "{}", required - START);
}

#[test]
fn a_lost_status_in_probation_keeps_the_lock() {
    let mut world = World::meshed();
    world.until(State::Probation, 60);
    world.memory = cinch_promotion::Memory::default();
    world.until(State::Strict, 60);
    assert_eq!(world.locks.len(), 1);
}
