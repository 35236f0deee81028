//! Starting a cluster: state directory, keys, the control plane's namespace, the nodes' namespaces; keeping it;
//! attaching to a kept one.

use super::control_plane;
use super::layout::{API_PORT, CONTROL_PLANE, Layout, Node};
use super::plan::{KEEP, Plan};
use super::processes::{self, MARK, Process};
use super::{Cluster, Record, cgroups, down, node, pki};
use crate::prepare::Prepared;
use crate::process::{succeed, tail};
use crate::terminal;
use crate::wait::{Seen, until, wait_for};
use anyhow::{Context, Result, bail};
use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A control plane or a node that is not ready by then has failed, also on a loaded machine.
const READY: Duration = Duration::from_secs(180);
/// Namespaces are made within milliseconds.
const BORN: Duration = Duration::from_secs(20);

/// What a cluster shall be like.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name: that of its folder. Clusters of different names don't meet.
    pub name: String,
    /// How many nodes, 1 to 9.
    pub nodes: u8,
}

impl Cluster {
    /// Starts a cluster in place of what may be left of an earlier one of this name. `images` is called while
    /// the control plane starts and writes the nodes' images into the folder that it is given.
    ///
    /// # Errors
    /// When something can't be started: then nothing is left of it.
    pub fn start(
        options: &Options,
        prepared: &Prepared,
        images: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let layout = Layout::new(&options.name);
        let nodes = layout.nodes(options.nodes);
        if let Some(pid) = Record::read(&layout).used_by() {
            bail!("the cluster {} belongs to process {pid}; choose another --name", options.name);
        }
        down(&layout).context("an earlier cluster can't be removed")?;
        let record = Record { owner: Process::now(i32::try_from(std::process::id())?), ..Record::default() };
        let cluster = Self::of(layout, prepared, options.nodes, record);
        // From here on a failure takes down what there is, when the cluster is dropped.
        cluster.ours.store(true, Ordering::Relaxed);
        make_state(&cluster.layout, prepared)?;
        cluster.record().write(&cluster.layout)?;
        pki::write(&cluster.layout, &nodes)?;
        let start = Instant::now();
        cluster.start_control_plane(&control_plane::plan(&cluster.layout, &nodes, prepared)?)?;
        images(&cluster.layout.file("images"))?;
        for node in &nodes {
            cluster.start_node(node)?;
        }
        cluster.await_ready(&nodes)?;
        terminal::say(format_args!(
            "start: Kubernetes with {} node(s) is up, {:.1} s after its first process",
            nodes.len(),
            start.elapsed().as_secs_f64()
        ));
        Ok(cluster)
    }

    fn of(layout: Layout, prepared: &Prepared, nodes: u8, record: Record) -> Self {
        let (record, prepared) = (Mutex::new(record), prepared.clone());
        Self { layout, prepared, record, starter: Mutex::default(), nodes, ours: AtomicBool::new(false) }
    }

    /// The kept cluster of that name.
    ///
    /// # Errors
    /// When there is none that runs.
    pub fn attach(name: &str, prepared: &Prepared) -> Result<Self> {
        let layout = Layout::new(name);
        let record = Record::read(&layout);
        if !record.machine.is_some_and(Process::runs) {
            bail!("no cluster {name} runs; `cargo e2e up --keep` starts one");
        }
        let nodes = u8::try_from(record.nodes.len())?;
        Ok(Self::of(layout, prepared, nodes, record))
    }

    /// Lets the cluster outlive this process, forwards a loopback port to its API server, and returns the
    /// kubeconfig for that port.
    ///
    /// # Errors
    /// When the forwarder can't be started.
    pub fn keep(self) -> Result<PathBuf> {
        let port = self.forward_port("port")?;
        self.change_record(|record| {
            record.port = Some(port);
            record.owner = None;
        })?;
        let kubeconfig = self.kubeconfig_for(port, "kubeconfig")?;
        self.ours.store(false, Ordering::Relaxed);
        let starter = self.starter.lock().ok().and_then(|mut starter| starter.take());
        if let Some(mut pipe) = starter.and_then(|mut child| child.stdin.take()) {
            pipe.write_all(KEEP.as_bytes()).context("the cluster's first process has gone")?;
        }
        Ok(kubeconfig)
    }

    /// Forwards a free loopback port to the API server, by a process that ends with the cluster; its number, which is
    /// written into the file `name`, too.
    ///
    /// # Errors
    /// When the forwarder can't be started.
    pub fn forward_port(&self, name: &str) -> Result<u16> {
        let machine = self.record().machine.context("the cluster has no first process")?;
        let port_file = self.layout.file(name);
        let mut command = Command::new(self.layout.file("cinch-e2e"));
        command.arg("forward").arg(format!("--pid={}", machine.pid));
        command
            .arg(format!("--target={CONTROL_PLANE}:{API_PORT}"))
            .arg(format!("--port-file={}", port_file.display()));
        let forwarder =
            detached(&mut command, &self.layout, &self.layout.logs().join("forward.log"))?.spawn()?;
        self.change_record(|record| record.outside.extend(Process::now(forwarder.id().cast_signed())))?;
        wait_for("the forwarded port", BORN, || {
            Ok(fs::read_to_string(&port_file).ok().and_then(|text| text.parse().ok()))
        })
    }

    /// An administrator's kubeconfig for a forwarded port, as the file `name`.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn kubeconfig_for(&self, port: u16, name: &str) -> Result<PathBuf> {
        pki::kubeconfig(&self.layout, "forwarded", &format!("https://127.0.0.1:{port}"), "admin")?;
        let kubeconfig = self.layout.file(name);
        fs::rename(self.layout.pki("forwarded.conf"), &kubeconfig)?;
        Ok(kubeconfig)
    }

    fn start_control_plane(&self, plan: &Plan) -> Result<()> {
        let file = self.layout.file("control-plane.json");
        fs::write(&file, serde_json::to_vec_pretty(plan)?)?;
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
        command.arg(self.layout.file("cinch-e2e")).arg("init").arg("--guarded").arg(&file);
        let log = self.layout.logs().join("init.log");
        let child = detached(&mut command, &self.layout, &log)?.stdin(Stdio::piped()).spawn()?;
        let waiting = child.id().cast_signed();
        if let Ok(mut starter) = self.starter.lock() {
            *starter = Some(child);
        }
        let machine = born(waiting, &log)?;
        self.change_record(|record| {
            record.machine = Some(machine);
            record.outside.extend(Process::now(waiting));
        })
    }

    /// Starts a node: its namespaces inside the cluster's, and the cable to the bridge.
    pub(super) fn start_node(&self, node: &Node) -> Result<()> {
        let all = self.layout.nodes(self.nodes);
        let added = cgroups::create(&self.layout.cgroup(&node.name()))?;
        self.change_record(|record| record.controllers.extend(added))?;
        let plan = node::plan(&self.layout, node, &all, &self.prepared)?;
        let (file, log) = (node.file("plan.json"), node.file("logs/init.log"));
        fs::write(&file, serde_json::to_vec_pretty(&plan)?)?;
        let machine = self.record().machine.context("the cluster has no first process")?;
        let mut command = Command::new("nsenter");
        command.args([&format!("--target={}", machine.pid), "--net", "--mount", "--pid", "--", "unshare"]);
        command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
        command.arg(self.layout.file("cinch-e2e")).arg("init").arg(&file);
        let child: Child = detached(&mut command, &self.layout, &log)?.stdin(Stdio::null()).spawn()?;
        // nsenter forks to enter the PID namespace, so unshare is its child.
        let entered = born(child.id().cast_signed(), &log)?;
        let first = born(entered.pid, &log)?;
        self.change_record(|record| {
            record.nodes.retain(|(name, _)| *name != node.name());
            record.nodes.push((node.name(), first));
            record
                .outside
                .extend([Process::now(child.id().cast_signed()), Some(entered)].into_iter().flatten());
        })?;
        self.plug_in(node, first)
    }

    /// The cable between the bridge and the node.
    fn plug_in(&self, node: &Node, first: Process) -> Result<()> {
        let cable = node.cable();
        let own = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net"));
        let machine = self.record().machine.context("the cluster has no first process")?;
        wait_for("the node's network", BORN, || Ok((own(first.pid)? != own(machine.pid)?).then_some(())))?;
        let pid = first.pid.to_string();
        let link = super::layout::NODE_LINK;
        let bridge = super::layout::BRIDGE;
        self.ip(&["link", "add", &cable, "type", "veth", "peer", "name", link, "netns", &pid])?;
        self.ip(&["link", "set", &cable, "master", bridge])?;
        self.ip(&["link", "set", &cable, "up"])
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.in_network("ip");
        succeed(command.args(arguments), None, BORN).map(drop)
    }

    fn await_ready(&self, nodes: &[Node]) -> Result<()> {
        wait_for("the control plane", READY, || {
            self.alive()?;
            Ok(self.layout.file("control-plane.done").exists().then_some(()))
        })
        .with_context(|| tail(&self.layout.logs().join("apiserver.log"), 10))?;
        terminal::say("start: the control plane is ready");
        for node in nodes {
            let name = node.name();
            let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status} {.spec.podCIDR}";
            until(&format!("node {name} to be Ready"), READY, || {
                let status = self.kubectl(&["get", "node", &name, "-o", ready])?;
                match status.stdout.trim() {
                    found if found.starts_with("True") && found.ends_with("/24") => Ok(Seen::Done(())),
                    found if status.ok() && !found.ends_with("/24") => {
                        self.assign_pods(node).map(|()| Seen::Not("registered".into()))
                    }
                    _ => Ok(Seen::Not(status.text())),
                }
            })
            .with_context(|| tail(&node.file("logs/kubelet.log"), 10))?;
        }
        wait_for("the default service account", READY, || {
            let found = self.kubectl(&["get", "serviceaccount", "default", "-n", "default"])?;
            Ok(found.ok().then_some(()))
        })
    }

    /// What a cloud's controller would do: tells the API which pod addresses are the node's.
    fn assign_pods(&self, node: &Node) -> Result<()> {
        let patch =
            serde_json::json!({"spec": {"podCIDR": node.pods(), "podCIDRs": [node.pods()]}}).to_string();
        self.kubectl_ok(&["patch", "node", &node.name(), "-p", &patch]).map(drop)
    }

    /// An error when the cluster's first process has ended.
    fn alive(&self) -> Result<()> {
        match self.record().machine {
            Some(machine) if machine.runs() => Ok(()),
            _ => bail!("the control plane has ended:\n{}", tail(&self.layout.logs().join("init.log"), 10)),
        }
    }

    pub(super) fn change_record(&self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut record = self.record.lock().map_err(|_| anyhow::anyhow!("another thread failed"))?;
        change(&mut record);
        record.write(&self.layout)
    }
}

/// Only root may enter it: it holds the cluster's keys. Our own program is copied there, because a build may
/// replace it while the cluster runs.
fn make_state(layout: &Layout, prepared: &Prepared) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&layout.state)
        .with_context(|| format!("{} can't be made", layout.state.display()))?;
    for folder in ["images", "bin", "home"] {
        fs::create_dir_all(layout.file(folder))?;
    }
    for (name, program) in [("kubectl", &prepared.kubectl), ("helm", &prepared.helm)] {
        symlink(program, layout.file("bin").join(name))?;
    }
    fs::copy("/proc/self/exe", layout.file("cinch-e2e")).context("our own program can't be copied")?;
    Ok(())
}

/// The one child of a process that forks once.
fn born(parent: i32, log: &Path) -> Result<Process> {
    let process = Process::now(parent);
    wait_for("a namespace's first process", BORN, || {
        if !process.is_some_and(Process::runs) {
            bail!("it ended at once: {}", tail(log, 5));
        }
        Ok(processes::children(parent).first().and_then(|pid| Process::now(*pid)))
    })
}

/// Output to a log, the cluster's mark, and a process group of its own: Ctrl-C in the terminal is for us.
fn detached<'a>(command: &'a mut Command, layout: &Layout, log: &Path) -> Result<&'a mut Command> {
    let out = fs::OpenOptions::new().create(true).append(true).open(log)?;
    command.env(MARK, &layout.state).stderr(out.try_clone()?).stdout(out).stdin(Stdio::null());
    Ok(command.process_group(0))
}
