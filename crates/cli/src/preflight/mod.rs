//! What enrolment would change, said before anything is changed. In: a survey of the namespace. Out: what
//! stands against it, what to know, and what becomes of each workload. Pure: the webhook's own decision is
//! asked for each pod template, so that both use the same words.

mod network;
mod template;

use crate::survey::{PodFacts, Survey, Unseen, Workload};
use cinch_api::names::{INJECTION_LABEL, INJECTION_REQUIRED, MESH_ENABLED, MESH_LABEL};
use cinch_injection::template::Verdict;
use cinch_injection::{AccountChoice, AccountState, Owner, OwnerKind, choose_account, privileges};
use cinch_reason::Reason;
use std::collections::BTreeSet;
use std::fmt;

/// What to say before enrolment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Preflight {
    /// The namespace and what becomes of its label.
    pub headline: String,
    /// Why the namespace can't be enrolled as it is.
    pub stops: Vec<String>,
    /// What would break or stay outside.
    pub warnings: Vec<String>,
    /// What becomes of each workload.
    pub changes: Vec<Change>,
    /// The workloads that a restart would mesh.
    pub to_restart: Vec<Owner>,
}

/// What becomes of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Such as `Deployment/web`.
    pub workload: String,
    /// Its pods that count.
    pub pods: usize,
    /// What happens to them.
    pub then: String,
    /// The service account that they will run as.
    pub account: String,
}

/// Looks at everything that matters. `restarting`: the user asked for restarts.
#[must_use]
pub fn preflight(survey: &Survey, restarting: Restarting) -> Preflight {
    let mut result = Preflight { headline: headline(survey), ..Default::default() };
    if let Verdict::LeftOut(reason, detail) | Verdict::Refused(reason, detail) =
        template::of_namespace(survey)
    {
        result.stops.push(reason.message_with(&detail));
    }
    let mut left_out = BTreeSet::new();
    for workload in &survey.workloads {
        let verdict = template::of_workload(survey, &workload.template);
        let unmeshed = pods_of(survey, &workload.owner).any(|pod| pod.counts() && !pod.meshed);
        if let Verdict::LeftOut(reason, detail) | Verdict::Refused(reason, detail) = &verdict {
            if result.stops.is_empty() {
                let verb = if matches!(verdict, Verdict::LeftOut(..)) {
                    "stays unmeshed"
                } else {
                    "would be refused"
                };
                result.warnings.push(format!("{} {verb}: {}", workload.owner, reason.message_with(detail)));
            }
            left_out.insert(workload.owner.clone());
        } else if unmeshed && workload.restarts && workload.manual.is_none() {
            result.to_restart.push(workload.owner.clone());
        }
        for detail in privileges(&workload.template) {
            let later = "once the namespace is STRICT, its pods are refused";
            let message = Reason::CouldUndoRedirect.message_with(&detail);
            result.warnings.push(format!("{}: {later}: {message}", workload.owner));
        }
        result.changes.push(change(survey, workload, &verdict, restarting));
    }
    result.changes.extend(loose_pods(survey));
    result.warnings.extend(host_network(survey));
    if !survey.bound_to_default.is_empty() {
        let by = survey.bound_to_default.join(", ");
        result.warnings.push(Reason::DefaultServiceAccountBound.message_with(&by));
    }
    result.warnings.extend(network::cut(survey, &left_out));
    result.warnings.extend(nodes_without_agent(survey));
    result.warnings.extend(survey.unseen.iter().map(|unseen| unknown(*unseen).to_owned()));
    result
}

/// What can't be said because the user may not look.
fn unknown(unseen: Unseen) -> &'static str {
    match unseen {
        Unseen::Bindings => {
            "you may not read all role bindings: if permissions hang on the service account default, workloads keep it"
        }
        Unseen::Agents => {
            "you may not look at the node agents: on a node without one, pods with the sidecar do not start"
        }
        Unseen::Settings => {
            "you may not read the settings of Cinch: if an init container sets redirects there, namespaces that enforce \
             Pod Security baseline or restricted can not be meshed"
        }
    }
}

/// Whether the user asked for restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restarting {
    /// Workloads are restarted.
    Now,
    /// They are left to run.
    Later,
}

fn headline(survey: &Survey) -> String {
    let enrolled = survey.labels.get(MESH_LABEL).is_some_and(|value| value == MESH_ENABLED);
    let required = survey.labels.get(INJECTION_LABEL).is_some_and(|value| value == INJECTION_REQUIRED);
    let label = if enrolled { "is enrolled already" } else { "gets the label cinch.dev/mesh: enabled" };
    let injection = if required { ", injection is required" } else { "" };
    format!("namespace {} {label}{injection}", survey.namespace)
}

fn pods_of<'a>(survey: &'a Survey, owner: &'a Owner) -> impl Iterator<Item = &'a PodFacts> {
    survey.pods.iter().filter(move |pod| &pod.owner == owner)
}

fn change(survey: &Survey, workload: &Workload, verdict: &Verdict, restarting: Restarting) -> Change {
    let counting: Vec<&PodFacts> = pods_of(survey, &workload.owner).filter(|pod| pod.counts()).collect();
    let meshed = counting.iter().filter(|pod| pod.meshed).count();
    let then = match verdict {
        Verdict::LeftOut(..) => "left as it is".to_owned(),
        Verdict::Refused(..) => "its pods would be refused".to_owned(),
        Verdict::Injected if !counting.is_empty() && meshed == counting.len() => "meshed already".to_owned(),
        Verdict::Injected => match (workload.restarts, workload.manual, restarting) {
            (true, Some(why), _) => format!("not restarted, {why}: re-create its pods by hand"),
            (true, None, Restarting::Now) if counting.is_empty() => {
                "gets the sidecar with its next pod".to_owned()
            }
            (true, None, Restarting::Now) => "restarted".to_owned(),
            (true, None, Restarting::Later) => "gets the sidecar at its next restart".to_owned(),
            (false, ..) if workload.owner.kind == OwnerKind::CronJob => {
                "gets the sidecar with its next Job".to_owned()
            }
            (false, ..) => "runs to its end without the sidecar".to_owned(),
        },
    };
    // A running Job keeps its pods, and they their account.
    let account = match verdict {
        Verdict::Injected if workload.owner.kind != OwnerKind::Job => account(survey, workload),
        _ => String::new(),
    };
    Change { workload: workload.owner.to_string(), pods: counting.len(), then, account }
}

fn account(survey: &Survey, workload: &Workload) -> String {
    let asked = template::account(&workload.template);
    if asked != "default" || !survey.bound_to_default.is_empty() {
        return asked.to_owned();
    }
    let state = |name: &str| survey.accounts.get(name).cloned().unwrap_or(AccountState::Missing);
    let is_unsure = survey.unseen.contains(&Unseen::Bindings);
    let unsure = if is_unsure { ", if nothing hangs on default" } else { "" };
    match choose_account(&workload.owner, state) {
        AccountChoice::Ready(name) => format!("{name}{unsure}"),
        AccountChoice::Missing(name) => format!("{name} (new){unsure}"),
        AccountChoice::None => asked.to_owned(),
    }
}

/// Pods that no workload of the survey will replace.
fn loose_pods(survey: &Survey) -> Vec<Change> {
    let known: BTreeSet<&Owner> = survey.workloads.iter().map(|workload| &workload.owner).collect();
    let loose = survey.pods.iter().filter(|pod| pod.counts() && !pod.meshed && !known.contains(&pod.owner));
    let change = |pod: &PodFacts| Change {
        workload: format!("Pod/{}", pod.name),
        pods: 1,
        then: "not restarted: nothing re-creates it as it is, do it by hand".to_owned(),
        account: String::new(),
    };
    loose.map(change).collect()
}

fn host_network(survey: &Survey) -> Option<String> {
    let pods: Vec<&str> = survey
        .pods
        .iter()
        .filter(|pod| pod.host_network && !pod.ending)
        .map(|pod| pod.name.as_str())
        .collect();
    (!pods.is_empty()).then(|| Reason::HostNetworkPods.message_with(&listed(&pods)))
}

/// Pods with the sidecar wait on such nodes, until their agent is ready.
fn nodes_without_agent(survey: &Survey) -> Option<String> {
    let nodes: Vec<&str> = survey.without_agent.iter().map(String::as_str).collect();
    let message = || Reason::AgentUnreachable.message_with(&format!("on {}", listed(&nodes)));
    (!nodes.is_empty()).then(|| format!("{}; kubectl cinch check tells more", message()))
}

/// The first few of many.
pub(crate) fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(5) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.headline)?;
        let width = self.changes.iter().map(|change| change.workload.len()).max().unwrap_or_default();
        for Change { workload, pods, then, account } in &self.changes {
            let noun = if *pods == 1 { "pod " } else { "pods" };
            write!(f, "  {workload:width$}  {pods:>3} {noun}  {then}")?;
            if account.is_empty() { writeln!(f)? } else { writeln!(f, "; service account {account}")? }
        }
        for warning in &self.warnings {
            writeln!(f, "  ! {warning}")?;
        }
        for stop in &self.stops {
            writeln!(f, "  ✗ {stop}")?;
        }
        if self.stops.is_empty() && self.warnings.is_empty() {
            writeln!(f, "  ✓ nothing stands against it")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
