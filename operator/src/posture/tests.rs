//! What is written and how the cluster's objects are read; the decisions are tested in `cinch_promotion`.

use super::watch::Postures;
use super::{facts, pins, status, workloads, write};
use crate::accounts::Refused;
use crate::evidence::{BypassEvidence, Counts, LastReport, PodEvidence};
use crate::index::{NamespaceInfo, PolicyKey, PolicyKind};
use crate::settings::Settings;
use cinch_api::{BrokenPolicy, Posture, PostureMode, PostureSpec, PostureState, PromotionPolicy};
use cinch_control::v1;
use cinch_promotion::{
    Action, Facts, Finding, Injection, Memory, Pod, PodClass, Policy, Slot, Transport, Word, step,
};
use cinch_reason::Reason;
use kube::runtime::watcher::Event;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

const NOW: u64 = 1_700_000_000_000;

fn namespace(annotations: &[(&str, &str)]) -> NamespaceInfo {
    let annotations: BTreeMap<Arc<str>, Arc<str>> =
        annotations.iter().map(|(key, value)| (Arc::from(*key), Arc::from(*value))).collect();
    NamespaceInfo {
        name: "shop".into(),
        uid: "u".into(),
        resource_version: "42".into(),
        enrolled: true,
        injection_required: false,
        locked: false,
        host_network_allowed: false,
        labels: Arc::default(),
        annotations: Arc::new(annotations),
        terminating: false,
        created_unix_ms: 1,
    }
}

fn settings() -> Settings {
    let yaml = "{trustDomain: cluster.local, clusterDomain: cluster.local, namespace: cinch-system, \
        rootNamespace: cinch-system, images: {proxy: p, allowed: [p]}, \
        promotion: {default: Automatic, quietPeriod: 15s, probation: 20s, settle: 3s}, proxy: {reportInterval: 1s}}";
    Settings::parse(yaml).expect("settings")
}

fn posture(spec: PostureSpec) -> Posture {
    let mut posture = Posture::new("mesh", spec);
    posture.metadata.namespace = Some("shop".to_owned());
    posture.metadata.generation = Some(3);
    posture.metadata.uid = Some("p".to_owned());
    posture
}

#[test]
fn each_action_is_one_patch_with_the_version_it_was_decided_on_and_only_our_keys() {
    let annotation = "cinch.dev/promotion";
    let cases = [
        (
            Action::RequireInjection { started: NOW },
            json!({"cinch.dev/injection": "required"}),
            json!({annotation: "2023-11-14T22:13:20Z"}),
        ),
        (Action::Lock, json!({"cinch.dev/mode": "STRICT"}), json!({})),
        (
            Action::TakeBack { injection: Injection::Keep },
            json!({"cinch.dev/mode": null}),
            json!({annotation: null}),
        ),
        (
            Action::TakeBack { injection: Injection::TakeBack },
            json!({"cinch.dev/mode": null, "cinch.dev/injection": null}),
            json!({annotation: null}),
        ),
        (Action::FinishProbation, json!({}), json!({annotation: null})),
    ];
    for (action, labels, annotations) in cases {
        let expected =
            json!({"metadata": {"resourceVersion": "42", "labels": labels, "annotations": annotations}});
        assert_eq!(write::patch(&namespace(&[]), action), expected, "{action:?}");
    }
}

#[test]
fn the_annotation_is_read_back_as_it_was_written_and_stands_even_when_it_can_not_be_read() {
    let read = |text: &str| facts::namespace(&namespace(&[("cinch.dev/promotion", text)]), 7).promotion;
    assert_eq!(read("2023-11-14T22:13:20Z"), Some(NOW));
    assert_eq!(read("tomorrow"), Some(7));
    assert_eq!(facts::namespace(&namespace(&[]), 7).promotion, None);
}

#[test]
fn a_spec_goes_before_the_defaults_of_the_installation() {
    let plain = facts::spec(&posture(PostureSpec::default()), &settings());
    assert_eq!((plain.policy, plain.quiet, plain.probation), (Policy::Automatic, 15_000, 20_000));
    assert_eq!((plain.settle, plain.report_interval, plain.generation), (3_000, 1_000, 3));
    let own = PostureSpec {
        promotion: Some(PromotionPolicy::Manual),
        quiet_period: Some("2h".to_owned()),
        approve: Some("abc".to_owned()),
        ..PostureSpec::default()
    };
    let own = facts::spec(&posture(own), &settings());
    assert_eq!((own.policy, own.quiet, own.approve.as_deref()), (Policy::Manual, 7_200_000, Some("abc")));
}

fn blocked() -> (Facts, cinch_promotion::Outcome) {
    let pod = |name: &str, class| Pod {
        uid: name.to_owned(),
        name: name.to_owned(),
        class,
        node_reachable: true,
        by_agent: true,
        ..Pod::default()
    };
    let facts = Facts {
        now: NOW,
        spec: facts::spec(&posture(PostureSpec::default()), &settings()),
        namespace: facts::namespace(&namespace(&[]), NOW),
        pods: vec![pod("web-1", PodClass::Started), pod("old-1", PodClass::NotInjected)],
        findings: vec![Finding {
            reason: Reason::PinnedByPolicy,
            detail: "shop/x".to_owned(),
            reference: None,
        }],
        slot: Slot::Free,
        ..Facts::default()
    };
    let outcome = step(&facts, &Memory::default());
    (facts, outcome)
}

#[test]
fn a_status_shows_what_columns_and_people_read() {
    let (facts, outcome) = blocked();
    let shown = status::of(&outcome, &facts, None);
    assert_eq!(shown.mode, Some(PostureMode::Permissive));
    assert_eq!(shown.state, Some(PostureState::Blocked));
    assert_eq!(shown.meshed.as_deref(), Some("1/2"));
    assert_eq!(shown.blocked_by.as_deref(), Some("PodsNotInjected +1"));
    assert_eq!(shown.observed_generation, Some(3));
    assert!(shown.quiet_since.is_none(), "the window has not begun");
    let first = &shown.blockers[0];
    assert_eq!(first.reference.as_deref(), Some("pod/old-1"));
    assert!(
        first.message.contains("1 of 2: old-1") && first.message.contains("restart"),
        "{}",
        first.message
    );
    let unpinned = shown.conditions.iter().find(|condition| condition.type_ == "Unpinned").expect("Unpinned");
    assert_eq!((unpinned.status.as_str(), unpinned.reason.as_str()), ("False", "PinnedByPolicy"));
    let memory: Memory = serde_json::from_value(shown.promotion.expect("memory")).expect("reads back");
    assert!(!memory.needs_writing(&outcome.memory, 0));
}

#[test]
fn conditions_keep_the_time_of_their_last_change() {
    let (mut facts, outcome) = blocked();
    let before = status::of(&outcome, &facts, None);
    facts.now += 60_000;
    facts.findings.clear();
    let after = status::of(&step(&facts, &outcome.memory), &facts, Some(&before));
    let time = |status: &cinch_api::PostureStatus, kind: &str| {
        status
            .conditions
            .iter()
            .find(|condition| condition.type_ == kind)
            .map(|c| c.last_transition_time.clone())
    };
    assert_eq!(time(&before, "Injected"), time(&after, "Injected"));
    assert_ne!(time(&before, "Unpinned"), time(&after, "Unpinned"));
    assert!(!status::shows_the_same(&before, &after));
}

#[test]
fn broken_policies_are_in_the_status_and_in_a_condition_and_block_nothing() {
    let (facts, outcome) = blocked();
    let broken = BrokenPolicy {
        reference: "authorizationpolicy/shop/x".to_owned(),
        reason: "UnsupportedPolicy".to_owned(),
        message: "UnsupportedPolicy: spec.y".to_owned(),
    };
    let plain = status::of(&outcome, &facts, None);
    let told = status::with_policies(plain.clone(), Some(vec![broken.clone()]), &facts, None);
    assert_eq!(told.policies, std::slice::from_ref(&broken));
    assert_eq!((&told.blockers, &told.blocked_by), (&plain.blockers, &plain.blocked_by));
    let condition = |status: &cinch_api::PostureStatus| {
        let found = status.conditions.iter().find(|condition| condition.type_ == "PoliciesUsable");
        found.map(|condition| (condition.status.clone(), condition.reason.clone(), condition.message.clone()))
    };
    let (word, reason, message) = condition(&told).expect("the condition");
    assert_eq!((word.as_str(), reason.as_str()), ("False", "PoliciesBroken"));
    assert!(message.contains("authorizationpolicy/shop/x"), "{message}");
    let unknown = status::with_policies(plain.clone(), None, &facts, Some(&told));
    assert_eq!(unknown.policies, [broken], "a new leader does not forget it");
    let mended = status::with_policies(plain, Some(Vec::new()), &facts, Some(&told));
    assert!(mended.policies.is_empty());
    assert_eq!(condition(&mended).map(|(word, ..)| word), Some("True".to_owned()));
}

#[test]
fn a_namespace_is_pinned_by_what_the_index_names_and_by_not_knowing() {
    let key = |namespace: &str, name: &str| PolicyKey {
        kind: PolicyKind::PeerAuthentication,
        namespace: namespace.into(),
        name: name.into(),
    };
    let pins = pins::Pins::read(Some([key("shop", "legacy"), key("old", "x")].into()));
    let found = pins.of("shop");
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].reason, found[0].detail.as_str()), (Reason::PinnedByPolicy, "shop/legacy"));
    assert!(pins.of("billing").is_empty());
    assert_eq!(pins::Pins::read(None).of("billing").len(), 1, "unknown is not unpinned");
    let many = (0..20).map(|number| key("shop", &format!("p{number}"))).collect();
    assert_eq!(pins::Pins::read(Some(many)).of("shop").len(), 5, "a few are named");
}

#[test]
fn our_own_status_writes_do_not_wake_us_but_specs_do() {
    let postures = Postures::default();
    let mut written = posture(PostureSpec::default());
    postures.take(Event::Apply(written.clone()));
    let woken = || {
        let waiting = postures.changed();
        futures::FutureExt::now_or_never(waiting).is_some()
    };
    assert!(woken());
    written.status = Some(cinch_api::PostureStatus::default());
    postures.take(Event::Apply(written.clone()));
    assert!(!woken(), "the generation is the same");
    written.metadata.generation = Some(4);
    postures.take(Event::Apply(written.clone()));
    assert!(woken());
    postures.take(Event::Delete(written));
    assert!(woken() && postures.of("shop").is_none());
}

#[test]
fn the_posture_of_a_namespace_that_left_falls_silent_once() {
    let mut left = posture(PostureSpec::default());
    assert!(!status::speaks(&left));
    left.status = Some(status::of(&blocked().1, &blocked().0, None));
    assert!(status::speaks(&left));
    left.status = Some(status::not_enrolled(&left));
    assert!(!status::speaks(&left));
    let shown = left.status.expect("a status");
    assert_eq!(shown.blocked_by.as_deref(), Some("NotEnrolled"));
    assert!(shown.mode.is_none() && shown.promotion.is_none());
}

/// What a pod has said that never proved its inbound redirect.
fn evidence() -> PodEvidence {
    let last_report =
        LastReport { received_at: std::time::Instant::now(), received_unix_ms: NOW, final_report: false };
    PodEvidence {
        pod_uid: "u".into(),
        boot_id: 1,
        sequence: 1,
        uptime_ms: 60_000,
        last_report,
        totals: Counts::default(),
        last_served_unix_ms: None,
        policy_version: 1,
        inbound_proof_age_ms: None,
        outbound_proof_age_ms: Some(7),
        sources_dropped: 0,
        unreported_ms: 0,
        bypass: Vec::new(),
        last_look_unix_ms: Some(NOW - 5),
        look_was_cut: true,
        agent_proof_age_ms: Some(8),
        set_again: 0,
        last_set_again_unix_ms: None,
    }
}

#[test]
fn a_report_says_how_old_the_proofs_of_the_redirect_were() {
    let evidence = evidence();
    let report = facts::report(&evidence);
    assert_eq!((report.inbound_proof_age, report.outbound_proof_age), (None, Some(7)));
    assert_eq!((report.last_look, report.look_was_cut), (Some(NOW - 5), true));
    assert_eq!(report.agent_proof_age, Some(8));
    let (mut facts, _) = blocked();
    facts.pods[0].report = Some(report);
    let blockers = step(&facts, &Memory::default()).blockers;
    let missing = blockers.iter().find(|blocker| blocker.reason == Reason::RedirectMissing);
    assert_eq!(missing.and_then(|blocker| blocker.reference.as_deref()), Some("pod/web-1"));
}

#[test]
fn a_redirect_that_was_gone_blocks_and_is_told() {
    let mut evidence = evidence();
    assert_eq!(facts::redirect_gone(&evidence), None);
    (evidence.set_again, evidence.last_set_again_unix_ms) = (2, Some(NOW - 1_000));
    let (mut facts, _) = blocked();
    facts.pods[0].redirect_gone = facts::redirect_gone(&evidence);
    let outcome = step(&facts, &Memory::default());
    let gone = outcome.blockers.iter().find(|blocker| blocker.reason == Reason::RedirectWasGone);
    assert_eq!(gone.map(|blocker| blocker.detail.as_str()), Some("1 of 1: web-1 (2 times)"));
    let told: Vec<_> = outcome.events.iter().filter(|e| e.reason == Reason::RedirectWasGone).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].detail, "web-1 (2 times)");
}

#[test]
fn of_what_passes_by_the_newest_of_each_way_is_told() {
    use v1::bypass::Way;
    let seen = |way, port, last_seen_unix_ms| BypassEvidence {
        way,
        peer: None,
        port,
        process: "curl".into(),
        container: "app".into(),
        last_seen_unix_ms,
    };
    let mut evidence = evidence();
    assert!(facts::bypass(&evidence).is_empty());
    // As the store has it: TCP first, and of that the newest.
    evidence.bypass = vec![
        seen(Way::Inbound, 1, 9),
        seen(Way::Outbound, 2, 8),
        seen(Way::Inbound, 5, 4),
        seen(Way::UdpPeer, 3, 7),
        seen(Way::UdpListener, 4, 6),
        seen(Way::UdpPeer, 6, 5),
    ];
    let told = facts::bypass(&evidence);
    let told: Vec<_> = told.iter().map(|seen| (seen.transport, &*seen.what, seen.last_seen)).collect();
    assert_eq!(
        told,
        [
            (Transport::Tcp, "curl in app, TCP at port 2; curl in app, TCP at port 1", 9),
            (Transport::Udp, "curl in app, UDP at port 3; curl in app, UDP at port 4", 7)
        ]
    );
}

#[test]
fn workloads_that_a_lock_would_stop_stand_against_it_by_name() {
    let refused = |reason, name: &str| Refused {
        reason,
        detail: format!("Deployment/{name}: x"),
        reference: format!("deployment/{name}"),
    };
    let all = vec![
        refused(Reason::HostNetworkPods, "a"),
        refused(Reason::CouldUndoRedirect, "b"),
        refused(Reason::WorkloadNotInjectable, "c"),
    ];
    let words = |findings: Vec<Finding>| findings.iter().map(|found| found.reason).collect::<Vec<_>>();
    let (host, undo, left_out) =
        (Reason::HostNetworkPods, Reason::CouldUndoRedirect, Reason::WorkloadNotInjectable);
    assert_eq!(words(workloads::findings(Some(all.clone()), false)), [host, undo, left_out]);
    assert_eq!(words(workloads::findings(Some(all.clone()), true)), [undo, left_out], "its label allows it");
    let second = &workloads::findings(Some(all), true)[0];
    assert_eq!(
        (second.detail.as_str(), second.reference.as_deref()),
        ("Deployment/b: x", Some("deployment/b"))
    );
    assert_eq!(workloads::findings(Some(Vec::new()), false), []);
    assert_eq!(words(workloads::findings(None, false)), [left_out], "nobody knows yet");
}

#[test]
fn what_a_person_wrote_of_promotion_is_told_from_the_default() {
    let spec = |promotion| {
        let spec = PostureSpec { promotion, ..PostureSpec::default() };
        facts::spec(&posture(spec), &settings())
    };
    let (default, written) = (spec(None), spec(Some(PromotionPolicy::Automatic)));
    assert_eq!((default.policy, written.policy), (Policy::Automatic, Policy::Automatic));
    assert_eq!((default.word, written.word), (Word::Unwritten, Word::Written(Policy::Automatic)));
}
