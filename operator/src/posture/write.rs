//! The writes: a Posture where there is none, its status, and labels of the namespace.

use crate::index::NamespaceInfo;
use cinch_api::names::{
    INJECTION_LABEL, INJECTION_REQUIRED, MANAGED_BY_LABEL, MODE_LABEL, MODE_STRICT, OPERATOR, POSTURE,
    PROMOTION_ANNOTATION,
};
use cinch_api::{Posture, PostureSpec, PostureStatus};
use cinch_promotion::{Action, Injection, Millis};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};

/// Value of the label that marks what is ours.
const MANAGED_BY: &str = "cinch";

/// Makes the Posture of a namespace; that somebody was faster is no error.
pub(super) async fn create(client: &Client, namespace: &str) -> kube::Result<()> {
    let mut posture = Posture::new(POSTURE, PostureSpec::default());
    posture.labels_mut().insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
    let params = PostParams { field_manager: Some(OPERATOR.to_owned()), ..PostParams::default() };
    let api: Api<Posture> = Api::namespaced(client.clone(), namespace);
    match api.create(&params, &posture).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether the operator made the Posture and nobody has written its spec since.
pub(super) fn is_ours(posture: &Posture) -> bool {
    posture.labels().get(MANAGED_BY_LABEL).is_some_and(|value| value == MANAGED_BY)
        && posture.metadata.generation == Some(1)
}

/// Deletes the Posture of a namespace that has left the mesh, if it is still the one that was seen.
pub(super) async fn delete(client: &Client, namespace: &str, posture: &Posture) -> kube::Result<()> {
    let api: Api<Posture> = Api::namespaced(client.clone(), namespace);
    let preconditions = Preconditions { uid: posture.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(POSTURE, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes the whole status. What is no longer in it goes, because all of it is ours.
pub(super) async fn status(client: &Client, namespace: &str, status: &PostureStatus) -> kube::Result<()> {
    let api: Api<Posture> = Api::namespaced(client.clone(), namespace);
    let patch = json!({
        "apiVersion": Posture::api_version(&()),
        "kind": Posture::kind(&()),
        "metadata": {"name": POSTURE},
        "status": status,
    });
    api.patch_status(POSTURE, &PatchParams::apply(OPERATOR).force(), &Patch::Apply(&patch)).await?;
    Ok(())
}

/// Carries an action out on the namespace as it was seen; a namespace that changed since is a conflict.
pub(super) async fn act(client: &Client, seen: &NamespaceInfo, action: Action) -> kube::Result<()> {
    let params = PatchParams { field_manager: Some(OPERATOR.to_owned()), ..PatchParams::default() };
    let api: Api<Namespace> = Api::all(client.clone());
    api.patch(&seen.name, &params, &Patch::Merge(&patch(seen, action))).await?;
    Ok(())
}

/// The merge patch (RFC 7386) of an action: only keys of `cinch.dev`, and the version that was decided on.
pub(super) fn patch(seen: &NamespaceInfo, action: Action) -> Value {
    let (labels, annotations) = match action {
        Action::RequireInjection { started } => {
            (json!({INJECTION_LABEL: INJECTION_REQUIRED}), json!({PROMOTION_ANNOTATION: written(started)}))
        }
        Action::Lock => (json!({MODE_LABEL: MODE_STRICT}), json!({})),
        // One patch: admission lets labels go only while the annotation stands on the old object.
        Action::TakeBack { injection: Injection::Keep } => {
            (json!({MODE_LABEL: null}), json!({PROMOTION_ANNOTATION: null}))
        }
        Action::TakeBack { injection: Injection::TakeBack } => {
            (json!({MODE_LABEL: null, INJECTION_LABEL: null}), json!({PROMOTION_ANNOTATION: null}))
        }
        Action::FinishProbation => (json!({}), json!({PROMOTION_ANNOTATION: null})),
    };
    json!({"metadata": {
        "resourceVersion": &*seen.resource_version,
        "labels": labels,
        "annotations": annotations,
    }})
}

fn written(time: Millis) -> String {
    super::status::time(time).map(|time| time.0.to_string()).unwrap_or_default()
}

/// The UIDs of all pods of a namespace by a consistent read, for the moment before a lock.
pub(super) async fn pods_now(client: &Client, namespace: &str) -> kube::Result<Vec<String>> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let list = api.list_metadata(&ListParams::default()).await?;
    Ok(list.items.iter().filter_map(ResourceExt::uid).collect())
}
