//! Which service account the pod gets: only a pod that asked for `default` is given another.

use crate::facts::{DefaultAccount, Facts};
use crate::owner::{AccountChoice, Owner, choose_account};
use crate::pod::Pod;
use crate::sidecar::{TOKEN_AUDIENCE, TOKEN_VOLUME};
use cinch_reason::Reason;
use serde_json::Value;
use std::collections::BTreeMap;

/// What becomes of the pod's account.
pub(crate) enum Assignment<'a> {
    /// It stays as it is; the text is a warning for the person who applies.
    Keep(&'a str, Option<String>),
    /// The pod gets this account, which exists.
    Assign(String),
    /// Something is not there yet; the text says what.
    Pending(String),
}

const DEFAULT: &str = "default";

/// Annotations by which clouds give permissions to an account.
const CLOUD_IDENTITIES: [&str; 4] = [
    "eks.amazonaws.com/role-arn",
    "iam.gke.io/gcp-service-account",
    "azure.workload.identity/client-id",
    "azure.workload.identity/tenant-id",
];

/// The annotation by which a cloud knows a service account, if one does. Webhook and operator ask the same: where
/// only one of them knew a cloud, pods would wait for accounts that nobody makes.
#[must_use]
pub fn cloud_identity(annotations: &BTreeMap<String, String>) -> Option<&'static str> {
    CLOUD_IDENTITIES.into_iter().find(|key| annotations.get(*key).is_some_and(|value| !value.is_empty()))
}

/// Decides for `pod`. On dry run nothing is waited for: the account stays `default`, with a warning.
pub(crate) fn assignment<'a>(pod: &Pod<'a>, facts: &Facts<'_>) -> Assignment<'a> {
    let asked = pod.text("/spec/serviceAccountName").or_else(|| pod.text("/spec/serviceAccount"));
    match asked {
        None | Some(DEFAULT) => {}
        Some(account) => return Assignment::Keep(account, None),
    }
    let bound = match &facts.default_account {
        DefaultAccount::Keep => return Assignment::Keep(DEFAULT, None),
        DefaultAccount::Bound(by) => Some(by.clone()),
        DefaultAccount::PerWorkload => foreign_token(pod),
    };
    if let Some(by) = bound {
        return Assignment::Keep(DEFAULT, Some(Reason::DefaultServiceAccountBound.message_with(&by)));
    }
    let Some(owner) = Owner::of_pod(pod.raw, facts.jobs) else {
        return pending(facts, "the Job of the pod is not yet known".to_owned());
    };
    match choose_account(&owner, facts.accounts) {
        AccountChoice::Ready(account) => Assignment::Assign(account),
        AccountChoice::Missing(account) => pending(facts, format!("service account {account} of {owner}")),
        AccountChoice::None => Assignment::Keep(DEFAULT, Some(Reason::NoStableOwner.message())),
    }
}

fn pending<'a>(facts: &Facts<'_>, what: String) -> Assignment<'a> {
    if facts.dry_run {
        return Assignment::Keep(DEFAULT, Some(Reason::ServiceAccountPending.message_with(&what)));
    }
    Assignment::Pending(what)
}

/// A projected token for somebody else's audience (a cloud, a vault) names the account, and whoever reads it
/// there knows it as `default`.
fn foreign_token(pod: &Pod<'_>) -> Option<String> {
    pod.volumes
        .iter()
        .filter(|volume| volume.get("name").and_then(Value::as_str) != Some(TOKEN_VOLUME))
        .find_map(|volume| {
            let sources = volume.pointer("/projected/sources")?.as_array()?;
            let audiences = sources
                .iter()
                .filter_map(|s| s.pointer("/serviceAccountToken/audience").and_then(Value::as_str));
            let foreign = audiences.into_iter().find(|a| !a.is_empty() && *a != TOKEN_AUDIENCE)?;
            Some(format!("the pod mounts a token of the audience {foreign}"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cloud_identity_counts() {
        let map = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
        for key in CLOUD_IDENTITIES {
            assert_eq!(cloud_identity(&map(key, "x")), Some(key));
            assert_eq!(cloud_identity(&map(key, "")), None);
        }
        assert_eq!(cloud_identity(&map("example.com/x", "y")), None);
    }
}
