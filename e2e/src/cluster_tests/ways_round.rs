//! Ways round the redirect, tried on the cluster. Pods of a namespace that is not enrolled ask the node agent with our
//! own program, and debug containers ask beside a sidecar of an enrolled namespace that is not locked. None of them is
//! answered, and no redirect comes, goes or changes.

use super::scene::{PORT, Scene, Workload};
use crate::place::{Outcome, Place, SERVED};
use crate::process::succeed;
use crate::see::{APP_IMAGE, PODS, restricted_container, text};
use crate::story::admission::{self, remove, set};
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

/// The workload beside whose sidecar debug containers ask, and whose socket a stranger takes.
const TARGET: &str = "target";
/// The user of the sidecar. Its rule looks at the container, not at the user, so that whoever takes it gains nothing.
pub const PROXY_UID: u32 = 1507;
/// The container that alone is answered.
const SIDECAR: &str = "cinch-proxy";
/// Where a debug container in the sidecar's PID namespace finds the sidecar's socket.
const SOCKET: &str = "/proc/1/root/var/run/cinch/agent/agent.sock";
const TERMINATION_LOG: &str = "/dev/termination-log";
const NFT: Duration = Duration::from_secs(60);
/// Questions of one that asks in a loop.
const LOOP: usize = 60;

/// Whose container has another name than the sidecar's.
const RENAMED: &str = "renamed";
/// Who mounts the directory of another pod's socket.
const BORROWER: &str = "borrower";
/// Who is on the network of the node.
const ON_THE_NODE: &str = "on-the-node";
/// Pods that have all that a sidecar has but for one thing: reason and what the agent saw.
const STRANGERS: [(&str, [&str; 2]); 3] = [
    (RENAMED, ["NotTheSidecar", "the container \"renamed\" asks"]),
    (BORROWER, ["PeerOfAnotherPod", "belongs to the pod"]),
    (ON_THE_NODE, ["HostNetwork", "is on the network of the node"]),
];

/// Who has the sidecar's user and nothing else.
const SAME_USER: &str = "same-user";
/// Who may do everything, and asks as the sidecar's user.
const PRIVILEGED: &str = "privileged";
/// Who has unmounted its termination log too, and mounted a file with the path of the sidecar's.
const FORGER: &str = "forger";
/// Debug containers that target the sidecar, and what each says of its question.
const DEBUGGERS: [(&str, [&str; 2]); 3] = [
    (SAME_USER, ["no answer: the way to the socket", "Permission denied"]),
    (PRIVILEGED, ["NotTheSidecar", "the container \"privileged\" asks"]),
    (FORGER, ["NotTheSidecar", "it has no termination log of the pod"]),
];

/// The two namespaces in which they are tried, beside that of the scene.
pub struct WaysRound<'s, 'a> {
    scene: &'s Scene<'a>,
    /// Enrolled, not locked, and without Pod Security.
    open: String,
    /// Not enrolled.
    strangers: String,
}

impl<'s, 'a> WaysRound<'s, 'a> {
    /// Makes them, and in the first the pod that shall be got round; it starts meanwhile.
    pub fn prepare(scene: &'s Scene<'a>) -> Result<Self> {
        let (open, strangers) =
            (format!("{}-open", scene.namespace), format!("{}-strangers", scene.namespace));
        scene.not_enrolled_besides(&strangers)?;
        scene.enrolled_besides(&open, &[])?;
        scene.see.apply(&Workload::meshed(TARGET).manifest(&open).to_string())?;
        Ok(Self { scene, open, strangers })
    }

    /// The name that only the pod's sidecar can give to its calls.
    pub fn principal(&self) -> String {
        format!("cluster.local/ns/{}/sa/{TARGET}", self.open)
    }

    /// Tries all of them, beside each other. The server at `to` serves [`WaysRound::principal`] and not who has no name.
    pub fn try_all(&self, to: SocketAddr) -> Result<String> {
        let (scene, see) = (self.scene, &self.scene.see);
        see.meshed(&self.open, "deployment", TARGET)?;
        let target = scene.places(&self.open, TARGET)?.into_iter().next().context("no target")?;
        scene.until(&target, to, &SERVED)?;
        let redirect =
            || self.nft(&self.open, &target.pod, &["--stateless", "list", "table", "inet", "cinch"]);
        let before = redirect()?;
        let uid = text(&see.json(&["pod", &target.pod, "-n", &self.open])?, "/metadata/uid");
        self.start_strangers(&uid)?;
        let log = self.mounted_log(&target.pod, SIDECAR)?;
        self.start_debuggers(&target.pod, &log)?;
        self.strangers_are_refused(to)?;
        self.debuggers_are_refused(&target.pod, to)?;
        let forged = self.mounted_log(&target.pod, FORGER)?;
        ensure!(
            forged == log,
            "the forger's termination log has the path {forged}, that of the sidecar {log}"
        );
        let after = redirect()?;
        ensure!(after == before, "the redirect of {} was\n{before}\nand is\n{after}", target.pod);
        scene.always(&target, to, &SERVED)?;
        let names = STRANGERS.iter().chain(&DEBUGGERS).map(|(name, _)| *name).collect::<Vec<_>>();
        Ok(format!("{} are refused, and no redirect comes or changes", names.join(", ")))
    }

    /// Who goes on being refused ends, and the pod's status says why: nobody has to look for a log.
    pub fn refusals_are_in_status(&self) -> Result<()> {
        wait::until("the strangers' statuses to say why they ended", PODS, || {
            let pods = self.scene.see.pods(&self.strangers, "app")?;
            let silent: Vec<String> = pods.iter().filter_map(not_told).collect();
            let all = pods.len() == STRANGERS.len() && silent.is_empty();
            Ok(if all { Seen::Done(()) } else { Seen::Not(silent.join("; ")) })
        })
    }

    /// Creates the pods of [`STRANGERS`], each from the pod that the webhook makes; `uid` is the target's. The policy
    /// that keeps the agent's socket to the mesh refuses them, so it looks away meanwhile: here the agent is tried.
    fn start_strangers(&self, uid: &str) -> Result<()> {
        let see = &self.scene.see;
        let template = Workload::meshed("stranger").manifest(&self.scene.namespace);
        let spec = template.pointer("/spec/template/spec").cloned().unwrap_or_default();
        let metadata = json!({"name": "stranger", "namespace": self.scene.namespace});
        let asked = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        let canonical = admission::canonical(see, &asked.to_string())?;
        let pods: Result<Vec<Value>> =
            STRANGERS.iter().map(|(name, _)| self.stranger(&canonical, name, uid)).collect();
        let account = ["serviceaccount/default", "-n", &self.strangers, "--for=create", "--timeout=120s"];
        see.kubectl(&[&["wait"], &account[..]].concat())?;
        let pods = json!({"apiVersion": "v1", "kind": "List", "items": pods?}).to_string();
        see.refused(&see.create(&pods, &["--dry-run=server"])?, "DriverOutsideMesh")?;
        let elsewhere =
            json!([{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [self.strangers]}]);
        self.driver_policy_looks(&json!({"namespaceSelector": {"matchExpressions": elsewhere}}))?;
        let created = wait::until("the policy to look away", PODS, || {
            let created = see.apply(&pods);
            Ok(created.map_or_else(|error| Seen::Not(format!("{error:#}")), |_| Seen::Done(())))
        });
        self.driver_policy_looks(&Value::Null)?;
        created
    }

    /// Lets the policy look at namespaces as `resources` says; at all of them by null.
    fn driver_policy_looks(&self, resources: &Value) -> Result<()> {
        let patch = json!({"spec": {"matchResources": resources}}).to_string();
        let binding = ["validatingadmissionpolicybinding", "cinch-driver", "--type=merge", "-p", &patch];
        self.scene.see.kubectl(&[&["patch"], &binding[..]].concat()).map(drop)
    }

    fn stranger(&self, canonical: &Value, name: &str, uid: &str) -> Result<Value> {
        let mut pod = canonical.clone();
        let app = pod.pointer("/spec/containers/0").cloned().context("no app")?;
        let mut asker = pod.pointer("/spec/initContainers/0").cloned().context("not injected")?;
        // What only an init container may say.
        remove(&mut asker, "", &["restartPolicy", "startupProbe", "readinessProbe"]);
        remove(&mut pod, "/spec", &["initContainers"]);
        match name {
            RENAMED => set(&mut asker, "", "name", json!(RENAMED)),
            BORROWER => {
                let path = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/cinch-agent/mount");
                let volumes = pod.pointer_mut("/spec/volumes").and_then(Value::as_array_mut);
                let mut volumes = volumes.context("no volumes")?.iter_mut();
                let ours = volumes.find(|volume| text(volume, "/name") == "cinch-agent");
                *ours.context("no volume of the agent")? =
                    json!({"name": "cinch-agent", "hostPath": {"path": path, "type": "Directory"}});
            }
            _ => set(&mut pod, "/spec", "hostNetwork", json!(true)),
        }
        let metadata = json!({"name": name, "namespace": self.strangers, "labels": {"app": name}});
        set(&mut pod, "", "metadata", metadata);
        set(&mut pod, "/spec", "containers", json!([app, asker]));
        Ok(pod)
    }

    /// Each is refused with its reason and has no redirect: what it says in plaintext stays so, and has no name.
    fn strangers_are_refused(&self, to: SocketAddr) -> Result<()> {
        let scene = self.scene;
        for (name, words) in STRANGERS {
            let container = if name == RENAMED { RENAMED } else { SIDECAR };
            self.said(&self.strangers, name, container, words)?;
        }
        let places = wait::wait_for("the strangers' apps to run", PODS, || {
            let pods = scene.see.pods(&self.strangers, "app")?;
            ensure!(pods.len() == STRANGERS.len(), "{} pods", pods.len());
            pods.iter().map(|pod| Place::of(scene.see.cluster, pod)).collect::<Result<Vec<_>>>().map(Some)
        })?;
        let plain = places.iter().find(|place| place.pod == RENAMED).context("no plaintext server")?.address;
        for place in &places {
            let tables = self.nft(&self.strangers, &place.pod, &["list", "tables"])?;
            let has_ours = tables.lines().any(|table| table == "table inet cinch");
            ensure!(!has_ours, "{} has a redirect: {tables}", place.pod);
            scene.until(place, SocketAddr::new(plain, PORT), &SERVED)?;
            scene.always(place, to, &Outcome::Reset)?;
        }
        Ok(())
    }

    /// Adds the containers of [`DEBUGGERS`] to a pod, in the PID namespace of its sidecar, whose termination log is
    /// at the path `log` of its file system.
    fn start_debuggers(&self, pod: &str, log: &str) -> Result<()> {
        let user = PROXY_UID.to_string();
        let containers = DEBUGGERS.map(|(name, _)| {
            let mut args = vec!["ask", "--socket", SOCKET];
            let mut security = json!({"privileged": true, "runAsUser": 0, "runAsNonRoot": false});
            match name {
                SAME_USER => {
                    security = restricted_container();
                    set(&mut security, "", "runAsUser", json!(PROXY_UID));
                }
                FORGER => args.extend(["--user", &user, "--forge", log]),
                _ => args.extend(["--user", &user]),
            }
            json!({"name": name, "image": APP_IMAGE, "targetContainerName": SIDECAR, "args": args,
                "securityContext": security})
        });
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/ephemeralcontainers", self.open);
        let patch = json!({"spec": {"ephemeralContainers": containers}});
        self.scene.see.cluster.api()?.merge_patch(&path, &patch).map(drop)
    }

    /// Each is refused, and what runs in it goes through the sidecar as before: it is served by the pod's name.
    fn debuggers_are_refused(&self, pod: &str, to: SocketAddr) -> Result<()> {
        let to = to.to_string();
        for (name, words) in DEBUGGERS {
            self.said(&self.open, pod, name, words)?;
            let call = ["exec", "-n", &self.open, pod, "-c", name, "--", "/cinch-demo-app", "call"];
            let call: Vec<&str> = call.into_iter().chain(["--rounds", "1", "--to", &to]).collect();
            self.scene.see.kubectl(&call).with_context(|| format!("{name} gets round the sidecar"))?;
        }
        self.loop_is_limited(pod)
    }

    /// Who asks in a loop is told that it asks too often, and nothing else is done for it: as the sidecar's user, and as
    /// any other.
    fn loop_is_limited(&self, pod: &str) -> Result<()> {
        let (user, times) = (PROXY_UID.to_string(), LOOP.to_string());
        for how in [&["--user", &user][..], &[]] {
            let ask = ["exec", "-n", &self.open, pod, "-c", PRIVILEGED, "--", "/cinch-demo-app", "ask"];
            let ask = [&ask[..], &["--socket", SOCKET, "--times", &times], how].concat();
            let told = self.scene.see.kubectl(&ask)?;
            let count = |word: &str| told.lines().filter(|line| line.contains(word)).count();
            // Other users are not waited for then: the answer may come before the question.
            let (refused, limited) = (count("NotTheSidecar"), count("AskedTooOften") + count("no answer"));
            ensure!(
                count("AskedTooOften") > 0 && limited + refused == LOOP,
                "{LOOP} questions in a loop: {told}"
            );
            let who = if how.is_empty() { "root" } else { "the sidecar's user" };
            terminal::show(&format!(
                "{pod}, {PRIVILEGED}, as {who}: of {LOOP} questions {limited} came too often"
            ));
        }
        Ok(())
    }

    /// Waits until a container has logged a line with both words, and shows it.
    fn said(&self, namespace: &str, pod: &str, container: &str, words: [&str; 2]) -> Result<()> {
        let what = format!("{container} of {pod} to say {}", words.join(", "));
        let line = wait::until(&what, PODS, || {
            let said = self.scene.see.attempt(&["logs", pod, "-c", container, "-n", namespace])?.text();
            let line =
                said.lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned);
            Ok(line.map_or_else(|| Seen::Not(said.clone()), Seen::Done))
        })?;
        terminal::show(&format!("{pod}, {container}: {line}"));
        Ok(())
    }

    /// The path, in its file system, of the file that a container has for a termination log.
    fn mounted_log(&self, pod: &str, container: &str) -> Result<String> {
        let pid = self.scene.see.cluster.container_pid(&self.open, pod, container)?;
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
        let mut fields = mounts.lines().map(|line| line.split(' ').skip(3));
        let path = fields.find_map(|mut fields| {
            let (path, point) = (fields.next()?, fields.next()?);
            (point == TERMINATION_LOG).then(|| path.to_owned())
        });
        path.with_context(|| format!("{container} of {pod} has no termination log: {mounts}"))
    }

    /// What nft says in the network of a pod with a container `app`.
    fn nft(&self, namespace: &str, pod: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.scene.see.cluster.pod_network_command(namespace, pod, "app", "nft")?;
        succeed(command.args(arguments), None, NFT)
    }
}

/// What the status of a stranger says of its containers' ends, unless it has the reason.
fn not_told(pod: &Value) -> Option<String> {
    let name = text(pod, "/metadata/name");
    let (_, [reason, _]) = STRANGERS.iter().find(|(stranger, _)| *stranger == name)?;
    let statuses = pod.pointer("/status/containerStatuses").and_then(Value::as_array);
    let messages: Vec<String> = statuses
        .into_iter()
        .flatten()
        .flat_map(|status| {
            ["state", "lastState"].map(|at| text(status, &format!("/{at}/terminated/message")))
        })
        .collect();
    let is_told = messages.iter().any(|message| message.contains(reason));
    (!is_told).then(|| format!("{name} says {messages:?}"))
}
