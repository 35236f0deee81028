//! From an object to the pod that its controller would create: only so can the webhook's code, which sees pods
//! alone, be asked about a Deployment. Out: the pod, and where in the object its parts stand.

use cinch_injection::JobOrigin;
use serde_json::{Map, Value, json};

/// The hash in the made-up name of a Deployment's ReplicaSet.
const HASH: &str = "0";

/// A pod as its creation would look.
pub struct FuturePod {
    /// The pod.
    pub pod: Value,
    /// JSON Pointer to the part of the object that holds `metadata` and `spec` of the pod; empty for a pod.
    pub at: &'static str,
    /// What its Job would be found to be, where it has one.
    pub job: JobOrigin,
}

/// Which label carries the hash of a ReplicaSet, and what controls the pods.
enum Controller {
    ReplicaSet { hash_label: &'static str },
    Itself,
    Job(JobOrigin),
}

/// The pod that `object` is or would create; `None` for kinds that create none.
pub fn future_pod(object: &Value, kind: &str) -> Option<FuturePod> {
    let version = object.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let (at, controller) = match (group, kind) {
        ("", "Pod") => return Some(FuturePod { pod: object.clone(), at: "", job: JobOrigin::Named }),
        ("", "PodTemplate") => ("/template", None),
        ("", "ReplicationController") => ("/spec/template", Some(Controller::Itself)),
        ("apps", "Deployment") => {
            ("/spec/template", Some(Controller::ReplicaSet { hash_label: "pod-template-hash" }))
        }
        ("argoproj.io", "Rollout") => {
            ("/spec/template", Some(Controller::ReplicaSet { hash_label: "rollouts-pod-template-hash" }))
        }
        ("apps", "ReplicaSet" | "StatefulSet" | "DaemonSet") => ("/spec/template", Some(Controller::Itself)),
        ("batch", "Job") => ("/spec/template", Some(Controller::Job(origin(object)))),
        ("batch", "CronJob") => {
            let origin = JobOrigin::CronJob(name(object).to_owned());
            ("/spec/jobTemplate/spec/template", Some(Controller::Job(origin)))
        }
        _ => return None,
    };
    let template = object.pointer(at).filter(|template| template.is_object())?;
    let mut pod = template.clone();
    let parts = pod.as_object_mut()?;
    parts.insert("apiVersion".to_owned(), json!("v1"));
    parts.insert("kind".to_owned(), json!("Pod"));
    let metadata = parts.entry("metadata").or_insert(Value::Null);
    if metadata.is_null() {
        *metadata = json!({});
    }
    let mut job = JobOrigin::Named;
    if let (Some(metadata), Some(controller)) = (metadata.as_object_mut(), controller) {
        job = control(metadata, object, version, kind, controller);
    }
    Some(FuturePod { pod, at, job })
}

/// Writes the owner reference that the controller would write.
fn control(
    metadata: &mut Map<String, Value>,
    object: &Value,
    version: &str,
    kind: &str,
    controller: Controller,
) -> JobOrigin {
    let own = name(object);
    let mut job = JobOrigin::Named;
    let (version, kind, name) = match controller {
        Controller::Itself => (version, kind, own.to_owned()),
        Controller::Job(origin) => {
            job = origin;
            ("batch/v1", "Job", own.to_owned())
        }
        Controller::ReplicaSet { hash_label } => {
            let labels = metadata.entry("labels").or_insert(Value::Null);
            if labels.is_null() {
                *labels = json!({});
            }
            if let Some(labels) = labels.as_object_mut() {
                labels.insert(hash_label.to_owned(), json!(HASH));
            }
            ("apps/v1", "ReplicaSet", format!("{own}-{HASH}"))
        }
    };
    let reference = json!({"apiVersion": version, "kind": kind, "name": name, "uid": "", "controller": true});
    metadata.insert("ownerReferences".to_owned(), json!([reference]));
    job
}

fn origin(job: &Value) -> JobOrigin {
    let text = |object: &Value, key: &str| object.get(key).and_then(Value::as_str).map(str::to_owned);
    let metadata = job.get("metadata").cloned().unwrap_or_default();
    let references = metadata.get("ownerReferences").and_then(Value::as_array);
    let controller = references.into_iter().flatten().find(|r| r.get("controller") == Some(&json!(true)));
    let controller =
        controller.and_then(|r| Some((text(r, "apiVersion")?, text(r, "kind")?, text(r, "name")?)));
    let controller =
        controller.as_ref().map(|(api, kind, name)| (api.as_str(), kind.as_str(), name.as_str()));
    JobOrigin::of(text(&metadata, "generateName").as_deref(), controller)
}

/// The name of an object; empty where the API server is to make one.
pub fn name(object: &Value) -> &str {
    object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}
