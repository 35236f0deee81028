//! The workload and all policies in files.

use super::Explain;
use crate::cluster::text;
use crate::documents;
use crate::inject::future_pod;
use crate::policy::cases::policies_of;
use anyhow::{Context, Result};
use cinch_policy::{MeshConfig, Workload};
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
    /// What the policies are read by.
    pub mesh: MeshConfig,
    /// Whether the namespace is locked STRICT, where that is known.
    pub locked: Option<bool>,
    /// What is missing, for the reader.
    pub notes: Vec<String>,
}

/// From the files that the options name.
///
/// # Errors
/// When one can't be read or none holds the workload.
pub fn in_files(options: &Explain, cinch_namespace: &str) -> Result<Found> {
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
    let root_namespace = cinch_namespace.to_owned();
    let mesh = options.over(MeshConfig { root_namespace, ..MeshConfig::default() });
    Ok(Found { called, workload, policies: policies_of(all), mesh, locked: None, notes: Vec::new() })
}

/// The workload that the options say.
pub(super) fn given(options: &Explain) -> Workload {
    Workload {
        namespace: options.namespace.clone(),
        labels: options.labels.clone(),
        service_account: options.service_account.clone(),
    }
}

/// How it is called.
pub(super) fn described(options: &Explain) -> String {
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

/// A pod as policies see it.
pub(super) fn of_pod(pod: &Value, namespace: &str) -> Workload {
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
