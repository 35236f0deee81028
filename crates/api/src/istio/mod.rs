//! Istio's three kinds of security policy as custom resources. Their specs are read by `cinch-policy`; here is
//! what an API server must know of them.
//!
//! The schemas say the shape and keep every unknown field: a field that this version does not know must reach
//! admission, which refuses it by its name. What a schema or CEL can say they say too, so that it holds while no
//! webhook answers.

mod authorization_policy;
mod peer_authentication;
mod request_authentication;
mod schema;
pub mod status;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec, CustomResourceDefinitionVersion, CustomResourceSubresourceStatus,
    CustomResourceSubresources, CustomResourceValidation, JSONSchemaProps,
};

/// The API group of Istio's security policies.
pub const ISTIO_GROUP: &str = "security.istio.io";
/// The versions that are served, the stored one first. They differ in nothing.
const VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// Definitions of PeerAuthentication, AuthorizationPolicy and RequestAuthentication, for clusters in which Istio
/// has not put its own.
pub(crate) fn definitions() -> Vec<CustomResourceDefinition> {
    vec![
        authorization_policy::kind().definition(),
        peer_authentication::kind().definition(),
        request_authentication::kind().definition(),
    ]
}

/// What tells one kind from another.
struct Kind {
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    /// Name and JSON path of columns before the age.
    columns: &'static [(&'static str, &'static str)],
    description: &'static str,
    spec: JSONSchemaProps,
}

impl Kind {
    fn definition(self) -> CustomResourceDefinition {
        let mut crd = CustomResourceDefinition::default();
        crd.metadata.name = Some(format!("{}.{ISTIO_GROUP}", self.plural));
        crd.spec = CustomResourceDefinitionSpec {
            group: ISTIO_GROUP.to_owned(),
            names: CustomResourceDefinitionNames {
                categories: Some(vec!["istio-io".to_owned(), "security-istio-io".to_owned()]),
                kind: self.kind.to_owned(),
                list_kind: Some(format!("{}List", self.kind)),
                plural: self.plural.to_owned(),
                short_names: Some(vec![self.short.to_owned()]),
                singular: Some(self.kind.to_ascii_lowercase()),
            },
            scope: "Namespaced".to_owned(),
            versions: VERSIONS.iter().map(|name| self.version(name)).collect(),
            ..Default::default()
        };
        crd
    }

    fn version(&self, name: &str) -> CustomResourceDefinitionVersion {
        let root = schema::closed([("spec", self.spec.clone()), ("status", status::schema())]);
        let root = schema::described(root, self.description);
        CustomResourceDefinitionVersion {
            name: name.to_owned(),
            served: true,
            storage: VERSIONS.first() == Some(&name),
            schema: Some(CustomResourceValidation { open_api_v3_schema: Some(root) }),
            subresources: Some(CustomResourceSubresources {
                status: Some(CustomResourceSubresourceStatus(serde_json::Value::Object(
                    serde_json::Map::new(),
                ))),
                scale: None,
            }),
            additional_printer_columns: Some(self.columns()),
            ..Default::default()
        }
    }

    fn columns(&self) -> Vec<CustomResourceColumnDefinition> {
        let column = |name: &str, path: &str, kind: &str| CustomResourceColumnDefinition {
            name: name.to_owned(),
            json_path: path.to_owned(),
            type_: kind.to_owned(),
            ..Default::default()
        };
        let own = self.columns.iter().map(|(name, path)| column(name, path, "string"));
        own.chain([
            column("Selected", ".status.cinch.selected", "integer"),
            column("Enforcing", ".status.cinch.enforcing", "integer"),
            column("State", ".status.cinch.reason", "string"),
            column("Age", ".metadata.creationTimestamp", "date"),
        ])
        .collect()
    }
}
