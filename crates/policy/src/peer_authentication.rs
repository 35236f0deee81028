//! `PeerAuthentication` as Istio's API writes it (`security.istio.io/v1`), and its checks.

use crate::error::PolicyError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `spec` of a PeerAuthentication.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthenticationSpec {
    /// Workloads of the namespace; absent or empty: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// The mode of all ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// Modes of single workload ports, keyed by the port number in decimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_level_mtls: Option<BTreeMap<String, MutualTls>>,
}

/// Istio's `WorkloadSelector`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels that a pod must have, all of them; empty selects every pod.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

impl LabelSelector {
    /// Whether it selects every pod.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty()
    }

    /// Whether a pod with these labels is selected.
    #[must_use]
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// `mtls` of a PeerAuthentication.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MutualTls {
    /// Absent is UNSET.
    #[serde(default)]
    pub mode: MutualTlsMode,
}

/// Istio's words; `UNSET` inherits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MutualTlsMode {
    /// As the next wider scope says.
    #[default]
    Unset,
    /// Plaintext only.
    Disable,
    /// Both.
    Permissive,
    /// Tunnels only.
    Strict,
}

impl PeerAuthenticationSpec {
    /// The mode of all ports; `Unset` when nothing is said.
    #[must_use]
    pub fn mode(&self) -> MutualTlsMode {
        self.mtls.unwrap_or_default().mode
    }

    /// The modes of single ports; entries whose key is no port are left out ([`Self::check`] refuses them).
    pub fn port_modes(&self) -> impl Iterator<Item = (u16, MutualTlsMode)> + '_ {
        let entries = self.port_level_mtls.iter().flatten();
        entries.filter_map(|(port, mtls)| Some((port.parse().ok()?, mtls.mode)))
    }

    /// What the schema can't say: per-port modes need a selector, at least one entry, and ports.
    ///
    /// # Errors
    /// The first offending field.
    pub fn check(&self) -> Result<(), PolicyError> {
        let Some(ports) = &self.port_level_mtls else { return Ok(()) };
        let field = "spec.portLevelMtls";
        if self.selector.as_ref().is_none_or(LabelSelector::is_empty) {
            return Err(PolicyError::value(
                field,
                "needs a selector: a whole namespace has no workload ports",
            ));
        }
        if ports.is_empty() {
            return Err(PolicyError::value(field, "needs at least one port"));
        }
        match ports.keys().find(|key| !matches!(key.parse::<u16>(), Ok(1..))) {
            Some(key) => Err(PolicyError::value(field, format!("{key:?} is not a port between 1 and 65535"))),
            None => Ok(()),
        }
    }
}
