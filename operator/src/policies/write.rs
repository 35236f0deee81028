//! Reads and writes `status` of one policy.

use super::status::{self, Present};
use super::verdict::Verdict;
use crate::index::{PolicyInfo, PolicyKey};
use cinch_api::ISTIO_GROUP;
use cinch_api::names::OPERATOR;
use cinch_api::policy_status::PolicyStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

/// The kinds may be served in the older version only; they say the same.
const VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// It was needed and done.
    Done,
    /// Everything stood there already.
    Same,
    /// The object is gone, or is another one now; its watch event comes.
    Gone,
}

/// Makes `status` say what the verdict says.
pub(super) async fn show(client: &Client, info: &PolicyInfo, verdict: &Verdict) -> kube::Result<Written> {
    let found = find(client, &info.key).await?;
    let Some((api, version, object)) =
        found.filter(|(.., found)| found.metadata.uid.as_deref() == Some(&info.uid))
    else {
        return Ok(Written::Gone);
    };
    let present = Present::read(object.data.get("status").unwrap_or(&Value::Null));
    let wanted = status::of(verdict, &present, &Time(jiff::Timestamp::now()));
    if present.own == wanted {
        return Ok(Written::Same);
    }
    apply(&api, version, info, Some(&wanted)).await
}

/// Takes away what we wrote: the namespace has left the mesh.
pub(super) async fn clear(client: &Client, info: &PolicyInfo) -> kube::Result<Written> {
    match find(client, &info.key).await? {
        Some((api, version, _)) => apply(&api, version, info, None).await,
        None => Ok(Written::Gone),
    }
}

async fn find(
    client: &Client,
    key: &PolicyKey,
) -> kube::Result<Option<(Api<DynamicObject>, &'static str, DynamicObject)>> {
    for version in VERSIONS {
        let kind = GroupVersionKind::gvk(ISTIO_GROUP, version, key.kind.as_str());
        let resource = ApiResource::from_gvk_with_plural(&kind, key.kind.plural());
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &resource);
        // A version that is not served and an object that is not there look the same.
        if let Some(object) = api.get_opt(&key.name).await? {
            return Ok(Some((api, version, object)));
        }
    }
    Ok(None)
}

/// What is no longer in our apply goes, because it is ours; nothing else is touched.
async fn apply(
    api: &Api<DynamicObject>,
    version: &str,
    info: &PolicyInfo,
    status: Option<&PolicyStatus>,
) -> kube::Result<Written> {
    let patch = patch(version, info, status);
    match api.patch_status(&info.key.name, &PatchParams::apply(OPERATOR).force(), &Patch::Apply(&patch)).await
    {
        Ok(_) => Ok(Written::Done),
        // Deleted, or made anew (the patch names the UID).
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Written::Gone),
        Err(error) => Err(error),
    }
}

fn patch(version: &str, info: &PolicyInfo, status: Option<&PolicyStatus>) -> Value {
    let key = &info.key;
    let mut patch = json!({
        "apiVersion": format!("{ISTIO_GROUP}/{version}"),
        "kind": key.kind.as_str(),
        "metadata": {"name": &*key.name, "namespace": &*key.namespace, "uid": &*info.uid},
    });
    if let (Some(status), Some(fields)) = (status, patch.as_object_mut()) {
        fields.insert("status".to_owned(), json!(status));
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::super::verdict::{Finding, Truth};
    use super::*;
    use crate::index::PolicyKind;
    use cinch_api::policy_status::ENFORCED;
    use cinch_reason::Reason;
    use kube::client::Body;
    use parking_lot::Mutex;
    use std::sync::Arc;

    /// Method and URI, and the body of a patch.
    type Asked = Vec<(String, Value)>;
    type Request = hyper::Request<Body>;

    /// An API server that serves `version` and holds one object with this `status`.
    fn api_server(version: &'static str, status: Value) -> (Client, Arc<Mutex<Asked>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (told, status) = (asked.clone(), Arc::new(status));
        let service = tower::service_fn(move |request: Request| {
            let (told, status) = (told.clone(), status.clone());
            async move {
                let what = format!("{} {}", request.method(), request.uri());
                let body = request.into_body().collect_bytes().await.unwrap();
                let (code, answer) = if what.contains(&format!("security.istio.io/{version}/")) {
                    let object = json!({
                        "apiVersion": format!("security.istio.io/{version}"), "kind": "AuthorizationPolicy",
                        "metadata": {"name": "a", "namespace": "shop", "uid": "u"}, "status": *status,
                    });
                    (200, object)
                } else {
                    (404, json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "no"}))
                };
                told.lock().push((what, serde_json::from_slice(&body).unwrap_or_default()));
                let answer = Body::from(serde_json::to_vec(&answer).unwrap());
                hyper::Response::builder().status(code).body(answer)
            }
        });
        (Client::new(service, "default"), asked)
    }

    fn policy() -> PolicyInfo {
        PolicyInfo {
            key: PolicyKey {
                kind: PolicyKind::AuthorizationPolicy,
                namespace: "shop".into(),
                name: "a".into(),
            },
            uid: Arc::from("u"),
            generation: 7,
            fault: None,
            needs_http: false,
            action: "ALLOW",
            dry_run: false,
            unsupported: false,
            key_sources: Vec::new(),
            seen: std::time::Instant::now(),
        }
    }

    fn verdict() -> Verdict {
        let finding = Finding {
            kind: ENFORCED,
            truth: Truth::True,
            reason: Reason::PolicyEnforced,
            detail: "2 of 2".to_owned(),
        };
        Verdict { generation: 7, selected: 2, enforcing: 2, findings: vec![finding] }
    }

    async fn shown(version: &'static str, status: Value) -> (Written, Asked) {
        let (client, asked) = api_server(version, status);
        let written = show(&client, &policy(), &verdict()).await.unwrap();
        let asked = asked.lock().clone();
        (written, asked)
    }

    #[tokio::test]
    async fn a_status_is_applied_under_our_name_and_only_when_it_says_something_new() {
        let (written, asked) = shown("v1", Value::Null).await;
        assert_eq!(written, Written::Done);
        let (patch, body) = &asked[1];
        let path = "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/a";
        assert!(patch.starts_with(&format!("PATCH {path}/status?")), "{patch}");
        assert!(patch.contains("fieldManager=cinch-operator") && patch.contains("force=true"), "{patch}");
        assert_eq!(body["metadata"], json!({"name": "a", "namespace": "shop", "uid": "u"}));
        assert_eq!(
            (&body["status"]["cinch"]["enforcing"], &body["status"]["observedGeneration"]),
            (&json!(2), &json!(7))
        );
        let (again, asked) = shown("v1", body["status"].clone()).await;
        assert_eq!((again, asked.len()), (Written::Same, 1), "{asked:?}");
    }

    #[tokio::test]
    async fn what_istio_wrote_is_not_in_our_patch() {
        let condition = json!({"type": "WaypointAccepted", "status": "True"});
        let (written, asked) =
            shown("v1", json!({"conditions": [condition], "observedGeneration": "6"})).await;
        assert_eq!(written, Written::Done);
        let fields: Vec<_> = asked[1].1["status"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields, ["cinch"]);
    }

    #[tokio::test]
    async fn where_only_the_older_version_is_served_that_one_is_written() {
        let (written, asked) = shown("v1beta1", Value::Null).await;
        assert_eq!(written, Written::Done);
        assert!(asked[0].0.contains("/v1/") && asked[2].0.contains("/v1beta1/"), "{asked:?}");
        assert_eq!(asked[2].1["apiVersion"], "security.istio.io/v1beta1");
    }

    #[tokio::test]
    async fn another_object_of_the_same_name_is_left_alone() {
        let (client, asked) = api_server("v1", Value::Null);
        let other = PolicyInfo { uid: Arc::from("older"), ..policy() };
        assert_eq!(show(&client, &other, &verdict()).await.unwrap(), Written::Gone);
        assert_eq!(asked.lock().len(), 1);
    }

    #[tokio::test]
    async fn a_namespace_that_leaves_gets_an_apply_without_status_which_takes_ours_away() {
        let (client, asked) = api_server("v1", json!({"cinch": {}}));
        assert_eq!(clear(&client, &policy()).await.unwrap(), Written::Done);
        let asked = asked.lock();
        assert!(asked[1].0.starts_with("PATCH") && asked[1].1.get("status").is_none(), "{asked:?}");
    }
}
