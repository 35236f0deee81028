//! The node agent: the release is switched to it, a namespace that enforces Pod Security `restricted` is played
//! through, and the release is switched back.

use super::scene::{PORT, Scene};
use crate::install::NAMESPACE;
use crate::place::{Outcome, Place, SERVED, open};
use crate::prepare::repository;
use crate::see::{APP_IMAGE, PODS, number, text};
use crate::wait::{self, Seen};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;

const AGENT: &str = "daemonset/cinch-node";
/// The user of the sidecar. Its rule looks at the container, not at the user, so that whoever takes it gains nothing.
const PROXY_UID: u32 = 1507;
/// Sidecars ask each half minute.
const HEALED: Duration = Duration::from_secs(45);
/// The times of the install, and as long again for a namespace before this one that is still in probation.
const PROMOTED: Duration = Duration::from_secs(120);

/// Pods need no capability, nobody gets round the redirect, and everything that is missing closes.
pub fn mode(scene: &Scene<'_>) -> Result<String> {
    let played = redirect_by(scene, "agent").and_then(|()| play(scene));
    // Its pods can't end without the agent, so they come first, whatever the play came to.
    let gone = deleted_while_updated(scene);
    redirect_by(scene, "init")?;
    let shown = played?;
    gone?;
    Ok(format!("{shown}; pods ended while the agent was replaced"))
}

fn play(scene: &Scene<'_>) -> Result<String> {
    restricted(scene)?;
    run(scene, &[("api", 1000), ("client", 1000), ("taker", PROXY_UID)])?;
    for pod in scene.see.pods(&scene.namespace, "app")? {
        let init = pod.pointer("/spec/initContainers").and_then(Value::as_array).context("not injected")?;
        let names: Vec<String> = init.iter().map(|container| text(container, "/name")).collect();
        ensure!(
            names == ["cinch-proxy"],
            "{} has the init containers {names:?}",
            text(&pod, "/metadata/name")
        );
    }
    let (client, to) = (scene.place("client")?, scene.server("api")?);
    only_the_taker(scene, &client, to)?;
    scene.without_policy("authorizationpolicies", "gate")?;
    scene.until(&client, to, &SERVED)?;
    updated(scene, &client, to)?;
    away(scene, &client, to)?;
    flushed(scene, &client, to)?;
    promoted(scene)?;
    scene.always(&client, to, &SERVED)?;
    Ok("restricted: one sidecar and no capability; UID 1507 goes through its proxy; no agent: no app starts and a \
        restarted sidecar refuses, both heal; a flushed table is set again; promoted to STRICT"
        .to_owned())
}

/// Switches the release and waits until all of it has the new mode.
fn redirect_by(scene: &Scene<'_>, mode: &str) -> Result<()> {
    let chart = repository()?.join("charts/cinch").display().to_string();
    let mode = format!("redirect.mode={mode}");
    let upgrade = ["upgrade", "cinch", &chart, "-n", NAMESPACE, "--reuse-values", "--set-string", &mode];
    let output = scene.see.cluster.helm(&upgrade)?;
    ensure!(output.ok(), "helm upgrade: {}", output.text().trim());
    for workload in ["deployment/cinch-operator", "deployment/cinch-webhook"] {
        scene.see.rolled_out(NAMESPACE, workload)?;
    }
    if mode.ends_with("agent") { scene.see.rolled_out(NAMESPACE, AGENT) } else { Ok(()) }
}

/// The test's namespace, enrolled, where nothing with a capability is let in.
fn restricted(scene: &Scene<'_>) -> Result<()> {
    scene.not_enrolled()?;
    let label = "pod-security.kubernetes.io/enforce=restricted";
    scene.see.kubectl(&["label", "namespace", &scene.namespace, label])?;
    scene.enrol()
}

fn server(namespace: &str, name: &str, user: u32) -> Value {
    let container = json!({"name": "app", "image": APP_IMAGE, "args": ["serve", "--drain", "0s"],
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": PORT}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}});
    let user = json!({"runAsNonRoot": true, "runAsUser": user, "seccompProfile": {"type": "RuntimeDefault"}});
    let labels = json!({"app": name});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 2, "securityContext": user, "containers": [container]}}}})
}

/// Applies servers, each with its user, and waits until they are ready.
fn run(scene: &Scene<'_>, servers: &[(&str, u32)]) -> Result<()> {
    for (name, user) in servers {
        scene.see.apply(&server(&scene.namespace, name, *user).to_string())?;
    }
    let mut names = servers.iter().map(|(name, _)| format!("deployment/{name}"));
    names.try_for_each(|name| scene.see.rolled_out(&scene.namespace, &name))
}

/// A process of an app that has the proxy's user is served by a name that it can only have by way of its proxy.
fn only_the_taker(scene: &Scene<'_>, client: &Place, to: std::net::SocketAddr) -> Result<()> {
    let principal = format!("cluster.local/ns/{}/sa/taker", scene.namespace);
    let rules = json!([{"from": [{"source": {"principals": [principal]}}]}]);
    let spec = json!({"selector": {"matchLabels": {"app": "api"}}, "rules": rules});
    scene.policy("AuthorizationPolicy", "gate", spec)?;
    scene.until(client, to, &Outcome::Reset)?;
    let (pod, to) = (scene.place("taker")?.pod, to.to_string());
    let call = ["exec", "-n", &scene.namespace, &pod, "-c", "app", "--", "/cinch-demo-app", "call"];
    let call: Vec<&str> = call.into_iter().chain(["--rounds", "1", "--to", &to]).collect();
    scene.see.kubectl(&call).context("a process of UID 1507 gets round its proxy").map(drop)
}

/// A new agent changes nothing for pods that run.
fn updated(scene: &Scene<'_>, client: &Place, to: std::net::SocketAddr) -> Result<()> {
    let mut kept = open(client, to)?;
    let first = kept.ask();
    ensure!(first == SERVED, "before the update: {first}");
    scene.see.kubectl(&["rollout", "restart", AGENT, "-n", NAMESPACE])?;
    scene.always(client, to, &SERVED)?;
    scene.see.rolled_out(NAMESPACE, AGENT)?;
    scene.always(client, to, &SERVED)?;
    let last = kept.ask();
    ensure!(last == SERVED, "the open connection after the update: {last}");
    Ok(())
}

/// Without an agent no app starts, and a sidecar that starts again is closed; both heal with it.
fn away(scene: &Scene<'_>, client: &Place, to: std::net::SocketAddr) -> Result<()> {
    let select = |value: Value| {
        let patch =
            json!({"spec": {"template": {"spec": {"nodeSelector": {"cinch-e2e": value}}}}}).to_string();
        scene.see.kubectl(&["patch", AGENT, "-n", NAMESPACE, "--type=merge", "-p", &patch])
    };
    select(json!("nowhere"))?;
    let played = without_agent(scene, client, to);
    select(Value::Null)?;
    scene.see.rolled_out(NAMESPACE, AGENT)?;
    played?;
    scene.until(client, to, &SERVED)?;
    scene.see.rolled_out(&scene.namespace, "deployment/late")
}

fn without_agent(scene: &Scene<'_>, client: &Place, to: std::net::SocketAddr) -> Result<()> {
    wait::until("the agents to be gone", PODS, || {
        let left = scene.see.pods(NAMESPACE, "app.kubernetes.io/component=node")?.len();
        Ok(if left == 0 { Seen::Done(()) } else { Seen::Not(format!("{left} pods")) })
    })?;
    scene.see.cluster.kill_container(&scene.namespace, &client.pod, "cinch-proxy")?;
    scene.see.apply(&server(&scene.namespace, "late", 1000).to_string())?;
    let missing = "reason=FailedMount";
    wait::until("the kubelet to miss the agent", PODS, || {
        let events = scene.see.items(&["events", "-n", &scene.namespace, "--field-selector", missing])?;
        Ok(if events.is_empty() { Seen::Not("no event".to_owned()) } else { Seen::Done(()) })
    })?;
    let restarts = wait::until("the sidecar to start again", PODS, || {
        let pod = scene.see.json(&["pod", &client.pod, "-n", &scene.namespace])?;
        let restarts = number(&pod, "/status/initContainerStatuses/0/restartCount");
        let running = pod.pointer("/status/initContainerStatuses/0/state/running").is_some();
        let seen = format!("{restarts} restarts, running: {running}");
        Ok(if restarts > 0 && running { Seen::Done(restarts) } else { Seen::Not(seen) })
    })?;
    for _ in 0..5 {
        let outcome = client.ask(to);
        let closed = matches!(outcome, Outcome::Reset | Outcome::Refused);
        ensure!(closed, "a call past a sidecar that started {restarts} times without an agent: {outcome}");
    }
    for pod in scene.see.pods(&scene.namespace, "app=late")? {
        let started = pod.pointer("/status/containerStatuses/0/started").and_then(Value::as_bool);
        ensure!(started != Some(true), "an app started without an agent: {}", text(&pod, "/metadata/name"));
    }
    Ok(())
}

/// A table that somebody removes is set again.
fn flushed(scene: &Scene<'_>, client: &Place, to: std::net::SocketAddr) -> Result<()> {
    let nft = |arguments: [&str; 4]| {
        let cluster = scene.see.cluster;
        let mut command = cluster.pod_network_command(&scene.namespace, &client.pod, "app", "nft")?;
        Ok::<_, anyhow::Error>(command.args(arguments).output()?.status.success())
    };
    ensure!(nft(["delete", "table", "inet", "cinch"])?, "there was no table to flush");
    wait::until("the agent to set the table again", HEALED, || {
        let there = nft(["list", "table", "inet", "cinch"])?;
        Ok(if there { Seen::Done(()) } else { Seen::Not("no table".to_owned()) })
    })?;
    scene.until(client, to, &SERVED)
}

/// What holds in other namespaces holds here: without plaintext it is locked.
fn promoted(scene: &Scene<'_>) -> Result<()> {
    let patch = json!({"spec": {"promotion": "Automatic"}}).to_string();
    scene.see.kubectl(&["patch", "posture", "mesh", "-n", &scene.namespace, "--type=merge", "-p", &patch])?;
    let strict = |status: &Value| (text(status, "/mode") == "STRICT").then_some(());
    scene.see.posture_until(&scene.namespace, "the namespace to be STRICT", PROMOTED, strict)
}

/// Deletes the test's namespace in the midst of an update of the agent; none of its pods may hang.
fn deleted_while_updated(scene: &Scene<'_>) -> Result<()> {
    // There is none when the release could not be switched.
    let restarted = scene.see.attempt(&["rollout", "restart", AGENT, "-n", NAMESPACE])?;
    let limit = format!("--timeout={}s", PODS.as_secs());
    scene.see.kubectl(&["delete", "namespace", &scene.namespace, "--ignore-not-found", &limit])?;
    if restarted.ok() { scene.see.rolled_out(NAMESPACE, AGENT) } else { Ok(()) }
}
