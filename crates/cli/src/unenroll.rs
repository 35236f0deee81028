//! `unenroll`: takes all labels of Cinch away in one update, deletes the posture, restarts what has a sidecar.

use crate::arguments::Unenroll;
use crate::cluster::{Cluster, fresh_reason};
use crate::leftover;
use crate::restart::{Goal, follow, restart};
use crate::survey::{self, Survey};
use anyhow::{Context, Result, bail};
use cinch_api::names::{
    GROUP, INJECTION_LABEL, INJECTION_REQUIRED, MODE_LABEL, MODE_STRICT, RELAX_REASON_ANNOTATION,
};
use cinch_injection::{Owner, OwnerKind};
use cinch_reason::Reason;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use std::collections::BTreeSet;
use std::time::Duration;

/// Takes a namespace out of the mesh.
///
/// # Errors
/// When it is guarded and no reason was given, a write is refused, or the restart does not end in time.
pub async fn run(cluster: &Cluster, options: Unenroll) -> Result<()> {
    let name = options.namespace.as_str();
    let namespace = cluster.namespace(name).await?;
    if let (Some(guard), None) = (guarded(&namespace), &options.reason) {
        bail!("{}; say why with --reason", guard.message_with(&format!("namespace {name}")));
    }
    let survey =
        survey::read(cluster, &namespace).await.with_context(|| format!("reading namespace {name}"))?;
    let keys = own_keys(&namespace);
    if keys.is_empty() {
        println!("namespace {name} is not enrolled");
    } else {
        let labels = keys.iter().map(|key| (key.clone(), None)).collect();
        let reason =
            options.reason.as_deref().map(|why| fresh_reason(&namespace, why, jiff::Timestamp::now()));
        let annotations =
            reason.map(|why| (RELAX_REASON_ANNOTATION.to_owned(), Some(why))).into_iter().collect();
        cluster.change_namespace(name, &labels, &annotations).await?;
        println!("removed from namespace {name}: {}", keys.join(", "));
    }
    cluster.delete_posture(name).await.context("deleting the posture")?;
    let meshed = meshed_workloads(&survey);
    if !options.restart {
        let pods = survey.pods.iter().filter(|pod| pod.counts() && pod.meshed).count();
        if pods > 0 {
            println!(
                "{pods} pods keep their sidecar, which can not start again when its container or node does: \
                 kubectl cinch unenroll {name} --restart"
            );
        }
        return Ok(());
    }
    restart(cluster, name, &meshed).await?;
    if !options.wait.no_wait {
        let limit = Duration::from_secs(options.wait.timeout);
        follow(cluster, name, &meshed, Goal::Unmeshed, limit).await?;
    }
    // The operator may have written it once more before it saw the label go.
    cluster.delete_posture(name).await.context("deleting the posture")?;
    if !options.wait.no_wait {
        print!("{}", leftover::read(cluster).await?);
    }
    Ok(())
}

/// Why a reason is needed.
fn guarded(namespace: &Namespace) -> Option<Reason> {
    let is = |label: &str, value: &str| namespace.labels().get(label).is_some_and(|found| found == value);
    if is(MODE_LABEL, MODE_STRICT) {
        return Some(Reason::NamespaceLocked);
    }
    is(INJECTION_LABEL, INJECTION_REQUIRED).then_some(Reason::InjectionRequired)
}

/// Keys of our labels on the namespace.
fn own_keys(namespace: &Namespace) -> Vec<String> {
    let prefix = format!("{GROUP}/");
    namespace.labels().keys().filter(|key| key.starts_with(&prefix)).cloned().collect()
}

/// Workloads with a meshed pod, that can be restarted.
fn meshed_workloads(survey: &Survey) -> Vec<Owner> {
    let restartable = |owner: &&Owner| {
        matches!(owner.kind, OwnerKind::Deployment | OwnerKind::StatefulSet | OwnerKind::DaemonSet)
    };
    let meshed: BTreeSet<&Owner> = survey
        .pods
        .iter()
        .filter(|pod| pod.counts() && pod.meshed)
        .map(|pod| &pod.owner)
        .filter(restartable)
        .collect();
    let manual = |owner: &Owner| survey.workloads.iter().any(|w| &w.owner == owner && w.manual.is_some());
    meshed.into_iter().filter(|owner| !manual(owner)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(labels: &[(&str, &str)]) -> Namespace {
        let mut namespace = Namespace::default();
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        namespace.metadata.labels = Some(labels.collect());
        namespace
    }

    #[test]
    fn every_label_of_ours_goes_and_no_other() {
        let found = own_keys(&namespace(&[
            ("cinch.dev/mesh", "enabled"),
            ("cinch.dev/mode", "STRICT"),
            ("cinch.devious/x", "y"),
            ("team", "a"),
        ]));
        assert_eq!(found, ["cinch.dev/mesh", "cinch.dev/mode"]);
    }

    #[test]
    fn a_lock_or_required_injection_needs_a_reason() {
        assert_eq!(guarded(&namespace(&[("cinch.dev/mesh", "enabled")])), None);
        assert_eq!(
            guarded(&namespace(&[("cinch.dev/injection", "required")])),
            Some(Reason::InjectionRequired)
        );
        let locked = [("cinch.dev/injection", "required"), ("cinch.dev/mode", "STRICT")];
        assert_eq!(guarded(&namespace(&locked)), Some(Reason::NamespaceLocked));
    }
}
