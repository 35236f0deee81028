//! Who still has the sidecar, in the whole cluster: pods first, the node agent last, because without it they can not
//! finish terminating.

use crate::cluster::Cluster;
use crate::survey::holds_volume;
use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use std::collections::BTreeMap;
use std::fmt;

/// How many pods of each namespace hold a volume of the node agent; nothing when that may not be seen.
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
        if holds_volume(&serde_json::to_value(pod)?) {
            *left.entry(pod.namespace().unwrap_or_default()).or_default() += 1;
        }
    }
    Ok(Leftover(Some(left)))
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => writeln!(
                f,
                "before Cinch is uninstalled, no pod may have the sidecar; you may not list the pods of all namespaces"
            ),
            Some(left) if left.is_empty() => {
                writeln!(f, "no pod needs the node agent any more: Cinch can be uninstalled")
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
