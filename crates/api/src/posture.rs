//! `Posture`: what a namespace's owner asks for; `status` says what the operator makes of it.

use crate::duration::{DurationError, parse_duration};
use crate::status::PostureStatus;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How plaintext in a namespace comes to its end. One per enrolled namespace, named `mesh`; the operator makes
/// it where it is missing. Everything that is left out follows the installation's defaults.
#[derive(CustomResource, Serialize, Deserialize, KubeSchema, Debug, Clone, Default, PartialEq, Eq)]
#[kube(
    group = "cinch.dev",
    version = "v1alpha1",
    kind = "Posture",
    plural = "postures",
    namespaced,
    shortname = "pos",
    category = "cinch",
    status = "PostureStatus",
    derive = "PartialEq",
    doc = "How plaintext in a namespace comes to its end: promotion to STRICT, its evidence and what blocks it.",
    validation = Rule::new("self.metadata.name == 'mesh'").message("a Posture is named mesh, one in each namespace"),
    printcolumn(name = "MODE", type_ = "string", json_path = ".status.mode"),
    printcolumn(name = "STATE", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "MESHED", type_ = "string", json_path = ".status.meshed"),
    printcolumn(name = "PLAINTEXT", type_ = "integer", json_path = ".status.plaintext.served"),
    printcolumn(name = "QUIET", type_ = "date", json_path = ".status.quietSince"),
    printcolumn(name = "BLOCKED-BY", type_ = "string", json_path = ".status.blockedBy"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct PostureSpec {
    /// Automatic: locked STRICT once nothing would break. Manual: the same, after `approve`. Paused: never.
    /// Left out: as the installation says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion: Option<PromotionPolicy>,
    /// How long no plaintext may be served before a promotion, such as `168h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]+(d|h|m|s|ms))+$"))]
    pub quiet_period: Option<String>,
    /// How long after a promotion a refused client that had been served before rolls it back, such as `1h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]+(d|h|m|s|ms))+$"))]
    pub probation: Option<String>,
    /// For Manual: the `status.evidence.hash` that was looked at. It stops counting when new plaintext comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approve: Option<String>,
    /// Whether workloads that ask for the account `default` get one of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<ServiceAccounts>,
}

impl PostureSpec {
    /// The quiet period, when the spec sets one.
    ///
    /// # Errors
    /// When it is no duration (the schema refuses such a spec too).
    pub fn quiet_period(&self) -> Result<Option<Duration>, DurationError> {
        self.quiet_period.as_deref().map(parse_duration).transpose()
    }

    /// The time of probation, when the spec sets one.
    ///
    /// # Errors
    /// When it is no duration (the schema refuses such a spec too).
    pub fn probation(&self) -> Result<Option<Duration>, DurationError> {
        self.probation.as_deref().map(parse_duration).transpose()
    }
}

/// Who decides on a promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum PromotionPolicy {
    /// The evidence alone.
    Automatic,
    /// The evidence, and a person who wrote `spec.approve`.
    #[default]
    Manual,
    /// Nobody: the namespace stays as it is.
    Paused,
}

/// Which accounts workloads run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum ServiceAccounts {
    /// A workload that asks for `default` gets an account of its own.
    #[default]
    PerWorkload,
    /// Accounts are left as they are.
    Keep,
}
