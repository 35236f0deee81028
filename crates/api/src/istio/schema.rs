//! Pieces of a structural schema.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};
use serde_json::Value;

/// Longest value of a label.
const LONGEST_LABEL: i64 = 63;
/// As many labels as Istio allows in a selector.
const MOST_LABELS: i64 = 4096;
/// `targetRefs` of one policy.
const MOST_TARGETS: i64 = 16;

fn of_type(name: &str) -> JSONSchemaProps {
    JSONSchemaProps { type_: Some(name.to_owned()), ..Default::default() }
}

/// An object whose unknown fields are dropped: only for the outermost, whose metadata the API server knows.
pub(super) fn closed<const N: usize>(properties: [(&str, JSONSchemaProps); N]) -> JSONSchemaProps {
    let properties = properties.into_iter().map(|(name, schema)| (name.to_owned(), schema));
    JSONSchemaProps { properties: Some(properties.collect()), ..of_type("object") }
}

/// An object that keeps unknown fields.
pub(super) fn open<const N: usize>(properties: [(&str, JSONSchemaProps); N]) -> JSONSchemaProps {
    let mut schema = closed(properties);
    if N == 0 {
        schema.properties = None;
    }
    schema.x_kubernetes_preserve_unknown_fields = Some(true);
    schema
}

/// Text.
pub(super) fn text(description: &str) -> JSONSchemaProps {
    described(of_type("string"), description)
}

/// Text of at most `longest` characters.
pub(super) fn bounded(longest: i64, description: &str) -> JSONSchemaProps {
    JSONSchemaProps { max_length: Some(longest), ..text(description) }
}

/// One of some words.
pub(super) fn words(all: &[&str], description: &str) -> JSONSchemaProps {
    let all = all.iter().map(|word| JSON(Value::from(*word)));
    JSONSchemaProps { enum_: Some(all.collect()), ..text(description) }
}

/// True or false.
pub(super) fn flag(description: &str) -> JSONSchemaProps {
    described(of_type("boolean"), description)
}

/// A whole number.
pub(super) fn number(description: &str) -> JSONSchemaProps {
    JSONSchemaProps { format: Some("int64".to_owned()), ..described(of_type("integer"), description) }
}

/// A list without a bound of its own: the size of an object bounds it.
pub(super) fn list(items: JSONSchemaProps, description: &str) -> JSONSchemaProps {
    let items = Some(JSONSchemaPropsOrArray::Schema(Box::new(items)));
    described(JSONSchemaProps { items, ..of_type("array") }, description)
}

/// A list of at most `most` elements.
pub(super) fn at_most(most: i64, list: JSONSchemaProps) -> JSONSchemaProps {
    JSONSchemaProps { max_items: Some(most), ..list }
}

/// A list of texts.
pub(super) fn texts(description: &str) -> JSONSchemaProps {
    list(of_type("string"), description)
}

/// A map from any key.
pub(super) fn map(values: JSONSchemaProps, description: &str) -> JSONSchemaProps {
    let additional_properties = Some(JSONSchemaPropsOrBool::Schema(Box::new(values)));
    described(JSONSchemaProps { additional_properties, ..of_type("object") }, description)
}

/// The schema with a description.
pub(super) fn described(schema: JSONSchemaProps, description: &str) -> JSONSchemaProps {
    JSONSchemaProps { description: Some(description.to_owned()), ..schema }
}

/// The schema with fields that must be there.
pub(super) fn required(schema: JSONSchemaProps, names: &[&str]) -> JSONSchemaProps {
    let names = names.iter().map(|name| (*name).to_owned());
    JSONSchemaProps { required: Some(names.collect()), ..schema }
}

/// The schema with CEL rules, each with what it tells the user.
pub(super) fn ruled(schema: JSONSchemaProps, rules: &[(&str, &str)]) -> JSONSchemaProps {
    let rules = rules.iter().map(|(rule, message)| ValidationRule {
        rule: (*rule).to_owned(),
        message: Some((*message).to_owned()),
        ..Default::default()
    });
    JSONSchemaProps { x_kubernetes_validations: Some(rules.collect()), ..schema }
}

const KEYS: (&str, &str) = ("self.all(key, key.size() > 0)", "a label has a name");
const VALUES: (&str, &str) = (
    "self.all(key, !self[key].contains('*'))",
    "labels are compared whole: a wildcard (*) is not possible in their values",
);

/// `selector`.
pub(super) fn selector() -> JSONSchemaProps {
    let labels =
        map(bounded(LONGEST_LABEL, "The label's value."), "Labels that a pod must have, all of them.");
    let labels = JSONSchemaProps { max_properties: Some(MOST_LABELS), ..ruled(labels, &[KEYS, VALUES]) };
    described(
        open([("matchLabels", labels)]),
        "The pods that are selected; left out: all of the namespace, and from the root namespace all of the mesh.",
    )
}

/// `targetRef`.
pub(super) fn target() -> JSONSchemaProps {
    let parts = open([
        ("group", text("API group.")),
        ("kind", text("Kind.")),
        ("name", text("Name.")),
        ("namespace", text("Namespace.")),
    ]);
    described(parts, "A gateway or waypoint. Policies that name one apply to no ordinary workload.")
}

/// `targetRefs`.
pub(super) fn targets() -> JSONSchemaProps {
    let refs =
        list(target(), "Gateways or waypoints. Policies that name them apply to no ordinary workload.");
    at_most(MOST_TARGETS, refs)
}

/// A policy selects pods in one way only.
pub(super) const ONE_TARGET: (&str, &str) = (
    "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1",
    "only one of selector, targetRef and targetRefs may be set",
);
