//! Who still has the sidecar, in the whole cluster: pods first, Cinch last. Without the node agent those with its volume
//! can not finish terminating; without the operator no sidecar, whoever set its redirect, goes on for long.

use crate::cluster::{Cluster, text};
use crate::survey::holds_volume;
use anyhow::Result;
use cinch_api::names::PROXY_CONTAINER;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// How many pods of each namespace still need Cinch; nothing when that may not be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover(Option<BTreeMap<String, usize>>);

/// Looks at all pods.
///
/// # Errors
/// When the API server can't be asked.
pub async fn read(cluster: &Cluster) -> Result<Leftover> {
    let pods = match Api::<Pod>::all(cluster.client.clone()).list(&ListParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 403 => return Ok(Leftover(None)),
        pods => pods?,
    };
    let mut left = BTreeMap::new();
    for pod in &pods {
        if needs_cinch(&serde_json::to_value(pod)?) {
            *left.entry(pod.namespace().unwrap_or_default()).or_default() += 1;
        }
    }
    Ok(Leftover(Some(left)))
}

/// Whether it has a volume to give back, or lives and has the sidecar.
fn needs_cinch(pod: &Value) -> bool {
    let ending = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
        || pod.pointer("/metadata/deletionTimestamp").is_some();
    let containers = pod.pointer("/spec/initContainers").and_then(Value::as_array);
    let sidecar =
        containers.into_iter().flatten().any(|container| text(container, "/name") == PROXY_CONTAINER);
    holds_volume(pod) || sidecar && !ending
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => writeln!(
                f,
                "before Cinch is uninstalled, no pod may have the sidecar; you may not list the pods of all namespaces"
            ),
            Some(left) if left.is_empty() => {
                writeln!(f, "no pod has the sidecar any more: Cinch can be uninstalled")
            }
            Some(left) => {
                let pods = |(namespace, count): (&String, &usize)| format!("{namespace} ({count})");
                let listed = left.iter().map(pods).collect::<Vec<_>>().join(", ");
                writeln!(f, "uninstall Cinch only when no pod has the sidecar; some have: {listed}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_needs_cinch_for_its_volume_or_for_its_sidecar() {
        let init = json!([{"name": "cinch-init"}, {"name": "cinch-proxy"}]);
        let volume = json!([{"name": "cinch-agent", "csi": {"driver": "node.cinch.dev"}}]);
        let needs = |init: &Value, volumes: &Value, phase: &str, going: bool| {
            let metadata =
                if going { json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}) } else { json!({}) };
            needs_cinch(&json!({"metadata": metadata, "status": {"phase": phase},
                "spec": {"initContainers": init, "volumes": volumes}}))
        };
        let (none, other) = (json!([]), json!([{"name": "setup"}]));
        assert!(
            needs(&init, &none, "Running", false) && needs(&init, &none, "Pending", false),
            "by cinch-init"
        );
        assert!(needs(&json!([{"name": "cinch-proxy"}]), &volume, "Running", false), "by the agent");
        assert!(needs(&init, &volume, "Running", true), "its volume is not given back yet");
        assert!(!needs(&init, &none, "Running", true) && !needs(&init, &none, "Succeeded", false));
        assert!(!needs(&other, &none, "Running", false), "has nothing of ours");
    }

    #[test]
    fn it_is_said_whether_the_agent_may_go() {
        let said = |left: Option<&[(&str, usize)]>| {
            let map = left.map(|all| all.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect());
            Leftover(map).to_string()
        };
        assert!(said(Some(&[])).contains("can be uninstalled"));
        assert!(said(Some(&[("bank", 2), ("shop", 1)])).ends_with("some have: bank (2), shop (1)\n"));
        assert!(said(None).contains("may not list"));
    }
}
