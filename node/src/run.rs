//! Wires the parts: looks at the node, takes over its pods, serves the kubelet and the pods until SIGTERM.

use crate::agent::Agent;
use crate::bounds::Budget;
use crate::health::{self, Health};
use crate::host::{self, Host};
use crate::metrics::Metrics;
use crate::netns::join_root_cgroups;
use crate::pods::Pods;
use crate::serve::{KubeletPaths, PACE, serve};
use crate::sockets::{Protocol, sockets};
use anyhow::{Context, Result};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How often a node that can't do what is asked of it is looked at again: modules, mounts and memory may come.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

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
    // Modes are given where files are made.
    rustix::process::umask(rustix::fs::Mode::empty());
    let host = look_at_node(&settings.cgroups);
    if let Err(fault) = &host {
        tracing::error!(%fault, "the node can not redirect pods");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let agent = Arc::new(Agent::new(host, Metrics::default()));
    runtime.block_on(run_with(settings, agent))
}

/// All that can be tried before a pod asks.
fn look_at_node(cgroups: &Path) -> Result<Host, String> {
    let proc = Path::new("/proc");
    join_root_cgroups(proc)
        .map_err(|error| format!("the root cgroup namespace can not be joined: {error}"))?;
    let host = host::look_and_try(proc, cgroups)?;
    let Host { cgroup_root, pods_directory, .. } = &host;
    tracing::info!(?cgroup_root, ?pods_directory, "the node can redirect pods");
    if let Err(error) = sockets(Protocol::Tcp, &mut Budget::of_a_look(Instant::now()), |_| false) {
        tracing::warn!(%error, "what passes by proxies can not be seen: the kernel does not list sockets");
    }
    Ok(host)
}

/// Looks at a node with a fault again and again until it has none.
async fn heal(agent: Arc<Agent>, each: Duration, mut look: impl FnMut() -> Result<Host, String>) {
    while agent.fault().is_some() {
        sleep(each).await;
        agent.found(look());
    }
}

async fn run_with(settings: Settings, agent: Arc<Agent>) -> Result<()> {
    let end = CancellationToken::new();
    let mut signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = health_listener(settings.health_port).await?;
    let (registered, said) = watch::channel(None);
    tokio::spawn(health::serve(listener, Health { agent: agent.clone(), registered: said }));
    // On this thread, the process' first: threads of visits have its cgroup namespace.
    let cgroups = settings.cgroups.clone();
    tokio::spawn(heal(agent.clone(), LOOK_AGAIN, move || look_at_node(&cgroups)));
    let pods = Arc::new(Pods::new(settings.kubelet.pods.clone(), agent));
    tokio::select! {
        ended = serve(&settings.kubelet, &settings.node, pods, registered, PACE, end) => ended,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::PodsDirectory;

    #[tokio::test]
    async fn a_node_with_a_fault_is_looked_at_until_it_has_none() {
        let agent = Arc::new(Agent::new(Err("no table".to_owned()), Metrics::default()));
        let mounts = "1 1 254:0 /k/pods/u/containers/c/ab12 /dev/termination-log rw - ext4 /dev/vda rw";
        let host = Host {
            proc: "/proc".into(),
            cgroup_root: "/sys/fs/cgroup".into(),
            pods_directory: PodsDirectory::learn(mounts).unwrap(),
            network_namespace: std::fs::metadata("/proc/self/ns/net").unwrap(),
        };
        // The last comes first.
        let mut looks = vec![Ok(host), Err("no cgroups".to_owned())];
        let watched = agent.clone();
        let look = move || {
            let found = looks.pop().unwrap();
            assert!(watched.fault().is_some(), "who works is not looked at again");
            found
        };
        heal(agent.clone(), Duration::from_millis(1), look).await;
        assert_eq!(agent.fault(), None);
    }
}
