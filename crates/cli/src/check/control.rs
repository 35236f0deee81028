//! Whether an operator leads, and whether API servers can call the webhook. In: the lease, its holder's pod and the webhook
//! configurations. Out: what [`super::judge`] needs of them.

use super::judge::Leader;
use crate::cluster::Cluster;
use anyhow::Result;
use cinch_api::names::OPERATOR;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;

/// The configuration that pods are injected by.
const INJECTOR: &str = "cinch-injector";
/// The configuration that policies are validated by.
const POLICIES: &str = "cinch-policies";

/// Who leads, by the lease: a holder that ended without giving it back is no leader.
///
/// # Errors
/// When the lease or its holder may not be read.
pub async fn leader(cluster: &Cluster) -> Result<Leader> {
    let lease = cluster.of::<Lease>(&cluster.cinch).get_opt(OPERATOR).await?;
    let Some(holder) = lease.and_then(|lease| lease.spec?.holder_identity).filter(|name| !name.is_empty())
    else {
        return Ok(Leader::Nobody);
    };
    let pod = cluster.of::<Pod>(&cluster.cinch).get_opt(&holder).await?;
    Ok(if pod.as_ref().is_some_and(is_ready) { Leader::Ready(holder) } else { Leader::NotReady(holder) })
}

/// Whether the pod says that it is ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True")
}

/// The webhook configurations by which API servers can't call the webhook.
///
/// # Errors
/// When they may not be read.
pub async fn uncalled(cluster: &Cluster) -> Result<Vec<&'static str>> {
    let injectors = Api::<MutatingWebhookConfiguration>::all(cluster.client.clone());
    let policies = Api::<ValidatingWebhookConfiguration>::all(cluster.client.clone());
    let injector = injectors.get_opt(INJECTOR).await?.and_then(|found| found.webhooks).unwrap_or_default();
    let policies = policies.get_opt(POLICIES).await?.and_then(|found| found.webhooks).unwrap_or_default();
    let bundles = |bundles: Vec<Option<ByteString>>| can_be_called(&bundles);
    let found = [
        (INJECTOR, bundles(injector.into_iter().map(|hook| hook.client_config.ca_bundle).collect())),
        (POLICIES, bundles(policies.into_iter().map(|hook| hook.client_config.ca_bundle).collect())),
    ];
    Ok(found.into_iter().filter(|(_, called)| !called).map(|(name, _)| name).collect())
}

/// There are webhooks, and whom to trust is known of each.
fn can_be_called(bundles: &[Option<ByteString>]) -> bool {
    let known = |bundle: &Option<ByteString>| bundle.as_ref().is_some_and(|bytes| !bytes.0.is_empty());
    !bundles.is_empty() && bundles.iter().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_webhook_that_no_ca_is_known_of_can_not_be_called() {
        let ca = || Some(ByteString(b"pem".to_vec()));
        assert!(can_be_called(&[ca(), ca()]));
        for bundles in [vec![], vec![None], vec![ca(), None], vec![Some(ByteString(Vec::new()))]] {
            assert!(!can_be_called(&bundles), "{bundles:?}");
        }
    }

    #[test]
    fn only_a_pod_that_says_so_is_ready() {
        let pod = |status: &str| {
            let conditions =
                json!([{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": status}]);
            serde_json::from_value::<Pod>(json!({"metadata": {}, "status": {"conditions": conditions}}))
                .unwrap()
        };
        assert!(is_ready(&pod("True")) && !is_ready(&pod("False")) && !is_ready(&Pod::default()));
    }
}
