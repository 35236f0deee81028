//! Carrying steps out. An account is created with POST, never with a server-side apply: an apply would take
//! over an account that somebody created a moment ago. Corrections name the resource version they were
//! decided on, and replace whole lists: an apply after a create would leave the old owner in place.

use super::plan::{Step, Wanted};
use super::turns::Turns;
use cinch_api::names::OPERATOR;
use cinch_injection::{MANAGED_BY, MANAGED_BY_LABEL, OWNER_ANNOTATION};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
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

/// Carries the steps out, one after the other, as many as there are in a round.
pub(super) async fn carry_out(client: &Client, steps: &[Step]) -> Round {
    let (mut turns, mut all) = (Turns::new(steps), true);
    while let Some(step) = turns.next() {
        let (Step::Create(wanted) | Step::Correct(wanted, _)) = step;
        match carry_out_one(client, step).await {
            Ok(()) => {
                turns.succeeded();
                info!(namespace = wanted.namespace, account = wanted.name, owner = %wanted.owner, "a service account was written");
            }
            // Somebody was faster: the watch tells, and the next plan takes it into account.
            Err(kube::Error::Api(status)) if status.code == 409 => all = false,
            Err(error) => {
                warn!(namespace = wanted.namespace, account = wanted.name, %error, "a service account could not be written and is tried again");
                turns.stop_namespace();
                all = false;
            }
        }
    }
    match (turns.is_more(), all) {
        (true, _) => Round::More,
        (false, true) => Round::Done,
        (false, false) => Round::Failed,
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
