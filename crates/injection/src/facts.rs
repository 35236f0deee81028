//! What [`inject`](crate::inject) needs to know besides the pod: the namespace, its accounts, and how this
//! installation's sidecar looks. All of it is handed in, so that the same pod and facts always give the same
//! answer.

use crate::{AccountState, JobOrigin, ProbeKey};
use std::collections::BTreeMap;

/// What is known about the pod's surroundings at this moment.
pub struct Facts<'a> {
    /// Namespace of the pod, from the request (the object may not carry it).
    pub namespace: &'a str,
    /// Labels of the namespace.
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// Annotations of the namespace.
    pub namespace_annotations: &'a BTreeMap<String, String>,
    /// Whether the namespace has its ConfigMap with the trust bundle.
    pub trust_bundle_present: bool,
    /// What to do with pods that asked for the account `default`.
    pub default_account: DefaultAccount,
    /// Looks a service account of the namespace up.
    pub accounts: &'a dyn Fn(&str) -> AccountState,
    /// Looks a Job of the namespace up.
    pub jobs: &'a dyn Fn(&str) -> JobOrigin,
    /// The request is a dry run: nothing will come to be that could be waited for.
    pub dry_run: bool,
    /// The sidecar of this installation.
    pub sidecar: &'a Sidecar,
    /// Key that binds probe paths to their pod.
    pub probe_key: &'a ProbeKey,
}

/// What happens to pods that asked for the account `default`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefaultAccount {
    /// Each workload gets its own account.
    PerWorkload,
    /// The Posture says that accounts are left alone.
    Keep,
    /// Permissions hang on `default` (named here), so accounts are left alone.
    Bound(String),
}

/// Who sets the redirect of a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Redirect {
    /// The node agent, asked by the sidecar over a volume of its own: the pod needs no capability.
    #[default]
    Agent,
    /// The init container `cinch-init`, which needs NET_ADMIN.
    Init,
}

/// How the injected containers look in this installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    /// Image of `cinch-init` and `cinch-proxy`.
    pub image: String,
    /// Images that admission accepts under their names: mirrors of `image`, and earlier versions.
    pub allowed_images: Vec<String>,
    /// Version written to the pod's annotation.
    pub version: String,
    /// Trust domain of the identities.
    pub trust_domain: String,
    /// SPIFFE ID to which the proxy pins the operator.
    pub operator_id: String,
    /// Log filter of the proxy, if other than its own default.
    pub log: Option<String>,
    /// Settings of the proxy as JSON, if any is other than its default.
    pub settings: Option<String>,
    /// Requests and limits of both containers.
    pub resources: Resources,
    /// Who sets the redirect.
    pub redirect: Redirect,
}

impl Sidecar {
    /// The sidecar as an installation in the namespace `installed_in` has it that changes no default.
    #[must_use]
    pub fn usual(image: &str, version: &str, trust_domain: &str, installed_in: &str) -> Self {
        Self {
            image: image.to_owned(),
            allowed_images: vec![image.to_owned()],
            version: version.to_owned(),
            trust_domain: trust_domain.to_owned(),
            operator_id: format!("spiffe://{trust_domain}/ns/{installed_in}/sa/cinch-operator"),
            log: None,
            settings: None,
            resources: Resources::default(),
            redirect: Redirect::default(),
        }
    }
}

/// Requests and limits of the injected containers, by resource name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// Requests in pods that are not Guaranteed.
    pub requests: BTreeMap<String, String>,
    /// Limits in pods that are not Guaranteed.
    pub limits: BTreeMap<String, String>,
    /// Requests and limits alike in pods of class Guaranteed: the usual requests would throttle the proxy
    /// as limits, and the usual limits would not fit as requests.
    pub guaranteed: BTreeMap<String, String>,
}

impl Default for Resources {
    fn default() -> Self {
        let map = |cpu: &str, memory: &str| {
            BTreeMap::from([("cpu".to_owned(), cpu.to_owned()), ("memory".to_owned(), memory.to_owned())])
        };
        Self { requests: map("10m", "32Mi"), limits: map("2", "128Mi"), guaranteed: map("100m", "128Mi") }
    }
}
