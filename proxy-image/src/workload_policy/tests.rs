//! What a proxy makes of a message: modes, kinds, dry runs, settings, and how it closes.

use super::*;
use cinch_policy::{Connection, Decision, Partial, no_providers};
use std::net::IpAddr;
use std::time::{Duration, Instant};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DENY_PUT: &str = r#"{"action":"DENY","rules":[{"to":[{"operation":{"methods":["PUT"]}}]}]}"#;
const ALL: &str = r#"{"action":"ALLOW","rules":[{}]}"#;

fn target() -> Target {
    Target { namespace: "shop".into(), trust_domain: "cluster.local".into() }
}

fn policy(name: &str, action: &str, body: &str) -> v1::Policy {
    v1::Policy {
        name: name.into(),
        action: action.into(),
        body: body.as_bytes().to_vec().into(),
        ..v1::Policy::default()
    }
}

fn mesh_settings(root: &str) -> v1::MeshSettings {
    v1::MeshSettings { root_namespace: root.into(), ..v1::MeshSettings::default() }
}

fn message(policies: Vec<v1::Policy>) -> v1::WorkloadPolicy {
    v1::WorkloadPolicy {
        version: 7,
        mode: v1::Mode::Permissive as i32,
        policies,
        mesh: Some(mesh_settings("mesh")),
        ..Default::default()
    }
}

fn connection(peer: &str, port: u16) -> Connection<'_> {
    Connection::new(Some(peer), IpAddr::from([10, 0, 0, 1]), ([10, 0, 0, 2], port).into())
}

fn decide<'p>(received: &'p InboundPolicy, peer: &str) -> Decision<'p> {
    received.policies.as_ref().unwrap().tcp(&connection(peer, 80), &no_providers)
}

fn allows(received: &InboundPolicy, port: u16) -> bool {
    let decided =
        |policies: &Arc<WorkloadPolicies>| policies.tcp(&connection(WEB, port), &no_providers).is_allowed();
    received.policies.as_ref().is_none_or(decided)
}

#[test]
fn modes_and_the_lock_are_taken_over() {
    let mut sent = message(Vec::new());
    sent.ports = vec![v1::PortMode { port: 80, mode: v1::Mode::Disable as i32 }];
    let received = receive(sent.clone(), &target());
    assert_eq!((received.version, received.nack.as_str()), (7, ""));
    assert_eq!(received.modes.mode(80), Mode::Disable);
    assert_eq!(received.modes.mode(81), Mode::Permissive);
    assert!(received.policies.is_none());
    sent.locked = true;
    assert_eq!(receive(sent, &target()).modes.weakest(), Mode::Strict);
}

#[test]
fn declared_ports_are_taken_over_and_what_is_unknown_of_them_declares_nothing() {
    let mut sent = message(Vec::new());
    let declared = |port: u32, protocol: i32| v1::DeclaredPort { port, protocol };
    sent.declared = vec![
        declared(80, v1::Protocol::Http as i32),
        declared(81, v1::Protocol::Grpc as i32),
        declared(84, v1::Protocol::Tcp as i32),
        declared(82, 99),
        declared(83, 0),
        declared(70_000, v1::Protocol::Http as i32),
    ];
    let received = receive(sent, &target());
    assert_eq!(received.nack, "");
    let speaking: Vec<u16> = (79..90).filter(|port| received.speaks_http(*port)).collect();
    assert_eq!((speaking, received.declared.len()), (vec![80, 81], 3));
}

#[test]
fn dry_runs_of_requests_are_kept_for_declared_ports_alone_and_count_as_deciding_nothing() {
    let dry = |policy: v1::Policy| v1::Policy { dry_run: true, ..policy };
    let http =
        dry(v1::Policy { required_features: vec![HTTP.into()], ..policy("shop/dry", "DENY", DENY_PUT) });
    let mut sent = message(vec![http.clone()]);
    assert!(receive(sent.clone(), &target()).policies.is_none(), "nobody's requests are read");
    sent.declared = vec![v1::DeclaredPort { port: 80, protocol: v1::Protocol::Http as i32 }];
    let received = receive(sent.clone(), &target());
    assert!(received.policies.as_ref().unwrap().reports() && received.only_reports);
    assert!(!received.reports.as_ref().unwrap().reports(), "nothing is said of what is not read");
    let enforced = policy("shop/deny", "DENY", DENY_PUT);
    sent.policies.push(v1::Policy { required_features: vec![HTTP.into()], ..enforced });
    let received = receive(sent, &target());
    assert!(received.policies.unwrap().reports() && received.reports.is_none() && !received.only_reports);
}

#[test]
fn unknown_modes_and_ports_close_and_are_reported() {
    let mut sent = message(Vec::new());
    sent.mode = 0;
    sent.ports = vec![
        v1::PortMode { port: 80, mode: 9 },
        v1::PortMode { port: 70000, mode: v1::Mode::Disable as i32 },
    ];
    let received = receive(sent, &target());
    assert_eq!(received.modes.weakest(), Mode::Strict);
    for part in ["the workload", "port 80", "70000"] {
        assert!(received.nack.contains(part), "{}", received.nack);
    }
}

#[test]
fn policies_of_the_own_and_the_root_namespace_decide_whatever_their_selector() {
    let allow = r#"{"action":"ALLOW","selector":{"matchLabels":{"app":"api"}},"rules":[{"from":[{"source":{"principals":["cluster.local/ns/shop/sa/web"]}}]}]}"#;
    let deny = r#"{"action":"DENY","rules":[{"from":[{"source":{"namespaces":["legacy"]}}]}]}"#;
    let sent = message(vec![policy("shop/allow-web", "ALLOW", allow), policy("mesh/deny", "DENY", deny)]);
    let of_before = v1::WorkloadPolicy { mesh: None, ..sent.clone() };
    for sent in [sent, of_before] {
        let received = receive(sent, &target());
        assert_eq!(received.nack, "");
        assert!(decide(&received, WEB).is_allowed());
        let other = decide(&received, "spiffe://cluster.local/ns/shop/sa/other");
        assert_eq!(other.reason, Reason::NoAllowMatched);
        let legacy = decide(&received, "spiffe://cluster.local/ns/legacy/sa/x");
        assert_eq!(legacy.reason, Reason::DeniedByPolicy);
    }
}

#[test]
fn settings_of_the_mesh_decide_whom_a_principal_means() {
    let allow =
        r#"{"action":"ALLOW","rules":[{"from":[{"source":{"principals":["old.domain/ns/shop/sa/web"]}}]}]}"#;
    let mut sent = message(vec![policy("shop/p", "ALLOW", allow)]);
    assert!(!decide(&receive(sent.clone(), &target()), WEB).is_allowed());
    let settings = v1::MeshSettings {
        trust_domain_aliases: vec!["old.domain".into()],
        path_normalization: "MERGE_SLASHES".into(),
        ..mesh_settings("mesh")
    };
    sent.mesh = Some(settings);
    let received = receive(sent.clone(), &target());
    assert!(decide(&received, WEB).is_allowed(), "{}", received.nack);
    assert_eq!(received.path_normalization, PathNormalization::MergeSlashes);
    sent.mesh.as_mut().unwrap().path_normalization = "BY_MAGIC".into();
    let received = receive(sent, &target());
    assert_eq!(received.path_normalization, PathNormalization::Safe, "the strictest");
    assert!(received.nack.contains("BY_MAGIC"), "{}", received.nack);
}

#[test]
fn what_cannot_be_used_closes_and_is_named() {
    let mut told = policy("shop/p", "ALLOW", "");
    told.fault = "spec.rules[0].colour: unknown\nfield".into();
    let mut kind = policy("shop/p", "ALLOW", ALL);
    kind.kind = "Weather".into();
    let good = policy("shop/good", "ALLOW", ALL);
    for bad in [
        policy("shop/p", "DENY", "{"),
        policy("shop/p", "DENY", "[]"),
        policy("shop/p", "DENY", ALL),
        policy("shop/p", "ALLOW", ""),
        policy("shop/p", "ALLOW", r#"{"action":"ALLOW","colour":"red"}"#),
        policy("third/p", "ALLOW", ALL),
        told,
        kind,
    ] {
        let received = receive(message(vec![good.clone(), bad.clone()]), &target());
        assert_eq!(received.nack.lines().count(), 1, "{bad:?}: {}", received.nack);
        assert!(received.nack.starts_with(&format!("{}: ", bad.name)), "{bad:?}: {}", received.nack);
        let decision = decide(&received, WEB);
        assert_eq!((decision.is_allowed(), decision.reason), (false, Reason::PolicyInvalid), "{bad:?}");
    }
    assert!(decide(&receive(message(vec![good]), &target()), WEB).is_allowed());
}

/// The features of a proxy that does not read HTTP.
const OLD: &[&str] = &["dry-run"];

/// A policy that needs HTTP, on port 80 only where `ports` says so.
fn needs_http(action: &str, ports: &[u32]) -> v1::Policy {
    let body =
        format!(r#"{{"action":"{action}","rules":[{{"to":[{{"operation":{{"methods":["GET"]}}}}]}}]}}"#);
    v1::Policy {
        required_features: vec![HTTP.into()],
        ports: ports.to_vec(),
        ..policy("shop/http", action, &body)
    }
}

#[test]
fn a_policy_that_needs_a_missing_feature_is_the_strictest_that_it_may_mean() {
    let l4 = policy("shop/l4", "ALLOW", r#"{"rules":[{"to":[{"operation":{"ports":["80"]}}]}]}"#);
    // The policy, whether port 80 and 81 are open beside an ALLOW on 80, and without any other policy.
    let cases = [
        ("ALLOW", &[][..], (true, false), (false, false)),
        ("DENY", &[], (false, false), (false, false)),
        ("DENY", &[80], (false, false), (false, true)),
        ("DENY", &[81], (true, false), (true, false)),
        ("CUSTOM", &[80], (false, false), (false, true)),
        ("AUDIT", &[], (true, false), (true, true)),
        ("", &[], (false, false), (false, false)),
    ];
    for (action, ports, beside, alone) in cases {
        let http = needs_http(action, ports);
        let of = |policies: Vec<v1::Policy>| {
            let received = receive_with(message(policies), &target(), OLD);
            assert!(received.nack.starts_with("shop/http: "), "{}", received.nack);
            (allows(&received, 80), allows(&received, 81))
        };
        assert_eq!(of(vec![http.clone(), l4.clone()]), beside, "{action:?} {ports:?} beside an ALLOW");
        assert_eq!(of(vec![http]), alone, "{action:?} {ports:?} alone");
    }
}

#[test]
fn tokens_that_nobody_can_look_at_close_and_the_reason_says_so() {
    let tokens = v1::Policy {
        kind: REQUEST.into(),
        required_features: vec![HTTP.into()],
        ..policy("shop/tokens", "", r#"{"jwtRules":[{"issuer":"https://issuer.example"}]}"#)
    };
    let received = receive_with(message(vec![tokens.clone()]), &target(), OLD);
    assert!(!allows(&received, 80));
    assert_eq!(received.unusable, [("shop/tokens".into(), Reason::HttpPolicyClosed)]);
    // With the feature it closes nothing on this layer.
    let received = receive_with(message(vec![tokens]), &target(), &[HTTP]);
    assert!(allows(&received, 80) && received.nack.is_empty(), "{}", received.nack);
}

#[test]
fn key_sets_that_do_not_come_with_a_policy_stay_those_in_force_for_a_time() {
    let keys = |source: &str| v1::Jwks {
        source: source.into(),
        document:
            br#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#
                .to_vec()
                .into(),
    };
    let with = |jwks: Vec<v1::Jwks>| {
        let rules = r#"{"jwtRules":[{"issuer":"https://a.example"},{"issuer":"https://b.example"}]}"#;
        let tokens = v1::Policy {
            kind: REQUEST.into(),
            required_features: vec![HTTP.into()],
            jwks,
            ..policy("shop/tokens", "", rules)
        };
        receive(message(vec![tokens]), &target())
    };
    let (day, start) = (Duration::from_secs(24 * 3600), Instant::now());
    let after = |hours: u32| start + Duration::from_secs(3600) * hours;
    let missing = |policy: &InboundPolicy| -> Vec<(String, Instant, Instant)> {
        let keys = policy.missing_keys().into_iter();
        keys.map(|keys| (keys.source.to_string(), keys.since, keys.until)).collect()
    };
    let a = |hours: u32| ("https://a.example".to_owned(), after(hours), after(hours) + day);
    let b = |hours: u32| ("https://b.example".to_owned(), after(hours), after(hours) + day);
    let first = with(vec![keys("https://a.example"), keys("https://gone.example")]);
    assert_eq!(missing(&first), [], "what never came is not in use");
    let mut second = with(vec![keys("https://b.example")]);
    second.keep_keys_of(&first, after(1), day);
    assert_eq!(missing(&second), [a(1)], "what no rule names goes");
    let mut third = with(vec![]);
    third.keep_keys_of(&second, after(2), day);
    assert_eq!(
        missing(&third),
        [a(1), b(2)],
        "however many policies come without them, they get no more time"
    );
    let mut fourth = with(vec![]);
    fourth.keep_keys_of(&third, after(30), day);
    assert_eq!(missing(&fourth), [a(1), b(2)], "it is still told once they are over");
    let mut fifth = with(vec![keys("https://a.example")]);
    fifth.keep_keys_of(&fourth, after(31), day);
    assert_eq!(missing(&fifth), [b(2)]);
    let mut sixth = with(vec![]);
    sixth.keep_keys_of(&fifth, after(32), day);
    assert_eq!(missing(&sixth), [a(32), b(2)], "it had come again");
}

#[test]
fn tokens_are_not_looked_for_on_ports_that_are_declared_to_carry_something_else() {
    let tokens = v1::Policy {
        kind: REQUEST.into(),
        required_features: vec![HTTP.into()],
        ..policy("shop/tokens", "", r#"{"jwtRules":[{"issuer":"https://issuer.example"}]}"#)
    };
    let principal = r#"{"action":"DENY","rules":[{"from":[{"source":{"notRequestPrincipals":["*"]}}],"to":[{"operation":{"ports":["82"]}}]}]}"#;
    let deny = v1::Policy { required_features: vec![HTTP.into()], ..policy("shop/deny", "DENY", principal) };
    let mut sent = message(vec![tokens, deny]);
    let ports = [(80, v1::Protocol::Http), (81, v1::Protocol::Tcp), (82, v1::Protocol::Tcp)];
    sent.declared = ports.map(|(port, speaks)| v1::DeclaredPort { port, protocol: speaks as i32 }).into();
    let received = receive(sent, &target());
    let policies = received.policies.as_ref().unwrap();
    for (port, read) in [(80, true), (81, false), (82, true), (83, true)] {
        let partial = policies.connection(&connection(WEB, port));
        assert_eq!(partial == Partial::NeedsHttp, read, "{port}");
    }
}

#[test]
fn what_only_reports_never_makes_the_proxy_read_http() {
    let dry = |policy: v1::Policy| v1::Policy { dry_run: true, ..policy };
    for policy in [needs_http("AUDIT", &[]), dry(needs_http("DENY", &[])), dry(needs_http("ALLOW", &[]))] {
        let alone = receive(message(vec![policy.clone()]), &target());
        assert!(alone.policies.is_none() && alone.nack.is_empty(), "{policy:?}: {}", alone.nack);
        let body = r#"{"action":"DENY","rules":[{"to":[{"operation":{"methods":["GET"],"ports":["80"]}}]}]}"#;
        let enforced =
            v1::Policy { name: "shop/in-force".into(), body: body.into(), ..needs_http("DENY", &[80]) };
        let beside = receive(message(vec![policy.clone(), enforced]), &target());
        let policies = beside.policies.as_ref().unwrap();
        assert!(policies.reports(), "{policy:?}");
        for (port, read) in [(80, true), (81, false)] {
            let partial = policies.connection(&connection(WEB, port));
            assert_eq!(partial == Partial::NeedsHttp, read, "{policy:?} {port}");
        }
    }
}

#[test]
fn dry_runs_are_reported_and_decide_nothing_even_when_they_are_broken() {
    let dry = |policy: v1::Policy| v1::Policy { dry_run: true, ..policy };
    let deny = dry(policy("shop/dry", "DENY", r#"{"action":"DENY","rules":[{}]}"#));
    let received = receive(message(vec![deny]), &target());
    assert!(received.nack.is_empty() && allows(&received, 80));
    let report = received.policies.as_ref().unwrap().report_tcp(&connection(WEB, 80), &no_providers);
    assert!(!report.would.is_allowed());
    let none = dry(policy("shop/dry", "ALLOW", r#"{"action":"ALLOW"}"#));
    assert!(
        allows(&receive(message(vec![none]), &target()), 80),
        "a dry-run ALLOW denies nothing by its presence"
    );
    for broken in [policy("shop/dry", "DENY", "{"), needs_http("DENY", &[]), needs_http("ALLOW", &[])] {
        let received = receive_with(message(vec![dry(broken.clone())]), &target(), OLD);
        assert!(allows(&received, 80), "{broken:?}");
        assert!(received.nack.starts_with(&broken.name), "{}", received.nack);
    }
}

#[test]
fn a_nack_is_bounded_and_a_policy_a_line() {
    let broken = |number: usize| policy(&format!("shop/p{number:04}"), "ALLOW", "{");
    let received = receive(message((0..2000).map(broken).collect()), &target());
    assert!(received.nack.len() <= FAULTS);
    assert_eq!(received.nack.lines().count(), 2000, "each is named, if only that");
    assert!(received.nack.lines().all(|line| line.starts_with("shop/p") && line.contains(": ")));
    assert!(!allows(&received, 80));
    let long = |number: usize| policy(&format!("shop/{number:0>250}"), "ALLOW", "{");
    assert!(receive(message((0..1000).map(long).collect()), &target()).nack.len() <= FAULTS);
}
