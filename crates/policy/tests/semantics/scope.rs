//! Which policies count for a workload, and dry runs.

use crate::ask::{accepted, get, reason, refused, tcp};
use crate::setup::{answer, compile, decide, mesh, object, with_request, workload};
use cinch_policy::{PolicyObject, Workload, WorkloadPolicies};
use serde_json::{Value, json};

fn dry(mut policy: Value) -> Value {
    policy["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    policy
}

fn selecting(name: &str, labels: Value) -> Value {
    object(name, json!({"selector": {"matchLabels": labels}}))
}

#[test]
fn policies_of_the_workloads_namespace_and_of_the_root_namespace_count() {
    for (name, counts) in [("shop/p", true), ("mesh/p", true), ("bank/p", false)] {
        let expected = if counts { "NoAllowMatched" } else { "AllowedByDefault" };
        assert_eq!(reason(&[object(name, json!({}))], &get("/")), expected, "{name}");
    }
}

#[test]
fn a_selector_is_a_subset_of_the_pods_live_labels() {
    let policy = PolicyObject::parse(&selecting("shop/p", json!({"app": "api", "tier": "front"}))).unwrap();
    let cases = [
        (vec![("app", "api"), ("tier", "front"), ("more", "x")], false),
        (vec![("app", "api")], true),
        (vec![("app", "api"), ("tier", "back")], true),
        (vec![], true),
    ];
    for (labels, allowed) in cases {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let labelled = Workload { labels, ..workload() };
        let policies = WorkloadPolicies::compile(&mesh(), [&policy], &labelled);
        assert_eq!(decide(&policies, &get("/")).is_allowed(), allowed, "{labelled:?}");
    }
}

#[test]
fn a_selector_in_the_root_namespace_applies_in_all_namespaces() {
    assert_eq!(reason(&[selecting("mesh/p", json!({"app": "api"}))], &get("/")), "NoAllowMatched");
    assert_eq!(reason(&[selecting("mesh/p", json!({"app": "web"}))], &get("/")), "AllowedByDefault");
}

#[test]
fn target_refs_exclude_a_selector_and_leave_ordinary_workloads_alone() {
    let target = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"});
    for spec in [json!({"targetRef": target}), json!({"targetRefs": [target]})] {
        let policy = object("p", spec.clone());
        assert_eq!(reason(std::slice::from_ref(&policy), &get("/")), "AllowedByDefault");
        assert!(accepted(&policy)[0].contains("gateways and waypoints"));
        let mut both = policy;
        both["spec"]["selector"] = json!({"matchLabels": {"app": "api"}});
        assert!(refused(&both).iter().any(|error| error.starts_with("spec.selector: ")), "{both}");
    }
}

#[test]
fn a_dry_run_is_reported_and_never_enforced() {
    let denying = dry(object("deny", json!({"action": "DENY", "rules": [{}]})));
    let policies = compile(&[denying]);
    assert_eq!(decide(&policies, &get("/")).reason.as_str(), "AllowedByDefault");
    with_request(&get("/"), |request| {
        let report = policies.report(request, &answer);
        let told: Vec<_> = report.dry_run.iter().map(|dry| (&**dry.policy, dry.matched)).collect();
        assert_eq!(told, [("shop/deny", true)]);
        assert_eq!(report.would.reason.as_str(), "DeniedByPolicy");
    });
}

#[test]
fn a_dry_run_allow_makes_no_implicit_deny() {
    let nothing = dry(object("allow", json!({})));
    for case in [get("/"), tcp()] {
        assert_eq!(reason(std::slice::from_ref(&nothing), &case), "AllowedByDefault");
    }
    let policies = compile(&[nothing]);
    with_request(&get("/"), |request| {
        assert_eq!(policies.report(request, &answer).would.reason.as_str(), "NoAllowMatched");
    });
}

#[test]
fn reports_say_what_the_whole_set_would_have_decided() {
    let enforced = object("enforced", json!({"rules": [crate::ask::operation("methods", &["POST"])]}));
    let trial = dry(object("trial", json!({"rules": [crate::ask::operation("methods", &["GET"])]})));
    let policies = compile(&[enforced, trial]);
    assert_eq!(decide(&policies, &get("/")).reason.as_str(), "NoAllowMatched");
    with_request(&get("/"), |request| {
        let would = policies.report(request, &answer).would;
        assert_eq!((would.is_allowed(), would.policy.map(|name| &**name)), (true, Some("shop/trial")));
    });
}

#[test]
fn only_allow_and_deny_can_be_dry_runs() {
    for (action, expected) in [("AUDIT", "AllowedByDefault"), ("CUSTOM", "DeniedByProvider")] {
        let provider = (action == "CUSTOM").then(|| json!({"name": "no"}));
        let policy = dry(object("p", json!({"action": action, "provider": provider, "rules": [{}]})));
        assert_eq!(reason(std::slice::from_ref(&policy), &get("/")), expected, "{action}");
        assert!(refused(&policy).iter().any(|error| error.contains("istio.io/dry-run")), "{action}");
    }
}

#[test]
fn what_can_not_be_used_closes_what_it_selects_and_nothing_else() {
    let broken =
        |name: &str, labels: Value| object(name, json!({"selector": {"matchLabels": labels}, "rulez": []}));
    assert_eq!(reason(&[broken("shop/p", json!({"app": "api"}))], &get("/")), "PolicyInvalid");
    assert_eq!(reason(&[broken("mesh/p", json!({}))], &tcp()), "PolicyInvalid");
    assert_eq!(reason(&[broken("shop/p", json!({"app": "web"}))], &get("/")), "AllowedByDefault");
    assert_eq!(reason(&[broken("bank/p", json!({}))], &get("/")), "AllowedByDefault");
    assert_eq!(
        reason(&[dry(broken("shop/p", json!({})))], &get("/")),
        "AllowedByDefault",
        "a dry run closes nothing"
    );
}
