//! From a pod's owner reference to the workload that people know: a ReplicaSet's Deployment or Rollout, a
//! Job's CronJob. In go owner references and the metadata of ReplicaSets and Jobs.

use super::convert::{Interner, created};
use super::model::{Labels, PodInfo, WorkloadName};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::HashMap;
use std::sync::Arc;

/// The controlling owner of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnerRef {
    /// API group; empty for the core group.
    pub(super) group: Arc<str>,
    pub(super) kind: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) uid: Arc<str>,
}

/// The owner reference with `controller: true`.
pub(super) fn controller(meta: &ObjectMeta, intern: &mut Interner) -> Option<OwnerRef> {
    let reference = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    let group = reference.api_version.split_once('/').map_or("", |(group, _)| group);
    Some(OwnerRef {
        group: intern.text(group),
        kind: intern.text(&reference.kind),
        name: intern.text(&reference.name),
        uid: intern.text(&reference.uid),
    })
}

/// What is kept of a ReplicaSet or Job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnerMeta {
    pub(super) namespace: Arc<str>,
    pub(super) created_unix_ms: u64,
    pub(super) controller: Option<OwnerRef>,
}

/// Key and metadata of a ReplicaSet or Job.
pub(super) fn owner_meta(meta: &ObjectMeta, intern: &mut Interner) -> Option<(Arc<str>, OwnerMeta)> {
    let owner = OwnerMeta {
        namespace: intern.text(meta.namespace.as_deref()?),
        created_unix_ms: created(meta),
        controller: controller(meta, intern),
    };
    Some((intern.text(meta.uid.as_deref()?), owner))
}

/// ReplicaSets and Jobs by UID.
pub(super) type Owners = HashMap<Arc<str>, OwnerMeta>;

/// Fills in a pod's workload. A pod whose ReplicaSet or Job is not known (any more) keeps what `before` says;
/// for the first time, a ReplicaSet's name without the pod's template hash is the Deployment's.
pub(super) fn resolve(
    pod: &mut PodInfo,
    owner: Option<&OwnerRef>,
    owners: &Owners,
    before: Option<&PodInfo>,
) {
    let Some(owner) = owner else { return };
    let meta = owners.get(&owner.uid);
    let expands = matches!((&*owner.group, &*owner.kind), ("apps", "ReplicaSet") | ("batch", "Job"));
    if let (true, None, Some(before)) = (expands, meta, before) {
        pod.workload = before.workload.clone();
        pod.workload_created_unix_ms = before.workload_created_unix_ms;
        return;
    }
    let (kind, name) = match meta {
        Some(OwnerMeta { controller: Some(above), .. }) => (Arc::clone(&above.kind), Arc::clone(&above.name)),
        Some(_) => (Arc::clone(&owner.kind), Arc::clone(&owner.name)),
        None if &*owner.kind == "ReplicaSet" => by_template_hash(owner, &pod.labels),
        None => (Arc::clone(&owner.kind), Arc::clone(&owner.name)),
    };
    pod.workload = WorkloadName { namespace: Arc::clone(&pod.namespace), kind, name };
    if let Some(meta) = meta {
        pod.workload_created_unix_ms = meta.created_unix_ms.min(pod.created_unix_ms);
    }
}

fn by_template_hash(owner: &OwnerRef, labels: &Labels) -> (Arc<str>, Arc<str>) {
    for (label, kind) in [("rollouts-pod-template-hash", "Rollout"), ("pod-template-hash", "Deployment")] {
        let stem = labels.get(label).and_then(|hash| owner.name.strip_suffix(&**hash)?.strip_suffix('-'));
        if let Some(stem) = stem.filter(|stem| !stem.is_empty()) {
            return (Arc::from(kind), Arc::from(stem));
        }
    }
    (Arc::clone(&owner.kind), Arc::clone(&owner.name))
}
