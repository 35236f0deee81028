//! The CustomResourceDefinitions of all our kinds, made from the types, and Istio's, made from tables.

use crate::istio;
use crate::posture::Posture;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use std::collections::BTreeMap;

/// Every CustomResourceDefinition that Cinch installs of its own.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![labelled(Posture::crd())]
}

/// The definitions of Istio's security policies: needed where Istio has not installed its own.
#[must_use]
pub fn istio_crds() -> Vec<CustomResourceDefinition> {
    istio::definitions().into_iter().map(labelled).collect()
}

fn labelled(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let labels = crd.metadata.labels.get_or_insert_with(BTreeMap::new);
    labels.insert("app.kubernetes.io/name".to_owned(), "cinch".to_owned());
    crd
}

/// A definition as YAML.
///
/// # Errors
/// When it can't be written as YAML; no definition of [`crds`] can't.
pub fn to_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(crd)
}
