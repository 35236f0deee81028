//! The ledger, on reports as proxies send them, on a clock of the test's own.

mod by_mode;
use super::ledger::{Clock, Ledger};
use super::model::Counts;
use crate::index::{SourceName, WorkloadName};
use cinch_control::v1;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

const NEVER: u64 = u64::MAX;

/// A ledger with a clock, and the names of addresses.
struct Desk {
    ledger: Ledger,
    start: Instant,
    names: Vec<(IpAddr, SourceName)>,
}

fn desk() -> Desk {
    Desk { ledger: Ledger::default(), start: Instant::now(), names: vec![(ip(9), workload("client", 50))] }
}

impl Desk {
    fn clock(&self, second: u64) -> Clock {
        Clock { instant: self.start + Duration::from_secs(second), unix_ms: 1_000_000 + second * 1000 }
    }

    fn report(&mut self, second: u64, pod: &str, report: v1::Evidence) {
        let (clock, names) = (self.clock(second), self.names.clone());
        let resolve = move |ip: IpAddr| {
            let known = names.iter().find(|(known, _)| *known == ip);
            known.map_or(SourceName::External(ip), |(_, name)| name.clone())
        };
        self.ledger.report(pod, Some(Arc::from("shop")), &report, clock, &resolve);
    }

    fn sweep(&mut self, second: u64, live: &[&str]) {
        let clock = self.clock(second);
        let namespace_of = |uid: &str| live.contains(&uid).then(|| Arc::from("shop"));
        self.ledger.sweep(clock, &namespace_of, &|namespace| namespace == "shop");
    }

    /// The namespace's sources as text.
    fn sources(&self) -> Vec<String> {
        let of = |counts: &Counts| format!("{}/{}/{}", counts.served, counts.denied, counts.open);
        let sources = self.ledger.namespace("shop").sources;
        sources.iter().map(|s| format!("{}:{} {}", s.source, s.port, of(&s.counts))).collect()
    }
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 1, 0, last])
}

fn workload(name: &str, created_unix_ms: u64) -> SourceName {
    let name = WorkloadName { namespace: "old".into(), kind: "Deployment".into(), name: name.into() };
    SourceName::Workload { name, created_unix_ms }
}

fn counts(served: u64, denied: u64, open: u64) -> v1::PlaintextCounts {
    let last_served_age_ms = if served > 0 { 100 } else { NEVER };
    v1::PlaintextCounts { served, denied, open, last_served_age_ms, ..v1::PlaintextCounts::default() }
}

fn source(last: u8, counts: v1::PlaintextCounts) -> v1::PlaintextSource {
    let last_denied_age_ms = if counts.denied > 0 { 100 } else { NEVER };
    v1::PlaintextSource {
        ip: vec![10, 1, 0, last].into(),
        port: 8080,
        counts: Some(counts),
        last_seen_age_ms: 100,
        last_denied_age_ms,
        last_denied_by_mode_age_ms: None,
    }
}

/// A report of boot `boot` whose totals are the sum of its sources.
fn report(boot: u64, sequence: u64, sources: Vec<v1::PlaintextSource>) -> v1::Evidence {
    let sum =
        |of: fn(&v1::PlaintextCounts) -> u64| sources.iter().filter_map(|s| s.counts.as_ref()).map(of).sum();
    let totals = counts(sum(|c| c.served), sum(|c| c.denied), sum(|c| c.open));
    v1::Evidence {
        boot_id: boot,
        sequence,
        uptime_ms: sequence * 1000,
        inbound_proof_age_ms: 5,
        outbound_proof_age_ms: NEVER,
        totals: Some(totals),
        sources,
        policy_version: 7,
        ..v1::Evidence::default()
    }
}

fn last(report: v1::Evidence) -> v1::Evidence {
    v1::Evidence { r#final: true, ..report }
}

#[test]
fn a_report_says_all_and_the_newest_counts() {
    let mut desk = desk();
    desk.report(1, "a", report(1, 1, vec![source(9, counts(2, 1, 1))]));
    desk.report(2, "a", report(1, 2, vec![source(9, counts(5, 1, 2))]));
    let pod = desk.ledger.of("a").unwrap();
    assert_eq!((pod.totals.served, pod.totals.denied, pod.totals.open), (5, 1, 2));
    assert_eq!((pod.boot_id, pod.sequence, pod.uptime_ms, pod.policy_version), (1, 2, 2000, 7));
    assert_eq!((pod.inbound_proof_age_ms, pod.outbound_proof_age_ms), (Some(5), None));
    assert_eq!(pod.last_served_unix_ms, Some(1_002_000 - 100));
    assert_eq!(desk.sources(), ["old/client:8080 5/1/2"]);
    assert_eq!(desk.ledger.last_report("a").unwrap().received_unix_ms, 1_002_000);
    assert!(desk.ledger.of("nobody").is_none());
}

#[test]
fn an_older_report_or_the_same_again_changes_nothing() {
    let mut desk = desk();
    desk.report(1, "a", report(1, 3, vec![source(9, counts(5, 0, 0))]));
    desk.report(2, "a", report(1, 3, vec![source(9, counts(5, 0, 0))]));
    desk.report(3, "a", report(1, 2, vec![source(9, counts(4, 0, 9))]));
    assert_eq!(desk.sources(), ["old/client:8080 5/0/0"]);
    assert_eq!(desk.ledger.last_report("a").unwrap().received_unix_ms, 1_001_000);
}

#[test]
fn restarts_of_the_proxy_add_up() {
    let mut desk = desk();
    desk.report(10, "a", report(1, 10, vec![source(9, counts(5, 0, 3))]));
    desk.report(20, "a", report(2, 1, vec![source(9, counts(2, 0, 1))]));
    desk.report(30, "a", report(3, 1, vec![source(9, counts(1, 0, 0))]));
    assert_eq!(desk.sources(), ["old/client:8080 8/0/0"]);
    let pod = desk.ledger.of("a").unwrap();
    assert_eq!((pod.totals.served, pod.totals.open), (8, 0));
    // From the last word at 10 to the start at 19, and from 20 to 29.
    assert_eq!(pod.unreported_ms, 18_000);
}

#[test]
fn the_last_words_of_a_proxy_may_come_after_its_successors_first() {
    let mut desk = desk();
    desk.report(10, "a", report(1, 10, vec![source(9, counts(5, 0, 0))]));
    desk.report(20, "a", report(2, 1, vec![]));
    assert_eq!(desk.ledger.of("a").unwrap().unreported_ms, 9000);
    desk.report(21, "a", last(report(1, 11, vec![source(9, counts(6, 0, 0))])));
    let pod = desk.ledger.of("a").unwrap();
    assert_eq!((pod.boot_id, pod.totals.served, pod.unreported_ms), (2, 6, 0));
    assert_eq!(desk.sources(), ["old/client:8080 6/0/0"]);
}

#[test]
fn a_final_report_leaves_nothing_open_and_no_gap() {
    let mut desk = desk();
    desk.report(10, "a", last(report(1, 10, vec![source(9, counts(5, 0, 3))])));
    assert_eq!(desk.sources(), ["old/client:8080 5/0/0"]);
    assert!(desk.ledger.last_report("a").unwrap().final_report);
    desk.report(60, "a", report(2, 1, vec![]));
    assert_eq!(desk.ledger.of("a").unwrap().unreported_ms, 0);
}

#[test]
fn what_an_address_did_belongs_to_who_held_it_then() {
    let mut desk = desk();
    desk.report(1, "a", report(1, 1, vec![source(9, counts(5, 0, 1))]));
    desk.names = vec![(ip(9), workload("other", 60))];
    desk.report(100, "a", report(1, 2, vec![source(9, counts(5, 3, 0))]));
    assert_eq!(desk.sources(), ["old/client:8080 5/0/0", "old/other:8080 0/3/0"]);
    let other = &desk.ledger.namespace("shop").sources[1];
    assert_eq!((other.last_served_unix_ms, other.last_denied_unix_ms), (None, Some(1_100_000 - 100)));
}

#[test]
fn a_pod_that_the_index_had_not_seen_yet_is_named_later() {
    let mut desk = desk();
    desk.report(1, "a", report(1, 1, vec![source(8, counts(5, 0, 1))]));
    assert_eq!(desk.sources(), ["10.1.0.8:8080 5/0/1"]);
    desk.names.push((ip(8), workload("late", 60)));
    desk.report(2, "a", report(1, 2, vec![source(8, counts(5, 0, 1))]));
    assert_eq!(desk.sources(), ["old/late:8080 5/0/1"]);
    // Long after, a new pod with the address of a stranger does not inherit what the stranger did.
    desk.report(3, "a", report(1, 3, vec![source(7, counts(2, 0, 0))]));
    desk.names.push((ip(7), workload("new", 70)));
    desk.report(90, "a", report(1, 4, vec![source(7, counts(2, 1, 0))]));
    assert_eq!(desk.sources(), ["old/late:8080 5/0/0", "10.1.0.7:8080 2/0/0", "old/new:8080 0/1/0"]);
}

#[test]
fn replicas_are_one_source_as_old_as_the_oldest() {
    let mut desk = desk();
    desk.names = vec![(ip(1), workload("client", 50)), (ip(2), workload("client", 40))];
    desk.report(1, "a", report(1, 1, vec![source(1, counts(1, 0, 1)), source(2, counts(2, 0, 1))]));
    desk.report(1, "b", report(1, 1, vec![source(1, counts(4, 0, 0))]));
    assert_eq!(desk.sources(), ["old/client:8080 7/0/2"]);
    assert_eq!(desk.ledger.namespace("shop").sources[0].source, workload("client", 40));
}

#[test]
fn what_vanished_pods_served_stays_and_is_counted_once() {
    let mut desk = desk();
    desk.report(1, "a", report(1, 1, vec![source(9, counts(5, 0, 2))]));
    desk.report(1, "b", report(1, 1, vec![source(9, counts(1, 0, 1))]));
    desk.sweep(2, &["b"]);
    assert_eq!(desk.sources(), ["old/client:8080 6/0/1"], "nothing is open at a pod that has gone");
    desk.report(3, "a", last(report(1, 2, vec![source(9, counts(7, 0, 0))])));
    assert_eq!(desk.sources(), ["old/client:8080 8/0/1"], "its last words still count");
    desk.sweep(90, &["b"]);
    assert_eq!(desk.ledger.held(), 1);
    desk.report(91, "a", last(report(1, 3, vec![source(9, counts(9, 0, 0))])));
    assert_eq!((desk.ledger.held(), desk.sources()), (1, vec!["old/client:8080 8/0/1".to_owned()]));
    let evidence = desk.ledger.namespace("shop");
    assert_eq!((evidence.totals.served, evidence.totals.open), (8, 1));
    assert_eq!(evidence.last_served_unix_ms, Some(1_003_000 - 100));
    let vanished = &evidence.vanished[0];
    assert_eq!(
        (&*vanished.pod_uid, vanished.last_report.final_report, vanished.gone_unix_ms),
        ("a", true, 1_002_000)
    );
}

#[test]
fn a_pod_that_a_broken_list_left_out_is_not_lost() {
    let mut desk = desk();
    desk.report(1, "a", report(1, 1, vec![source(9, counts(5, 0, 2))]));
    desk.sweep(2, &[]);
    desk.sweep(3, &["a"]);
    desk.sweep(100, &["a"]);
    assert_eq!(desk.sources(), ["old/client:8080 5/0/2"]);
}

#[test]
fn a_scan_from_many_addresses_does_not_push_workloads_out() {
    let mut desk = desk();
    desk.report(1, "a", report(1, 1, knocks(0, 4000)));
    desk.report(2, "a", report(1, 2, vec![source(9, counts(1, 0, 0))]));
    let evidence = desk.ledger.namespace("shop");
    assert_eq!(evidence.sources[0].source.to_string(), "old/client");
    assert!(evidence.sources.len() < 2000 && evidence.sources_dropped > 2000);
}

/// `count` addresses from outside, from number `from` on, of which each has only knocked.
fn knocks(from: u32, count: u32) -> Vec<v1::PlaintextSource> {
    let knocks = v1::PlaintextCounts { empty: 1, last_served_age_ms: NEVER, ..Default::default() };
    let address = |number: u32| (0xCB00_0000 + number).to_be_bytes().to_vec().into();
    (from..from + count)
        .map(|number| v1::PlaintextSource { ip: address(number), ..source(0, knocks) })
        .collect()
}

#[test]
fn a_scan_of_the_whole_mesh_is_held_within_one_bound_and_who_was_served_is_still_named() {
    let mut desk = desk();
    for pod in 0..70 {
        desk.report(1, &format!("scanned-{pod}"), report(1, 1, knocks(0, 3000)));
    }
    let full = desk.ledger.entries();
    assert!((190_000..210_000).contains(&full), "{full}");
    let mut late = knocks(0, 3000);
    late.push(source(9, counts(1, 0, 0)));
    desk.report(2, "late", report(1, 1, late.clone()));
    assert_eq!(desk.sources()[0], "old/client:8080 1/0/0");
    assert!(desk.ledger.addresses_of("late") <= 32);
    assert!(desk.ledger.entries() <= full + 3 * 32);
    // What is told again is not counted again.
    desk.report(3, "late", report(1, 2, late));
    assert_eq!(desk.sources()[0], "old/client:8080 1/0/0");
    let gone: Vec<String> = (0..69).map(|pod| format!("scanned-{pod}")).collect();
    let live: Vec<&str> = gone[..1].iter().map(String::as_str).chain(["late"]).collect();
    desk.sweep(4, &live);
    desk.sweep(90, &live);
    assert!(desk.ledger.entries() < 20_000, "{}", desk.ledger.entries());
    assert_eq!(desk.sources()[0], "old/client:8080 1/0/0");
}

#[test]
fn one_that_is_refused_takes_the_place_of_one_that_only_knocked() {
    let mut desk = desk();
    desk.report(1, "a", report(1, 1, knocks(0, 2000)));
    let refused = v1::PlaintextSource { ip: vec![192, 0, 2, 1].into(), ..source(0, counts(0, 1, 0)) };
    desk.report(2, "a", report(1, 2, vec![refused]));
    assert_eq!(desk.sources()[0], "192.0.2.1:8080 0/1/0");
    assert_eq!(desk.ledger.namespace("shop").sources.len(), 1024);
}

#[test]
fn a_source_names_the_pod_that_is_there_and_saw_it_last() {
    let mut desk = desk();
    desk.report(1, "a", report(1, 1, vec![source(9, counts(1, 0, 0))]));
    desk.report(5, "b", report(1, 1, vec![source(9, counts(1, 0, 0))]));
    let by = |desk: &Desk| desk.ledger.namespace("shop").sources[0].seen_by.clone();
    assert_eq!(by(&desk).as_deref(), Some("b"));
    desk.report(9, "a", report(1, 2, vec![source(9, counts(2, 0, 0))]));
    assert_eq!(by(&desk).as_deref(), Some("a"));
    desk.sweep(10, &["b"]);
    assert_eq!(by(&desk).as_deref(), Some("b"));
}

#[test]
fn an_address_that_the_proxy_forgot_is_forgotten_and_counted_anew_when_it_comes_again() {
    let mut desk = desk();
    desk.report(1, "a", report(1, 1, vec![source(9, counts(0, 2, 0)), source(8, counts(0, 1, 0))]));
    desk.report(2, "a", report(1, 2, vec![source(8, counts(0, 1, 0))]));
    assert_eq!(desk.ledger.addresses_of("a"), 1);
    // Met again: two refusals since, as many as before.
    desk.report(3, "a", report(1, 3, vec![source(9, counts(0, 2, 0)), source(8, counts(0, 1, 0))]));
    assert_eq!(desk.sources(), ["old/client:8080 0/4/0", "10.1.0.8:8080 0/1/0"]);
}

#[test]
fn a_scan_of_all_ports_does_not_fill_the_operator() {
    let mut desk = desk();
    for round in 0..16u64 {
        let ports = (1..=4000u32).map(|port| v1::PlaintextSource {
            port: u32::try_from(round).unwrap() * 4000 + port,
            ..source(9, v1::PlaintextCounts { no_listener: 1, ..v1::PlaintextCounts::default() })
        });
        desk.report(round, "a", report(1, round + 1, ports.collect()));
    }
    assert!(desk.ledger.addresses_of("a") <= 4000);
}

/// curl in the container app, 100 ms before the report.
fn bypass(way: v1::bypass::Way, port: u32) -> v1::Bypass {
    let listener = way == v1::bypass::Way::UdpListener;
    v1::Bypass {
        way: way.into(),
        ip: if listener { Vec::new().into() } else { vec![10, 1, 0, 9].into() },
        port,
        process: "curl".into(),
        container: "app".into(),
        last_seen_age_ms: 100,
    }
}

#[test]
fn what_passes_by_is_named_and_a_restart_of_the_proxy_does_not_hide_it() {
    use v1::bypass::Way;
    let mut desk = desk();
    let mut first = report(1, 1, vec![]);
    first.bypass =
        vec![bypass(Way::UdpListener, 514), bypass(Way::Inbound, 8080), bypass(Way::Outbound, 443)];
    desk.report(1, "a", first.clone());
    first.sequence = 2;
    first.bypass.truncate(2);
    desk.report(2, "a", first);
    let shown = |desk: &Desk| -> Vec<String> {
        let seen = desk.ledger.of("a").unwrap().bypass;
        seen.iter().map(|seen| format!("{seen}; {}", seen.last_seen_unix_ms)).collect()
    };
    let want = [
        "curl in app, TCP from old/client to port 8080; 1001900",
        "curl in app, TCP to old/client port 443; 1000900",
        "curl in app, UDP at port 514; 1001900",
    ];
    assert_eq!(shown(&desk), want);
    desk.report(3, "a", report(2, 1, vec![]));
    assert_eq!(shown(&desk), want, "a new proxy has seen nothing yet");
}

#[test]
fn what_passes_by_is_bounded_and_nonsense_is_left_out() {
    use v1::bypass::Way;
    let mut desk = desk();
    let nonsense = [
        v1::Bypass { way: 99, ..bypass(Way::Outbound, 1) },
        v1::Bypass { way: 0, ..bypass(Way::Outbound, 2) },
        v1::Bypass { ip: vec![1, 2, 3].into(), ..bypass(Way::Outbound, 3) },
        v1::Bypass { ip: Vec::new().into(), ..bypass(Way::Inbound, 4) },
        v1::Bypass { port: 70_000, ..bypass(Way::UdpPeer, 5) },
        v1::Bypass { last_seen_age_ms: NEVER, ..bypass(Way::UdpPeer, 6) },
    ];
    let mut odd = report(1, 1, vec![]);
    odd.bypass = nonsense.to_vec();
    odd.bypass.push(v1::Bypass { process: "x".repeat(5000), ..bypass(Way::Outbound, 443) });
    desk.report(1, "a", odd);
    let seen = desk.ledger.of("a").unwrap().bypass;
    assert_eq!((seen.len(), seen[0].port, seen[0].process.len()), (1, 443, 63));
    for sequence in 2..10 {
        let mut many = report(1, u64::from(sequence), vec![]);
        many.bypass = (0..250).map(|port| bypass(Way::UdpPeer, sequence * 1000 + port)).collect();
        desk.report(u64::from(sequence), "a", many);
    }
    let seen = desk.ledger.of("a").unwrap().bypass;
    assert_eq!((seen.len(), seen[0].port), (1 + 16, 443), "TCP is not pushed out by UDP");
    for sequence in 10..14 {
        let mut many = report(1, u64::from(sequence), vec![]);
        many.bypass = (0..20).map(|port| bypass(Way::Outbound, sequence * 1000 + port)).collect();
        desk.report(u64::from(sequence), "a", many);
    }
    let seen = desk.ledger.of("a").unwrap().bypass;
    let tcp: Vec<u16> = seen.iter().filter(|seen| seen.is_tcp()).map(|seen| seen.port).collect();
    assert_eq!((tcp.len(), seen.len()), (32, 32 + 16));
    assert!(tcp[..20].iter().all(|port| *port >= 13_000), "the newest stay: {tcp:?}");
}

#[test]
fn what_no_longer_passes_by_is_forgotten() {
    use v1::bypass::Way;
    let mut desk = desk();
    for (second, port) in [(1, 443), (5, 444), (9, 514)] {
        let mut seen = report(1, second, vec![]);
        seen.bypass = vec![bypass(if port == 514 { Way::UdpPeer } else { Way::Outbound }, port)];
        desk.report(second, "a", seen);
    }
    desk.report(9, "b", report(1, 1, vec![]));
    // Seen 100 ms before the report of second 5.
    for (before, want) in [(1_004_900, vec![444, 514]), (1_004_901, vec![514]), (u64::MAX, vec![])] {
        desk.ledger.forget_bypass(["a", "b", "unknown"].into_iter(), before);
        let held: Vec<u16> = desk.ledger.of("a").unwrap().bypass.iter().map(|seen| seen.port).collect();
        assert_eq!(held, want, "{before}");
    }
}

#[test]
fn the_last_look_of_the_node_agent_outlives_the_proxy_that_told_it() {
    let mut desk = desk();
    let look = |desk: &Desk| desk.ledger.of("a").unwrap().last_look_unix_ms;
    desk.report(1, "a", report(1, 1, vec![]));
    assert_eq!(look(&desk), None, "nobody has looked");
    desk.report(2, "a", v1::Evidence { bypass_look_age_ms: Some(500), ..report(1, 2, vec![]) });
    assert_eq!(look(&desk), Some(1_001_500));
    desk.report(3, "a", report(2, 1, vec![]));
    assert_eq!(look(&desk), Some(1_001_500), "a new proxy has not been looked at yet");
    desk.report(4, "a", v1::Evidence { bypass_look_age_ms: Some(NEVER), ..report(2, 2, vec![]) });
    assert_eq!(look(&desk), Some(1_001_500));
    desk.report(60, "a", v1::Evidence { bypass_look_age_ms: Some(0), ..report(2, 3, vec![]) });
    assert_eq!(look(&desk), Some(1_060_000));
}

/// A report of a proxy that was told of a look just now.
fn looked(sequence: u64) -> v1::Evidence {
    v1::Evidence { bypass_look_age_ms: Some(0), ..report(1, sequence, vec![]) }
}

#[test]
fn a_look_that_was_cut_is_no_look() {
    let mut desk = desk();
    let look = |desk: &Desk| {
        let evidence = desk.ledger.of("a").unwrap();
        (evidence.last_look_unix_ms, evidence.look_was_cut)
    };
    let mut at = |second, report| {
        desk.report(second, "a", report);
        look(&desk)
    };
    assert_eq!(at(1, v1::Evidence { bypass_cut: Some(true), ..looked(1) }), (None, true));
    let whole = (Some(1_030_000), false);
    // What was cut before, and what was left out of UDP, does not count.
    assert_eq!(at(30, v1::Evidence { bypass_cut: Some(false), bypass_dropped: 9, ..looked(2) }), whole);
    assert_eq!(at(60, v1::Evidence { bypass_cut: Some(true), ..looked(3) }), (Some(1_030_000), true));
    let mut older = v1::Evidence { bypass_dropped: 1, ..looked(4) };
    assert_eq!(at(90, older.clone()), (Some(1_030_000), true), "a proxy that does not say so");
    (older.bypass_dropped, older.sequence) = (0, 5);
    assert_eq!(at(91, older), (Some(1_091_000), false));
}

#[test]
fn that_a_redirect_was_gone_outlives_the_proxy_that_told_it_and_its_confirmation_does_not() {
    let mut desk = desk();
    let word = |desk: &Desk| {
        let evidence = desk.ledger.of("a").unwrap();
        (evidence.set_again, evidence.last_set_again_unix_ms, evidence.agent_proof_age_ms)
    };
    let mut at = |second, report| {
        desk.report(second, "a", report);
        word(&desk)
    };
    assert_eq!(at(1, report(1, 1, vec![])), (0, None, None));
    let told = v1::Evidence {
        redirect_set_again: 2,
        redirect_set_again_age_ms: Some(1_000),
        agent_proof_age_ms: Some(700),
        ..report(1, 2, vec![])
    };
    assert_eq!(at(10, told), (2, Some(1_009_000), Some(700)));
    assert_eq!(at(20, report(2, 1, vec![])), (0, Some(1_009_000), None), "a new proxy");
    assert_eq!(at(21, v1::Evidence { boot_id: 2, ..looked(2) }), (0, Some(1_009_000), Some(0)));
}

#[test]
fn hostile_reports_are_harmless() {
    let mut desk = desk();
    let mut odd = report(1, 1, vec![]);
    odd.sources = vec![source(9, counts(u64::MAX, u64::MAX, u64::MAX)); 3];
    odd.sources_dropped = u64::MAX;
    odd.sources[0].ip = vec![1, 2, 3].into();
    odd.sources[1].port = 70_000;
    odd.totals = None;
    odd.uptime_ms = u64::MAX;
    desk.report(1, "a", odd);
    desk.report(2, "a", report(1, 2, vec![source(9, counts(1, 1, 1))]));
    let mut also = report(1, 1, vec![source(9, counts(u64::MAX, 0, 0))]);
    also.sources_dropped = u64::MAX;
    desk.report(3, "b", also);
    desk.report(4, "b", report(2, 1, vec![]));
    desk.report(5, "b", report(3, 1, vec![]));
    assert_eq!(desk.sources().len(), 1);
    desk.sweep(6, &["a"]);
    desk.sweep(99, &["a"]);
    assert_eq!(desk.sources().len(), 1);
}
