//! Which admission policies of Cinch are in force. In: policies and bindings of the cluster. Out: the names of those
//! that are missing, or bound otherwise than the chart binds them.

use crate::cluster::Cluster;
use anyhow::Result;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use std::collections::BTreeSet;

/// What a binding does with what its policy finds.
const DENY: &str = "Deny";
const WARN: &str = "Warn";

/// The bindings of the chart: name, policy, action.
const BINDINGS: [(&str, &str, &str); 11] = [
    ("cinch-driver", "cinch-driver", DENY),
    ("cinch-exec", "cinch-exec", DENY),
    ("cinch-namespaces", "cinch-namespaces", DENY),
    ("cinch-namespaces-new", "cinch-namespaces-new", DENY),
    ("cinch-pods", "cinch-pods", DENY),
    ("cinch-pods-privileges-locked", "cinch-pods-privileges", DENY),
    ("cinch-pods-privileges-open", "cinch-pods-privileges", WARN),
    ("cinch-postures", "cinch-postures", DENY),
    ("cinch-tokens", "cinch-tokens", DENY),
    ("cinch-trust", "cinch-trust", DENY),
    ("cinch-workloads", "cinch-workloads", WARN),
];

/// The names of the bindings that are not as they should be, or whose policy is not there.
///
/// # Errors
/// When policies or bindings may not be read.
pub async fn not_in_force(cluster: &Cluster) -> Result<Vec<&'static str>> {
    let everything = ListParams::default();
    let policies = Api::<ValidatingAdmissionPolicy>::all(cluster.client.clone()).list(&everything).await?;
    let policies = policies.iter().map(ResourceExt::name_any).collect();
    let bindings = Api::<ValidatingAdmissionPolicyBinding>::all(cluster.client.clone());
    Ok(judge(&policies, &bindings.list(&everything).await?.items))
}

fn judge(policies: &BTreeSet<String>, bindings: &[ValidatingAdmissionPolicyBinding]) -> Vec<&'static str> {
    let in_force = |(name, policy, action): &(&str, &str, &str)| {
        let found = bindings.iter().find(|binding| binding.metadata.name.as_deref() == Some(*name));
        let bound = found.map(|binding| &binding.spec).is_some_and(|spec| {
            let acts = spec.validation_actions.iter().any(|known| known == action);
            acts && spec.policy_name == *policy
        });
        bound && policies.contains(*policy)
    };
    BINDINGS.iter().filter(|binding| !in_force(binding)).map(|(name, ..)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn binding(name: &str, policy: &str, actions: Value) -> ValidatingAdmissionPolicyBinding {
        let spec = json!({"policyName": policy, "validationActions": actions});
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_policy_without_its_binding_or_the_other_way_round_is_not_in_force() {
        let all = |action: fn(&'static str) -> &'static str| -> Vec<_> {
            BINDINGS
                .iter()
                .map(|(name, policy, its)| binding(name, policy, json!([action(its), "Audit"])))
                .collect()
        };
        let policies: BTreeSet<String> = BINDINGS.iter().map(|(_, policy, _)| (*policy).to_owned()).collect();
        assert_eq!(judge(&policies, &all(|its| its)), [""; 0]);
        let without = |name: &str| -> Vec<_> {
            all(|its| its).into_iter().filter(|one| one.metadata.name.as_deref() != Some(name)).collect()
        };
        assert_eq!(judge(&policies, &without("cinch-pods")), ["cinch-pods"]);
        let mut fewer = policies.clone();
        fewer.remove("cinch-pods-privileges");
        let both = ["cinch-pods-privileges-locked", "cinch-pods-privileges-open"];
        assert_eq!(judge(&fewer, &all(|its| its)), both);
        let weaker = judge(&policies, &all(|_| WARN));
        assert_eq!(weaker.len(), BINDINGS.iter().filter(|(_, _, its)| *its == DENY).count());
        let mut elsewhere = without("cinch-exec");
        elsewhere.push(binding("cinch-exec", "cinch-trust", json!(["Deny"])));
        assert_eq!(judge(&policies, &elsewhere), ["cinch-exec"]);
    }

    #[test]
    fn the_bindings_are_those_of_the_chart() {
        let installed = include_str!("../../../../manifests/install.yaml");
        let documents = installed.split("\n---\n");
        let bindings = documents.filter(|one| one.contains("kind: ValidatingAdmissionPolicyBinding\n"));
        let field = |text: &str, key: &str| -> String {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
            line.unwrap_or_default().trim().to_owned()
        };
        let found: BTreeSet<(String, String, String)> = bindings
            .map(|one| {
                let action = if field(one, "validationActions:").contains(DENY) { DENY } else { WARN };
                (field(one, "name:"), field(one, "policyName:"), action.to_owned())
            })
            .collect();
        let known = BINDINGS
            .iter()
            .map(|(name, policy, action)| ((*name).to_owned(), (*policy).to_owned(), (*action).to_owned()));
        assert_eq!(found, known.collect());
    }
}
