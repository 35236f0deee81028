//! The definitions as a cluster sees them.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use cinch_api::{crds, istio_crds, to_yaml};
use serde_json::Value;

fn posture() -> Value {
    let definitions = crds();
    let found = definitions.iter().find(|crd| crd.spec.names.kind == "Posture").expect("Posture is there");
    serde_json::to_value(found).expect("a definition is JSON")
}

#[test]
fn columns_are_those_that_the_documentation_shows() {
    let crd = posture();
    let columns: Vec<String> = crd["spec"]["versions"][0]["additionalPrinterColumns"]
        .as_array()
        .expect("columns")
        .iter()
        .map(|column| {
            let text = |key: &str| column[key].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}", text("name"), text("type"), text("jsonPath"))
        })
        .collect();
    let golden = [
        "MODE string .status.mode",
        "STATE string .status.state",
        "MESHED string .status.meshed",
        "PLAINTEXT integer .status.plaintext.served",
        "QUIET date .status.quietSince",
        "BLOCKED-BY string .status.blockedBy",
        "AGE date .metadata.creationTimestamp",
    ];
    assert_eq!(columns, golden);
}

#[test]
fn names_scope_and_status_are_as_documented() {
    let crd = posture();
    assert_eq!(crd["metadata"]["name"], "postures.cinch.dev");
    assert_eq!(crd["spec"]["scope"], "Namespaced");
    assert_eq!(crd["spec"]["names"]["shortNames"][0], "pos");
    assert_eq!(crd["spec"]["names"]["categories"][0], "cinch");
    let version = &crd["spec"]["versions"][0];
    assert_eq!(version["name"], "v1alpha1");
    assert!(version["subresources"]["status"].is_object(), "{version}");
}

#[test]
fn the_schema_knows_the_name_rule_the_words_and_the_free_part() {
    let crd = posture();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert_eq!(schema["x-kubernetes-validations"][0]["rule"], "self.metadata.name == 'mesh'");
    let spec = &schema["properties"]["spec"]["properties"];
    let words: Vec<&str> =
        spec["promotion"]["enum"].as_array().expect("words").iter().filter_map(Value::as_str).collect();
    assert_eq!(words, ["Automatic", "Manual", "Paused"]);
    assert_eq!(spec["quietPeriod"]["pattern"], "^([0-9]+(d|h|m|s|ms))+$");
    let memory = &schema["properties"]["status"]["properties"]["promotion"];
    assert_eq!(memory["x-kubernetes-preserve-unknown-fields"], true);
}

#[test]
fn yaml_reads_back() {
    for crd in crds().into_iter().chain(istio_crds()) {
        let text = to_yaml(&crd).expect("YAML");
        let back: Value = serde_saphyr::from_str(&text).expect("YAML reads back");
        assert_eq!(back, serde_json::to_value(&crd).expect("JSON"));
    }
}

fn istio(kind: &str) -> Value {
    let definitions = istio_crds();
    let found = definitions.iter().find(|crd| crd.spec.names.kind == kind).expect("the kind is there");
    serde_json::to_value(found).expect("a definition is JSON")
}

#[test]
fn istios_kinds_are_served_in_both_versions_and_stored_in_one() {
    let columns = [
        (
            "PeerAuthentication",
            "peerauthentications",
            "pa",
            vec!["Mode", "Selected", "Enforcing", "State", "Age"],
        ),
        (
            "AuthorizationPolicy",
            "authorizationpolicies",
            "ap",
            vec!["Action", "Selected", "Enforcing", "State", "Age"],
        ),
        (
            "RequestAuthentication",
            "requestauthentications",
            "ra",
            vec!["Selected", "Enforcing", "State", "Age"],
        ),
    ];
    for (kind, plural, short, want) in columns {
        let crd = istio(kind);
        assert_eq!(crd["metadata"]["name"], format!("{plural}.security.istio.io"));
        assert_eq!(crd["spec"]["names"]["shortNames"][0], short);
        assert_eq!(crd["spec"]["scope"], "Namespaced");
        let versions = crd["spec"]["versions"].as_array().expect("versions");
        let said: Vec<_> = versions
            .iter()
            .map(|v| (v["name"].as_str(), v["served"] == true, v["storage"] == true))
            .collect();
        assert_eq!(said, [(Some("v1"), true, true), (Some("v1beta1"), true, false)], "{kind}");
        assert_eq!(versions[0]["schema"], versions[1]["schema"], "{kind}");
        for version in versions {
            assert!(version["subresources"]["status"].is_object(), "{kind}");
            let names: Vec<&str> = version["additionalPrinterColumns"]
                .as_array()
                .expect("columns")
                .iter()
                .filter_map(|column| column["name"].as_str())
                .collect();
            assert_eq!(names, want, "{kind}");
        }
    }
}

/// Every object below `spec` must keep what it does not know, or admission could not refuse it by name.
fn closed_objects(schema: &Value, path: &str, found: &mut Vec<String>) {
    if schema["type"] == "object"
        && schema["x-kubernetes-preserve-unknown-fields"] != true
        && !schema["additionalProperties"].is_object()
    {
        found.push(path.to_owned());
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        closed_objects(inner, &format!("{path}.{name}"), found);
    }
    for (key, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[key].is_object() {
            closed_objects(&schema[key], &format!("{path}{mark}"), found);
        }
    }
}

#[test]
fn unknown_fields_of_policies_are_kept_at_every_depth() {
    for kind in ["PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication"] {
        let crd = istio(kind);
        let mut found = Vec::new();
        let root = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        closed_objects(&root["properties"]["spec"], "spec", &mut found);
        closed_objects(&root["properties"]["status"], "status", &mut found);
        assert!(found.is_empty(), "{kind} would drop unknown fields in {found:?}");
    }
}

#[test]
fn every_schema_is_structural_every_part_has_a_type_and_a_rule_its_message() {
    fn walk(schema: &Value, path: &str) {
        assert!(schema["type"].is_string(), "{path} has no type");
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            assert!(rule["message"].as_str().is_some_and(|text| text.len() > 10), "{path}: {rule}");
        }
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            walk(inner, &format!("{path}.{name}"));
        }
        for key in ["items", "additionalProperties"] {
            if schema[key].is_object() {
                walk(&schema[key], &format!("{path}[]"));
            }
        }
    }
    for crd in istio_crds() {
        let crd = serde_json::to_value(crd).expect("JSON");
        walk(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "");
    }
}
