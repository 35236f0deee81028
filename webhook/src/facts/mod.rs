//! What the webhook knows about the cluster: small tables fed by watches; [`Caches::decide`], which asks
//! `cinch-injection` with them; and [`Caches::around`], what a policy is judged among.

pub mod around;
mod extract;
mod table;
mod watch;

use around::{Closing, PodEntry, ServiceEntry};
pub use extract::{Account, Bindings, NamespaceFacts, PostureMode};
pub use table::{Changes, Event, Key, Table};
pub(crate) use watch::error_chain;
pub use watch::follow;

use crate::review::Request;
use cinch_injection::{AccountState, DefaultAccount, Facts, JobOrigin, Outcome, ProbeKey, Sidecar, inject};
use cinch_reason::Reason;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every table.
pub struct Caches {
    /// Labels and annotations of namespaces.
    pub namespaces: Table<Arc<NamespaceFacts>>,
    /// Whose each service account is, and whether a cloud identity hangs on it.
    pub accounts: Table<Account>,
    /// Which namespaces have their trust ConfigMap.
    pub trust: Table<()>,
    /// What a namespace's Posture says about accounts.
    pub postures: Table<PostureMode>,
    /// Where Jobs come from.
    pub jobs: Table<JobOrigin>,
    /// Role bindings that name a `default` account.
    pub role_bindings: Table<Bindings>,
    /// Cluster role bindings that do.
    pub cluster_role_bindings: Table<Bindings>,
    /// Labels and ports of pods.
    pub pods: Table<Arc<PodEntry>>,
    /// What Services say of the ports of their pods.
    pub services: Table<Arc<ServiceEntry>>,
    /// AuthorizationPolicies whose presence alone closes.
    pub policies: Table<Closing>,
    changes: Changes,
}

impl Default for Caches {
    fn default() -> Self {
        let changes = Changes::default();
        // Pods change all the time, and no review waits for one.
        let quiet = Changes::default();
        Self {
            namespaces: Table::new(changes.clone()),
            accounts: Table::new(changes.clone()),
            trust: Table::new(changes.clone()),
            postures: Table::new(changes.clone()),
            jobs: Table::new(changes.clone()),
            role_bindings: Table::new(changes.clone()),
            cluster_role_bindings: Table::new(changes.clone()),
            pods: Table::new(quiet.clone()),
            services: Table::new(quiet.clone()),
            policies: Table::new(quiet),
            changes,
        }
    }
}

impl Caches {
    /// Whether every kind that pods are judged by has been listed once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.unsynced().is_none()
    }

    /// The first of them that has not been listed yet. What only warnings come of is not waited for.
    #[must_use]
    pub fn unsynced(&self) -> Option<&'static str> {
        [
            ("namespaces", self.namespaces.is_synced()),
            ("serviceaccounts", self.accounts.is_synced()),
            ("configmaps", self.trust.is_synced()),
            ("postures", self.postures.is_synced()),
            ("jobs", self.jobs.is_synced()),
            ("rolebindings", self.role_bindings.is_synced()),
            ("clusterrolebindings", self.cluster_role_bindings.is_synced()),
        ]
        .into_iter()
        .find_map(|(kind, synced)| (!synced).then_some(kind))
    }

    /// A receiver that sees changes from now on.
    #[must_use]
    pub fn subscribe(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What to do with the pod, by what is known now.
    #[must_use]
    pub fn decide(&self, request: &Request, sidecar: &Sidecar, probe_key: &ProbeKey) -> Outcome {
        let namespace = request.namespace.as_str();
        let known = self.namespaces.get("", namespace);
        if known.is_none() && !request.dry_run {
            let detail = format!("namespace {namespace} is new to the webhook");
            return Outcome::Refuse { reason: Reason::ServiceAccountPending, detail };
        }
        let none = BTreeMap::new();
        let accounts = |name: &str| {
            self.accounts.get(namespace, name).map_or(AccountState::Missing, |account| account.state)
        };
        let jobs = |name: &str| self.jobs.get(namespace, name).unwrap_or(JobOrigin::Unknown);
        let facts = Facts {
            namespace,
            namespace_labels: known.as_ref().map_or(&none, |facts| &facts.labels),
            namespace_annotations: known.as_ref().map_or(&none, |facts| &facts.annotations),
            trust_bundle_present: self.trust.get(namespace, extract::TRUST_CONFIG_MAP).is_some(),
            default_account: self.default_account(namespace),
            accounts: &accounts,
            jobs: &jobs,
            dry_run: request.dry_run,
            sidecar,
            probe_key,
        };
        inject(&request.pod, &facts)
    }

    fn default_account(&self, namespace: &str) -> DefaultAccount {
        if self.postures.get(namespace, extract::POSTURE) == Some(PostureMode::Keep) {
            return DefaultAccount::Keep;
        }
        let cloud =
            self.accounts.get(namespace, extract::DEFAULT_ACCOUNT).and_then(|account| account.cloud_identity);
        cloud
            .or_else(|| self.role_bindings.find(|bindings| bindings.by_which(namespace)))
            .or_else(|| self.cluster_role_bindings.find(|bindings| bindings.by_which(namespace)))
            .map_or(DefaultAccount::PerWorkload, DefaultAccount::Bound)
    }
}
