//! What changes meanwhile: each is something that happens in clusters every day, made in turn.

use super::scene::{API, SHELF, SOAK, apply, mode, policy};
use crate::install::NAMESPACE as RELEASE;
use crate::see::{See, text};
use anyhow::{Context, Result};

/// What happens, and how; the number is how many changes there were before.
pub type Change = (&'static str, fn(&See<'_>, usize) -> Result<()>);

/// In this order, again and again.
pub const CHANGES: &[Change] = &[
    ("more rules", |see, _| apply(see, vec![policy(API, 20), policy(SHELF, 20)])),
    ("a rollout of the API", |see, _| restart(see, API)),
    ("PERMISSIVE", |see, _| apply(see, vec![mode("PERMISSIVE")])),
    ("a pod more", |see, _| scale(see, SHELF, 3)),
    ("fewer rules", |see, _| apply(see, vec![policy(API, 0), policy(SHELF, 0)])),
    ("STRICT", |see, _| apply(see, vec![mode("STRICT")])),
    ("a rollout of the shelf", |see, _| restart(see, SHELF)),
    ("a pod less", |see, _| scale(see, SHELF, 2)),
    ("an operator killed", kill_an_operator),
];

fn restart(see: &See<'_>, deployment: &str) -> Result<()> {
    let workload = format!("deployment/{deployment}");
    see.kubectl(&["rollout", "restart", &workload, "-n", SOAK])?;
    see.rolled_out(SOAK, &workload)
}

fn scale(see: &See<'_>, deployment: &str, replicas: usize) -> Result<()> {
    let workload = format!("deployment/{deployment}");
    see.kubectl(&["scale", &workload, "-n", SOAK, &format!("--replicas={replicas}")])?;
    see.rolled_out(SOAK, &workload)
}

/// With SIGKILL, now one and now the other; sometimes it is the leader.
fn kill_an_operator(see: &See<'_>, before: usize) -> Result<()> {
    let pods = see.pods(RELEASE, "app.kubernetes.io/component=operator")?;
    let pod = pods.get(before / CHANGES.len() % pods.len().max(1)).context("there is no operator")?;
    see.cluster.kill_container(RELEASE, &text(pod, "/metadata/name"), "cinch-operator")?;
    see.rolled_out(RELEASE, "deployment/cinch-operator")
}
