//! `enroll`: preflight, label, restart, follow.

use crate::arguments::Enroll;
use crate::cluster::Cluster;
use crate::preflight::{Restarting, preflight};
use crate::restart::{Goal, follow, restart};
use crate::survey;
use anyhow::{Context, Result, bail};
use cinch_api::names::{MESH_ENABLED, MESH_LABEL};
use cinch_reason::Reason;
use std::collections::BTreeMap;
use std::time::Duration;

/// Says what enrolment changes and, unless it is a dry run, does it.
///
/// # Errors
/// When something stands against it, a write is refused, or the restart does not end in time.
pub async fn run(cluster: &Cluster, options: Enroll) -> Result<()> {
    let name = options.namespace.as_str();
    if cluster.is_system(name) {
        bail!("{}", Reason::SystemNamespace.message_with(&format!("namespace {name}")));
    }
    cluster.must_be_installed().await?;
    let namespace = cluster.namespace(name).await?;
    let survey =
        survey::read(cluster, &namespace).await.with_context(|| format!("reading namespace {name}"))?;
    let restarting = if options.restart { Restarting::Now } else { Restarting::Later };
    let said = preflight(&survey, restarting);
    print!("{said}");
    if !said.stops.is_empty() {
        bail!("namespace {name} was not enrolled");
    }
    if options.dry_run {
        println!("dry run: nothing was changed");
        return Ok(());
    }
    if survey.labels.get(MESH_LABEL).is_none_or(|value| value != MESH_ENABLED) {
        let labels = BTreeMap::from([(MESH_LABEL.to_owned(), Some(MESH_ENABLED.to_owned()))]);
        cluster.change_namespace(name, &labels, &BTreeMap::new()).await?;
        println!("labelled namespace {name} {MESH_LABEL}={MESH_ENABLED}");
    }
    if !options.restart {
        if !said.to_restart.is_empty() {
            println!(
                "running pods get the sidecar when they are restarted: kubectl cinch enroll {name} --restart"
            );
        }
        return Ok(());
    }
    restart(cluster, name, &said.to_restart).await?;
    if options.wait.no_wait {
        return Ok(());
    }
    follow(cluster, name, &said.to_restart, Goal::Meshed, Duration::from_secs(options.wait.timeout)).await
}
