//! Carrying steps out. An account is created with POST, never with a server-side apply: an apply would take
//! over an account that somebody created a moment ago. Corrections name the resource version they were
//! decided on, and replace whole lists: an apply after a create would leave the old owner in place.

use super::plan::{Step, Wanted};
use super::turns::{Tried, Turns, wanted};
use cinch_api::names::OPERATOR;
use cinch_injection::{MANAGED_BY, MANAGED_BY_LABEL, OWNER_ANNOTATION};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::time::Instant;
use tracing::{info, warn};

/// What became of the steps of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    /// All are carried out.
    Done,
    /// Others are left for the next plan.
    More,
    /// Some must be tried again.
    Failed,
}

/// Carries the steps out, one after the other, as many as there are in a round. `tried` is of the rounds before.
pub(super) async fn carry_out(client: &Client, steps: &[Step], tried: &mut Tried) -> Round {
    let (mut turns, mut all) = (Turns::new(steps, tried, Instant::now()), true);
    while let Some(step) = turns.next(Instant::now()) {
        let wanted = wanted(step);
        match carry_out_one(client, step).await {
            Ok(()) => {
                info!(namespace = wanted.namespace, account = wanted.name, owner = %wanted.owner, "a service account was written");
            }
            // Somebody was faster: the watch tells, and the next plan takes it into account.
            Err(kube::Error::Api(status)) if status.code == 409 => all = false,
            Err(error) => {
                warn!(namespace = wanted.namespace, account = wanted.name, %error, "a service account could not be written and is tried again");
                if others_would_fail(&error) {
                    turns.stop_namespace();
                }
                all = false;
            }
        }
    }
    match (turns.is_more(), all && turns.is_done()) {
        (true, _) => Round::More,
        (false, true) => Round::Done,
        (false, false) => Round::Failed,
    }
}

/// Whether what failed is not the step but its namespace, whose quota is used up, or the server, which takes or answers
/// nothing now.
fn others_would_fail(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => match status.code {
            403 => status.message.contains("exceeded quota"),
            code => code == 429 || code >= 500,
        },
        error => !matches!(error, kube::Error::SerdeError(_)),
    }
}

async fn carry_out_one(client: &Client, step: &Step) -> kube::Result<()> {
    match step {
        Step::Create(wanted) => {
            let api: Api<ServiceAccount> = Api::namespaced(client.clone(), &wanted.namespace);
            let account: ServiceAccount =
                serde_json::from_value(account(wanted)).map_err(kube::Error::SerdeError)?;
            let params = PostParams { field_manager: Some(OPERATOR.to_owned()), ..PostParams::default() };
            api.create(&params, &account).await?;
        }
        Step::Correct(wanted, resource_version) => {
            let api: Api<ServiceAccount> = Api::namespaced(client.clone(), &wanted.namespace);
            let params = PatchParams { field_manager: Some(OPERATOR.to_owned()), ..PatchParams::default() };
            let patch = correction(wanted, resource_version);
            api.patch(&wanted.name, &params, &Patch::Merge(&patch)).await?;
        }
    }
    Ok(())
}

/// The whole account.
pub(super) fn account(wanted: &Wanted) -> Value {
    let mut account = json!({
        "metadata": {
            "name": wanted.name,
            "namespace": wanted.namespace,
            "labels": {MANAGED_BY_LABEL: MANAGED_BY},
            "annotations": {OWNER_ANNOTATION: wanted.owner.to_string()},
            "ownerReferences": [owner_reference(wanted)],
        },
        "imagePullSecrets": pull_secrets(wanted),
    });
    if let (Some(automount), Some(account)) = (wanted.automount, account.as_object_mut()) {
        account.insert("automountServiceAccountToken".to_owned(), automount.into());
    }
    account
}

/// The merge patch (RFC 7386) that gives our account what it lacks.
pub(super) fn correction(wanted: &Wanted, resource_version: &str) -> Value {
    let mut patch = json!({
        "metadata": {"resourceVersion": resource_version, "ownerReferences": [owner_reference(wanted)]},
        "imagePullSecrets": pull_secrets(wanted),
    });
    if let (Some(automount), Some(patch)) = (wanted.automount, patch.as_object_mut()) {
        patch.insert("automountServiceAccountToken".to_owned(), automount.into());
    }
    patch
}

fn owner_reference(wanted: &Wanted) -> Value {
    json!({
        "apiVersion": wanted.owner_api_version,
        "kind": wanted.owner.kind.as_str(),
        "name": wanted.owner.name,
        "uid": wanted.owner_uid,
    })
}

fn pull_secrets(wanted: &Wanted) -> Value {
    wanted.pull_secrets.iter().map(|name| json!({"name": name})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cinch_injection::{Owner, OwnerKind};
    use kube::client::Body;
    use parking_lot::Mutex;
    use std::sync::Arc;

    fn step(name: &str) -> Step {
        Step::Create(Wanted {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            owner: Owner { kind: OwnerKind::Deployment, name: name.to_owned() },
            owner_api_version: "apps/v1".to_owned(),
            owner_uid: "u".to_owned(),
            automount: None,
            pull_secrets: Vec::new(),
        })
    }

    /// Carries out the creation of `a`, `b` and `c` where the API server answers so about `a`; what it was asked for.
    async fn asked_for(code: u16, message: &'static str) -> (Round, Vec<String>) {
        let names = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&names);
        let service = tower::service_fn(move |request: hyper::Request<Body>| {
            let told = Arc::clone(&told);
            async move {
                let body = request.into_body().collect_bytes().await.unwrap();
                let account: Value = serde_json::from_slice(&body).unwrap();
                let name = account["metadata"]["name"].as_str().unwrap().to_owned();
                let failure = json!({"kind": "Status", "code": code, "reason": "x", "message": message});
                let (code, answer) = if name == "a" { (code, failure) } else { (201, account) };
                told.lock().push(name);
                let answer = Body::from(serde_json::to_vec(&answer).unwrap());
                hyper::Response::builder().status(code).body(answer)
            }
        });
        let steps = ["a", "b", "c"].map(step);
        let round = carry_out(&Client::new(service, "default"), &steps, &mut Tried::default()).await;
        let names = names.lock().clone();
        (round, names)
    }

    #[tokio::test]
    async fn only_what_stands_against_a_whole_namespace_keeps_its_other_accounts_back() {
        for (code, message) in [(403, "denied by the policy of somebody"), (422, "invalid"), (409, "exists")]
        {
            let asked = asked_for(code, message).await;
            assert_eq!(asked, (Round::Failed, ["a", "b", "c"].map(str::to_owned).into()), "{code} {message}");
        }
        let quota =
            "serviceaccounts \"a\" is forbidden: exceeded quota: few, requested: count/serviceaccounts=1";
        for (code, message) in [(403, quota), (429, "too many requests"), (500, "no"), (503, "no")] {
            let asked = asked_for(code, message).await;
            assert_eq!(asked, (Round::Failed, vec!["a".to_owned()]), "{code} {message}");
        }
    }
}
