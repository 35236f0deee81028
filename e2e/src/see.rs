//! How the story and the tests look at the cluster: kubectl with its answers as text, JSON or refusal.

use crate::cluster::Cluster;
use crate::process::Output;
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::time::Duration;

/// The image of every demo pod.
pub const APP_IMAGE: &str = "cinch.local/cinch-demo-app:0.1.0";
/// How long pods may take on a busy machine of two cores.
pub const PODS: Duration = Duration::from_secs(180);

/// What Pod Security `restricted` wants a pod to say of itself; it runs as `user`.
#[must_use]
pub fn restricted_pod(user: u32) -> Value {
    json!({"runAsNonRoot": true, "runAsUser": user, "seccompProfile": {"type": "RuntimeDefault"}})
}

/// What it wants a container to say.
#[must_use]
pub fn restricted_container() -> Value {
    json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}})
}

/// Eyes and hands.
#[derive(Clone, Copy)]
pub struct See<'a> {
    /// The cluster that is played on.
    pub cluster: &'a Cluster,
}

impl See<'_> {
    /// kubectl, which must succeed; its standard output.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = self.cluster.kubectl(args)?;
        if !output.ok() {
            bail!("kubectl {}: {}", args.join(" "), output.text().trim());
        }
        Ok(output.stdout)
    }

    /// kubectl, printed as a person would have typed it, with what it answered.
    pub fn shown(&self, args: &[&str]) -> Result<String> {
        let text = self.kubectl(args)?;
        terminal::show(&format!("$ kubectl {}\n{}", args.join(" "), text.trim_end()));
        Ok(text)
    }

    /// kubectl, whatever comes of it.
    pub fn attempt(&self, args: &[&str]) -> Result<Output> {
        self.cluster.kubectl(args)
    }

    /// `kubectl get ... -o json`.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let all: Vec<&str> = ["get"].iter().chain(args).chain(&["-o", "json"]).copied().collect();
        serde_json::from_str(&self.kubectl(&all)?).with_context(|| format!("kubectl {}", all.join(" ")))
    }

    /// The items of `kubectl get ... -o json`.
    pub fn items(&self, args: &[&str]) -> Result<Vec<Value>> {
        Ok(self.json(args)?.get("items").and_then(Value::as_array).cloned().unwrap_or_default())
    }

    /// Server-side apply of YAML.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let output = self.cluster.kubectl_stdin(&["apply", "--server-side", "-f", "-"], yaml)?;
        if !output.ok() {
            bail!("kubectl apply: {}", output.text().trim());
        }
        Ok(output.text())
    }

    /// `kubectl create` of YAML, whatever comes of it.
    pub fn create(&self, yaml: &str, extra: &[&str]) -> Result<Output> {
        let args: Vec<&str> = ["create", "-f", "-"].iter().chain(extra).copied().collect();
        self.cluster.kubectl_stdin(&args, yaml)
    }

    /// A command that must be refused, with one of our sentences; returns the sentence as it was shown.
    pub fn refused(&self, output: &Output, word: &str) -> Result<String> {
        let text = output.text();
        if output.ok() {
            bail!("it was accepted, but {word} should have refused it: {}", text.trim());
        }
        let sentence =
            text.lines().find_map(|line| line.find(&format!("{word}: ")).and_then(|at| line.get(at..)));
        let Some(sentence) = sentence else {
            bail!("it was refused, but not with {word}: {}", text.trim());
        };
        terminal::show(&format!("refused: {sentence}"));
        Ok(sentence.to_owned())
    }

    /// Waits until a workload (`deployment/web`) has rolled out.
    pub fn rolled_out(&self, namespace: &str, workload: &str) -> Result<()> {
        let limit = format!("--timeout={}s", PODS.as_secs());
        self.kubectl(&["rollout", "status", workload, "-n", namespace, &limit]).map(drop)
    }

    /// Waits until a workload whose pods have its name in their label `app` has rolled out and all of them have the
    /// sidecar. One without is deleted, so that its controller makes another: where nothing requires the sidecar, the
    /// API server stores a pod that a busy webhook did not see in time, and this is not about that.
    pub fn meshed(&self, namespace: &str, kind: &str, name: &str) -> Result<()> {
        wait::until(&format!("every pod of {namespace}/{name} to have the sidecar"), PODS, || {
            self.rolled_out(namespace, &format!("{kind}/{name}"))?;
            let pods = self.pods(namespace, &format!("app={name}"))?;
            let missed: Vec<String> =
                pods.iter().filter(|pod| !is_meshed(pod)).map(|pod| text(pod, "/metadata/name")).collect();
            for pod in &missed {
                terminal::show(&format!("{namespace}/{pod} has no sidecar and is deleted"));
                self.kubectl(&["delete", "pod", pod, "-n", namespace, "--wait=false"])?;
            }
            let all = !pods.is_empty() && missed.is_empty();
            Ok(if all {
                Seen::Done(())
            } else {
                Seen::Not(format!("{} pods, without: {missed:?}", pods.len()))
            })
        })
    }

    /// The Posture of a namespace.
    pub fn posture(&self, namespace: &str) -> Result<Value> {
        self.json(&["posture", "mesh", "-n", namespace])
    }

    /// Waits until the Posture's status is as wanted; `wanted` returns what it found, or why not.
    pub fn posture_until<T>(
        &self,
        namespace: &str,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T> {
        wait::until(what, limit, || {
            let posture = self.posture(namespace)?;
            let status = posture.get("status").cloned().unwrap_or_default();
            Ok(wanted(&status).map_or_else(|| Seen::Not(summary(&status)), Seen::Done))
        })
    }

    /// Pods of a namespace that match a label selector and are not on their way out.
    pub fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Value>> {
        let mut pods = self.items(&["pods", "-n", namespace, "-l", selector])?;
        pods.retain(|pod| pod.pointer("/metadata/deletionTimestamp").is_none());
        Ok(pods)
    }

    /// The addresses of those pods.
    pub fn addresses(&self, namespace: &str, selector: &str) -> Result<Vec<String>> {
        let pods = self.pods(namespace, selector)?;
        Ok(pods.iter().map(|pod| text(pod, "/status/podIP")).filter(|ip| !ip.is_empty()).collect())
    }
}

/// Whether a pod has the sidecar, whoever sets its redirect.
#[must_use]
pub fn is_meshed(pod: &Value) -> bool {
    let init = pod.pointer("/spec/initContainers").and_then(Value::as_array);
    init.into_iter().flatten().any(|container| text(container, "/name") == "cinch-proxy")
}

/// The string at a JSON pointer, or nothing.
pub fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The number at a JSON pointer, or 0.
pub fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

/// State, blockers and counts of a Posture's status in one line.
fn summary(status: &Value) -> String {
    let blockers = status.get("blockers").map(ToString::to_string).unwrap_or_default();
    let plaintext = status.get("plaintext").map(ToString::to_string).unwrap_or_default();
    format!(
        "state {} mode {} meshed {} plaintext {plaintext} blockers {blockers}",
        text(status, "/state"),
        text(status, "/mode"),
        text(status, "/meshed")
    )
}
