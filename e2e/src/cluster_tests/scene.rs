//! Where a test is played: its namespaces, the workloads in them, and the pods from which it looks.

use super::Ground;
use crate::install::Redirect;
use crate::place::{Outcome, Place};
use crate::see::{APP_IMAGE, See, restricted_container, restricted_pod};
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Far longer than a change takes to all proxies.
const IN_FORCE: Duration = Duration::from_secs(120);
/// With it a namespace refuses every capability.
pub const RESTRICTED: &str = "pod-security.kubernetes.io/enforce=restricted";
/// The port of every server.
pub const PORT: u16 = 8080;

/// A test's namespaces and what is in them.
pub struct Scene<'a> {
    /// Eyes and hands.
    pub see: See<'a>,
    /// The test's own namespace; made by [`Scene::enrolled`] or [`Scene::not_enrolled`].
    pub namespace: String,
    /// Who sets the redirect of its pods.
    pub redirect: Redirect,
    made: Mutex<Vec<String>>,
    /// Whether a failure was told.
    told: AtomicBool,
}

/// A workload of a scene: a Deployment of servers.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'w> {
    /// Its name, its label `app`, and, when meshed, its service account.
    pub name: &'w str,
    /// How many pods.
    pub replicas: u32,
    /// The ports that it serves.
    pub ports: &'w [u16],
    /// Whether its pods have the sidecar.
    pub meshed: bool,
    /// The user that its container runs as.
    pub user: u32,
}

impl<'w> Workload<'w> {
    /// One meshed pod that serves [`PORT`].
    #[must_use]
    pub fn meshed(name: &'w str) -> Self {
        Self { name, replicas: 1, ports: &[PORT], meshed: true, user: 1000 }
    }

    /// One pod that has opted out.
    #[must_use]
    pub fn unmeshed(name: &'w str) -> Self {
        Self { meshed: false, ..Self::meshed(name) }
    }

    /// Pod Security `restricted` has nothing against it.
    pub fn manifest(&self, namespace: &str) -> Value {
        let mut labels = json!({"app": self.name});
        if let (false, Some(labels)) = (self.meshed, labels.as_object_mut()) {
            labels.insert("cinch.dev/inject".to_owned(), json!("disabled"));
        }
        let listed = self.ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let ports: Vec<Value> = self.ports.iter().map(|port| json!({"containerPort": port})).collect();
        let ready = json!({"httpGet": {"path": "/ready", "port": self.ports.first()}, "periodSeconds": 1});
        let container = json!({"name": "app", "image": APP_IMAGE, "ports": ports, "readinessProbe": ready,
            "args": ["serve", "--ports", listed, "--drain", "0s"], "securityContext": restricted_container()});
        let metadata = json!({"name": self.name, "namespace": namespace, "labels": {"app": self.name}});
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {"replicas": self.replicas, "selector": {"matchLabels": {"app": self.name}},
                "template": {"metadata": {"labels": labels},
                    "spec": {"terminationGracePeriodSeconds": 2, "securityContext": restricted_pod(self.user),
                        "containers": [container]}}}})
    }
}

/// The namespace of a test, from its name.
pub fn namespace_of(test: &str) -> String {
    let words: String = test
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' })
        .collect();
    format!("test-{}", words.split('-').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-"))
}

impl<'a> Scene<'a> {
    /// An empty scene for a test.
    pub fn new(Ground { cluster, redirect }: Ground<'a>, test: &str) -> Self {
        Self {
            see: See { cluster },
            namespace: namespace_of(test),
            redirect,
            made: Mutex::default(),
            told: AtomicBool::default(),
        }
    }

    /// Makes the test's namespace, enrolled, with these workloads ready in it.
    pub fn enrolled(&self, workloads: &[Workload<'_>]) -> Result<()> {
        self.enrolled_besides(&self.namespace, workloads)
    }

    /// Makes one more enrolled namespace with workloads.
    pub fn enrolled_besides(&self, namespace: &str, workloads: &[Workload<'_>]) -> Result<()> {
        self.make(namespace, true)?;
        self.run_in(namespace, workloads)
    }

    /// Makes the test's namespace, not enrolled yet.
    pub fn not_enrolled(&self) -> Result<()> {
        self.make(&self.namespace, false)
    }

    /// Makes one more namespace, which is not enrolled.
    pub fn not_enrolled_besides(&self, namespace: &str) -> Result<()> {
        self.make(namespace, false)
    }

    /// Makes the test's namespace, enrolled, where Pod Security lets nothing with a capability in, and no pod
    /// without the sidecar is stored: a busy webhook's miss is tried again by the pod's controller. Where an init
    /// container sets the redirect, Pod Security would keep it out and is left as it is.
    pub fn restricted(&self) -> Result<()> {
        self.not_enrolled()?;
        let mut label = vec!["label", "namespace", &self.namespace, "cinch.dev/injection=required"];
        label.extend((self.redirect == Redirect::Agent).then_some(RESTRICTED));
        self.see.kubectl(&label)?;
        self.enrol()
    }

    /// Enrols the test's namespace.
    pub fn enrol(&self) -> Result<()> {
        self.see.kubectl(&["label", "namespace", &self.namespace, "cinch.dev/mesh=enabled"]).map(drop)
    }

    fn make(&self, namespace: &str, enrolled: bool) -> Result<()> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(namespace.to_owned());
        let mut labels = json!({"cinch-e2e": "test"});
        if let (true, Some(labels)) = (enrolled, labels.as_object_mut()) {
            labels.insert("cinch.dev/mesh".to_owned(), json!("enabled"));
        }
        let own = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}});
        // Without plaintext it would be promoted within seconds, in the midst of the test.
        let posture = json!({"apiVersion": "cinch.dev/v1alpha1", "kind": "Posture",
            "metadata": {"name": "mesh", "namespace": namespace}, "spec": {"promotion": "Paused"}});
        self.see
            .apply(&json!({"apiVersion": "v1", "kind": "List", "items": [own, posture]}).to_string())
            .map(drop)
    }

    /// Runs workloads in the test's namespace and waits until they are ready.
    pub fn run(&self, workloads: &[Workload<'_>]) -> Result<()> {
        self.run_in(&self.namespace, workloads)
    }

    fn run_in(&self, namespace: &str, workloads: &[Workload<'_>]) -> Result<()> {
        if workloads.is_empty() {
            return Ok(());
        }
        let items: Vec<Value> = workloads.iter().map(|workload| workload.manifest(namespace)).collect();
        self.see.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
        workloads.iter().try_for_each(|Workload { name, meshed, .. }| {
            if *meshed {
                return self.see.meshed(namespace, "deployment", name);
            }
            self.see.rolled_out(namespace, &format!("deployment/{name}"))
        })
    }

    /// The pods of a workload.
    pub fn places(&self, namespace: &str, workload: &str) -> Result<Vec<Place>> {
        let pods = self.see.pods(namespace, &format!("app={workload}"))?;
        ensure!(!pods.is_empty(), "{namespace}/{workload} has no pod");
        pods.iter().map(|pod| Place::of(self.see.cluster, pod)).collect()
    }

    /// The first pod of a workload of the test's namespace.
    pub fn place(&self, workload: &str) -> Result<Place> {
        self.places(&self.namespace, workload)?.into_iter().next().context("no pod")
    }

    /// Where a workload of the test's namespace listens: its first pod.
    pub fn server(&self, workload: &str) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.place(workload)?.address, PORT))
    }

    /// Applies an object of `security.istio.io` to the test's namespace; what kubectl said, warnings included.
    pub fn policy(&self, kind: &str, name: &str, spec: Value) -> Result<String> {
        self.policy_with(kind, name, json!({}), spec)
    }

    /// As [`Scene::policy`], with annotations.
    pub fn policy_with(&self, kind: &str, name: &str, annotations: Value, spec: Value) -> Result<String> {
        let object = policy(kind, &self.namespace, name, annotations, spec);
        let said = self.see.apply(&object.to_string())?;
        terminal::show(&format!(
            "$ kubectl apply -f {name}.yaml    # {}\n{}",
            object.get("spec").unwrap_or(&Value::Null),
            said.trim()
        ));
        Ok(said)
    }

    /// Deletes such an object.
    pub fn without_policy(&self, kind: &str, name: &str) -> Result<()> {
        self.see.kubectl(&["delete", kind, name, "-n", &self.namespace]).map(drop)
    }

    /// Waits until a call comes to `wanted`.
    pub fn until(&self, from: &Place, to: SocketAddr, wanted: &Outcome) -> Result<()> {
        wait::until(&format!("a call of {} to {to} to be {wanted}", from.pod), IN_FORCE, || {
            let outcome = from.ask(to);
            Ok(if outcome == *wanted { Seen::Done(()) } else { Seen::Not(outcome.to_string()) })
        })
    }

    /// Some calls, which all come to `wanted`.
    pub fn always(&self, from: &Place, to: SocketAddr, wanted: &Outcome) -> Result<()> {
        for _ in 0..5 {
            let outcome = from.ask(to);
            ensure!(outcome == *wanted, "a call of {} to {to} came to {outcome}, not {wanted}", from.pod);
        }
        Ok(())
    }

    /// Asks for the deletion of everything that was made; that it comes to its end is looked at after all tests.
    pub fn close(&self) -> Result<()> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let mut args = vec!["delete", "namespace", "--wait=false", "--ignore-not-found"];
        args.extend(made.iter().map(String::as_str));
        if made.is_empty() { Ok(()) } else { self.see.kubectl(&args).map(drop) }
    }

    /// Hands `result` on. A failure is told with what a person needs to understand it now, before anything that it
    /// left is taken away, and once.
    pub fn told<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() && !self.told.swap(true, Ordering::Relaxed) {
            for namespace in self.made.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                self.see.cluster.print_namespace(namespace);
            }
            self.see.cluster.print_parts();
        }
        result
    }
}

/// An object of `security.istio.io`.
#[must_use]
pub fn policy(kind: &str, namespace: &str, name: &str, annotations: Value, spec: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations}, "spec": spec})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_named_like_its_test() {
        assert_eq!(namespace_of("policy: live labels"), "test-policy-live-labels");
    }
}
