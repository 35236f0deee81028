//! `PeerAuthentication` as Istio's API writes it (`security.istio.io/v1`), and its checks.

use crate::compile::port;
use crate::error::PolicyError;
use crate::object::check_selection;
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

    /// The modes of single ports; entries whose key is no port are left out (the object is refused then).
    pub fn port_modes(&self) -> impl Iterator<Item = (u16, MutualTlsMode)> + '_ {
        let entries = self.port_level_mtls.iter().flatten();
        entries.filter_map(|(key, mtls)| Some((port(key)?, mtls.mode)))
    }

    /// What the shape can't say: per-port modes need a selector, at least one entry, and ports. Every fault with
    /// its field.
    pub(crate) fn check(&self) -> Vec<PolicyError> {
        let mut faults = Vec::new();
        check_selection(self.selector.as_ref(), None, None, &mut faults);
        let Some(ports) = &self.port_level_mtls else { return faults };
        let field = "spec.portLevelMtls";
        if self.selector.as_ref().is_none_or(LabelSelector::is_empty) {
            let problem = "needs a selector: the ports of a whole namespace are not one workload's; add spec.selector.matchLabels, or set spec.mtls for all ports";
            faults.push(PolicyError::value(field, problem));
        }
        if ports.is_empty() {
            faults.push(PolicyError::value(field, "needs at least one port; add one, or remove it"));
        }
        for key in ports.keys().filter(|key| port(key).is_none()) {
            let problem =
                format!("{key:?} is not a port between 1 and 65535; write the container's port as a number");
            faults.push(PolicyError::value(field, problem));
        }
        faults
    }
}
