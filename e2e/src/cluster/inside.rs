//! Looking inside: commands in a node, processes of containers, images and memory.

use super::processes::{self, Process};
use super::{Cluster, cgroups};
use crate::process::{Output, capture, succeed};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Reading the memory of all processes takes some 100 ms of processor time.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
const IMPORT: Duration = Duration::from_secs(120);
const LIMIT: Duration = Duration::from_secs(240);

impl Cluster {
    /// The first process of a node, as this machine numbers it.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn node_pid(&self, node: &str) -> Result<i32> {
        let record = self.record();
        let found = record.nodes.iter().find(|(name, _)| name == node);
        found.map(|(_, first)| first.pid).with_context(|| format!("there is no node {node}"))
    }

    /// A command, to be completed, inside a node: its network, mounts and processes.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn node_command(&self, node: &str, program: &str) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.node_pid(node)?));
        command.args(["--net", "--mount", "--pid", "--", program]).env("PATH", &self.prepared.path);
        Ok(command)
    }

    /// Runs a command inside a node, at most 4 min.
    ///
    /// # Errors
    /// When there is no such node or the command can't be started.
    pub fn in_node(&self, node: &str, command: &[&str]) -> Result<Output> {
        let (program, arguments) = command.split_first().context("an empty command")?;
        capture(self.node_command(node, program)?.args(arguments), None, LIMIT)
    }

    /// Runs a command with `stdin` inside a node, at most 4 min.
    ///
    /// # Errors
    /// As [`Cluster::in_node`].
    pub fn in_node_stdin(&self, node: &str, command: &[&str], stdin: &str) -> Result<Output> {
        let (program, arguments) = command.split_first().context("an empty command")?;
        capture(self.node_command(node, program)?.args(arguments), Some(stdin), LIMIT)
    }

    /// The nodes' names.
    #[must_use]
    pub fn node_names(&self) -> Vec<String> {
        self.layout.nodes(self.nodes).iter().map(super::layout::Node::name).collect()
    }

    /// Kills a container's first process with SIGKILL, as an out-of-memory kill or a crash would end it.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_container(&self, namespace: &str, pod: &str, container: &str) -> Result<()> {
        let pid = self.container_pid(namespace, pod, container)?;
        Process::now(pid).context("it has just ended")?.kill();
        Ok(())
    }

    /// Resident memory of each container of the release and of each proxy, one line each.
    ///
    /// # Errors
    /// When the pods can't be listed.
    pub fn memory_of_cinch(&self) -> Result<String> {
        let pods = self.get_json(&["pods", "-A"])?;
        let mut lines = Vec::new();
        for pod in pods.get("items").and_then(Value::as_array).into_iter().flatten() {
            let word = |path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default();
            let (namespace, name) = (word("/metadata/namespace"), word("/metadata/name"));
            let containers =
                ["/spec/initContainers", "/spec/containers"].iter().filter_map(|path| pod.pointer(path));
            for container in containers.filter_map(Value::as_array).flatten() {
                let Some(container) = container.get("name").and_then(Value::as_str) else { continue };
                let ours = namespace == crate::install::NAMESPACE || container == "cinch-proxy";
                if let Some(kib) = ours.then(|| self.resident_kib(namespace, name, container).ok()).flatten()
                {
                    lines.push(format!(
                        "{:>7.1} MiB resident  {namespace}/{name} {container}",
                        kib as f64 / 1024.0
                    ));
                }
            }
        }
        Ok(lines.join("\n"))
    }

    /// The first process of a pod's container, as this machine numbers it. `container` may be an init container
    /// or a sidecar; it has to run.
    ///
    /// # Errors
    /// When it does not run.
    pub fn container_pid(&self, namespace: &str, pod: &str, container: &str) -> Result<i32> {
        let found = self.get_json(&["pod", pod, "-n", namespace])?;
        let status = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"]
            .iter()
            .filter_map(|list| found.pointer(&format!("/status/{list}"))?.as_array())
            .flatten()
            .find(|status| status.get("name").and_then(|name| name.as_str()) == Some(container));
        let id = status.and_then(|status| status.get("containerID")?.as_str()?.strip_prefix("containerd://"));
        let id = id.with_context(|| format!("{namespace}/{pod} has no started container {container}"))?;
        let inside = cgroups::processes(&self.layout.cgroup_prefix(), id);
        inside.first().copied().with_context(|| format!("{container} of {namespace}/{pod} does not run"))
    }

    /// A command, to be completed, inside the network of a pod that has the running container.
    ///
    /// # Errors
    /// When the container does not run.
    pub fn pod_network_command(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        program: &str,
    ) -> Result<Command> {
        let pid = self.container_pid(namespace, pod, container)?;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{pid}/ns/net"))
            .args(["--", program])
            .env("PATH", &self.prepared.path);
        Ok(command)
    }

    /// Resident memory of a container's first process, in KiB.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resident_kib(&self, namespace: &str, pod: &str, container: &str) -> Result<u64> {
        let pid = self.container_pid(namespace, pod, container)?;
        processes::resident_kib(pid)
            .with_context(|| format!("{container} of {namespace}/{pod} has just ended"))
    }

    /// Imports an image's tar file into every node; an image of the same name is replaced for containers that
    /// start from now on.
    ///
    /// # Errors
    /// When a node can't read it.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        for node in self.layout.nodes(self.nodes) {
            let mut command = Command::new("ctr");
            command.arg("--address").arg(node.socket()).args(["--namespace", "k8s.io", "images", "import"]);
            succeed(command.arg(archive).env("PATH", &self.prepared.path), None, IMPORT)?;
        }
        Ok(())
    }

    /// Measures the memory of everything in the cluster from now on.
    #[must_use]
    pub fn watch_memory(&self) -> MemoryWatch {
        let record = self.record();
        let roots: Vec<i32> =
            record.machine.iter().chain(&record.outside).map(|process| process.pid).collect();
        let (peak, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, ended) = (Arc::clone(&peak), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let all = processes::descendants(&roots);
                seen.fetch_max(
                    all.into_iter().filter_map(processes::proportional_kib).sum(),
                    Ordering::Relaxed,
                );
                thread::park_timeout(SAMPLE_EVERY);
            }
        });
        MemoryWatch { peak, stop, thread: std::sync::Mutex::new(Some(thread)) }
    }
}

/// A measurement that goes on until it is read.
pub struct MemoryWatch {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl MemoryWatch {
    /// Ends it, and gives the highest sum in MiB that was seen, in which shared pages count once.
    #[must_use]
    pub fn peak_mib(&self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            thread.thread().unpark();
            let _ = thread.join();
        }
        self.peak.load(Ordering::Relaxed) / 1024
    }
}
