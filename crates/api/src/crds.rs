//! The CustomResourceDefinitions of all our kinds, made from the types.

use crate::posture::Posture;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use std::collections::BTreeMap;

/// Every CustomResourceDefinition that Cinch installs of its own.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut all = vec![Posture::crd()];
    for crd in &mut all {
        let labels = crd.metadata.labels.get_or_insert_with(BTreeMap::new);
        labels.insert("app.kubernetes.io/name".to_owned(), "cinch".to_owned());
    }
    all
}

/// A definition as YAML.
///
/// # Errors
/// When it can't be written as YAML; no definition of [`crds`] can't.
pub fn to_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(crd)
}
