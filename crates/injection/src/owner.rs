//! From a workload to the name of its service account.
//!
//! In go a pod as admission sees it (its owner references and labels) or a workload that the operator watches;
//! out comes the [`Owner`] and the one name of the account that belongs to it. Operator and webhook call the
//! same functions, so that the account which one creates is the account which the other assigns.

use aws_lc_rs::digest;
use serde_json::Value;
use std::fmt;
use std::fmt::Write as _;

/// Label on service accounts that the operator made; its value is [`MANAGED_BY`].
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY_LABEL`].
pub const MANAGED_BY: &str = "cinch";
/// Annotation on such an account: its owner as [`Owner`] displays it, `Deployment/web`.
pub const OWNER_ANNOTATION: &str = "cinch.dev/owner";

/// Longest name of a service account (a DNS subdomain, RFC 1123).
const LONGEST_NAME: usize = 253;

/// The kinds of workload that have an account of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnerKind {
    /// `apps/v1` Deployment.
    Deployment,
    /// `argoproj.io` Rollout, which owns ReplicaSets as a Deployment does.
    Rollout,
    /// `apps/v1` StatefulSet.
    StatefulSet,
    /// `apps/v1` DaemonSet.
    DaemonSet,
    /// `batch/v1` CronJob.
    CronJob,
    /// `batch/v1` Job whose name a person chose.
    Job,
    /// Whatever has no name that would be the same next time: bare pods, Jobs with `generateName`,
    /// ReplicaSets of their own, controllers that Cinch does not know.
    Unstable,
}

impl OwnerKind {
    /// The kind as Kubernetes writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::Rollout => "Rollout",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::CronJob => "CronJob",
            Self::Job => "Job",
            Self::Unstable => "Unstable",
        }
    }
}

/// The workload a pod belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Which kind of workload.
    pub kind: OwnerKind,
    /// Its name; for [`OwnerKind::Unstable`] whatever is known.
    pub name: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.name)
    }
}

/// What the Job of a pod says about its own origin. Only the Job's metadata proves it: a Job may be named as
/// if a CronJob had made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobOrigin {
    /// The Job is not in the cache (yet).
    Unknown,
    /// A person or tool named it.
    Named,
    /// The API server named it (`generateName`).
    Generated,
    /// The CronJob of this name made it.
    CronJob(String),
    /// Another controller made it.
    OtherController,
}

impl JobOrigin {
    /// Reads a Job's metadata: `generate_name` and the controlling owner as (apiVersion, kind, name).
    #[must_use]
    pub fn of(generate_name: Option<&str>, controller: Option<(&str, &str, &str)>) -> Self {
        match controller {
            Some((api, "CronJob", name)) if api.starts_with("batch/") => Self::CronJob(name.to_owned()),
            Some(_) => Self::OtherController,
            None if generate_name.is_some_and(|name| !name.is_empty()) => Self::Generated,
            None => Self::Named,
        }
    }
}

impl Owner {
    /// An owner of the given kind and name.
    #[must_use]
    pub fn new(kind: OwnerKind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into() }
    }

    /// The owner of a pod, or `None` while its Job is [`JobOrigin::Unknown`]. `job` is asked for by name, and
    /// only when a Job controls the pod.
    pub fn of_pod(pod: &Value, job: impl FnOnce(&str) -> JobOrigin) -> Option<Self> {
        let Some((api, kind, name)) = controller(pod) else {
            return Some(Self::new(OwnerKind::Unstable, ""));
        };
        let owner = match (api.split_once('/').map_or("", |(group, _)| group), kind) {
            ("apps", "ReplicaSet") => of_replica_set(pod, name),
            ("apps", "StatefulSet") => Self::new(OwnerKind::StatefulSet, name),
            ("apps", "DaemonSet") => Self::new(OwnerKind::DaemonSet, name),
            ("batch", "Job") => match job(name) {
                JobOrigin::Unknown => return None,
                JobOrigin::Named => Self::new(OwnerKind::Job, name),
                JobOrigin::CronJob(cron_job) => Self::new(OwnerKind::CronJob, cron_job),
                JobOrigin::Generated | JobOrigin::OtherController => Self::new(OwnerKind::Unstable, name),
            },
            _ => Self::new(OwnerKind::Unstable, name),
        };
        Some(owner)
    }
}

/// The controlling owner reference of an object: apiVersion, kind, name.
fn controller(object: &Value) -> Option<(&str, &str, &str)> {
    let references = object.pointer("/metadata/ownerReferences")?.as_array()?;
    let reference = references.iter().find(|r| r.get("controller").and_then(Value::as_bool) == Some(true))?;
    let text = |key| reference.get(key).and_then(Value::as_str);
    Some((text("apiVersion")?, text("kind")?, text("name")?))
}

/// A ReplicaSet is called `<owner>-<hash>` and its pods carry the hash as a label, under one key for
/// Deployments and under another for Rollouts. A ReplicaSet without is somebody's own.
fn of_replica_set(pod: &Value, name: &str) -> Owner {
    let stem = |label: &str| {
        let hash = pod.pointer("/metadata/labels")?.get(label)?.as_str()?;
        name.strip_suffix(hash)?.strip_suffix('-').filter(|stem| !stem.is_empty())
    };
    if let Some(rollout) = stem("rollouts-pod-template-hash") {
        Owner::new(OwnerKind::Rollout, rollout)
    } else if let Some(deployment) = stem("pod-template-hash") {
        Owner::new(OwnerKind::Deployment, deployment)
    } else {
        Owner::new(OwnerKind::Unstable, name)
    }
}

/// The name of the service account that belongs to `owner`: `<name>` for Deployments and Rollouts,
/// `<name>-<kind>` in lower case for other kinds (`db-statefulset`), `None` where there is no stable owner.
#[must_use]
pub fn service_account_name(owner: &Owner) -> Option<String> {
    let kind = match owner.kind {
        OwnerKind::Unstable => return None,
        OwnerKind::Deployment | OwnerKind::Rollout => return Some(bounded(owner.name.clone())),
        other => other.as_str().to_ascii_lowercase(),
    };
    Some(bounded(format!("{}-{kind}", owner.name)))
}

/// The name to take when an account of [`service_account_name`] exists and belongs to somebody else:
/// `cinch-<name>-<kind>`.
#[must_use]
pub fn fallback_account_name(owner: &Owner) -> Option<String> {
    if owner.kind == OwnerKind::Unstable {
        return None;
    }
    Some(bounded(format!("cinch-{}-{}", owner.name, owner.kind.as_str().to_ascii_lowercase())))
}

/// Names that are too long keep their beginning and end in a digest of the whole, so that two long names
/// that differ only at the end stay different, and the same name always gives the same result.
fn bounded(name: String) -> String {
    if name.len() <= LONGEST_NAME {
        return name;
    }
    let digest = digest::digest(&digest::SHA256, name.as_bytes());
    let mut tail = String::from("-");
    for byte in digest.as_ref().iter().take(5) {
        // Writing to a String can not fail.
        let _ = write!(tail, "{byte:02x}");
    }
    let mut cut = LONGEST_NAME - tail.len();
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    let head = name.get(..cut).unwrap_or_default().trim_end_matches(['-', '.']);
    format!("{head}{tail}")
}

/// What is known about a service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountState {
    /// There is none of that name.
    Missing,
    /// The operator made it, for the owner in its annotation [`OWNER_ANNOTATION`].
    Ours(String),
    /// Somebody else made it.
    Foreign,
}

impl AccountState {
    /// Reads an existing account's label [`MANAGED_BY_LABEL`] and annotation [`OWNER_ANNOTATION`].
    #[must_use]
    pub fn of(managed_by: Option<&str>, owner: Option<&str>) -> Self {
        match (managed_by, owner) {
            (Some(MANAGED_BY), Some(owner)) => Self::Ours(owner.to_owned()),
            _ => Self::Foreign,
        }
    }

    fn belongs_to(&self, owner: &Owner) -> bool {
        matches!(self, Self::Ours(name) if *name == owner.to_string())
    }
}

/// Which account a workload gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountChoice {
    /// The account exists and belongs to the owner.
    Ready(String),
    /// The account of this name is still to be created.
    Missing(String),
    /// The owner is not stable, or both names belong to somebody else: `default` stays.
    None,
}

/// The account for `owner`, given what exists: the name of [`service_account_name`], or that of
/// [`fallback_account_name`] where somebody else (a person, or another owner) has the first.
pub fn choose_account(owner: &Owner, state: impl Fn(&str) -> AccountState) -> AccountChoice {
    for name in [service_account_name(owner), fallback_account_name(owner)].into_iter().flatten() {
        match state(&name) {
            AccountState::Missing => return AccountChoice::Missing(name),
            ours if ours.belongs_to(owner) => return AccountChoice::Ready(name),
            _ => {}
        }
    }
    AccountChoice::None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(api: &str, kind: &str, name: &str, labels: Value) -> Value {
        json!({"metadata": {"labels": labels, "ownerReferences": [
            {"apiVersion": "v1", "kind": "Noise", "name": "noise"},
            {"apiVersion": api, "kind": kind, "name": name, "controller": true}]}})
    }

    #[test]
    fn the_name_of_an_account_follows_from_the_owner() {
        let hash = json!({"pod-template-hash": "7d9f"});
        let rollout = json!({"rollouts-pod-template-hash": "7d9f"});
        let cron_job = JobOrigin::CronJob("nightly".into());
        let none = || json!({});
        let cases: &[(&str, Value, JobOrigin, &str)] = &[
            ("deployment", pod("apps/v1", "ReplicaSet", "web-7d9f", hash), JobOrigin::Unknown, "web"),
            ("rollout", pod("apps/v1", "ReplicaSet", "web-7d9f", rollout), JobOrigin::Unknown, "web"),
            (
                "stateful set",
                pod("apps/v1", "StatefulSet", "db", none()),
                JobOrigin::Unknown,
                "db-statefulset",
            ),
            ("daemon set", pod("apps/v1", "DaemonSet", "x", none()), JobOrigin::Unknown, "x-daemonset"),
            ("job", pod("batch/v1", "Job", "y", none()), JobOrigin::Named, "y-job"),
            ("cron job", pod("batch/v1", "Job", "nightly-29", none()), cron_job, "nightly-cronjob"),
        ];
        for (case, pod, job, want) in cases {
            let owner = Owner::of_pod(pod, |_| job.clone()).unwrap();
            assert_eq!(service_account_name(&owner).as_deref(), Some(*want), "{case}");
        }
    }

    #[test]
    fn who_would_be_another_next_time_has_no_account() {
        let hash = || json!({"pod-template-hash": "7d9f"});
        let none = || json!({});
        let cases: &[(&str, Value, JobOrigin)] = &[
            ("replica set of its own", pod("apps/v1", "ReplicaSet", "web", none()), JobOrigin::Unknown),
            ("hash that does not fit", pod("apps/v1", "ReplicaSet", "web-1", hash()), JobOrigin::Unknown),
            ("hash alone", pod("apps/v1", "ReplicaSet", "-7d9f", hash()), JobOrigin::Unknown),
            ("generated job", pod("batch/v1", "Job", "y-x8z", none()), JobOrigin::Generated),
            ("job of a controller", pod("batch/v1", "Job", "y", none()), JobOrigin::OtherController),
            ("foreign group", pod("example.com/v1", "StatefulSet", "db", none()), JobOrigin::Named),
            ("core group", pod("v1", "ReplicationController", "rc", none()), JobOrigin::Named),
            ("bare", json!({"metadata": {}}), JobOrigin::Named),
        ];
        for (case, pod, job) in cases {
            let owner = Owner::of_pod(pod, |_| job.clone()).unwrap();
            assert_eq!(service_account_name(&owner), None, "{case}");
        }
    }

    #[test]
    fn a_job_that_is_not_cached_has_no_owner_yet() {
        assert_eq!(Owner::of_pod(&pod("batch/v1", "Job", "y", json!({})), |_| JobOrigin::Unknown), None);
    }

    #[test]
    fn long_names_stay_valid_and_different() {
        let long = |end: &str| Owner::new(OwnerKind::StatefulSet, format!("{}{end}", "a".repeat(250)));
        let (one, two) =
            (service_account_name(&long("b")).unwrap(), service_account_name(&long("c")).unwrap());
        assert_ne!(one, two);
        assert_eq!(one, service_account_name(&long("b")).unwrap());
        assert!(one.len() <= LONGEST_NAME && two.len() <= LONGEST_NAME);
        let dotted = Owner::new(OwnerKind::Job, format!("{}.{}", "a".repeat(241), "b".repeat(11)));
        assert!(!service_account_name(&dotted).unwrap().contains(".-"));
    }

    #[test]
    fn an_account_of_somebody_else_is_stepped_around() {
        let owner = Owner::new(OwnerKind::Deployment, "web");
        let ours = AccountState::Ours("Deployment/web".into());
        let other = AccountState::Ours("Rollout/web".into());
        let cases: &[(&str, AccountState, AccountState, AccountChoice)] = &[
            ("missing", AccountState::Missing, AccountState::Missing, AccountChoice::Missing("web".into())),
            ("ours", ours.clone(), AccountState::Missing, AccountChoice::Ready("web".into())),
            ("foreign", AccountState::Foreign, ours, AccountChoice::Ready("cinch-web-deployment".into())),
            (
                "of another owner",
                other,
                AccountState::Missing,
                AccountChoice::Missing("cinch-web-deployment".into()),
            ),
            ("both foreign", AccountState::Foreign, AccountState::Foreign, AccountChoice::None),
        ];
        for (case, first, second, want) in cases {
            let state = |name: &str| if name == "web" { first.clone() } else { second.clone() };
            assert_eq!(choose_account(&owner, state), *want, "{case}");
        }
    }
}
