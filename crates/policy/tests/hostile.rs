//! Objects and values that nobody would write: read or refused, never a panic; and what admission accepts can be used.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

use cinch_policy::path::{Charset, Template};
use cinch_policy::{
    Connection, MeshConfig, Partial, PolicyObject, Request, Workload, WorkloadPolicies, no_providers,
    normalize, validate,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Any JSON, whose names and words are often those of the API.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        3 => prop::sample::select(vec![
            "ALLOW", "DENY", "AUDIT", "CUSTOM", "STRICT", "*", "/a/{*}", "/{**}/{*}", "10.0.0.0/8", "80", "a/b", "",
            "source.ip", "request.headers[x]", "request.auth.claims[a][b]", "https://i.example", "5s", "%2F;", "**",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    let leaf = prop_oneof![
        4 => word.prop_map(Value::String),
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::Bool),
        1 => any::<i64>().prop_map(|number| json!(number)),
        1 => any::<f64>().prop_map(|number| json!(number)),
    ];
    let name = prop_oneof![
        6 => prop::sample::select(vec![
            "selector", "matchLabels", "action", "rules", "from", "source", "to", "operation", "when", "key", "values",
            "notValues", "principals", "notPrincipals", "requestPrincipals", "namespaces", "serviceAccounts", "ipBlocks",
            "paths", "notPaths", "hosts", "methods", "ports", "provider", "name", "targetRefs", "mtls", "mode",
            "portLevelMtls", "jwtRules", "issuer", "jwksUri", "jwks", "fromHeaders", "prefix", "audiences", "timeout",
            "outputClaimToHeaders", "header", "claim", "8080",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    leaf.prop_recursive(8, 60, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            prop::collection::vec((name.clone(), inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// An object whose envelope is good and whose spec is not.
fn any_object() -> impl Strategy<Value = Value> {
    let kind =
        prop::sample::select(vec!["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication", "X"]);
    (kind, any_json(), any_json(), 0..20_u8).prop_map(|(kind, spec, annotations, odd)| {
        let mut object = json!({
            "apiVersion": "security.istio.io/v1", "kind": kind,
            "metadata": {"name": "p", "namespace": "shop"}, "spec": spec,
        });
        match odd {
            0 => object["metadata"]["annotations"] = annotations,
            1 => object["metadata"] = annotations,
            2 => object = annotations,
            _ => {}
        }
        object
    })
}

/// A well-formed policy with one value anywhere replaced.
fn nearly_good() -> impl Strategy<Value = Value> {
    let good = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"action": "DENY", "selector": {"matchLabels": {"app": "api"}}, "rules": [{
            "from": [{"source": {"principals": ["a/ns/b/sa/c"], "ipBlocks": ["10.0.0.0/8"]}}],
            "to": [{"operation": {"paths": ["/a/{*}"], "methods": ["GET"], "ports": ["80"], "hosts": ["h"]}}],
            "when": [{"key": "request.headers[x]", "values": ["a"], "notValues": ["b"]}],
        }]},
    });
    let places = [
        "/spec",
        "/spec/action",
        "/spec/selector",
        "/spec/selector/matchLabels/app",
        "/spec/rules",
        "/spec/rules/0",
        "/spec/rules/0/from",
        "/spec/rules/0/from/0/source",
        "/spec/rules/0/from/0/source/principals/0",
        "/spec/rules/0/from/0/source/ipBlocks/0",
        "/spec/rules/0/to/0/operation/paths/0",
        "/spec/rules/0/to/0/operation/ports/0",
        "/spec/rules/0/when/0",
        "/spec/rules/0/when/0/key",
        "/spec/rules/0/when/0/values",
    ];
    (prop::sample::select(places.to_vec()), any_json()).prop_map(move |(place, value)| {
        let mut object = good.clone();
        *object.pointer_mut(place).unwrap() = value;
        object
    })
}

fn judge(object: &Value) -> Result<(), TestCaseError> {
    let mesh = MeshConfig::default();
    let accepted = validate(object, &mesh).is_valid();
    let Ok(parsed) = PolicyObject::parse(object) else {
        prop_assert!(!accepted);
        return Ok(());
    };
    let workload = Workload {
        namespace: "shop".into(),
        labels: [("app".to_owned(), "api".to_owned())].into(),
        ..Workload::default()
    };
    let policies = WorkloadPolicies::compile(&mesh, [&parsed], &workload);
    prop_assert!(!accepted || policies.faults().count() == 0, "accepted, and closes");
    let connection =
        Connection::new(Some("spiffe://a/ns/b/sa/c"), [10, 0, 0, 1].into(), ([10, 0, 0, 2], 80).into());
    let paths = normalize(mesh.path_normalization, "/a/%40;x//y").unwrap();
    let headers: [(&str, &[u8]); 2] = [("x", b"a"), ("X", b"\xff")];
    let request =
        Request { connection, method: "GET", paths: &paths, host: Some("H"), headers: &headers, token: None };
    let decision = policies.request(&request, &no_providers);
    match policies.connection(&connection) {
        Partial::Allow(_) => prop_assert!(decision.is_allowed()),
        Partial::Deny(_) => prop_assert!(!decision.is_allowed()),
        Partial::NeedsHttp => {}
    }
    std::hint::black_box(policies.tcp(&connection, &no_providers));
    std::hint::black_box(policies.report(&request, &no_providers));
    std::hint::black_box(policies.misses(&request));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_json_is_read_or_refused(object in any_object()) {
        judge(&object)?;
    }

    #[test]
    fn a_policy_with_one_odd_value_is_used_or_refused(object in nearly_good()) {
        judge(&object)?;
    }

    #[test]
    fn any_text_is_a_template_or_not(value in "(/|\\{\\*\\}|\\{\\*\\*\\}|[a-z{}*%;]|\\PC){0,8}", path in any::<String>()) {
        if let Ok(Some(template)) = Template::parse(&value) {
            let narrow = template.matches(&path, Charset::Strict);
            prop_assert!(!narrow || template.matches(&path, Charset::Any));
        }
    }
}
