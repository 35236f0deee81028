//! Installs Cinch with its chart and nothing else, and waits until both Deployments have both replicas.

use crate::cluster::Cluster;
use crate::images::{REGISTRY, TAG};
use crate::prepare::repository;
use crate::terminal;
use crate::wait::{Seen, until};
use anyhow::{Result, bail};
use std::time::Duration;

/// The namespace of the release.
pub const NAMESPACE: &str = "cinch-system";
/// The node agents.
pub const AGENT: &str = "daemonset/cinch-node";
/// Who sets the redirect of pods, in the whole release.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Redirect {
    /// The agent of each node
    #[default]
    Agent,
    /// An init container of each pod; then there is no agent at all
    Init,
}

impl Redirect {
    fn value(self) -> &'static str {
        match self {
            Redirect::Agent => "redirect.mode=agent",
            Redirect::Init => "redirect.mode=init",
        }
    }

    /// Our containers in front of a pod's own.
    #[must_use]
    pub fn containers(self) -> &'static [&'static str] {
        match self {
            Redirect::Agent => &["cinch-proxy"],
            Redirect::Init => &["cinch-init", "cinch-proxy"],
        }
    }
}

/// Values with which the agents set the redirect, as they do by default.
pub const AGENT_MODE: &str = "redirect.mode=agent,node.install=auto";
/// Values with which init containers do. Pods of before still need the agents.
pub const INIT_MODE: &str = "redirect.mode=init,node.install=always";
/// The Deployments and how many replicas of each have to be ready.
const DEPLOYMENTS: [(&str, u64); 2] = [("cinch-operator", 2), ("cinch-webhook", 2)];
const READY: Duration = Duration::from_secs(180);

/// Values that make minutes of what takes days: evidence is reported each second and asked for during seconds.
const VALUES: [&str; 6] = [
    "promotion.default=Automatic",
    "promotion.quietPeriod=8s",
    "promotion.probation=15s",
    "promotion.settle=3s",
    "promotion.minInterval=0s",
    "proxy.reportInterval=1s",
];

/// Runs `helm install` and waits for the Deployments, and for the agents where they are what sets the redirect.
///
/// # Errors
/// When Helm fails or a Deployment does not become ready.
pub fn install(cluster: &Cluster, redirect: Redirect) -> Result<()> {
    let chart = repository()?.join("charts/cinch").display().to_string();
    let mut arguments = vec!["install", "cinch", &chart, "--namespace", NAMESPACE, "--create-namespace"];
    let (registry, tag) = (format!("images.registry={REGISTRY}"), format!("images.tag={TAG}"));
    for value in [registry.as_str(), tag.as_str()].into_iter().chain(VALUES).chain([redirect.value()]) {
        arguments.extend(["--set-string", value]);
    }
    let output = cluster.helm(&arguments)?;
    if !output.ok() {
        bail!("helm install failed: {}", output.text().trim());
    }
    for (name, replicas) in DEPLOYMENTS {
        deployment_ready(cluster, NAMESPACE, name, replicas)?;
    }
    if redirect == Redirect::Init {
        terminal::say(
            "install: operator and webhook have both replicas ready; init containers set the redirect",
        );
        return Ok(());
    }
    agents_ready(cluster)?;
    terminal::say("install: operator and webhook have both replicas ready, and each node its agent");
    Ok(())
}

/// Switches the release to another way of setting redirects ([`AGENT_MODE`] or [`INIT_MODE`]), and waits until all of
/// it is of the new mode.
///
/// # Errors
/// When Helm fails or something does not become ready.
pub fn redirect_by(cluster: &Cluster, values: &str) -> Result<()> {
    let chart = repository()?.join("charts/cinch").display().to_string();
    let output = cluster.helm(&[
        "upgrade",
        "cinch",
        &chart,
        "--namespace",
        NAMESPACE,
        "--reuse-values",
        "--set-string",
        values,
    ])?;
    if !output.ok() {
        bail!("helm upgrade failed: {}", output.text().trim());
    }
    for (name, replicas) in DEPLOYMENTS {
        deployment_ready(cluster, NAMESPACE, name, replicas)?;
    }
    agents_ready(cluster)?;
    // The API server goes on asking one that ends over the connection that it has to it.
    until("the webhooks of before to have ended", READY, || {
        let found =
            cluster.get_json(&["pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=webhook"])?;
        let all = found.get("items").and_then(serde_json::Value::as_array).map_or(0, Vec::len);
        Ok(if all == 2 { Seen::Done(()) } else { Seen::Not(format!("{all} pods")) })
    })
}

/// Waits until each node has its agent, in the newest template.
///
/// # Errors
/// When one has none within 3 min.
pub fn agents_ready(cluster: &Cluster) -> Result<()> {
    let limit = format!("--timeout={}s", READY.as_secs());
    cluster.kubectl_ok(&["rollout", "status", AGENT, "-n", NAMESPACE, &limit]).map(drop)
}

/// Waits until a Deployment has exactly `replicas` ready replicas of its newest template.
///
/// # Errors
/// When it does not get there within 3 min.
pub fn deployment_ready(cluster: &Cluster, namespace: &str, name: &str, replicas: u64) -> Result<()> {
    until(&format!("{replicas} ready replicas of {namespace}/{name}"), READY, || {
        let found = cluster.get_json(&["deployment", name, "-n", namespace])?;
        let number = |path: &str| found.pointer(path).and_then(serde_json::Value::as_u64).unwrap_or_default();
        let current = number("/status/observedGeneration") == number("/metadata/generation");
        let counts = ["/status/readyReplicas", "/status/updatedReplicas", "/status/replicas"].map(number);
        let [ready, updated, all] = counts;
        if current && counts.iter().all(|count| *count == replicas) {
            return Ok(Seen::Done(()));
        }
        Ok(Seen::Not(format!("{ready} ready, {updated} updated, {all} in all")))
    })
}
