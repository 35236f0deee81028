//! Which kinds the API server does not serve. In: the definitions of the cluster. Out: the names of ours, and of Istio's
//! policies, that are missing or not in force.

use crate::cluster::Cluster;
use anyhow::Result;
use cinch_api::{crds, istio_crds};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::Api;

/// The names of definitions that are not there, not established, or without a version that Cinch speaks.
///
/// # Errors
/// When definitions may not be read.
pub async fn unserved(cluster: &Cluster) -> Result<Vec<String>> {
    let definitions = Api::<CustomResourceDefinition>::all(cluster.client.clone());
    let mut unserved = Vec::new();
    for wanted in crds().iter().chain(&istio_crds()) {
        let found = definitions.get_opt(&wanted.name_any()).await?;
        if !found.is_some_and(|found| is_served(wanted, &found)) {
            unserved.push(wanted.name_any());
        }
    }
    Ok(unserved)
}

/// Istio's own definitions serve as well as ours, and may have other versions besides.
fn is_served(wanted: &CustomResourceDefinition, found: &CustomResourceDefinition) -> bool {
    let conditions = found.status.as_ref().and_then(|status| status.conditions.as_ref());
    let established =
        conditions.into_iter().flatten().any(|one| one.type_ == "Established" && one.status == "True");
    let served = |definition: &CustomResourceDefinition, name: &str| {
        definition.spec.versions.iter().any(|version| version.served && version.name == name)
    };
    established && wanted.spec.versions.iter().any(|version| version.served && served(found, &version.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceDefinitionCondition, CustomResourceDefinitionStatus,
    };

    fn established(mut crd: CustomResourceDefinition, status: &str) -> CustomResourceDefinition {
        let condition = CustomResourceDefinitionCondition {
            type_: "Established".to_owned(),
            status: status.to_owned(),
            ..Default::default()
        };
        crd.status =
            Some(CustomResourceDefinitionStatus { conditions: Some(vec![condition]), ..Default::default() });
        crd
    }

    #[test]
    fn a_kind_is_served_once_it_is_established_in_a_version_that_is_spoken() {
        for wanted in crds().into_iter().chain(istio_crds()) {
            assert!(is_served(&wanted, &established(wanted.clone(), "True")));
            assert!(
                !is_served(&wanted, &established(wanted.clone(), "False")) && !is_served(&wanted, &wanted)
            );
            let mut older = established(wanted.clone(), "True");
            older.spec.versions.iter_mut().for_each(|version| version.name = "v1alpha0".to_owned());
            assert!(!is_served(&wanted, &older), "{}", wanted.name_any());
            let mut withdrawn = established(wanted.clone(), "True");
            withdrawn.spec.versions.iter_mut().for_each(|version| version.served = false);
            assert!(!is_served(&wanted, &withdrawn), "{}", wanted.name_any());
        }
        let policies = istio_crds();
        let mut some = established(policies[0].clone(), "True");
        some.spec.versions.truncate(1);
        assert!(is_served(&policies[0], &some), "one version is enough");
    }
}
