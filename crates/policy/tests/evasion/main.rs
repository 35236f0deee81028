//! Attackers against back ends: requests are generated from what path evasion is made of, judged by the engine under
//! the default mode, and what passes is handed to back ends as it would be forwarded. None may resolve it into a
//! path that the policy denies.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod attack;
mod back_ends;
mod sockets;

use attack::{DENIED, attack, is_denied};
use back_ends::{BackEnd, all};
use cinch_policy::{
    Connection, MeshConfig, PathNormalization, PolicyObject, Readings, Request, Workload, WorkloadPolicies,
    no_providers, normalize,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::json;
use std::cell::Cell;

fn policy(action: &str, field: &str, paths: &[&str]) -> serde_json::Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": action.to_lowercase(), "namespace": "shop"},
        "spec": {"action": action, "rules": [{"to": [{"operation": {field: paths}}]}]},
    })
}

fn compile(objects: &[serde_json::Value]) -> WorkloadPolicies {
    let objects: Vec<_> = objects.iter().map(|object| PolicyObject::parse(object).unwrap()).collect();
    let workload = Workload { namespace: "shop".to_owned(), ..Workload::default() };
    let compiled = WorkloadPolicies::compile(&MeshConfig::default(), &objects, &workload);
    assert_eq!(compiled.faults().count(), 0);
    compiled
}

fn passes(policies: &WorkloadPolicies, readings: &Readings<'_>) -> bool {
    let address = "10.0.0.1".parse().unwrap();
    let request = Request {
        connection: Connection::new(None, address, "10.0.0.2:80".parse().unwrap()),
        method: "GET",
        paths: readings,
        host: None,
        headers: &[],
        token: None,
    };
    policies.request(&request, &no_providers).is_allowed()
}

/// Whether a request for `target` passes under the default mode.
fn safe_passes(policies: &WorkloadPolicies, target: &str) -> bool {
    normalize(PathNormalization::Safe, target).is_ok_and(|readings| passes(policies, &readings))
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() })
}

fn no_back_end_is_fooled(policies: &WorkloadPolicies) {
    let (passed, refused, bad) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let beyond_named = Cell::new(0);
    let outcome = runner(12_000).run(&attack(), |target| {
        let Ok(readings) = normalize(PathNormalization::Safe, &target) else {
            bad.set(bad.get() + 1);
            return Ok(());
        };
        let resolve = |back_end: BackEnd| back_end.resolve(readings.forward().as_bytes());
        if !passes(policies, &readings) {
            refused.set(refused.get() + 1);
            let named = readings.named().any(|reading| is_denied(reading.as_bytes()));
            let reached = all().into_iter().any(|back_end| is_denied(&resolve(back_end)));
            beyond_named.set(beyond_named.get() + usize::from(reached && !named));
            return Ok(());
        }
        passed.set(passed.get() + 1);
        for back_end in all() {
            let resource = resolve(back_end);
            let shown = String::from_utf8_lossy(&resource);
            prop_assert!(!is_denied(&resource), "{:?} reads {} as {}", back_end, readings.forward(), shown);
        }
        Ok(())
    });
    outcome.unwrap();
    let counts = (passed.get(), refused.get(), bad.get());
    println!("passed, refused, 400: {counts:?}; only by further readings: {}", beyond_named.get());
    let frequent = counts.0 > 4_000 && counts.1 > 1_000 && counts.2 > 500;
    assert!(frequent, "passed, refused, 400: {counts:?}");
    assert!(beyond_named.get() > 500, "seen only by the readings beyond the named: {beyond_named:?}");
}

#[test]
fn no_back_end_resolves_what_passes_into_a_denied_path() {
    no_back_end_is_fooled(&compile(&[policy("DENY", "paths", DENIED)]));
}

#[test]
fn no_back_end_resolves_what_passes_into_a_path_that_is_not_allowed() {
    no_back_end_is_fooled(&compile(&[policy("ALLOW", "notPaths", DENIED)]));
}

#[test]
fn the_same_attacks_succeed_where_a_weaker_mode_was_chosen() {
    let policies = compile(&[policy("DENY", "paths", DENIED)]);
    let cases = [
        (PathNormalization::None, "/x/../admin", BackEnd::Merging),
        (PathNormalization::Base, "//admin", BackEnd::Merging),
        (PathNormalization::MergeSlashes, "/x/..%2fadmin", BackEnd::DECODING),
        (PathNormalization::DecodeAndMergeSlashes, "/users/%40me", BackEnd::DECODING),
        (PathNormalization::DecodeAndMergeSlashes, "/x/..;/admin", BackEnd::SERVLET),
        (PathNormalization::DecodeAndMergeSlashes, "/admin;x=1", BackEnd::SERVLET),
    ];
    for (mode, target, back_end) in cases {
        let weak = normalize(mode, target).unwrap();
        assert!(passes(&policies, &weak), "{mode:?} does not see through {target}");
        assert!(is_denied(&back_end.resolve(weak.forward().as_bytes())), "{target} reaches the resource");
        assert!(!safe_passes(&policies, target), "{target}");
    }
}

/// Rules are case-sensitive, as Istio's are: for a back end that is not, they must be written in every case, or
/// as ALLOW.
#[test]
fn case_is_the_rules_own_affair() {
    assert!(safe_passes(&compile(&[policy("DENY", "paths", DENIED)]), "/ADMIN"));
    let allow = compile(&[policy("ALLOW", "paths", &["/public/*"])]);
    assert!(!safe_passes(&allow, "/PUBLIC/x"), "what is not allowed as it is written is refused");
}

#[test]
fn an_allowed_prefix_can_not_be_left() {
    let policies = compile(&[policy("ALLOW", "paths", &["/public/*"])]);
    let cases = [
        ("/public/x", true),
        ("/public/x%20y", true),
        ("/public/a%2Fb", true),
        ("/public/a;v=1/b%3Bc", true),
        ("/public/@me/%40me", true),
        ("/public//x", true),
        ("/public/..%2Fadmin", false),
        ("/public/%2e%2e/admin", false),
        ("/public%2f..%2fadmin", false),
        ("/public/..\\admin", false),
        ("/public/%2F../../admin", false),
        ("/x%5C..%2Fpublic/y", false),
        ("/public/..;/admin", false),
        ("/public/..%3B/admin", false),
        ("/public/%252e%252e/admin", false),
    ];
    for (target, expected) in cases {
        assert_eq!(safe_passes(&policies, target), expected, "{target}");
    }
    let outcome = runner(6_000).run(&attack(), |target| {
        let target = format!("/public{target}");
        if let Ok(readings) = normalize(PathNormalization::Safe, &target)
            && passes(&policies, &readings)
        {
            for back_end in all() {
                let resource = back_end.resolve(readings.forward().as_bytes());
                let shown = String::from_utf8_lossy(&resource);
                let inside = resource.starts_with(b"/public/");
                prop_assert!(inside, "{:?} reads {} as {}", back_end, readings.forward(), shown);
            }
        }
        Ok(())
    });
    outcome.unwrap();
}

/// Further readings refuse; what the rules allow as it is written must not become a casualty of that.
#[test]
fn what_is_allowed_as_it_is_written_stays_allowed() {
    let cases: [(&str, &str, bool); 14] = [
        ("/files/a%20b", "/files/a%20b", true),
        ("/files/a%20b", "/files/a%20c", false),
        ("/files/a b", "/files/a%20b", false),
        ("/users/%40*", "/users/%40me", true),
        ("*%40me", "/users/%40me", true),
        ("/users/{*}", "/users/%40me", true),
        ("/users/{*}/x", "/users/a%20b;v1/x", true),
        ("/%40/{**}", "/%40/a/b", true),
        ("/map;layer=1/*", "/map;layer=1/tile", true),
        ("/map;layer=1/*", "/map;layer=2/tile", false),
        ("/map;layer=1/*", "/map/tile", false),
        ("/{**}", "/a%3Fb%23c", true),
        ("*", "/%FF%2540;x", true),
        ("/a/*", "/a;x/b", false),
    ];
    for (value, target, expected) in cases {
        let allow = compile(&[policy("ALLOW", "paths", &[value])]);
        assert_eq!(safe_passes(&allow, target), expected, "{value} on {target}");
        let deny = compile(&[policy("DENY", "notPaths", &[value])]);
        assert_eq!(safe_passes(&deny, target), expected, "denied but for {value}: {target}");
    }
}

#[test]
fn a_long_path_that_could_be_read_in_many_ways_is_refused() {
    let policies = compile(&[]);
    let long = format!("/{}", "x".repeat(20_000));
    assert!(safe_passes(&policies, &long));
    for odd in ["%40", ";", "%"] {
        assert!(normalize(PathNormalization::Safe, &format!("{long}{odd}")).is_err(), "{odd}");
        assert!(normalize(PathNormalization::Base, &format!("{long}{odd}")).is_ok(), "{odd}");
    }
    let hostile = |times| "/..;%2f%5c%252f//".repeat(times);
    assert!(normalize(PathNormalization::Safe, &hostile(480)).is_err());
    let odd = hostile(18);
    let readings = normalize(PathNormalization::Safe, &odd).unwrap();
    assert!(readings.judged().count() < 100, "{}", readings.judged().count());
}
