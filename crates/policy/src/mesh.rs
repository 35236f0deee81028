//! What policies are read against: the mesh's settings and the workload.

use crate::path::PathNormalization;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Settings of the mesh that policies depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MeshConfig {
    /// Our trust domain.
    pub trust_domain: String,
    /// Other names of our trust domain: a principal of one stands for all.
    pub trust_domain_aliases: Vec<String>,
    /// The namespace whose policies apply to the whole mesh.
    pub root_namespace: String,
    /// How paths are read.
    pub path_normalization: PathNormalization,
}

impl Default for MeshConfig {
    fn default() -> Self {
        MeshConfig {
            trust_domain: "cluster.local".to_owned(),
            trust_domain_aliases: Vec::new(),
            root_namespace: "cinch-system".to_owned(),
            path_normalization: PathNormalization::default(),
        }
    }
}

impl MeshConfig {
    /// Our trust domain and its aliases, each once.
    pub(crate) fn trust_domains(&self) -> Vec<&str> {
        let mut all = vec![self.trust_domain.as_str()];
        for alias in &self.trust_domain_aliases {
            if !all.contains(&alias.as_str()) {
                all.push(alias);
            }
        }
        all
    }

    /// Whether a policy that names `domain` means all of ours. `cluster.local` is what pasted policies call the
    /// local domain, whatever it is called here.
    pub(crate) fn is_ours(&self, domain: &str) -> bool {
        domain == "cluster.local" || self.trust_domains().contains(&domain)
    }
}

/// The workload for which policies are put together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Workload {
    /// Namespace of the pod.
    pub namespace: String,
    /// Live labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// Service account of the pod.
    pub service_account: String,
}
