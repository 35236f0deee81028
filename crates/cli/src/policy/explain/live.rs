//! The workload, its namespace, the settings of the mesh and all policies, from the cluster. What may not be read
//! and would mislead by its absence is an error; what is only less is a note in the story.

use super::Explain;
use super::find::{Found, described, given, of_pod};
use crate::cluster::{Cluster, SETTINGS};
use crate::inject::future_pod;
use anyhow::{Context, Result, bail};
use cinch_api::ISTIO_GROUP;
use cinch_api::names::{MODE_LABEL, MODE_STRICT};
use cinch_policy::{MeshConfig, PathNormalization, Workload};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use serde::Deserialize;
use serde_json::Value;

const POLICIES: [(&str, &str); 3] = [
    ("PeerAuthentication", "peerauthentications"),
    ("AuthorizationPolicy", "authorizationpolicies"),
    ("RequestAuthentication", "requestauthentications"),
];

/// A kind that is or makes pods.
struct Maker {
    /// As people write it before the slash; the first is what it is called in sentences.
    words: &'static [&'static str],
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
}

const fn maker(
    words: &'static [&'static str],
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> Maker {
    Maker { words, group, kind, plural }
}

/// A bare name is looked for in this order, as far as [`BARE`].
const MAKERS: [Maker; 8] = [
    maker(&["pod", "po", "pods"], "", "Pod", "pods"),
    maker(&["deployment", "deploy", "deployments"], "apps", "Deployment", "deployments"),
    maker(&["statefulset", "sts", "statefulsets"], "apps", "StatefulSet", "statefulsets"),
    maker(&["daemonset", "ds", "daemonsets"], "apps", "DaemonSet", "daemonsets"),
    maker(&["replicaset", "rs", "replicasets"], "apps", "ReplicaSet", "replicasets"),
    maker(&["job", "jobs"], "batch", "Job", "jobs"),
    maker(&["cronjob", "cj", "cronjobs"], "batch", "CronJob", "cronjobs"),
    maker(&["rollout", "rollouts"], "argoproj.io", "Rollout", "rollouts"),
];
const BARE: usize = 4;

/// What the cluster says.
///
/// # Errors
/// When it can't be reached, when there is no such workload, or when the workload or the policies of its namespace
/// may not be read.
pub async fn found(cluster: &Cluster, options: &Explain) -> Result<Found> {
    let mut notes = Vec::new();
    let mesh = options.over(mesh(cluster, &mut notes).await?);
    let (called, workload) = match &options.workload {
        None => (described(options), given(options)),
        Some(name) => workload(cluster, name, &options.namespace).await?,
    };
    let locked = locked(cluster, &workload.namespace, &mut notes).await?;
    let (mut policies, mut left_out) = (Vec::new(), Vec::new());
    for (kind, plural) in POLICIES {
        policies.extend(list(cluster, &workload.namespace, kind, plural).await?);
        if workload.namespace == mesh.root_namespace {
            continue;
        }
        match list(cluster, &mesh.root_namespace, kind, plural).await {
            Ok(of_root) => policies.extend(of_root),
            Err(error) if is_forbidden(&error) => left_out.push(plural),
            Err(error) => return Err(error),
        }
    }
    if !left_out.is_empty() {
        let (kinds, root) = (left_out.join(", "), &mesh.root_namespace);
        notes.push(format!(
            "{kinds} of the root namespace {root} are left out, because you may not list them"
        ));
    }
    Ok(Found { called, workload, policies, mesh, locked, notes })
}

/// Of the settings, what policies are read by.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    trust_domain: String,
    #[serde(default)]
    root_namespace: Option<String>,
    #[serde(default)]
    mesh: MeshSettings,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshSettings {
    trust_domain_aliases: Vec<String>,
    path_normalization: PathNormalization,
}

async fn mesh(cluster: &Cluster, notes: &mut Vec<String>) -> Result<MeshConfig> {
    let usual = MeshConfig { root_namespace: cluster.cinch.clone(), ..MeshConfig::default() };
    let (name, key) = SETTINGS;
    let assumed =
        "trust domain and root namespace are taken as usual (see --trust-domain and --root-namespace)";
    let found = match cluster.of::<ConfigMap>(&cluster.cinch).get_opt(name).await {
        Ok(found) => found,
        Err(kube::Error::Api(status)) if status.code == 403 => {
            notes.push(format!("you may not read ConfigMap {name} of {}, so {assumed}", cluster.cinch));
            return Ok(usual);
        }
        Err(error) => return Err(error).context("the cluster can not be asked"),
    };
    let text = found.and_then(|map| map.data?.remove(key));
    let Some(text) = text else {
        notes.push(format!("Cinch is not installed in namespace {}, so {assumed}", cluster.cinch));
        return Ok(usual);
    };
    let settings: Settings = serde_saphyr::from_str(&text)
        .with_context(|| format!("{key} in ConfigMap {name} can not be read"))?;
    Ok(MeshConfig {
        trust_domain: settings.trust_domain,
        root_namespace: settings.root_namespace.unwrap_or(usual.root_namespace),
        trust_domain_aliases: settings.mesh.trust_domain_aliases,
        path_normalization: settings.mesh.path_normalization,
    })
}

async fn locked(cluster: &Cluster, namespace: &str, notes: &mut Vec<String>) -> Result<Option<bool>> {
    let found = match Api::<Namespace>::all(cluster.client.clone()).get_opt(namespace).await {
        Err(kube::Error::Api(status)) if status.code == 403 => {
            notes.push(format!(
                "you may not read namespace {namespace}, so whether it is locked is not known"
            ));
            return Ok(None);
        }
        found => found.with_context(|| format!("namespace {namespace} can not be read"))?,
    };
    let Some(found) = found else { bail!("there is no namespace {namespace}") };
    let mode = found.metadata.labels.as_ref().and_then(|labels| labels.get(MODE_LABEL));
    Ok(Some(mode.is_some_and(|mode| mode == MODE_STRICT)))
}

/// The pod, or the pod that the workload would make.
async fn workload(cluster: &Cluster, name: &str, namespace: &str) -> Result<(String, Workload)> {
    let (makers, name): (&[Maker], _) = match name.split_once('/') {
        None => (MAKERS.get(..BARE).unwrap_or_default(), name),
        Some((word, name)) => {
            let said = |maker: &Maker| maker.words.iter().any(|own| own.eq_ignore_ascii_case(word));
            let known: Vec<&str> = MAKERS.iter().filter_map(|maker| maker.words.first().copied()).collect();
            let at = MAKERS.iter().position(said);
            let at =
                at.with_context(|| format!("{word:?} makes no pods; write one of {}", known.join(", ")))?;
            (MAKERS.get(at..=at).unwrap_or_default(), name)
        }
    };
    for Maker { group, kind, plural, .. } in makers {
        let resource = ApiResource::from_gvk_with_plural(&version_of(group, kind), plural);
        let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), namespace, &resource);
        let found = api.get_opt(name).await;
        let found = found.with_context(|| format!("{plural} of namespace {namespace} can not be read"))?;
        let Some(found) = found else { continue };
        let object = whole(found, &version_of(group, kind))?;
        let pod = future_pod(&object, kind).with_context(|| format!("{kind} {name} has no pod template"))?;
        let mut workload = of_pod(&pod.pod, namespace);
        // Of a pod that is not there yet, nobody knows the hash.
        if *kind != "Pod" {
            workload.labels.retain(|key, _| !key.ends_with("pod-template-hash"));
        }
        return Ok((format!("{kind} {namespace}/{name}"), workload));
    }
    let words: Vec<&str> = makers.iter().filter_map(|maker| maker.words.first().copied()).collect();
    bail!("there is no {} {name} in namespace {namespace}", words.join(" or "))
}

fn version_of(group: &str, kind: &str) -> GroupVersionKind {
    let version = if group == "argoproj.io" { "v1alpha1" } else { "v1" };
    GroupVersionKind::gvk(group, version, kind)
}

async fn list(cluster: &Cluster, namespace: &str, kind: &str, plural: &str) -> Result<Vec<Value>> {
    let gvk = GroupVersionKind::gvk(ISTIO_GROUP, "v1", kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), namespace, &resource);
    let listed = match api.list(&ListParams::default()).await {
        Ok(listed) => listed.items,
        // The kind is not installed.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
        Err(error) => {
            let hint = format!(
                "{plural} of namespace {namespace} can not be read (the ClusterRole cinch-view lets one)"
            );
            return Err(error).context(hint);
        }
    };
    listed.into_iter().map(|object| whole(object, &gvk)).collect()
}

/// The object with its kind, which elements of a list don't say.
fn whole(object: DynamicObject, gvk: &GroupVersionKind) -> Result<Value> {
    let mut value = serde_json::to_value(object)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("apiVersion".to_owned(), Value::from(gvk.api_version()));
        fields.insert("kind".to_owned(), Value::from(gvk.kind.clone()));
    }
    Ok(value)
}

fn is_forbidden(error: &anyhow::Error) -> bool {
    let of = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => status.code == 403,
        _ => false,
    };
    error.chain().any(of)
}

#[cfg(test)]
mod tests;
