//! Wires the parts: looks at the node, takes over its pods, serves the kubelet and the pods until SIGTERM.

use crate::agent::Agent;
use crate::bounds::Budget;
use crate::health::{self, Health};
use crate::host::{self, Host};
use crate::metrics::Metrics;
use crate::netns::join_root_cgroups;
use crate::pods::Pods;
use crate::serve::{KubeletPaths, serve};
use crate::sockets::{Protocol, sockets};
use anyhow::{Context, Result};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Where things are on this node.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The name of the node.
    pub node: String,
    /// The kubelet's directories, at the same paths as the kubelet sees them.
    pub kubelet: KubeletPaths,
    /// Where the node's cgroups are mounted.
    pub cgroups: PathBuf,
    /// Port of health and metrics.
    pub health_port: u16,
}

/// Runs until SIGTERM or SIGINT. Must be called before the process has other threads: they would keep its
/// cgroup namespace.
///
/// # Errors
/// When the sockets towards the kubelet can't be served. A node that can't do what is asked of it is no error:
/// each request is refused with the reason then.
pub fn run(settings: Settings) -> Result<()> {
    let proc = Path::new("/proc");
    // Modes are given where files are made.
    rustix::process::umask(rustix::fs::Mode::empty());
    let host = join_root_cgroups(proc)
        .map_err(|error| format!("the root cgroup namespace can not be joined: {error}"))
        .and_then(|()| host::look_and_try(proc, &settings.cgroups));
    match &host {
        Ok(Host { cgroup_root, pods_directory, .. }) => {
            tracing::info!(?cgroup_root, ?pods_directory, "the node can redirect pods");
            if let Err(error) = sockets(Protocol::Tcp, &mut Budget::of_a_look(Instant::now()), |_| false) {
                tracing::warn!(%error, "what passes by proxies can not be seen: the kernel does not list sockets");
            }
        }
        Err(fault) => tracing::error!(%fault, "the node can not redirect pods: all requests will be refused"),
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let agent = Arc::new(Agent::new(host, Metrics::default()));
    runtime.block_on(run_with(settings, agent))
}

async fn run_with(settings: Settings, agent: Arc<Agent>) -> Result<()> {
    let end = CancellationToken::new();
    let mut signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = health_listener(settings.health_port).await?;
    let (registered, said) = watch::channel(None);
    tokio::spawn(health::serve(listener, Health { agent: agent.clone(), registered: said }));
    let pods = Arc::new(Pods::new(settings.kubelet.pods.clone(), agent));
    tokio::select! {
        ended = serve(&settings.kubelet, &settings.node, pods, registered, end) => ended,
        _ = signals.0.recv() => Ok(()),
        _ = signals.1.recv() => Ok(()),
    }
}

/// Both families where the node has both.
async fn health_listener(port: u16) -> Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.with_context(|| format!("port {port}"))
        }
    }
}
