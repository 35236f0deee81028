//! The loopback port of a kept cluster: kubectl reaches the API server through it from outside of the cluster's
//! network.

use super::scene::Scene;
use anyhow::{Context, Result, ensure};

/// Plays it on this cluster, kept or not.
pub fn answers(scene: &Scene<'_>) -> Result<String> {
    let cluster = scene.see.cluster;
    let port = cluster.forward_port("port-of-test")?;
    let kubeconfig = cluster.kubeconfig_for(port, "kubeconfig-of-test")?;
    let outside = cluster.kubectl_outside(&kubeconfig, &["version", "-o", "json"])?;
    ensure!(outside.ok(), "kubectl version through 127.0.0.1:{port}: {}", outside.text());
    let version: serde_json::Value = serde_json::from_str(&outside.stdout).context(outside.stdout)?;
    let server = crate::see::text(&version, "/serverVersion/gitVersion");
    let nodes = cluster.kubectl_outside(&kubeconfig, &["get", "nodes", "-o", "name"])?;
    let within = scene.see.kubectl(&["get", "nodes", "-o", "name"])?;
    ensure!(nodes.ok() && nodes.stdout == within, "other nodes than this cluster's: {}", nodes.text());
    Ok(format!("127.0.0.1:{port}: Kubernetes {server}, {}", within.trim()))
}
