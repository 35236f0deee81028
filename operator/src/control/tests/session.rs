//! Binding and what is sent when, without sockets.

use super::*;
use crate::ca::tests::authority;
use crate::control::session::{Introduction, MAX_SUBSCRIPTIONS, Output, Session, bind};
use cinch_control::v1::proxy_message::Kind as Request;
use cinch_identity::SpiffeId;
use cinch_reason::Reason;

fn bound(id: &str, hello: &v1::Hello, source: &str, view: &FakeView) -> Result<bool, Option<Reason>> {
    let trust_domain = TrustDomain::parse("cluster.local").unwrap();
    let hello = Introduction::of(hello).map_err(|close| close.refusal.map(|refusal| refusal.reason))?;
    bind(&hello, &SpiffeId::parse(id).unwrap(), &trust_domain, source.parse().unwrap(), view)
        .map(|pod| pod.is_some())
        .map_err(|close| close.refusal.map(|refusal| refusal.reason))
}

#[test]
fn a_stream_is_bound_to_the_pod_of_its_identity_and_addresses_only() {
    let unmeshed = PodInfo { injected: false, ..pod("bare", "api", &["10.0.0.3"]) };
    let view = FakeView::new(&[pod("a", "api", &["10.0.0.1"]), pod("b", "web", &["10.0.0.2"]), unmeshed]);
    let mismatch = Err(Some(Reason::PodMismatch));
    let other_domain = "spiffe://other.domain/ns/shop/sa/api";
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let cases = [
        ("its own", API_ID, "a", &["10.0.0.1"][..], "10.0.0.1", Ok(true)),
        ("its own as mapped address", API_ID, "a", &["::ffff:10.0.0.1"][..], "::ffff:10.0.0.1", Ok(true)),
        ("behind a translated address", API_ID, "a", &["10.0.0.1"], "192.168.0.1", Ok(true)),
        ("not yet known", API_ID, "new", &["10.0.0.9"], "10.0.0.9", Ok(false)),
        ("another identity", web, "a", &["10.0.0.1"], "10.0.0.1", mismatch),
        ("another trust domain", other_domain, "a", &["10.0.0.1"], "10.0.0.1", mismatch),
        ("another address", API_ID, "a", &["10.0.0.7"], "10.0.0.1", mismatch),
        ("one address more", API_ID, "a", &["10.0.0.1", "10.0.0.7"], "10.0.0.1", mismatch),
        ("from another pod", API_ID, "a", &["10.0.0.1"], "10.0.0.2", mismatch),
        ("without sidecar", API_ID, "bare", &["10.0.0.3"], "10.0.0.3", Err(Some(Reason::PodNotMeshed))),
        ("without addresses", API_ID, "a", &[], "10.0.0.1", Err(None)),
    ];
    for (case, id, uid, ips, source, want) in cases {
        assert_eq!(bound(id, &hello(uid, ips), source, &view), want, "{case}");
    }
    let mut malformed = hello("a", &["10.0.0.1"]);
    malformed.pod_ips = vec![vec![1, 2, 3].into()];
    assert_eq!(bound(API_ID, &malformed, "10.0.0.1", &view), Err(None));
}

fn session(ips: &[&str]) -> Session {
    Session::new(&Introduction::of(&hello("a", ips)).unwrap())
}

fn names(outputs: &[Output]) -> Vec<&'static str> {
    outputs
        .iter()
        .map(|output| match output {
            Output::Send(Kind::TrustBundle(_)) => "bundle",
            Output::Send(Kind::Mesh(_)) => "mesh",
            Output::Send(Kind::Policy(_)) => "policy",
            Output::Send(Kind::Indexed(_)) => "indexed",
            Output::Send(Kind::Record(_)) => "record",
            Output::Send(_) => "other",
            Output::Resolve(_) => "resolve",
            Output::Renew(_) => "renew",
            Output::Acknowledged(_) => "acknowledged",
        })
        .collect()
}

/// What is sent after a change, records among it.
fn refreshed(session: &mut Session, view: &FakeView, bundle: &TrustBundle) -> Vec<&'static str> {
    let mut outputs = session.refresh(view, bundle).unwrap();
    outputs.extend(session.refresh_records(view));
    names(&outputs)
}

fn subscribe(session: &mut Session, view: &FakeView, to: &[&str]) -> Vec<&'static str> {
    let addresses = to.iter().map(|to| address(to.parse().unwrap())).collect();
    names(&session.message(Request::Subscribe(v1::Subscribe { addresses }), view).unwrap())
}

#[test]
fn everything_is_sent_once_and_then_only_what_changed() {
    let view = FakeView::new(&[pod("a", "api", &["10.0.0.1"])]);
    let bundle = authority(Duration::from_secs(60)).bundle();
    let mut session = session(&["10.0.0.1"]);
    let refresh = |session: &mut Session| refreshed(session, &view, &bundle);
    assert_eq!(refresh(&mut session), ["bundle", "mesh", "policy", "indexed"]);
    assert!(refresh(&mut session).is_empty());
    *view.policy.lock() = 2;
    assert_eq!(refresh(&mut session), ["policy"]);
    view.set("10.0.0.5:80", RecordKind::Endpoints, 1);
    assert_eq!(subscribe(&mut session, &view, &["10.0.0.5:80"]), ["record"]);
    assert!(refresh(&mut session).is_empty());
    view.set("10.0.0.5:80", RecordKind::Endpoints, 2);
    *view.policy.lock() = 3;
    let first = session.refresh(&view, &bundle).unwrap();
    assert_eq!(names(&first), ["policy"], "a policy does not wait until all records were looked at");
    assert_eq!(refresh(&mut session), ["record"]);
    let gone = v1::Unsubscribe { addresses: vec![address("10.0.0.5:80".parse().unwrap())] };
    session.message(Request::Unsubscribe(gone), &view).unwrap();
    view.set("10.0.0.5:80", RecordKind::Endpoints, 3);
    assert!(refresh(&mut session).is_empty());
}

#[test]
fn a_request_for_an_unknown_key_is_passed_on_and_bounded() {
    let view = FakeView::new(&[pod("a", "api", &["10.0.0.1"])]);
    let mut session = session(&["10.0.0.1"]);
    let mut ask = |source: String, kid: String| {
        let request = Request::UnknownKey(v1::UnknownKey { source, kid });
        assert!(session.message(request, &view).unwrap().is_empty(), "the stream goes on");
    };
    ask("https://issuer.example".to_owned(), "k2".to_owned());
    ask("s".repeat(10_000), "k2".to_owned());
    ask("https://issuer.example".to_owned(), "k".repeat(10_000));
    let passed = view.unknown_keys.lock();
    assert_eq!(*passed, [("a".to_owned(), "https://issuer.example".to_owned(), "k2".to_owned())]);
}

#[test]
fn a_proxy_that_does_not_know_dry_runs_gets_none_under_the_same_version() {
    let view = FakeView::new(&[pod("a", "api", &["10.0.0.1"])]);
    let bundle = authority(Duration::from_secs(60)).bundle();
    let policy = |name: &str, dry_run| v1::Policy { name: name.into(), dry_run, ..v1::Policy::default() };
    *view.policies.lock() = vec![policy("shop/trial", true), policy("shop/real", false)];
    for (features, want) in [(vec![], vec!["shop/real"]), (vec!["dry-run"], vec!["shop/trial", "shop/real"])]
    {
        let features = features.into_iter().map(str::to_owned).collect();
        let hello = v1::Hello { features, ..hello("a", &["10.0.0.1"]) };
        let mut session = Session::new(&Introduction::of(&hello).unwrap());
        let outputs = session.refresh(&view, &bundle).unwrap();
        let sent = outputs.iter().find_map(|output| match output {
            Output::Send(Kind::Policy(policy)) => Some(policy),
            _ => None,
        });
        let sent = sent.unwrap();
        let names: Vec<&str> = sent.policies.iter().map(|policy| &*policy.name).collect();
        assert_eq!((names, sent.version), (want, 1));
    }
}

#[test]
fn a_pod_is_indexed_only_once_the_index_has_its_addresses() {
    let view = FakeView::new(&[pod("a", "api", &[])]);
    let bundle = authority(Duration::from_secs(60)).bundle();
    let mut session = session(&["10.0.0.1"]);
    assert_eq!(names(&session.refresh(&view, &bundle).unwrap()), ["bundle", "mesh", "policy"]);
    view.pods.lock().insert("a".to_owned(), pod("a", "api", &["10.0.0.1"]));
    assert_eq!(names(&session.refresh(&view, &bundle).unwrap()), ["indexed"]);
}

#[test]
fn a_pod_that_turns_out_to_have_other_addresses_is_closed() {
    let view = FakeView::new(&[pod("a", "api", &["10.0.0.2"])]);
    let bundle = authority(Duration::from_secs(60)).bundle();
    let close = session(&["10.0.0.1"]).refresh(&view, &bundle).unwrap_err();
    assert_eq!(close.refusal.unwrap().reason, Reason::PodMismatch);
}

#[test]
fn unknown_is_said_only_after_a_consistent_read_and_again_when_it_becomes_known() {
    let view = FakeView::new(&[pod("a", "api", &["10.0.0.1"])]);
    let bundle = authority(Duration::from_secs(60)).bundle();
    let mut session = session(&["10.0.0.1"]);
    session.refresh(&view, &bundle).unwrap();
    let to: SocketAddr = "10.0.0.9:80".parse().unwrap();
    assert_eq!(subscribe(&mut session, &view, &["10.0.0.9:80"]), ["resolve"]);
    let mut unspecified = view.record("a", to);
    unspecified.set_kind(RecordKind::Unspecified);
    assert_eq!(session.resolved(to, unspecified), None);
    assert_eq!(refreshed(&mut session, &view, &bundle), ["resolve"]);
    assert!(session.resolved(to, view.record("a", to)).is_some());
    assert!(refreshed(&mut session, &view, &bundle).is_empty());
    view.set("10.0.0.9:80", RecordKind::Endpoints, 5);
    assert_eq!(refreshed(&mut session, &view, &bundle), ["record"]);
    view.records.lock().clear();
    assert_eq!(refreshed(&mut session, &view, &bundle), ["resolve"]);
}

#[test]
fn each_subscribe_is_answered_also_a_repeated_one() {
    let view = FakeView::new(&[pod("a", "api", &["10.0.0.1"])]);
    view.set("10.0.0.5:80", RecordKind::Endpoints, 1);
    let mut session = session(&["10.0.0.1"]);
    assert_eq!(subscribe(&mut session, &view, &["10.0.0.5:80"]), ["record"]);
    assert_eq!(subscribe(&mut session, &view, &["10.0.0.5:80"]), ["record"]);
}

#[test]
fn subscriptions_are_bounded() {
    let view = FakeView::new(&[pod("a", "api", &["10.0.0.1"])]);
    let mut session = session(&["10.0.0.1"]);
    let to = |at: usize| {
        let at = u32::try_from(at).unwrap();
        address(SocketAddr::new(IpAddr::from((0x0a01_0000 + at).to_be_bytes()), 80))
    };
    let all = (0..MAX_SUBSCRIPTIONS).map(to).collect();
    session.message(Request::Subscribe(v1::Subscribe { addresses: all }), &view).unwrap();
    let one = v1::Subscribe { addresses: vec![to(MAX_SUBSCRIPTIONS)] };
    let close = session.message(Request::Subscribe(one), &view).unwrap_err();
    assert_eq!(close.refusal.unwrap().reason, Reason::Overloaded);
}

#[test]
fn messages_out_of_place_and_malformed_addresses_are_garbage() {
    let view = FakeView::new(&[pod("a", "api", &["10.0.0.1"])]);
    let bad = |ip: Vec<u8>, port| {
        Request::Subscribe(v1::Subscribe { addresses: vec![v1::Address { ip: ip.into(), port }] })
    };
    for request in [
        Request::Hello(v1::Hello::default()),
        Request::FirstCertificate(v1::FirstCertificate::default()),
        bad(vec![1, 2, 3], 80),
        bad(vec![10, 0, 0, 1], 0),
        bad(vec![10, 0, 0, 1], 65_536),
    ] {
        let close = session(&["10.0.0.1"]).message(request, &view).unwrap_err();
        assert_eq!(close.end, ConnectionEnd::Garbage);
    }
}

#[test]
fn evidence_reaches_the_store_and_is_acknowledged() {
    let view = FakeView::new(&[pod("a", "api", &["10.0.0.1"])]);
    let evidence = v1::Evidence { boot_id: 9, sequence: 4, ..v1::Evidence::default() };
    let outputs = session(&["10.0.0.1"]).message(Request::Evidence(evidence), &view).unwrap();
    let ack = v1::EvidenceAck { boot_id: 9, sequence: 4 };
    assert_eq!(outputs, [Output::Send(Kind::EvidenceAck(ack))]);
    assert_eq!(*view.reports.lock(), [("a".to_owned(), 4)]);
}
