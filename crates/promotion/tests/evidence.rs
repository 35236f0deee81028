//! What counts as observed: late, lost and last reports, and new leaders.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod world;

use cinch_promotion::{Bypass, ConditionKind, Millis, PodClass, RedirectGone, Report, State, Transport};
use world::{SECOND, START, World};

fn first_label(world: &World) -> u64 {
    world.actions.first().map_or(u64::MAX, |(time, _)| (time - START) / SECOND)
}

#[test]
fn a_late_report_covers_the_gap_before_it() {
    let mut world = World::meshed();
    world.run(5);
    world.pods.values_mut().for_each(|pod| pod.mute = true);
    world.run(8);
    world.pods.values_mut().for_each(|pod| pod.mute = false);
    world.run(5);
    assert_eq!(first_label(&world), 15, "cumulative reports of the same proxy lose nothing");
}

#[test]
fn pods_that_leave_with_a_last_word_cost_nothing() {
    let mut world = World::meshed();
    let third = world.add("api-2", PodClass::Started);
    world.run(8);
    assert!(world.tracked(&third));
    world.remove(&third, true);
    world.run(10);
    assert_eq!(first_label(&world), 15);
    assert_eq!(world.memory.unobserved, 0);
}

#[test]
fn a_last_word_may_come_a_moment_after_the_pod_is_gone() {
    let mut world = World::meshed();
    let third = world.add("api-2", PodClass::Started);
    world.run(8);
    world.remove(&third, false);
    world.now += SECOND;
    assert_eq!(world.tick().memory.unobserved, 0);
    world.departures.iter_mut().for_each(|departure| departure.last_word = true);
    assert_eq!(world.run(5).memory.unobserved, 0);
}

#[test]
fn pods_that_vanish_unheard_are_unobserved_time() {
    let mut world = World::meshed();
    let third = world.add("api-2", PodClass::Started);
    world.run(4);
    world.pods.get_mut(&third).expect("there").mute = true;
    world.run(5);
    world.remove(&third, false);
    let last = world.run(3);
    assert!(last.evidence.unobserved_seconds >= 5, "{:?}", last.evidence);
    assert!(World::reasons(&last).contains(&"UnobservedTime"));
    world.run(20);
    assert!((20..=22).contains(&first_label(&world)), "{}", first_label(&world));
}

#[test]
fn a_proxy_that_died_between_reports_took_the_time_since_its_last_one() {
    let mut world = World::meshed();
    let third = world.add("api-2", PodClass::Started);
    world.run(4);
    world.pods.get_mut(&third).expect("there").mute = true;
    world.run(4);
    world.restart(&third);
    world.pods.get_mut(&third).expect("there").mute = false;
    let last = world.tick();
    assert_eq!(last.evidence.unobserved_seconds, 4);
}

#[test]
fn little_unobserved_time_is_within_the_budget() {
    let mut world = World::meshed();
    world.spec.quiet = 3_600 * SECOND;
    let third = world.add("api-2", PodClass::Started);
    world.run(4);
    world.now += 2 * SECOND;
    world.remove(&third, false);
    let last = world.run(3);
    assert_eq!(last.evidence.unobserved_seconds, 2);
    assert!(!World::reasons(&last).contains(&"UnobservedTime"), "3.6 s a pod-hour are allowed");
}

#[test]
fn a_new_leader_promotes_nothing_before_every_pod_has_reported_to_it() {
    let mut world = World::meshed();
    let quiet = world.add("api-2", PodClass::Started);
    world.run(10);
    world.change_leader();
    world.pods.get_mut(&quiet).expect("there").mute = true;
    world.run(60);
    assert!(world.actions.is_empty(), "one pod has not reported to the new leader");
    world.pods.get_mut(&quiet).expect("there").mute = false;
    world.run(2);
    assert!(world.namespace.injection_required, "its cumulative report covers the time without a leader");
}

#[test]
fn a_new_leader_goes_on_where_the_old_one_was() {
    for at in [0, 5, 14, 15, 16, 17, 18, 19, 20, 25, 38, 39, 40, 45] {
        let mut world = World::meshed();
        world.run(at);
        world.change_leader();
        let last = world.run(60 - at);
        assert_eq!(last.state, State::Strict, "leader changed after {at} s: {:?}", last.blockers);
        assert_eq!(world.locks.len(), 1);
    }
}

#[test]
fn a_gap_between_leaders_in_which_a_pod_vanished_is_unobserved() {
    let mut world = World::meshed();
    let third = world.add("api-2", PodClass::Started);
    world.run(5);
    world.change_leader();
    world.pods.remove(&third);
    world.now += 30 * SECOND;
    let last = world.run(2);
    assert_eq!(last.evidence.unobserved_seconds, 30);
    world.run(30);
    assert!(first_label(&world) >= 45, "{}", first_label(&world));
}

#[test]
fn a_proxy_that_restarted_between_leaders_is_unobserved_until_then() {
    let mut world = World::meshed();
    let third = world.add("api-2", PodClass::Started);
    world.run(5);
    world.change_leader();
    world.now += 10 * SECOND;
    world.restart(&third);
    world.now += 10 * SECOND;
    let last = world.tick();
    assert_eq!(last.evidence.unobserved_seconds, 10);
}

#[test]
fn plaintext_between_leaders_moves_the_clock() {
    let mut world = World::meshed();
    world.run(10);
    world.change_leader();
    world.now += 3 * SECOND;
    world.plaintext(World::workload("old", START - 1));
    world.now += 7 * SECOND;
    world.run(3);
    assert!(world.actions.is_empty());
    world.run(10);
    assert_eq!(first_label(&world), 13 + 15);
}

#[test]
fn a_new_leader_in_probation_still_knows_who_was_served() {
    let mut world = World::meshed();
    world.plaintext(World::workload("old", START + 3_600 * SECOND));
    world.run(3);
    world.until(State::Probation, 60);
    world.change_leader();
    world.plaintext(World::workload("old", START + 3_600 * SECOND));
    let last = world.run(3);
    assert_eq!(last.state, State::RolledBack);
}

#[test]
fn counts_survive_a_leader_and_are_not_counted_twice() {
    let mut world = World::meshed();
    world.tick();
    for _ in 0..5 {
        world.plaintext(World::workload("old", START - 1));
    }
    assert_eq!(world.run(1).plaintext.served, 5);
    world.change_leader();
    assert_eq!(world.run(1).plaintext.served, 5);
    world.plaintext(World::workload("old", START - 1));
    assert_eq!(world.run(1).plaintext.served, 6);
}

#[test]
fn status_need_not_be_written_for_time_alone() {
    let mut world = World::meshed();
    world.run(3);
    let written = world.memory.clone();
    world.run(1);
    assert!(!world.memory.needs_writing(&written, 5 * SECOND), "{:?}\n{:?}", world.memory, written);
    world.run(8);
    assert!(world.memory.needs_writing(&written, 5 * SECOND));
    world.plaintext(World::workload("old", START - 1));
    let written = world.memory.clone();
    world.tick();
    assert!(world.memory.needs_writing(&written, 60 * SECOND));
}

#[test]
fn counts_of_a_proxy_whose_redirect_is_not_proved_are_no_evidence() {
    // Inbound, outbound; and for how long a proof is good.
    for (way, good_for) in [(0, 90), (1, 30)] {
        let mut world = World::meshed();
        world.spec.quiet = 200 * SECOND;
        let third = world.add("api-2", PodClass::Started);
        world.run(40);
        let since = world.now;
        world.pods.get_mut(&third).expect("there").unproved[way] = Some(since);
        let last = world.run(good_for);
        assert_eq!((last.pods.reporting, last.blockers.as_slice()), (3, [].as_slice()), "way {way}");
        let last = world.run(1);
        assert_eq!(last.pods.reporting, 2, "way {way}");
        assert_eq!(World::reasons(&last), ["RedirectMissing"]);
        assert_eq!(last.blockers[0].reference.as_deref(), Some("pod/api-2"));
        world.run(300);
        assert!(world.actions.is_empty(), "way {way}: nothing is promoted on it");
        world.pods.get_mut(&third).expect("there").unproved[way] = None;
        world.run(1);
        assert!(world.actions.is_empty(), "way {way}: the time without proof was not quiet time");
        world.run(200);
        assert!(!world.actions.is_empty(), "way {way}");
    }
}

#[test]
fn a_proxy_that_has_just_started_gets_time_for_its_proofs_but_none_for_a_promotion() {
    let mut world = World::meshed();
    world.run(10);
    let third = world.add("api-2", PodClass::Started);
    world.pods.get_mut(&third).expect("there").unproved = [Some(0); 2];
    let last = world.run(20);
    assert_eq!((World::reasons(&last).len(), last.pods.reporting), (0, 2));
    assert!(world.actions.is_empty());
    assert_eq!(World::reasons(&world.run(11)), ["RedirectMissing"]);
}

fn bypass(world: &World, transport: Transport, what: &str) -> Bypass {
    Bypass { transport, what: what.to_owned(), last_seen: world.now }
}

#[test]
fn what_passes_by_a_proxy_blocks_until_it_was_not_seen_for_a_quiet_period() {
    let mut world = World::meshed();
    let third = world.add("api-2", PodClass::Started);
    let seen = bypass(&world, Transport::Tcp, "curl in app, TCP to legacy/db port 5432");
    world.pods.get_mut(&third).expect("there").bypass = vec![seen];
    let outcome = world.run(10);
    assert_eq!(outcome.state, State::Blocked);
    let blocker = &outcome.blockers[0];
    assert_eq!(blocker.reason.as_str(), "BypassSeen");
    assert_eq!(blocker.detail, "1 of 3: api-2 (curl in app, TCP to legacy/db port 5432)");
    assert_eq!(blocker.reference.as_deref(), Some("pod/api-2"));
    let injected = outcome.conditions.iter().find(|c| c.kind == ConditionKind::Injected).expect("there");
    assert!(!injected.holds && injected.reason.as_str() == "BypassSeen");
    world.run(20);
    assert!((15..=17).contains(&first_label(&world)), "{}", first_label(&world));
}

#[test]
fn a_pod_that_goes_takes_along_what_passed_by_it() {
    let mut world = World::meshed();
    let third = world.add("api-2", PodClass::Started);
    let seen = bypass(&world, Transport::Tcp, "curl");
    world.pods.get_mut(&third).expect("there").bypass = vec![seen];
    assert!(World::reasons(&world.run(5)).contains(&"BypassSeen"));
    world.remove(&third, true);
    assert!(!World::reasons(&world.run(1)).contains(&"BypassSeen"));
}

#[test]
fn a_new_leader_knows_what_passed_by_a_proxy_that_has_started_anew() {
    let mut world = World::meshed();
    world.spec.quiet = 60 * SECOND;
    let third = world.add("api-2", PodClass::Started);
    let seen = bypass(&world, Transport::Tcp, "curl");
    world.pods.get_mut(&third).expect("there").bypass = vec![seen];
    world.run(5);
    // What was seen goes with the proxy, and the leader after it.
    world.restart(&third);
    world.pods.get_mut(&third).expect("there").bypass = Vec::new();
    world.change_leader();
    let outcome = world.run(50);
    assert_eq!(World::reasons(&outcome), ["BypassSeen"]);
    assert_eq!(outcome.blockers[0].detail, "1 of 3: api-2");
    let written = serde_json::to_value(&world.memory).expect("memory is JSON");
    assert_eq!(written["bypass"].as_object().map(serde_json::Map::len), Some(1));
    assert!(!World::reasons(&world.run(6)).contains(&"BypassSeen"), "a quiet period without it is enough");
    let written = serde_json::to_value(&world.memory).expect("memory is JSON");
    assert!(written.get("bypass").is_none(), "what does not count is not kept");
    // And it goes with its pod.
    let seen = bypass(&world, Transport::Tcp, "curl");
    world.pods.get_mut(&third).expect("there").bypass = vec![seen];
    world.run(1);
    assert_eq!(world.memory.bypass.len(), 1);
    world.remove(&third, true);
    world.change_leader();
    assert!(!World::reasons(&world.run(1)).contains(&"BypassSeen"));
    assert!(world.memory.bypass.is_empty());
}

#[test]
fn udp_is_told_and_does_not_hold_a_promotion_back() {
    let mut world = World::meshed();
    let third = world.add("api-2", PodClass::Started);
    let seen = bypass(&world, Transport::Udp, "chronyd in app, UDP to 10.0.0.1 port 123");
    world.pods.get_mut(&third).expect("there").bypass = vec![seen];
    let outcome = world.run(5);
    let debt: Vec<_> =
        outcome.debt.iter().map(|(reason, text)| format!("{}: {text}", reason.as_str())).collect();
    assert_eq!(debt, ["UdpOutsideMesh: 1: api-2 (chronyd in app, UDP to 10.0.0.1 port 123)"]);
    world.run(15);
    assert_eq!(first_label(&world), 15);
}

/// A pod that was injected for the node agent, and when the agent looked at it last.
fn by_agent(world: &mut World, last_look: Option<Millis>) -> String {
    let uid = world.add("api-2", PodClass::Started);
    let pod = world.pods.get_mut(&uid).expect("there");
    (pod.by_agent, pod.last_look, pod.confirmed) = (true, last_look, World::LOOKED);
    uid
}

#[test]
fn a_pod_at_which_the_agent_has_not_looked_for_90_s_blocks_and_stops_the_clock() {
    let mut world = World::meshed();
    world.spec.quiet = 200 * SECOND;
    let third = by_agent(&mut world, World::LOOKED);
    assert!(world.run(40).blockers.iter().all(|blocker| blocker.reason.as_str() == "QuietPeriod"));
    world.pods.get_mut(&third).expect("there").last_look = Some(world.now);
    assert!(!World::reasons(&world.run(90)).contains(&"BypassUnknown"));
    let last = world.run(1);
    assert_eq!((World::reasons(&last), last.state), (vec!["BypassUnknown"], State::Blocked));
    assert_eq!(last.blockers[0].detail, "1 of 3: api-2");
    world.pods.get_mut(&third).expect("there").look_was_cut = true;
    let last = world.run(1);
    assert_eq!(last.blockers[0].detail, "1 of 3: api-2; more connections than one look takes");
    assert_eq!((last.blockers[0].reference.as_deref(), last.pods.reporting), (Some("pod/api-2"), 3));
    let reporting = last.conditions.iter().find(|c| c.kind == ConditionKind::Reporting).expect("there");
    assert_eq!((reporting.holds, reporting.reason.as_str()), (false, "BypassUnknown"));
    // Neither a new proxy nor a new leader is a look.
    world.restart(&third);
    world.pods.get_mut(&third).expect("there").last_look = Some(world.now - 91 * SECOND);
    assert_eq!(World::reasons(&world.run(1)), ["BypassUnknown"]);
    world.change_leader();
    assert_eq!(World::reasons(&world.run(300)), ["BypassUnknown"]);
    assert!(world.actions.is_empty(), "nothing is promoted on it");
    world.pods.get_mut(&third).expect("there").last_look = World::LOOKED;
    world.run(30);
    assert!(world.actions.is_empty(), "the time without a look was not quiet time");
    world.run(200);
    assert!(!world.actions.is_empty());
}

#[test]
fn a_pod_that_has_just_started_is_waited_for_until_the_agent_has_looked_once() {
    let mut world = World::meshed();
    let third = by_agent(&mut world, None);
    let outcome = world.run(20);
    assert_eq!((World::reasons(&outcome), outcome.state), (vec!["BypassUnknown"], State::Eligible));
    assert_eq!(outcome.blockers[0].detail, "1 of 3: api-2; just started");
    assert!(world.actions.is_empty());
    world.pods.get_mut(&third).expect("there").last_look = World::LOOKED;
    world.run(1);
    assert_eq!(first_label(&world), 20, "the clock ran on");
    // The same between the label and the lock.
    let fourth = world.add("api-3", PodClass::Started);
    let pod = world.pods.get_mut(&fourth).expect("there");
    (pod.by_agent, pod.confirmed) = (true, World::LOOKED);
    assert_eq!(World::reasons(&world.run(10)), ["Settling", "BypassUnknown"]);
    assert!(world.locks.is_empty());
    world.pods.get_mut(&fourth).expect("there").last_look = World::LOOKED;
    world.run(1);
    assert_eq!(world.locks.len(), 1);
}

#[test]
fn a_pod_that_has_said_its_last_word_is_not_waited_for() {
    let mut world = World::meshed();
    let third = by_agent(&mut world, None);
    world.tick();
    let pod = world.pods.get_mut(&third).expect("there");
    (pod.mute, pod.acknowledges) = (true, false);
    pod.heard = pod.heard.map(|report| Report { last_word: true, ..report });
    world.run(20);
    assert_eq!(first_label(&world), 15);
}

#[test]
fn restarts_of_the_proxy_do_not_keep_a_pod_young() {
    let mut world = World::meshed();
    world.spec.quiet = 500 * SECOND;
    let third = by_agent(&mut world, None);
    world.run(80);
    world.restart(&third);
    assert!(!World::reasons(&world.run(10)).contains(&"BypassUnknown"));
    assert!(World::reasons(&world.run(1)).contains(&"BypassUnknown"));
}

#[test]
fn a_redirect_that_the_agent_has_not_confirmed_for_90_s_is_not_proved() {
    let mut world = World::meshed();
    world.spec.quiet = 300 * SECOND;
    let third = by_agent(&mut world, World::LOOKED);
    world.run(40);
    world.pods.get_mut(&third).expect("there").confirmed = Some(world.now);
    assert!(!World::reasons(&world.run(90)).contains(&"RedirectUnconfirmed"));
    let last = world.run(1);
    assert_eq!((World::reasons(&last), last.state), (vec!["RedirectUnconfirmed"], State::Blocked));
    assert_eq!((last.blockers[0].reference.as_deref(), last.pods.reporting), (Some("pod/api-2"), 2));
    let reporting = last.conditions.iter().find(|c| c.kind == ConditionKind::Reporting).expect("there");
    assert_eq!((reporting.holds, reporting.reason.as_str()), (false, "RedirectUnconfirmed"));
    // A proxy that has started since, and has not heard of the agent, is no better; it gets as long.
    world.restart(&third);
    world.pods.get_mut(&third).expect("there").confirmed = None;
    assert_eq!(World::reasons(&world.run(300)), ["RedirectUnconfirmed"]);
    assert!(world.actions.is_empty());
    world.pods.get_mut(&third).expect("there").confirmed = World::LOOKED;
    world.run(30);
    assert!(world.actions.is_empty(), "the time without a confirmation was not quiet time");
    world.run(200);
    assert!(!world.actions.is_empty());
}

#[test]
fn a_redirect_that_was_gone_is_told_once_and_blocks_for_a_quiet_period() {
    let mut world = World::meshed();
    world.spec.quiet = 100 * SECOND;
    let third = by_agent(&mut world, World::LOOKED);
    world.run(40);
    let gone = |world: &World, times| Some(RedirectGone { times, last: world.now });
    let told = |world: &World| world.events.iter().filter(|word| *word == "RedirectWasGone").count();
    world.pods.get_mut(&third).expect("there").redirect_gone = gone(&world, 1);
    let outcome = world.run(10);
    assert_eq!((World::reasons(&outcome), outcome.state), (vec!["RedirectWasGone"], State::Blocked));
    assert_eq!(outcome.blockers[0].detail, "1 of 3: api-2");
    let injected = outcome.conditions.iter().find(|c| c.kind == ConditionKind::Injected).expect("there");
    assert!(!injected.holds && injected.reason.as_str() == "RedirectWasGone");
    assert_eq!(told(&world), 1, "{:?}", world.events);
    // Who removes it all the time is not told of all the time.
    for times in 2..50 {
        world.pods.get_mut(&third).expect("there").redirect_gone = gone(&world, times);
        world.run(1);
    }
    assert_eq!(told(&world), 1);
    // Neither a new proxy nor a new leader has seen what nobody saw.
    world.restart(&third);
    world.pods.get_mut(&third).expect("there").redirect_gone = None;
    world.change_leader();
    assert_eq!(World::reasons(&world.run(1)), ["RedirectWasGone"]);
    world.pods.get_mut(&third).expect("there").redirect_gone = gone(&world, 2);
    let outcome = world.run(1);
    assert_eq!(outcome.blockers[0].detail, "1 of 3: api-2 (2 times)");
    assert!(World::reasons(&world.run(98)).contains(&"RedirectWasGone") && world.actions.is_empty());
    world.run(3);
    assert!(!world.actions.is_empty() && world.memory.gone.is_empty());
}

#[test]
fn a_redirect_that_was_gone_in_a_locked_namespace_is_told_too_and_goes_with_its_pod() {
    let mut world = World::meshed();
    let third = by_agent(&mut world, World::LOOKED);
    world.until(State::Strict, 60);
    world.events.clear();
    world.pods.get_mut(&third).expect("there").redirect_gone =
        Some(RedirectGone { times: 1, last: world.now });
    let outcome = world.run(1);
    assert_eq!(
        (world.events.as_slice(), outcome.state),
        (&["RedirectWasGone".to_owned()][..], State::Strict)
    );
    assert_eq!(world.memory.gone.len(), 1);
    world.remove(&third, true);
    world.run(1);
    assert!(world.memory.gone.is_empty());
}

#[test]
fn where_there_is_no_agent_nobody_waits_for_a_look() {
    let mut world = World::meshed();
    world.spec.quiet = 200 * SECOND;
    assert!(!World::reasons(&world.run(150)).contains(&"BypassUnknown"));
    world.run(51);
    assert_eq!(first_label(&world), 200);
}

#[test]
fn where_there_are_agents_a_pod_that_none_looks_at_keeps_its_namespace_from_the_lock() {
    let mut world = World::meshed();
    world.spec.has_agents = true;
    let names: Vec<String> = world.pods.keys().cloned().collect();
    for name in &names[1..] {
        let pod = world.pods.get_mut(name).expect("there");
        (pod.by_agent, pod.last_look, pod.confirmed) = (true, World::LOOKED, World::LOOKED);
    }
    let last = world.run(60);
    assert_eq!((last.state, world.locks.len()), (State::Blocked, 0));
    assert_eq!(World::reasons(&last), ["RedirectByInit"]);
    world.spec.has_agents = false;
    world.until(State::Strict, 90);
}
