//! Talking to the cluster: kubectl, Helm and `kubectl cinch` as subprocesses inside its network, each with a
//! limit of time and with its files in the state directory.

use super::Cluster;
use crate::process::{Output, capture};
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Longer than any `--timeout` that callers give to `kubectl wait` and `rollout status`.
const LIMIT: Duration = Duration::from_secs(240);
/// Helm waits for what it installs.
const HELM_LIMIT: Duration = Duration::from_secs(300);

impl Cluster {
    /// Runs kubectl as administrator, at most 4 min.
    ///
    /// # Errors
    /// When it can't be started; that it failed is in the output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<Output> {
        capture(self.kubectl_command().args(arguments), None, LIMIT)
    }

    /// Runs kubectl as administrator with `stdin` (`-f -`).
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn kubectl_stdin(&self, arguments: &[&str], stdin: &str) -> Result<Output> {
        capture(self.kubectl_command().args(arguments), Some(stdin), LIMIT)
    }

    /// Runs kubectl from outside of the cluster's network, with a kubeconfig for a forwarded port.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn kubectl_outside(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.prepared.kubectl);
        self.environment(&mut command);
        capture(command.env("KUBECONFIG", kubeconfig).args(arguments), None, LIMIT)
    }

    /// As [`Cluster::kubectl`], and gives its standard output.
    ///
    /// # Errors
    /// Also when kubectl fails: with what it said.
    pub fn kubectl_ok(&self, arguments: &[&str]) -> Result<String> {
        succeeded(&format!("kubectl {}", arguments.join(" ")), self.kubectl(arguments)?)
    }

    /// `kubectl get … -o json`, parsed.
    ///
    /// # Errors
    /// When it does not exist, or kubectl fails.
    pub fn get_json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let all: Vec<&str> = ["get", "-o", "json"].into_iter().chain(arguments.iter().copied()).collect();
        serde_json::from_str(&self.kubectl_ok(&all)?).context("kubectl's JSON can't be read")
    }

    /// Runs Helm, at most 5 min.
    ///
    /// # Errors
    /// When it can't be started; that it failed is in the output.
    pub fn helm(&self, arguments: &[&str]) -> Result<Output> {
        capture(self.in_network(&self.prepared.helm).args(arguments), None, HELM_LIMIT)
    }

    /// Runs the `kubectl cinch` that was built with the images, at most 5 min: it may wait for rollouts.
    ///
    /// # Errors
    /// When it can't be started; that it failed is in the output.
    pub fn cinch(&self, arguments: &[&str]) -> Result<Output> {
        capture(self.in_network(self.layout.file("bin/kubectl-cinch")).args(arguments), None, HELM_LIMIT)
    }

    /// Runs a program of the machine inside the cluster's network (not inside a node): it reaches the API
    /// server, nodes, pods and Services.
    ///
    /// # Errors
    /// When it can't be started; that it failed is in the output.
    pub fn run_in_netns(&self, command: &[&str]) -> Result<Output> {
        let (program, arguments) = command.split_first().context("an empty command")?;
        capture(self.in_network(program).args(arguments), None, LIMIT)
    }

    /// The cluster's network namespace, in which the control plane is, to be entered by a thread.
    ///
    /// # Errors
    /// When it is gone.
    pub fn network(&self) -> Result<File> {
        let pid = self.record().machine.map_or(0, |machine| machine.pid);
        File::open(format!("/proc/{pid}/ns/net")).context("the cluster's network is gone")
    }

    /// A command, to be completed, that runs inside the cluster's network as its administrator.
    pub fn in_network(&self, program: impl AsRef<OsStr>) -> Command {
        let pid = self.record().machine.map_or(0, |machine| machine.pid);
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{pid}/ns/net")).arg("--").arg(program.as_ref());
        self.environment(&mut command);
        command
    }

    /// kubectl's and Helm's caches belong to the cluster's files, not into the user's home.
    fn environment(&self, command: &mut Command) {
        let home = self.layout.file("home");
        command.env("KUBECONFIG", self.layout.admin()).env("KUBECACHEDIR", home.join("kube"));
        for (variable, folder) in [
            ("HELM_CACHE_HOME", "helm-cache"),
            ("HELM_CONFIG_HOME", "helm-config"),
            ("HELM_DATA_HOME", "helm-data"),
        ] {
            command.env(variable, home.join(folder));
        }
        command.env("HOME", &home).env("PATH", self.path());
    }

    /// Our own kubectl, and plugins, before whatever the machine has.
    fn path(&self) -> std::ffi::OsString {
        let mut path = std::ffi::OsString::from(self.layout.file("bin"));
        for more in
            [self.prepared.kubectl.parent().map(Path::as_os_str), Some(self.prepared.path.as_os_str())]
        {
            path.push(":");
            path.push(more.unwrap_or_default());
        }
        path
    }

    /// kubectl, to be completed, as administrator.
    fn kubectl_command(&self) -> Command {
        self.in_network(&self.prepared.kubectl)
    }
}

fn succeeded(what: &str, output: Output) -> Result<String> {
    if !output.ok() {
        bail!("{what}: {}", output.text().trim());
    }
    Ok(output.stdout)
}
