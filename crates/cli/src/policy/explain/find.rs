//! The workload and all policies, from files or from the cluster.

use super::Explain;
use crate::arguments::Global;
use crate::cluster::{Cluster, text};
use crate::documents;
use crate::inject::future_pod;
use crate::policy::cases::policies_of;
use anyhow::{Context, Result};
use cinch_api::ISTIO_GROUP;
use cinch_policy::{MeshConfig, Workload};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use serde_json::Value;

/// What is to be told.
#[derive(Debug)]
pub struct Found {
    /// How the workload is called.
    pub called: String,
    /// The workload.
    pub workload: Workload,
    /// Every policy that could select it, as objects.
    pub policies: Vec<Value>,
}

const KINDS: [(&str, &str); 3] = [
    ("PeerAuthentication", "peerauthentications"),
    ("AuthorizationPolicy", "authorizationpolicies"),
    ("RequestAuthentication", "requestauthentications"),
];

/// From the files that the options name.
///
/// # Errors
/// When one can't be read or none holds the workload.
pub fn in_files(options: &Explain) -> Result<Found> {
    let mut all = Vec::new();
    for file in &options.files {
        all.extend(documents::objects(documents::read(file)?));
    }
    let (called, workload) = match &options.workload {
        None => (described(options), given(options)),
        Some(name) => {
            let found = all.iter().find_map(|object| workload_named(object, name, &options.namespace));
            found.with_context(|| format!("the files hold no workload {name}"))?
        }
    };
    Ok(Found { called, workload, policies: policies_of(all) })
}

/// From the cluster.
///
/// # Errors
/// When it can't be reached, or the pod or the policies can't be read.
pub async fn in_cluster(global: &Global, options: &Explain, mesh: &MeshConfig) -> Result<Found> {
    let cluster = Cluster::connect(global).await?;
    let (called, workload) = match &options.workload {
        None => (described(options), given(options)),
        Some(name) => {
            let name = name.trim_start_matches("pod/").trim_start_matches("Pod/");
            let pod = cluster.of::<Pod>(&options.namespace).get_opt(name).await?;
            let pod = pod.with_context(|| format!("there is no pod {name} in {}", options.namespace))?;
            let workload = of_pod(&serde_json::to_value(&pod)?, &options.namespace);
            (format!("pod {}/{name}", options.namespace), workload)
        }
    };
    let mut namespaces = vec![workload.namespace.as_str(), mesh.root_namespace.as_str()];
    namespaces.dedup();
    let mut policies = Vec::new();
    for namespace in namespaces {
        for (kind, plural) in KINDS {
            policies.extend(list(&cluster, namespace, kind, plural).await?);
        }
    }
    Ok(Found { called, workload, policies })
}

async fn list(cluster: &Cluster, namespace: &str, kind: &str, plural: &str) -> Result<Vec<Value>> {
    let gvk = GroupVersionKind::gvk(ISTIO_GROUP, "v1", kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), namespace, &resource);
    let listed = match api.list(&ListParams::default()).await {
        Ok(listed) => listed.items,
        // The kind is not installed.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("{plural} of {namespace} can not be read")),
    };
    let whole = |object: DynamicObject| {
        let mut value = serde_json::to_value(object)?;
        // Elements of a list don't say what they are.
        if let Some(fields) = value.as_object_mut() {
            fields.insert("apiVersion".to_owned(), Value::from(gvk.api_version()));
            fields.insert("kind".to_owned(), Value::from(kind));
        }
        Ok(value)
    };
    listed.into_iter().map(whole).collect()
}

fn given(options: &Explain) -> Workload {
    Workload {
        namespace: options.namespace.clone(),
        labels: options.labels.clone(),
        service_account: options.service_account.clone(),
    }
}

fn described(options: &Explain) -> String {
    format!("a workload in namespace {}", options.namespace)
}

/// `object` as a workload, when it is the one of this name (`api` or `Deployment/api`).
fn workload_named(object: &Value, name: &str, namespace: &str) -> Option<(String, Workload)> {
    let (kind, own) = (text(object, "/kind"), text(object, "/metadata/name"));
    let asked = match name.split_once('/') {
        Some((asked, name)) => asked.eq_ignore_ascii_case(kind) && name == own,
        None => name == own,
    };
    let pod = asked.then(|| future_pod(object, kind)).flatten()?.pod;
    let namespace = match text(object, "/metadata/namespace") {
        "" => namespace,
        own => own,
    };
    Some((format!("{kind} {namespace}/{own}"), of_pod(&pod, namespace)))
}

fn of_pod(pod: &Value, namespace: &str) -> Workload {
    let labels = pod.pointer("/metadata/labels").and_then(Value::as_object);
    let labels = labels.into_iter().flatten().map(|(key, value)| {
        let value = value.as_str().unwrap_or_default();
        (key.clone(), value.to_owned())
    });
    let account = match text(pod, "/spec/serviceAccountName") {
        "" => "default",
        account => account,
    };
    Workload {
        namespace: namespace.to_owned(),
        labels: labels.collect(),
        service_account: account.to_owned(),
    }
}
