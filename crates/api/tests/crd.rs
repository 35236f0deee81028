//! The definitions as a cluster sees them.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use cinch_api::{crds, to_yaml};
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
    for crd in crds() {
        let text = to_yaml(&crd).expect("YAML");
        let back: Value = serde_saphyr::from_str(&text).expect("YAML reads back");
        assert_eq!(back, serde_json::to_value(&crd).expect("JSON"));
    }
}
