//! Preflight on surveys made by hand.

use super::*;
use cinch_injection::{AccountState, Redirect};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

fn template(extra: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "app", "image": "app"}]});
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"labels": {"app": "web"}}, "spec": spec})
}

fn workload(kind: OwnerKind, name: &str, extra: Value) -> Workload {
    let restarts = matches!(kind, OwnerKind::Deployment | OwnerKind::StatefulSet | OwnerKind::DaemonSet);
    Workload { owner: Owner::new(kind, name), template: template(extra), restarts, manual: None }
}

fn pod(owner: &Owner, name: &str) -> PodFacts {
    PodFacts {
        name: name.to_owned(),
        owner: owner.clone(),
        meshed: false,
        host_network: false,
        ending: false,
        node: "node1".to_owned(),
        holds_volume: false,
        ready: true,
        left_out: None,
        trouble: None,
    }
}

/// One Deployment `web` with two pods, and whatever the case adds.
fn survey() -> Survey {
    let web = workload(OwnerKind::Deployment, "web", json!({}));
    let pods = vec![pod(&web.owner, "web-1"), pod(&web.owner, "web-2")];
    let name = |name: &str| ("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    Survey {
        namespace: "shop".to_owned(),
        labels: [name("shop")].into(),
        workloads: vec![web],
        pods,
        operator: crate::survey::OperatorPlace {
            namespace_labels: [name("cinch-system")].into(),
            pod_labels: [("app.kubernetes.io/name".to_owned(), "cinch-operator".to_owned())].into(),
            addresses: vec!["10.244.1.7".parse().unwrap()],
        },
        ..Default::default()
    }
}

fn policy(name: &str, spec: Value) -> NetworkPolicy {
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
}

#[test]
fn a_plain_namespace_says_what_is_restarted_and_under_which_account() {
    let said = preflight(&survey(), Restarting::Now);
    assert_eq!(said.to_restart, vec![Owner::new(OwnerKind::Deployment, "web")]);
    let text = said.to_string();
    assert!(text.contains("namespace shop gets the label cinch.dev/mesh: enabled"), "{text}");
    assert!(text.contains("Deployment/web    2 pods  restarted; service account web (new)"), "{text}");
    assert!(text.contains("✓ nothing stands against it"), "{text}");
}

#[test]
fn without_restart_the_sidecar_comes_later() {
    let said = preflight(&survey(), Restarting::Later);
    assert_eq!(said.changes[0].then, "gets the sidecar at its next restart");
}

#[test]
fn pod_security_stands_against_nothing_where_agents_set_the_redirect() {
    for level in ["baseline", "restricted"] {
        let mut survey = survey();
        survey.labels.insert("pod-security.kubernetes.io/enforce".to_owned(), level.to_owned());
        let said = preflight(&survey, Restarting::Now);
        assert!(said.stops.is_empty() && said.warnings.is_empty(), "{level}: {said}");
        assert_eq!(said.to_restart, vec![Owner::new(OwnerKind::Deployment, "web")]);
    }
}

#[test]
fn nodes_on_which_the_sidecar_would_wait_are_named() {
    let mut survey = survey();
    survey.without_agent.insert("node7".to_owned());
    let said = preflight(&survey, Restarting::Now);
    assert!(said.warnings[0].starts_with("AgentUnreachable: "), "{said}");
    assert!(said.warnings[0].contains("node7") && said.warnings[0].contains("cinch check"), "{said}");
    assert!(said.stops.is_empty(), "they may come back: {said}");
}

#[test]
fn what_may_not_be_looked_at_is_not_said_to_be_well() {
    for (unseen, words) in [
        (Unseen::Bindings, "role bindings"),
        (Unseen::Agents, "node agents"),
        (Unseen::Settings, "settings of Cinch"),
    ] {
        let mut survey = survey();
        survey.unseen.insert(unseen);
        let said = preflight(&survey, Restarting::Now);
        assert!(said.warnings[0].contains(words) && said.stops.is_empty(), "{said}");
        let text = said.to_string();
        assert!(!text.contains("nothing stands against it"), "{text}");
        let account = &said.changes[0].account;
        assert_eq!(account.contains("if nothing hangs on default"), unseen == Unseen::Bindings, "{account}");
    }
}

#[test]
fn what_stands_against_the_namespace_as_a_whole_stops() {
    for (label, value, word) in [
        ("pod-security.kubernetes.io/enforce", "restricted", "PodSecurityForbidsInit"),
        ("pod-security.kubernetes.io/enforce", "baseline", "PodSecurityForbidsInit"),
        ("istio-injection", "enabled", "OtherMesh"),
    ] {
        let mut survey = survey();
        survey.redirect = Redirect::Init;
        survey.labels.insert(label.to_owned(), value.to_owned());
        let said = preflight(&survey, Restarting::Now);
        assert_eq!(said.stops.len(), 1, "{label}={value}");
        assert!(said.stops[0].starts_with(word), "{}", said.stops[0]);
        assert!(said.warnings.is_empty(), "said once: {:?}", said.warnings);
        assert!(said.to_restart.is_empty());
    }
}

#[test]
fn a_workload_that_the_webhook_leaves_out_is_named_with_its_word() {
    let grpc =
        json!({"containers": [{"name": "app", "image": "app", "livenessProbe": {"grpc": {"port": 1}}}]});
    let mut survey = survey();
    survey.workloads.push(workload(OwnerKind::Deployment, "grpc", grpc));
    let said = preflight(&survey, Restarting::Now);
    assert_eq!(said.warnings.len(), 1, "{:?}", said.warnings);
    assert!(
        said.warnings[0].starts_with("Deployment/grpc stays unmeshed: ProbeNotSupported: "),
        "{:?}",
        said.warnings
    );
    assert_eq!(said.to_restart, vec![Owner::new(OwnerKind::Deployment, "web")]);
}

#[test]
fn what_can_not_be_restarted_is_said() {
    let mut survey = survey();
    let once = workload(OwnerKind::Job, "once", json!({}));
    survey.pods.push(pod(&once.owner, "once-x"));
    survey.pods.push(pod(&Owner::new(OwnerKind::Unstable, ""), "lone"));
    survey.workloads.push(once);
    survey.workloads.push(workload(OwnerKind::CronJob, "nightly", json!({})));
    let mut manual = workload(OwnerKind::StatefulSet, "db", json!({}));
    manual.manual = Some("its update strategy is OnDelete");
    survey.pods.push(pod(&manual.owner, "db-0"));
    survey.workloads.push(manual);
    let said = preflight(&survey, Restarting::Now);
    assert_eq!(said.to_restart, vec![Owner::new(OwnerKind::Deployment, "web")]);
    let text = said.to_string();
    for part in [
        "runs to its end",
        "with its next Job; service account nightly-cronjob (new)",
        "OnDelete",
        "Pod/lone",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

#[test]
fn accounts_follow_the_rule_of_the_webhook() {
    let mut survey = survey();
    survey.accounts.insert("web".to_owned(), AccountState::Foreign);
    assert_eq!(preflight(&survey, Restarting::Now).changes[0].account, "cinch-web-deployment (new)");
    survey.accounts.insert("web".to_owned(), AccountState::Ours("Deployment/web".to_owned()));
    assert_eq!(preflight(&survey, Restarting::Now).changes[0].account, "web");
    survey.bound_to_default.push("RoleBinding/ci".to_owned());
    let said = preflight(&survey, Restarting::Now);
    assert_eq!(said.changes[0].account, "default");
    assert!(said.warnings[0].starts_with("DefaultServiceAccountBound: "), "{:?}", said.warnings);
}

#[test]
fn privileges_that_a_locked_namespace_refuses_are_foretold() {
    let raw = json!({"containers": [{"name": "app", "image": "a", "securityContext": {"capabilities": {"add": ["NET_RAW"]}}}]});
    let mut survey = survey();
    survey.workloads.push(workload(OwnerKind::Deployment, "ping", raw));
    let said = preflight(&survey, Restarting::Now);
    assert!(said.warnings[0].contains("once the namespace is STRICT"), "{:?}", said.warnings);
    assert!(said.warnings[0].contains("container app, NET_RAW"), "{:?}", said.warnings);
}

#[test]
fn network_policies_that_cut_the_operator_are_named() {
    let everybody = json!({});
    let dns = json!({"ports": [{"port": 53, "protocol": "UDP"}]});
    let to = |peer: Value, port: Value| json!({"to": [peer], "ports": [{"protocol": "TCP", "port": port}]});
    let cinch =
        || json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "cinch-system"}}});
    let cases = [
        ("deny all", json!({"podSelector": everybody, "policyTypes": ["Egress"]}), true),
        ("only DNS", json!({"podSelector": everybody, "egress": [dns]}), true),
        ("own namespace only", json!({"podSelector": {}, "egress": [{"to": [{"podSelector": {}}]}]}), true),
        (
            "other pods",
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"]}),
            false,
        ),
        ("ingress only", json!({"podSelector": {}, "policyTypes": ["Ingress"]}), false),
        ("allow all", json!({"podSelector": {}, "egress": [{}]}), false),
        ("by namespace", json!({"podSelector": {}, "egress": [to(cinch(), json!(7443))]}), false),
        ("by name of port", json!({"podSelector": {}, "egress": [to(cinch(), json!("control"))]}), false),
        ("wrong port", json!({"podSelector": {}, "egress": [to(cinch(), json!(443))]}), true),
        (
            "by address",
            json!({"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "10.244.0.0/16"}}]}]}),
            false,
        ),
        (
            "excepted",
            json!({"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.244.1.0/24"]}}]}]}),
            true,
        ),
        (
            "port range",
            json!({"podSelector": {}, "egress": [{"ports": [{"port": 7000, "endPort": 8000}]}]}),
            false,
        ),
    ];
    for (name, spec, cuts) in cases {
        let mut survey = survey();
        survey.network_policies.push(policy("limit", spec));
        let said = preflight(&survey, Restarting::Now);
        assert_eq!(!said.warnings.is_empty(), cuts, "{name}: {:?}", said.warnings);
        if cuts {
            assert!(
                said.warnings[0].contains("NetworkPolicy limit cuts the sidecars of Deployment/web"),
                "{name}"
            );
        }
    }
}

#[test]
fn one_policy_that_allows_is_enough() {
    let mut survey = survey();
    survey.network_policies.push(policy("deny", json!({"podSelector": {}, "policyTypes": ["Egress"]})));
    let allow = json!({"podSelector": {}, "egress": [{"ports": [{"port": 7443}]}]});
    survey.network_policies.push(policy("allow", allow));
    assert!(preflight(&survey, Restarting::Now).warnings.is_empty());
}

#[test]
fn in_a_namespace_without_workloads_network_policies_that_would_cut_pods_to_come_are_named() {
    let egress = |selector: Value| json!({"podSelector": selector, "policyTypes": ["Egress"]});
    let db = || json!({"matchLabels": {"app": "db"}});
    let expressed = json!({"matchExpressions": [
        {"key": "app", "operator": "In", "values": ["db", "cache"]},
        {"key": "tier", "operator": "Exists"},
        {"key": "test", "operator": "DoesNotExist"},
    ]});
    let to_operator = json!({"podSelector": {}, "egress": [{"ports": [{"port": 7443}]}]});
    let cases: [(&str, Vec<Value>, &[&str]); 6] = [
        (
            "everybody",
            vec![egress(json!({}))],
            &["NetworkPolicy p0 cuts the sidecars of all later pods from"],
        ),
        ("some", vec![egress(db())], &["p0 cuts the sidecars of later pods with app=db from"]),
        ("by expressions", vec![egress(expressed)], &["later pods with app=db and tier from"]),
        (
            "some and everybody",
            vec![egress(db()), egress(json!({}))],
            &["p0, p1 cuts the sidecars of later pods with app=db", "p1 cuts the sidecars of all later pods"],
        ),
        ("another one allows it", vec![egress(db()), to_operator], &[]),
        ("ingress only", vec![json!({"podSelector": {}, "policyTypes": ["Ingress"]})], &[]),
    ];
    for (name, specs, expected) in cases {
        let mut survey = survey();
        (survey.workloads, survey.pods) = (Vec::new(), Vec::new());
        let numbered = specs.into_iter().enumerate();
        survey.network_policies =
            numbered.map(|(number, spec)| policy(&format!("p{number}"), spec)).collect();
        let said = preflight(&survey, Restarting::Now);
        let found = said.warnings.len();
        assert_eq!(found, expected.len(), "{name}: {:?}", said.warnings);
        for words in expected {
            assert!(
                said.warnings.iter().any(|warning| warning.contains(words)),
                "{name}: {:?}",
                said.warnings
            );
        }
        let well = said.to_string().contains("nothing stands against it");
        assert_eq!(well, expected.is_empty(), "{name}: {said}");
    }
}
