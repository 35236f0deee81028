//! Which accounts to create and which of ours to correct: pure, from what was observed.

use super::observed::{Account, Observed, Workload};
use cinch_api::ServiceAccounts;
use cinch_injection::{AccountChoice, AccountState, Owner, choose_account};
use std::collections::{BTreeMap, HashMap};

/// What an account of ours must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) owner: Owner,
    pub(super) owner_api_version: String,
    pub(super) owner_uid: String,
    pub(super) automount: Option<bool>,
    pub(super) pull_secrets: Vec<String>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// There is no account of the name.
    Create(Wanted),
    /// Our account, at this resource version, lacks something.
    Correct(Wanted, String),
}

/// The namespaces that must keep `default`, with what hangs on it, and the steps for all others.
pub(super) fn plan(enrolled: &[String], observed: &Observed) -> (BTreeMap<String, String>, Vec<Step>) {
    let mut workloads: HashMap<&str, Vec<&Workload>> = HashMap::new();
    for workload in observed.workloads.values().filter(|workload| workload.wants_account) {
        workloads.entry(&workload.namespace).or_default().push(workload);
    }
    let (mut forced, mut steps) = (BTreeMap::new(), Vec::new());
    for namespace in enrolled {
        if observed.postures.get(namespace) == Some(&ServiceAccounts::Keep) {
            continue;
        }
        if let Some(by) = bound_by(namespace, observed) {
            forced.insert(namespace.clone(), by);
            continue;
        }
        let mut of_namespace = workloads.remove(namespace.as_str()).unwrap_or_default();
        // Two workloads may want one name: the same gets it each time.
        of_namespace.sort_by(|a, b| (&a.owner, &a.uid).cmp(&(&b.owner, &b.uid)));
        steps.extend(plan_namespace(namespace, &of_namespace, observed));
    }
    (forced, steps)
}

fn plan_namespace(namespace: &str, workloads: &[&Workload], observed: &Observed) -> Vec<Step> {
    let find = |name: &str| observed.accounts.get(&(namespace.to_owned(), name.to_owned()));
    let default = find("default");
    let mut planned: HashMap<String, Owner> = HashMap::new();
    let mut steps = Vec::new();
    for workload in workloads {
        let state = |name: &str| match (planned.get(name), find(name)) {
            (Some(owner), _) => AccountState::Ours(owner.to_string()),
            (None, Some(account)) => account.state.clone(),
            (None, None) => AccountState::Missing,
        };
        match choose_account(&workload.owner, state) {
            AccountChoice::Missing(name) => {
                planned.insert(name.clone(), workload.owner.clone());
                steps.push(Step::Create(wanted(workload, name, default)));
            }
            AccountChoice::Ready(name) => {
                if let Some(account) = find(&name)
                    && let Some(corrected) = correction(wanted(workload, name, default), account)
                {
                    steps.push(Step::Correct(corrected, account.resource_version.clone()));
                }
            }
            AccountChoice::None => {}
        }
    }
    steps
}

fn wanted(workload: &Workload, name: String, default: Option<&Account>) -> Wanted {
    Wanted {
        namespace: workload.namespace.clone(),
        name,
        owner: workload.owner.clone(),
        owner_api_version: workload.api_version.clone(),
        owner_uid: workload.uid.clone(),
        automount: default.and_then(|account| account.automount),
        pull_secrets: default.map(|account| account.pull_secrets.clone()).unwrap_or_default(),
    }
}

/// What our account lacks; `None` when nothing. A person may have set automount or added pull secrets: those
/// stay.
fn correction(mut wanted: Wanted, account: &Account) -> Option<Wanted> {
    let repoint = account.owner_uids != [wanted.owner_uid.clone()];
    let automount = account.automount.or(wanted.automount);
    let mut pull_secrets = account.pull_secrets.clone();
    let missing = wanted.pull_secrets.iter().filter(|secret| !account.pull_secrets.contains(secret));
    pull_secrets.extend(missing.cloned());
    let right = !repoint && automount == account.automount && pull_secrets == account.pull_secrets;
    (wanted.automount, wanted.pull_secrets) = (automount, pull_secrets);
    (!right).then_some(wanted)
}

/// What hangs on a namespace's `default` account, in words for a message.
fn bound_by(namespace: &str, observed: &Observed) -> Option<String> {
    let binding = observed.bindings.iter().find(|(_, namespaces)| namespaces.contains(namespace));
    if let Some(((binding_namespace, name), _)) = binding {
        return Some(match binding_namespace {
            Some(binding_namespace) => format!("RoleBinding {binding_namespace}/{name} names it"),
            None => format!("ClusterRoleBinding {name} names it"),
        });
    }
    let default = observed.accounts.get(&(namespace.to_owned(), "default".to_owned()))?;
    default.cloud_annotation.map(|key| format!("it has the annotation {key}"))
}
