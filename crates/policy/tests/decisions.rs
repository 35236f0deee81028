//! AuthorizationPolicy on TCP connections: tables of Istio's semantics, refusals, and what must always hold.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use cinch_policy::{
    AuthorizationPolicy, CompiledPolicies, Connection, Decision, Enforcement, ObjectName, PolicyObject,
    WorkloadRef,
};
use cinch_reason::Reason;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";

fn workload() -> WorkloadRef {
    WorkloadRef {
        namespace: "default".to_owned(),
        labels: [("app".to_owned(), "server".to_owned())].into(),
        trust_domain: "cluster.local".to_owned(),
        root_namespace: "istio-system".to_owned(),
    }
}

fn policy(namespace: &str, name: &str, spec: Value) -> AuthorizationPolicy {
    let name = ObjectName { namespace: namespace.to_owned(), name: name.to_owned() };
    AuthorizationPolicy::new(name, Enforcement::Enforced, &spec)
}

fn connection(peer: Option<&str>, port: u16) -> Connection<'_> {
    Connection {
        peer,
        source: IpAddr::from([10, 1, 2, 3]),
        destination: SocketAddr::from(([10, 9, 9, 9], port)),
    }
}

fn decide(specs: &[Value], connection: &Connection<'_>) -> Decision {
    let policies: Vec<_> = specs
        .iter()
        .enumerate()
        .map(|(at, spec)| policy("default", &format!("p{at}"), spec.clone()))
        .collect();
    CompiledPolicies::compile(&policies, &workload()).decide(connection)
}

fn reason(decision: &Decision) -> Reason {
    match decision {
        Decision::Allow(reason) | Decision::Deny(reason, _) => *reason,
    }
}

fn rule(rule: Value) -> Value {
    json!({"rules": [rule]})
}

fn source(source: Value) -> Value {
    rule(json!({"from": [{"source": source}]}))
}

fn operation(operation: Value) -> Value {
    rule(json!({"to": [{"operation": operation}]}))
}

fn deny(mut spec: Value) -> Value {
    spec["action"] = json!("DENY");
    spec
}

#[test]
fn policies_of_all_actions_join_as_istio_says() {
    let all = || json!({"rules": [{}]});
    let other = || operation(json!({"ports": ["9"]}));
    let cases: [(&str, Vec<Value>, Reason); 9] = [
        ("none", vec![], Reason::AllowedByDefault),
        ("ALLOW without rules denies all", vec![json!({})], Reason::NoAllowMatched),
        ("ALLOW with an empty rule", vec![all()], Reason::Allowed),
        ("any ALLOW is enough", vec![json!({}), other(), all()], Reason::Allowed),
        ("DENY before ALLOW", vec![all(), deny(all())], Reason::DeniedByPolicy),
        ("DENY that does not match", vec![deny(other())], Reason::AllowedByDefault),
        ("DENY without rules never matches", vec![json!({"action": "DENY"})], Reason::AllowedByDefault),
        ("AUDIT changes nothing", vec![json!({"action": "AUDIT", "rules": [{}]})], Reason::AllowedByDefault),
        (
            "CUSTOM is not there yet and closes",
            vec![json!({"action": "CUSTOM", "provider": {"name": "x"}, "rules": [{}]})],
            Reason::PolicyInvalid,
        ),
    ];
    for (case, specs, expected) in cases {
        assert_eq!(reason(&decide(&specs, &connection(Some(CLIENT), 8080))), expected, "{case}");
    }
}

#[test]
fn sources_match_as_istio_says() {
    let plain = None;
    let cases: [(Value, Option<&str>, bool); 25] = [
        (json!({"principals": ["cluster.local/ns/default/sa/client"]}), Some(CLIENT), true),
        (json!({"principals": ["cluster.local/ns/default/sa/other"]}), Some(CLIENT), false),
        (json!({"principals": ["cluster.local/ns/default/*"]}), Some(CLIENT), true),
        (json!({"principals": ["*/sa/client"]}), Some(CLIENT), true),
        (json!({"principals": ["*"]}), Some(CLIENT), true),
        (json!({"principals": ["*"]}), plain, false),
        (json!({"notPrincipals": ["*"]}), plain, true),
        (json!({"notPrincipals": ["*"]}), Some(CLIENT), false),
        (json!({"notPrincipals": ["cluster.local/ns/default/sa/client"]}), Some(CLIENT), false),
        (json!({"namespaces": ["default"]}), Some(CLIENT), true),
        (json!({"namespaces": ["def*t"]}), Some(CLIENT), true),
        (json!({"namespaces": ["default"]}), plain, false),
        (json!({"notNamespaces": ["default"]}), plain, true),
        (json!({"serviceAccounts": ["client"]}), Some(CLIENT), true),
        (json!({"serviceAccounts": ["default/client"]}), Some(CLIENT), true),
        (json!({"serviceAccounts": ["other/client"]}), Some(CLIENT), false),
        (json!({"notServiceAccounts": ["client"]}), Some(CLIENT), false),
        (json!({"trustDomains": ["cluster.local"]}), Some(CLIENT), true),
        (json!({"trustDomains": ["other.example"]}), Some(CLIENT), false),
        (json!({"ipBlocks": ["10.1.0.0/16"]}), plain, true),
        (json!({"ipBlocks": ["10.1.2.3"]}), plain, true),
        (json!({"ipBlocks": ["10.2.0.0/16", "::/0"]}), plain, false),
        (json!({"notIpBlocks": ["10.1.2.0/24"]}), plain, false),
        (json!({"remoteIpBlocks": ["10.1.2.3/32"]}), plain, true),
        (json!({"namespaces": ["default"], "ipBlocks": ["192.0.2.0/24"]}), Some(CLIENT), false),
    ];
    for (fields, peer, expected) in cases {
        let decision = decide(&[source(fields.clone())], &connection(peer, 8080));
        assert_eq!(decision.is_allowed(), expected, "{fields} for {peer:?}: {decision:?}");
    }
}

#[test]
fn operations_and_conditions_match_as_istio_says() {
    let when = |condition: Value| rule(json!({"when": [condition]}));
    let cases: [(Value, bool); 10] = [
        (operation(json!({"ports": ["8080"]})), true),
        (operation(json!({"ports": ["8081", "8082"]})), false),
        (operation(json!({"notPorts": ["8080"]})), false),
        (when(json!({"key": "source.ip", "values": ["10.1.2.3"]})), true),
        (when(json!({"key": "destination.ip", "values": ["10.9.0.0/16"]})), true),
        (when(json!({"key": "destination.port", "notValues": ["8080"]})), false),
        (when(json!({"key": "source.principal", "values": ["*/client"]})), true),
        (when(json!({"key": "source.namespace", "values": ["default"], "notValues": ["def*"]})), false),
        (
            rule(
                json!({"from": [{"source": {"namespaces": ["x"]}}, {"source": {"namespaces": ["default"]}}]}),
            ),
            true,
        ),
        (
            rule(json!({
                "from": [{"source": {"namespaces": ["default"]}}],
                "to": [{"operation": {"ports": ["1"]}}, {"operation": {"ports": ["8080"]}}],
                "when": [{"key": "source.ip", "values": ["10.0.0.0/8"]}]
            })),
            true,
        ),
    ];
    for (spec, expected) in cases {
        let decision = decide(std::slice::from_ref(&spec), &connection(Some(CLIENT), 8080));
        assert_eq!(decision.is_allowed(), expected, "{spec}: {decision:?}");
    }
}

#[test]
fn on_tcp_an_allow_rule_that_asks_for_http_is_dropped_and_a_deny_rule_widens() {
    let http = [
        operation(json!({"ports": ["8080"], "methods": ["GET"]})),
        operation(json!({"ports": ["8080"], "notPaths": ["/admin"]})),
        operation(json!({"ports": ["8080"], "hosts": ["x"]})),
        rule(
            json!({"from": [{"source": {"requestPrincipals": ["*"]}}], "to": [{"operation": {"ports": ["8080"]}}]}),
        ),
        rule(json!({
            "to": [{"operation": {"ports": ["8080"]}}],
            "when": [{"key": "request.headers[x]", "values": ["y"]}]
        })),
    ];
    for spec in http {
        let (here, there) = (connection(Some(CLIENT), 8080), connection(Some(CLIENT), 9090));
        assert_eq!(reason(&decide(std::slice::from_ref(&spec), &here)), Reason::NoAllowMatched, "{spec}");
        assert_eq!(reason(&decide(&[deny(spec.clone())], &here)), Reason::DeniedByPolicy, "{spec}");
        assert_eq!(reason(&decide(&[deny(spec.clone())], &there)), Reason::AllowedByDefault, "{spec}");
    }
}

#[test]
fn deny_not_principals_means_deny_plaintext() {
    let spec = deny(source(json!({"notPrincipals": ["*"]})));
    assert_eq!(
        decide(std::slice::from_ref(&spec), &connection(None, 1)),
        Decision::Deny(Reason::DeniedByPolicy, Some("default/p0".into()))
    );
    assert!(decide(&[spec], &connection(Some(CLIENT), 1)).is_allowed());
}

#[test]
fn scope_is_own_and_root_namespace_and_the_selector() {
    let closed = |selector: Value| json!({"selector": {"matchLabels": selector}});
    let cases = [
        ("own namespace", "default", json!({}), false),
        ("root namespace", "istio-system", json!({}), false),
        ("another", "other", json!({}), true),
        ("selected", "default", closed(json!({"app": "server"})), false),
        ("not selected", "default", closed(json!({"app": "web"})), true),
        ("root namespace selectors work", "istio-system", closed(json!({"app": "server"})), false),
        ("gateways", "default", json!({"targetRefs": [{"kind": "Gateway", "name": "x"}]}), true),
    ];
    for (case, namespace, spec, allowed) in cases {
        let compiled = CompiledPolicies::compile(&[policy(namespace, "p", spec)], &workload());
        assert_eq!(compiled.decide(&connection(Some(CLIENT), 1)).is_allowed(), allowed, "{case}");
    }
}

#[test]
fn a_dry_run_policy_takes_no_part_not_even_by_being_there() {
    let object = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "x", "namespace": "default", "annotations": {"istio.io/dry-run": "true"}}, "spec": {}
    });
    let Ok(PolicyObject::AuthorizationPolicy(dry)) = PolicyObject::parse(&object) else { panic!("not read") };
    assert_eq!(dry.enforcement(), Enforcement::DryRun);
    assert!(CompiledPolicies::compile(&[dry], &workload()).is_empty());
}

#[test]
fn our_trust_domain_is_also_called_cluster_local() {
    let mut ours = workload();
    ours.trust_domain = "mesh.example".to_owned();
    let spec = source(json!({"principals": ["cluster.local/ns/default/sa/client"]}));
    let compiled = CompiledPolicies::compile(&[policy("default", "p", spec)], &ours);
    let peer = |id| compiled.decide(&connection(Some(id), 1)).is_allowed();
    assert!(peer("spiffe://mesh.example/ns/default/sa/client"));
    assert!(!peer("spiffe://other.example/ns/default/sa/client"));
}

#[test]
fn what_can_not_be_used_names_its_field_and_closes_what_it_selects() {
    let cases: [(Value, &str); 20] = [
        (json!({"rules": [{"from": [{"source": {}}]}]}), "spec.rules[0].from[0].source"),
        (json!({"rules": [{"from": []}]}), "spec.rules[0].from"),
        (json!({"rules": [{"to": [{"operation": {}}]}]}), "operation"),
        (json!({"rules": [{"from": [{"operation": {"methods": ["POST"]}}]}]}), "operation"),
        (json!({"action": "ALOW", "rules": [{}]}), "ALOW"),
        (json!({"action": "CUSTOM", "rules": [{}]}), "CUSTOM"),
        (json!({"provider": {"name": "x"}}), "spec.provider"),
        (source(json!({"principals": ["spiffe://cluster.local/ns/a/sa/b"]})), "spiffe://"),
        (source(json!({"principals": [""]})), "empty"),
        (source(json!({"ipBlocks": ["10.0.0.300"]})), "10.0.0.300"),
        (source(json!({"serviceAccounts": ["a"], "namespaces": ["b"]})), "serviceAccounts"),
        (source(json!({"serviceAccounts": ["a*"]})), "a*"),
        (source(json!({"trustDomains": ["a/b"]})), "a/b"),
        (source(json!({"users": ["a"]})), "users"),
        (operation(json!({"ports": ["http"]})), "http"),
        (operation(json!({"ports": ["0"]})), "\"0\""),
        (rule(json!({"when": [{"key": "source.ip"}]})), "when[0]"),
        (rule(json!({"when": [{"key": "destination.labels[app]", "values": ["x"]}]})), "destination.labels"),
        (rule(json!({"when": [{"key": "connection.sni", "values": ["x"]}]})), "connection.sni"),
        (json!({"selector": {"matchLabels": {"app": "*"}}}), "matchLabels"),
    ];
    for (mut spec, word) in cases {
        let broken = policy("default", "p", spec.clone());
        let text = broken.refusal().map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains(word), "{spec}: {text:?}");
        if spec.get("selector").is_none() {
            let compiled = CompiledPolicies::compile(&[broken], &workload());
            assert_eq!(
                compiled.decide(&connection(Some(CLIENT), 1)),
                Decision::Deny(Reason::PolicyInvalid, Some("default/p".into())),
                "{spec}"
            );
            assert_eq!(compiled.faults().count(), 1);
            spec["selector"] = json!({"matchLabels": {"app": "web"}});
            let elsewhere = CompiledPolicies::compile(&[policy("default", "p", spec.clone())], &workload());
            assert!(elsewhere.is_empty(), "{spec} selects another workload");
        }
    }
    let refused = policy("default", "p", json!({"action": "DENY"}));
    assert!(
        refused.refusal().is_some() && refused.spec().is_ok(),
        "refused at admission, harmless in the engine"
    );
}

#[test]
fn one_rule_for_http_and_one_for_ports() {
    let text = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: bench-http, namespace: default}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [\"cluster.local/ns/default/sa/client\"]}}]
    to: [{operation: {ports: [\"8080\"], methods: [\"GET\", \"POST\"], paths: [\"/*\"]}}]
  - from: [{source: {principals: [\"cluster.local/ns/default/sa/client\"]}}]
    to: [{operation: {ports: [\"8081\", \"8082\"]}}]
";
    let value: Value = serde_saphyr::from_str(text).expect("YAML");
    let Ok(PolicyObject::AuthorizationPolicy(read)) = PolicyObject::parse(&value) else { panic!("not read") };
    let compiled = CompiledPolicies::compile([&read], &workload());
    let other = Some("spiffe://cluster.local/ns/default/sa/other");
    let cases = [
        (Some(CLIENT), 8080, false),
        (Some(CLIENT), 8081, true),
        (Some(CLIENT), 8082, true),
        (Some(CLIENT), 8083, false),
        (other, 8082, false),
        (None, 8082, false),
    ];
    for (peer, port, allowed) in cases {
        assert_eq!(compiled.decide(&connection(peer, port)).is_allowed(), allowed, "{peer:?} {port}");
    }
}

#[test]
fn audit_policies_are_told_apart_from_decisions() {
    let spec = json!({"action": "AUDIT", "rules": [{}]});
    let compiled = CompiledPolicies::compile(&[policy("default", "watch", spec)], &workload());
    let seen = connection(None, 1);
    assert_eq!(compiled.audited(&seen).collect::<Vec<_>>(), ["default/watch"]);
}

fn any_spec() -> impl Strategy<Value = Value> {
    let values = |words: &'static [&'static str]| prop::option::of(prop::sample::select(words));
    let rule = (
        values(&["*", "cluster.local/ns/default/sa/client", "cluster.local/*", "nobody"]),
        values(&["default", "oth*"]),
        values(&["10.1.0.0/16", "192.0.2.0/24"]),
        values(&["8080", "9090"]),
        values(&["GET"]),
        any::<bool>(),
    )
        .prop_map(|(principal, namespace, block, port, method, not)| {
            let mut rule = serde_json::Map::new();
            let mut source = serde_json::Map::new();
            let principals = if not { "notPrincipals" } else { "principals" };
            principal.map(|value| source.insert(principals.to_owned(), json!([value])));
            namespace.map(|value| source.insert("namespaces".to_owned(), json!([value])));
            block.map(|value| source.insert("ipBlocks".to_owned(), json!([value])));
            let mut operation = serde_json::Map::new();
            port.map(|value| operation.insert("ports".to_owned(), json!([value])));
            method.map(|value| operation.insert("methods".to_owned(), json!([value])));
            if !source.is_empty() {
                rule.insert("from".to_owned(), json!([{"source": source}]));
            }
            if !operation.is_empty() {
                rule.insert("to".to_owned(), json!([{"operation": operation}]));
            }
            Value::Object(rule)
        });
    let action = prop::sample::select(vec!["ALLOW", "DENY", "AUDIT"]);
    (action, prop::collection::vec(rule, 0..4))
        .prop_map(|(action, rules)| json!({"action": action, "rules": rules}))
}

fn any_peer() -> impl Strategy<Value = Option<&'static str>> {
    prop::sample::select(vec![
        None,
        Some(CLIENT),
        Some("spiffe://cluster.local/ns/other/sa/x"),
        Some("spiffe://a.b/c"),
    ])
}

proptest! {
    #[test]
    fn order_never_matters(specs in prop::collection::vec(any_spec(), 0..6), peer in any_peer(), port in 8079..8082_u16) {
        let policies: Vec<_> =
            specs.iter().enumerate().map(|(at, spec)| policy("default", &format!("p{at}"), spec.clone())).collect();
        let there = CompiledPolicies::compile(&policies, &workload());
        let back = CompiledPolicies::compile(policies.iter().rev(), &workload());
        prop_assert_eq!(there.decide(&connection(peer, port)), back.decide(&connection(peer, port)));
    }

    #[test]
    fn adding_deny_never_allows_more_and_adding_a_rule_to_allow_never_less(
        specs in prop::collection::vec(any_spec(), 0..5),
        added in any_spec(),
        peer in any_peer(),
        port in 8079..8082_u16,
    ) {
        let seen = connection(peer, port);
        let before = decide(&specs, &seen).is_allowed();
        let mut more = specs.clone();
        more.push(deny(added.clone()));
        prop_assert!(before || !decide(&more, &seen).is_allowed());
        if let Some(at) = specs.iter().position(|spec| spec["action"] == "ALLOW") {
            let mut wider = specs.clone();
            if let (Some(rules), Some(new)) = (wider[at]["rules"].as_array_mut(), added["rules"].as_array()) {
                rules.extend(new.clone());
            }
            prop_assert!(!before || decide(&wider, &seen).is_allowed());
        }
    }

    #[test]
    fn adding_audit_or_something_unusable_never_allows_more(
        specs in prop::collection::vec(any_spec(), 0..5),
        peer in any_peer(),
        port in 8079..8082_u16,
    ) {
        let seen = connection(peer, port);
        let before = decide(&specs, &seen);
        let mut audited = specs.clone();
        audited.push(json!({"action": "AUDIT", "rules": [{}]}));
        prop_assert_eq!(before, decide(&audited, &seen));
        let mut broken = specs;
        broken.push(json!({"unheard": "of"}));
        prop_assert!(!decide(&broken, &seen).is_allowed());
    }
}
