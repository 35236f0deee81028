//! What the watchers have told: workloads, accounts, bindings and Postures, each reduced to what the plan
//! needs; of workloads also what stands against a lock of their namespace.

use super::bound::names_default_of;
use super::refused::{self, Refusal};
use crate::index::keyed::Table;
use cinch_api::{Posture, ServiceAccounts};
use cinch_injection::{
    AccountState, JobOrigin, MANAGED_BY_LABEL, OWNER_ANNOTATION, Owner, OwnerKind, cloud_identity,
};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A kind of workload: where it is served, and where its pods' template is.
#[derive(Debug)]
pub(super) struct WorkloadKind {
    pub(super) kind: OwnerKind,
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) plural: &'static str,
    /// JSON pointer to the pods' template.
    template: &'static str,
    /// Not every cluster serves it: nothing waits for its first list.
    pub(super) is_optional: bool,
}

const TEMPLATE: &str = "/spec/template";

/// The kinds that have accounts of their own.
pub(super) const WORKLOAD_KINDS: [WorkloadKind; 6] = [
    workload_kind(OwnerKind::Deployment, "apps", "v1", "deployments", TEMPLATE),
    workload_kind(OwnerKind::StatefulSet, "apps", "v1", "statefulsets", TEMPLATE),
    workload_kind(OwnerKind::DaemonSet, "apps", "v1", "daemonsets", TEMPLATE),
    workload_kind(OwnerKind::Job, "batch", "v1", "jobs", TEMPLATE),
    workload_kind(OwnerKind::CronJob, "batch", "v1", "cronjobs", "/spec/jobTemplate/spec/template"),
    WorkloadKind {
        is_optional: true,
        ..workload_kind(OwnerKind::Rollout, "argoproj.io", "v1alpha1", "rollouts", TEMPLATE)
    },
];

const fn workload_kind(
    kind: OwnerKind,
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    template: &'static str,
) -> WorkloadKind {
    WorkloadKind { kind, group, version, plural, template, is_optional: false }
}

/// A workload that may need an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) namespace: String,
    pub(super) owner: Owner,
    pub(super) uid: String,
    pub(super) api_version: String,
    /// Its pods ask for `default`, it lives, and its name is its own.
    pub(super) wants_account: bool,
    /// Why its pods are refused once the namespace is locked.
    pub(super) refused: Vec<Refusal>,
}

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) state: AccountState,
    pub(super) resource_version: String,
    pub(super) owner_uids: Vec<String>,
    pub(super) automount: Option<bool>,
    pub(super) pull_secrets: Vec<String>,
    pub(super) cloud_annotation: Option<&'static str>,
}

/// Namespace and name.
pub(super) type Name = (String, String);

/// A binding's key: its namespace (none for a ClusterRoleBinding) and its name.
type BindingName = (Option<String>, String);

/// Everything the plan looks at.
#[derive(Debug, Default)]
pub(super) struct Observed {
    pub(super) workloads: HashMap<String, Workload>,
    pub(super) accounts: BTreeMap<Name, Account>,
    /// The namespaces whose `default` account each binding names; only bindings that name one.
    pub(super) bindings: BTreeMap<BindingName, BTreeSet<String>>,
    /// What each Posture says about accounts.
    pub(super) postures: HashMap<String, ServiceAccounts>,
    listed: BTreeSet<&'static str>,
}

/// The lists that the first plan waits for, besides those of the workload kinds.
const LISTS: [&str; 4] = ["serviceaccounts", "rolebindings", "clusterrolebindings", "postures"];

impl Observed {
    /// Everything has been listed once.
    pub(super) fn synced(&self) -> bool {
        let kinds = WORKLOAD_KINDS.iter().filter(|kind| !kind.is_optional).map(|kind| kind.plural);
        LISTS.into_iter().chain(kinds).all(|list| self.listed.contains(list))
    }
}

fn name_of(meta: &ObjectMeta) -> Option<Name> {
    Some((meta.namespace.clone()?, meta.name.clone()?))
}

/// Inserts and says whether anything changed.
fn put<V: PartialEq>(changed: Option<V>, now: Option<&V>) -> bool {
    changed.as_ref() != now
}

/// The workloads of one kind: a re-list of one kind says nothing about the others.
pub(super) struct Workloads<'a> {
    pub(super) kind: &'static WorkloadKind,
    pub(super) observed: &'a mut Observed,
}

impl Workloads<'_> {
    fn read(&self, object: &DynamicObject) -> Option<Workload> {
        let meta = &object.metadata;
        let (namespace, name) = name_of(meta)?;
        let template = object.data.pointer(self.kind.template);
        let spec = template.and_then(|template| template.get("spec"));
        let asked = ["serviceAccountName", "serviceAccount"]
            .into_iter()
            .find_map(|key| spec?.get(key)?.as_str().filter(|name| !name.is_empty()));
        let controller = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let named = match self.kind.kind {
            OwnerKind::Job => {
                let controller =
                    controller.map(|c| (c.api_version.as_str(), c.kind.as_str(), c.name.as_str()));
                JobOrigin::of(meta.generate_name.as_deref(), controller) == JobOrigin::Named
            }
            _ => true,
        };
        let lives = meta.deletion_timestamp.is_none();
        // Pods of a Job that has ended do not come again, and those of another owner are judged with it.
        let comes_again = named && lives && !refused::has_ended(&object.data);
        Some(Workload {
            namespace,
            owner: Owner::new(self.kind.kind, name),
            uid: meta.uid.clone()?,
            api_version: format!("{}/{}", self.kind.group, self.kind.version),
            wants_account: named && lives && matches!(asked, None | Some("default")),
            refused: template.filter(|_| comes_again).map(refused::judge).unwrap_or_default(),
        })
    }
}

impl Table<DynamicObject> for Workloads<'_> {
    type Key = String;

    fn key(&mut self, object: &DynamicObject) -> Option<String> {
        object.metadata.uid.clone()
    }

    fn apply(&mut self, object: &DynamicObject) -> bool {
        let Some(workload) = self.read(object) else { return false };
        let uid = workload.uid.clone();
        let before = self.observed.workloads.insert(uid.clone(), workload);
        put(before, self.observed.workloads.get(&uid))
    }

    fn remove(&mut self, key: &String) -> bool {
        self.observed.workloads.remove(key).is_some()
    }

    fn keys(&self) -> Vec<String> {
        let of_kind = |(_, workload): &(&String, &Workload)| workload.owner.kind == self.kind.kind;
        self.observed.workloads.iter().filter(of_kind).map(|(uid, _)| uid.clone()).collect()
    }

    fn listed(&mut self) -> bool {
        self.observed.listed.insert(self.kind.plural)
    }
}

impl Table<ServiceAccount> for Observed {
    type Key = Name;

    fn key(&mut self, object: &ServiceAccount) -> Option<Name> {
        name_of(&object.metadata)
    }

    fn apply(&mut self, object: &ServiceAccount) -> bool {
        let Some(name) = name_of(&object.metadata) else { return false };
        let before = self.accounts.insert(name.clone(), Account::of(object));
        put(before, self.accounts.get(&name))
    }

    fn remove(&mut self, key: &Name) -> bool {
        self.accounts.remove(key).is_some()
    }

    fn keys(&self) -> Vec<Name> {
        self.accounts.keys().cloned().collect()
    }

    fn listed(&mut self) -> bool {
        self.listed.insert("serviceaccounts")
    }
}

impl Account {
    fn of(object: &ServiceAccount) -> Self {
        let meta = &object.metadata;
        let label = meta.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY_LABEL));
        let owner = meta.annotations.as_ref().and_then(|annotations| annotations.get(OWNER_ANNOTATION));
        Self {
            state: AccountState::of(label.map(String::as_str), owner.map(String::as_str)),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            owner_uids: meta.owner_references.iter().flatten().map(|owner| owner.uid.clone()).collect(),
            automount: object.automount_service_account_token,
            pull_secrets: object
                .image_pull_secrets
                .iter()
                .flatten()
                .map(|secret| secret.name.clone())
                .collect(),
            cloud_annotation: meta.annotations.as_ref().and_then(cloud_identity),
        }
    }
}

impl Observed {
    fn bind(&mut self, name: BindingName, subjects: Option<&Vec<Subject>>) -> bool {
        let namespaces: BTreeSet<String> = subjects
            .into_iter()
            .flatten()
            .filter_map(|subject| names_default_of(subject, name.0.as_deref()))
            // Who may bind in another namespace has no say in which account the pods of this one run with.
            .filter(|named| name.0.as_deref().is_none_or(|own| own == *named))
            .map(str::to_owned)
            .collect();
        if namespaces.is_empty() {
            return self.bindings.remove(&name).is_some();
        }
        let before = self.bindings.insert(name.clone(), namespaces);
        put(before, self.bindings.get(&name))
    }
}

impl Table<RoleBinding> for Observed {
    type Key = BindingName;

    fn key(&mut self, object: &RoleBinding) -> Option<BindingName> {
        name_of(&object.metadata).map(|(namespace, name)| (Some(namespace), name))
    }

    fn apply(&mut self, object: &RoleBinding) -> bool {
        let key = name_of(&object.metadata).map(|(namespace, name)| (Some(namespace), name));
        key.is_some_and(|key| self.bind(key, object.subjects.as_ref()))
    }

    fn remove(&mut self, key: &BindingName) -> bool {
        self.bindings.remove(key).is_some()
    }

    fn keys(&self) -> Vec<BindingName> {
        self.bindings.keys().filter(|(namespace, _)| namespace.is_some()).cloned().collect()
    }

    fn listed(&mut self) -> bool {
        self.listed.insert("rolebindings")
    }
}

impl Table<ClusterRoleBinding> for Observed {
    type Key = BindingName;

    fn key(&mut self, object: &ClusterRoleBinding) -> Option<BindingName> {
        Some((None, object.metadata.name.clone()?))
    }

    fn apply(&mut self, object: &ClusterRoleBinding) -> bool {
        let name = object.metadata.name.clone();
        name.is_some_and(|name| self.bind((None, name), object.subjects.as_ref()))
    }

    fn remove(&mut self, key: &BindingName) -> bool {
        self.bindings.remove(key).is_some()
    }

    fn keys(&self) -> Vec<BindingName> {
        self.bindings.keys().filter(|(namespace, _)| namespace.is_none()).cloned().collect()
    }

    fn listed(&mut self) -> bool {
        self.listed.insert("clusterrolebindings")
    }
}

impl Table<Posture> for Observed {
    type Key = String;

    fn key(&mut self, object: &Posture) -> Option<String> {
        object.metadata.namespace.clone()
    }

    fn apply(&mut self, object: &Posture) -> bool {
        let Some(namespace) = object.metadata.namespace.clone() else { return false };
        let accounts = object.spec.service_accounts.unwrap_or_default();
        let before = self.postures.insert(namespace.clone(), accounts);
        put(before, self.postures.get(&namespace))
    }

    fn remove(&mut self, key: &String) -> bool {
        self.postures.remove(key).is_some()
    }

    fn keys(&self) -> Vec<String> {
        self.postures.keys().cloned().collect()
    }

    fn listed(&mut self) -> bool {
        self.listed.insert("postures")
    }
}
