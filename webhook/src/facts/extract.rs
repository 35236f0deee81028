//! What is kept of each object: a few words, never the object.

use cinch_injection::{AccountState, JobOrigin, MANAGED_BY_LABEL, OWNER_ANNOTATION, cloud_identity};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DynamicObject, PartialObjectMeta};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Name of the ConfigMap with a namespace's trust bundle.
pub(super) const TRUST_CONFIG_MAP: &str = "cinch-trust";
/// The only name that a Posture has.
pub(super) const POSTURE: &str = "mesh";
/// The account of pods that ask for none.
pub(super) const DEFAULT_ACCOUNT: &str = "default";

/// Labels and annotations of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations, but for what `kubectl apply` keeps there.
    pub annotations: BTreeMap<String, String>,
}

/// What a Posture says about service accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostureMode {
    /// Workloads get their own.
    PerWorkload,
    /// All stay as they are.
    Keep,
}

/// What is kept of a service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Whose it is.
    pub state: AccountState,
    /// A cloud identity that hangs on it, named.
    pub cloud_identity: Option<String>,
}

/// A binding that names `default` accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bindings {
    /// Kind and name of the binding.
    name: String,
    /// Namespaces whose `default` it names.
    namespaces: Vec<String>,
}

impl Bindings {
    /// The binding's name, if it names the `default` of `namespace`.
    #[must_use]
    pub fn by_which(&self, namespace: &str) -> Option<String> {
        self.namespaces.iter().any(|bound| bound == namespace).then(|| self.name.clone())
    }
}

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Labels and annotations.
#[must_use]
pub fn namespace(namespace: &PartialObjectMeta<Namespace>) -> Option<Arc<NamespaceFacts>> {
    let mut annotations = namespace.metadata.annotations.clone().unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    Some(Arc::new(NamespaceFacts {
        labels: namespace.metadata.labels.clone().unwrap_or_default(),
        annotations,
    }))
}

/// Whose the account is. One that is being deleted counts as gone: a pod that asked for it would be refused.
#[must_use]
pub fn account(account: &PartialObjectMeta<ServiceAccount>) -> Option<Account> {
    let meta = &account.metadata;
    if meta.deletion_timestamp.is_some() {
        return None;
    }
    let annotation = |key: &str| meta.annotations.as_ref()?.get(key).map(String::as_str);
    let managed_by = meta.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY_LABEL)).map(String::as_str);
    let cloud = meta.annotations.as_ref().and_then(cloud_identity);
    Some(Account {
        state: AccountState::of(managed_by, annotation(OWNER_ANNOTATION)),
        cloud_identity: cloud.map(|key| format!("annotation {key} of service account {DEFAULT_ACCOUNT}")),
    })
}

/// That it is there.
#[must_use]
pub fn trust(config_map: &PartialObjectMeta<ConfigMap>) -> Option<()> {
    config_map.metadata.deletion_timestamp.is_none().then_some(())
}

/// Where the Job comes from.
#[must_use]
pub fn job(job: &PartialObjectMeta<Job>) -> Option<JobOrigin> {
    Some(job_origin(&job.metadata))
}

fn job_origin(meta: &ObjectMeta) -> JobOrigin {
    let controller = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let controller = controller.map(|o| (o.api_version.as_str(), o.kind.as_str(), o.name.as_str()));
    JobOrigin::of(meta.generate_name.as_deref(), controller)
}

/// `spec.serviceAccounts`; a word that this version does not know means the default.
#[must_use]
pub fn posture(posture: &DynamicObject) -> Option<PostureMode> {
    let keeps = posture.data.pointer("/spec/serviceAccounts").and_then(|mode| mode.as_str()) == Some("Keep");
    Some(if keeps { PostureMode::Keep } else { PostureMode::PerWorkload })
}

/// The `default` account that it names, if it is that of its own namespace. Who may bind in another namespace has no
/// say in which account the pods of this one run with.
#[must_use]
pub fn role_binding(binding: &RoleBinding) -> Option<Bindings> {
    let own = binding.metadata.namespace.as_deref().unwrap_or_default();
    let name = binding.metadata.name.as_deref().unwrap_or_default();
    let mut bindings = bindings(format!("RoleBinding {own}/{name}"), binding.subjects.as_deref(), own)?;
    bindings.namespaces.retain(|namespace| namespace == own);
    (!bindings.namespaces.is_empty()).then_some(bindings)
}

/// The `default` accounts that it names.
#[must_use]
pub fn cluster_role_binding(binding: &ClusterRoleBinding) -> Option<Bindings> {
    let name = binding.metadata.name.as_deref().unwrap_or_default();
    bindings(format!("ClusterRoleBinding {name}"), binding.subjects.as_deref(), "")
}

/// An account can be a subject under its own kind or as the user that its token authenticates as.
fn bindings(name: String, subjects: Option<&[Subject]>, own_namespace: &str) -> Option<Bindings> {
    let namespaces: Vec<String> = subjects
        .into_iter()
        .flatten()
        .filter_map(|subject| match subject.kind.as_str() {
            "ServiceAccount" if subject.name == DEFAULT_ACCOUNT => {
                let named = subject.namespace.clone().filter(|namespace| !namespace.is_empty());
                Some(named.unwrap_or_else(|| own_namespace.to_owned()))
            }
            "User" => {
                let user = subject.name.strip_prefix("system:serviceaccount:")?;
                user.strip_suffix(":default").map(str::to_owned)
            }
            _ => None,
        })
        .collect();
    (!namespaces.is_empty()).then_some(Bindings { name, namespaces })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_default_account_is_found_in_any_subject_form() {
        let binding = |subjects| {
            serde_json::from_value::<RoleBinding>(json!({"metadata": {"name": "b", "namespace": "shop"},
                "roleRef": {"apiGroup": "", "kind": "Role", "name": "r"}, "subjects": subjects}))
            .unwrap()
        };
        let cases = [
            (
                "account",
                json!([{"kind": "ServiceAccount", "name": "default", "namespace": "shop"}]),
                Some("shop"),
            ),
            (
                "account of the own namespace",
                json!([{"kind": "ServiceAccount", "name": "default"}]),
                Some("shop"),
            ),
            (
                "account elsewhere",
                json!([{"kind": "ServiceAccount", "name": "default", "namespace": "x"}]),
                None,
            ),
            ("user", json!([{"kind": "User", "name": "system:serviceaccount:shop:default"}]), Some("shop")),
            ("user elsewhere", json!([{"kind": "User", "name": "system:serviceaccount:y:default"}]), None),
            ("other account", json!([{"kind": "ServiceAccount", "name": "web"}]), None),
            ("other user", json!([{"kind": "User", "name": "default"}]), None),
            ("group", json!([{"kind": "Group", "name": "system:serviceaccounts:shop"}]), None),
            ("nobody", json!([]), None),
        ];
        for (case, subjects, want) in cases {
            let bindings = role_binding(&binding(subjects));
            match want {
                Some(namespace) => {
                    let by = bindings.unwrap().by_which(namespace);
                    assert_eq!(by.as_deref(), Some("RoleBinding shop/b"), "{case}");
                }
                None => assert_eq!(bindings, None, "{case}"),
            }
        }
    }

    #[test]
    fn a_posture_of_a_later_version_means_the_default() {
        let posture_with = |spec| {
            let object =
                json!({"apiVersion": "cinch.dev/v1alpha1", "kind": "Posture", "metadata": {}, "spec": spec});
            posture(&serde_json::from_value(object).unwrap())
        };
        assert_eq!(posture_with(json!({"serviceAccounts": "Keep"})), Some(PostureMode::Keep));
        assert_eq!(posture_with(json!({"serviceAccounts": "Later"})), Some(PostureMode::PerWorkload));
        assert_eq!(posture_with(json!(null)), Some(PostureMode::PerWorkload));
    }

    #[test]
    fn where_a_job_comes_from_is_read_from_its_metadata() {
        let job_with = |meta| {
            let object = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta});
            job(&serde_json::from_value(object).unwrap()).unwrap()
        };
        let owner = |kind| {
            json!({"name": "j", "ownerReferences": [
            {"apiVersion": "batch/v1", "kind": kind, "name": "nightly", "uid": "u", "controller": true}]})
        };
        assert_eq!(job_with(json!({"name": "j"})), JobOrigin::Named);
        assert_eq!(job_with(json!({"name": "j-x", "generateName": "j-"})), JobOrigin::Generated);
        assert_eq!(job_with(owner("CronJob")), JobOrigin::CronJob("nightly".into()));
        assert_eq!(job_with(owner("Workflow")), JobOrigin::OtherController);
    }
}
