//! The node agent, in a namespace that enforces Pod Security `restricted`: nobody gets round the redirect, what is
//! missing closes and heals, and pods that end while it is replaced do not hang.

use super::scene::{PORT, Scene, Workload};
use super::ways_round::{PROXY_UID, WaysRound};
use crate::cluster::processes::Process;
use crate::install::{AGENT, NAMESPACE, agents_ready};
use crate::place::{Outcome, Place, SERVED, open};
use crate::see::{APP_IMAGE, PODS, number, restricted_container, text};
use crate::wait::{self, Seen};
use anyhow::{Context, Result, ensure};
use cinch_redirect::request::ASKED_EVERY;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Sidecars ask at least so often; the rest is for a busy machine.
const HEALED: Duration = ASKED_EVERY.saturating_add(Duration::from_secs(30));
/// Between two looks for a table that shall come back.
const LOOK_FOR_TABLE: Duration = Duration::from_millis(25);
/// How many pods start while the agent is killed, and end while it is replaced.
const ENDING: u32 = 8;
/// With one kubectl: it takes a quarter of a second, and the agent is replaced within a few.
const DELETED_AT_ONCE: usize = 4;
/// Their name.
pub const STARTING: &str = "many";
/// The container beside each of their servers.
const CALLER: &str = "caller";
/// How often the agent is killed while they start, and the least time between.
const KILLS: usize = 3;
const BETWEEN_KILLS: Duration = Duration::from_millis(700);
/// Pods that start ask long before, and those that run each half minute.
const AT_WORK: Duration = Duration::from_secs(60);
/// A redirect is set within some milliseconds.
const LOOK_AT_WORK: Duration = Duration::from_micros(200);

/// Plays all of it.
pub fn agent(scene: &Scene<'_>) -> Result<String> {
    scene.restricted()?;
    let ways_round = WaysRound::prepare(scene)?;
    let taker = Workload { user: PROXY_UID, ..Workload::meshed("taker") };
    scene.run(&[Workload::meshed("api"), Workload::meshed("client"), taker])?;
    let (client, to) = (scene.place("client")?, scene.server("api")?);
    gate(scene, &[own_principal(scene, "taker"), ways_round.principal()])?;
    scene.until(&client, to, &Outcome::Reset)?;
    the_taker_is_served(scene, to)?;
    let tried = ways_round.try_all(to)?;
    scene.without_policy("authorizationpolicies", "gate")?;
    scene.until(&client, to, &SERVED)?;
    updated(scene, &client, to)?;
    away(scene, &client, to)?;
    let flushed = flushed(scene, &client, to)?;
    ways_round.refusals_are_in_status()?;
    let killed = killed_while_they_start(scene, &client, to)?;
    let ended = ended_while_replaced(scene, &orphaned(scene, ENDING)?)?;
    Ok(format!(
        "UID 1507 goes through its proxy; {tried}; no agent: no app starts and a restarted sidecar refuses, both \
         heal; {flushed}; {killed}; {ended}"
    ))
}

/// The name that the calls of one of this scene's workloads have.
fn own_principal(scene: &Scene<'_>, workload: &str) -> String {
    format!("cluster.local/ns/{}/sa/{workload}", scene.namespace)
}

/// From here on `api` serves these principals alone.
fn gate(scene: &Scene<'_>, principals: &[String]) -> Result<()> {
    let rules = json!([{"from": [{"source": {"principals": principals}}]}]);
    let spec = json!({"selector": {"matchLabels": {"app": "api"}}, "rules": rules});
    scene.policy("AuthorizationPolicy", "gate", spec).map(drop)
}

/// A process of an app that has the proxy's user is served by a name that it can only have by way of its proxy.
fn the_taker_is_served(scene: &Scene<'_>, to: SocketAddr) -> Result<()> {
    let (pod, to) = (scene.place("taker")?.pod, to.to_string());
    let call = ["exec", "-n", &scene.namespace, &pod, "-c", "app", "--", "/cinch-demo-app", "call"];
    let call: Vec<&str> = call.into_iter().chain(["--rounds", "1", "--to", &to]).collect();
    scene.see.kubectl(&call).context("a process of UID 1507 gets round its proxy").map(drop)
}

/// A new agent changes nothing for pods that run.
fn updated(scene: &Scene<'_>, client: &Place, to: SocketAddr) -> Result<()> {
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
fn away(scene: &Scene<'_>, client: &Place, to: SocketAddr) -> Result<()> {
    let select = |value: Value| {
        let patch =
            json!({"spec": {"template": {"spec": {"nodeSelector": {"cinch-e2e": value}}}}}).to_string();
        scene.see.kubectl(&["patch", AGENT, "-n", NAMESPACE, "--type=merge", "-p", &patch])
    };
    select(json!("nowhere"))?;
    let played = scene.told(without_agent(scene, client, to));
    select(Value::Null)?;
    scene.see.rolled_out(NAMESPACE, AGENT)?;
    played?;
    scene.until(client, to, &SERVED)?;
    scene.see.rolled_out(&scene.namespace, "deployment/late")
}

fn without_agent(scene: &Scene<'_>, client: &Place, to: SocketAddr) -> Result<()> {
    wait::until("the agents to be gone", PODS, || {
        let left =
            scene.see.items(&["pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=node"])?.len();
        Ok(if left == 0 { Seen::Done(()) } else { Seen::Not(format!("{left} pods")) })
    })?;
    scene.see.cluster.kill_container(&scene.namespace, &client.pod, "cinch-proxy")?;
    let restarts = wait::until("the sidecar to start again", PODS, || {
        let pod = scene.see.json(&["pod", &client.pod, "-n", &scene.namespace])?;
        let restarts = number(&pod, "/status/initContainerStatuses/0/restartCount");
        let running = pod.pointer("/status/initContainerStatuses/0/state/running").is_some();
        let seen = format!("{restarts} restarts, running: {running}");
        Ok(if restarts > 0 && running { Seen::Done(restarts) } else { Seen::Not(seen) })
    })?;
    let check = scene.see.cluster.cinch(&["check"])?;
    let named = check.text().lines().find(|line| line.starts_with("✗ node")).map(str::to_owned);
    let named = named.filter(|line| line.contains("no agent")).with_context(|| check.text())?;
    ensure!(!check.ok(), "a node without an agent is no success: {named}");
    for _ in 0..5 {
        let outcome = client.ask(to);
        let closed = matches!(outcome, Outcome::Reset | Outcome::Refused);
        ensure!(closed, "a call past a sidecar that started {restarts} times without an agent: {outcome}");
    }
    // Last, for the kubelet tries again after ever longer times.
    scene.see.apply(&Workload::meshed("late").manifest(&scene.namespace).to_string())?;
    let missing = "reason=FailedMount";
    wait::until("the kubelet to miss the agent", PODS, || {
        let events = scene.see.items(&["events", "-n", &scene.namespace, "--field-selector", missing])?;
        let pods = scene.see.pods(&scene.namespace, "app=late")?;
        let seen = format!("no event; pods of late: {}", pods.len());
        Ok(if events.is_empty() { Seen::Not(seen) } else { Seen::Done(()) })
    })?;
    for pod in scene.see.pods(&scene.namespace, "app=late")? {
        let started = pod.pointer("/status/containerStatuses/0/started").and_then(Value::as_bool);
        ensure!(started != Some(true), "an app started without an agent: {}", text(&pod, "/metadata/name"));
    }
    Ok(())
}

/// A table that somebody removes is set again, and told of; how long it took.
fn flushed(scene: &Scene<'_>, client: &Place, to: SocketAddr) -> Result<String> {
    let table = |what: &str| {
        let cluster = scene.see.cluster;
        let mut command = cluster.pod_network_command(&scene.namespace, &client.pod, "app", "nft")?;
        command.args([what, "table", "inet", "cinch"]);
        Ok::<_, anyhow::Error>(command)
    };
    let (mut delete, mut list) = (table("delete")?, table("list")?);
    ensure!(delete.output()?.status.success(), "there was no table to flush");
    let gone = Instant::now();
    while !list.output()?.status.success() {
        ensure!(gone.elapsed() < HEALED, "the table was not set again within {} s", HEALED.as_secs());
        thread::sleep(LOOK_FOR_TABLE);
    }
    let healed = gone.elapsed();
    let told = "reason=RedirectWasGone";
    wait::until("the Posture to tell of it", HEALED, || {
        let events = scene.see.items(&["events", "-n", &scene.namespace, "--field-selector", told])?;
        let notes: Vec<String> = events.iter().map(|event| text(event, "/message")).collect();
        let is_named = notes.iter().any(|note| note.contains(&client.pod));
        Ok(if is_named { Seen::Done(()) } else { Seen::Not(format!("events: {notes:?}")) })
    })?;
    let told = gone.elapsed();
    scene.until(client, to, &SERVED)?;
    Ok(format!(
        "a flushed table was set again after {:.2} s and told of after {:.2} s (sidecars ask each {} s, and at once when \
         their own dials go astray)",
        healed.as_secs_f64(),
        told.as_secs_f64(),
        ASKED_EVERY.as_secs()
    ))
}

/// Pods start while the agent's process is killed again and again, wherever it is in setting their redirects. Each of
/// their apps calls from its first moment on, where only its name is served, and is called in plaintext, which its
/// mode refuses: with less than the whole redirect one of the two would come out otherwise.
fn killed_while_they_start(scene: &Scene<'_>, client: &Place, to: SocketAddr) -> Result<String> {
    gate(scene, &[own_principal(scene, STARTING)])?;
    let selector = json!({"matchLabels": {"app": STARTING}});
    scene.policy(
        "PeerAuthentication",
        STARTING,
        json!({"selector": selector, "mtls": {"mode": "STRICT"}}),
    )?;
    scene.until(client, to, &Outcome::Reset)?;
    let outside = Place::outside(scene.see.cluster)?;
    scene.see.apply(&callers(scene, to).to_string())?;
    let mut reached = Vec::new();
    let at_work = thread::scope(|scope| {
        let killing = scope.spawn(|| (0..KILLS).map(|_| kill_the_agent(scene)).collect::<Result<Vec<_>>>());
        let started = wait::until("the pods to start", PODS, || {
            let pods = scene.see.pods(&scene.namespace, &format!("app={STARTING}"))?;
            reached.extend(reached_in_plaintext(&pods, &outside));
            Ok(all_are_ready(&pods))
        });
        let at_work =
            killing.join().map_err(|_| anyhow::anyhow!("the thread that kills the agent failed"))??;
        started.map(|()| at_work.into_iter().filter(|at_work| *at_work).count())
    })?;
    ensure!(at_work > 0, "the agent was never killed while it set a redirect");
    ensure!(reached.is_empty(), "reached in plaintext: {reached:?}");
    agents_ready(scene.see.cluster)?;
    let chosen = format!("app={STARTING}");
    let logs = ["logs", "-n", &scene.namespace, "-l", &chosen, "-c", CALLER, "--prefix", "--tail=-1"];
    let said = scene.see.kubectl(&logs)?;
    // Past its proxy, a call would be reset. What only took too long says that the machine is busy.
    let is_reset = |line: &&str| line.contains(" failed ") && !line.contains("no answer in time");
    let reset: Vec<&str> = said.lines().filter(is_reset).collect();
    ensure!(reset.is_empty(), "apps called past their proxies, or were refused: {}", reset.join("; "));
    let api = scene.see.kubectl(&["logs", "-n", &scene.namespace, "deployment/api", "-c", "app"])?;
    let calls = api.lines().filter(|line| line.contains(&format!("client={STARTING}"))).count();
    ensure!(calls >= ENDING as usize, "{ENDING} pods called {calls} times");
    Ok(format!(
        "the agent killed {KILLS} times while {ENDING} pods started, {at_work} of them inside a pod's network: all did, {calls} calls of their apps went through \
         their proxies, none in plaintext reached them"
    ))
}

/// As many servers as shall end later, each with a client beside it that calls `to` from its first moment on.
fn callers(scene: &Scene<'_>, to: SocketAddr) -> Value {
    let servers = Workload { replicas: ENDING, ..Workload::meshed(STARTING) };
    let mut manifest = servers.manifest(&scene.namespace);
    let client = json!({"name": CALLER, "image": APP_IMAGE, "securityContext": restricted_container(),
        "args": ["call", "--name", STARTING, "--to", to.to_string(), "--interval", "200ms"]});
    let containers = manifest.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut);
    if let Some(containers) = containers {
        containers.push(client);
    }
    manifest
}

/// Those of the pods whose app answers a call in plaintext.
fn reached_in_plaintext(pods: &[Value], outside: &Place) -> Vec<IpAddr> {
    let addresses = pods.iter().filter_map(|pod| text(pod, "/status/podIP").parse().ok());
    addresses.filter(|address| outside.ask(SocketAddr::new(*address, PORT)) == SERVED).collect()
}

fn all_are_ready(pods: &[Value]) -> Seen<()> {
    let ready = |pod: &&Value| {
        let statuses = pod.pointer("/status/containerStatuses").and_then(Value::as_array);
        statuses.is_some_and(|all| all.iter().all(|status| status.get("ready") == Some(&json!(true))))
    };
    let ready = pods.iter().filter(ready).count();
    let all = ready == ENDING as usize;
    if all { Seen::Done(()) } else { Seen::Not(format!("{ready} of {} pods ready", pods.len())) }
}

/// Kills the process of the one node's agent, as soon as it runs again after an earlier time, and one of its threads has
/// entered the network of a pod to set its redirect; whether one had.
fn kill_the_agent(scene: &Scene<'_>) -> Result<bool> {
    let cluster = scene.see.cluster;
    let agent = wait::until("the agent to run, to be killed", PODS, || {
        let pods = scene.see.pods(NAMESPACE, "app.kubernetes.io/component=node")?;
        let name = pods.first().map(|pod| text(pod, "/metadata/name")).context("no agent")?;
        let pid = cluster.container_pid(NAMESPACE, &name, "cinch-node")?;
        Ok(Process::now(pid).map_or_else(|| Seen::Not("it has just ended".to_owned()), Seen::Done))
    })?;
    let (begun, mut at_work) = (Instant::now(), false);
    while !at_work && agent.runs() && begun.elapsed() < AT_WORK {
        thread::sleep(LOOK_AT_WORK);
        at_work = visits_a_pod(agent.pid);
    }
    agent.kill();
    // So that it comes to set some redirects in between.
    thread::sleep(BETWEEN_KILLS);
    Ok(at_work)
}

/// Whether one of the agent's threads is in the network of a pod: each visit is a thread of this name.
fn visits_a_pod(agent: i32) -> bool {
    let process = Path::new("/proc").join(agent.to_string());
    let network = |of: &Path| fs::read_link(of.join("ns/net")).ok();
    let own = network(&process);
    let threads = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
    let is_visit =
        |thread: &Path| fs::read_to_string(thread.join("comm")).is_ok_and(|name| name == "visit\n");
    let mut visits = threads.map(|thread| thread.path()).filter(|thread| is_visit(thread));
    visits.any(|visit| network(&visit).is_some_and(|network| Some(network) != own))
}

/// Makes so many pods at once, which nothing replaces, and waits until they are ready; their names. The scene's
/// namespace is there already.
pub fn nobodys_pods(scene: &Scene<'_>, count: u32) -> Result<Vec<String>> {
    scene.run(&[Workload { replicas: count, ..Workload::meshed(STARTING) }])?;
    orphaned(scene, count)
}

/// Takes the pods' owners away; the names of the pods.
fn orphaned(scene: &Scene<'_>, count: u32) -> Result<Vec<String>> {
    let (namespace, chosen) = (scene.namespace.as_str(), format!("app={STARTING}"));
    // Its deployment first: it would make another replica set.
    for owner in ["deployments", "replicasets"] {
        scene.see.kubectl(&["delete", owner, "-l", &chosen, "-n", namespace, "--cascade=orphan"])?;
    }
    let pods = scene.see.pods(namespace, &chosen)?;
    ensure!(pods.len() == count as usize, "{} pods of {count}", pods.len());
    Ok(pods.iter().map(|pod| text(pod, "/metadata/name")).collect())
}

/// The pods are deleted, some at a time, while the agent is replaced. Each ends.
pub fn ended_while_replaced(scene: &Scene<'_>, names: &[String]) -> Result<String> {
    let (namespace, count) = (scene.namespace.as_str(), names.len());
    let failed_before = failed_unmounts(scene);
    let (mut asked, mut slowest) = (BTreeMap::new(), Duration::ZERO);
    scene.see.kubectl(&["rollout", "restart", AGENT, "-n", NAMESPACE])?;
    let replaced = thread::scope(|scope| {
        let rollout = scope.spawn(|| scene.see.rolled_out(NAMESPACE, AGENT));
        let mut within = 0;
        for some in names.chunks(DELETED_AT_ONCE) {
            within += if rollout.is_finished() { 0 } else { some.len() };
            let some = || some.iter().map(String::as_str);
            let delete = ["delete", "pod", "-n", namespace, "--wait=false"].into_iter().chain(some());
            scene.see.kubectl(&delete.collect::<Vec<_>>())?;
            asked.extend(some().map(|name| (name.to_owned(), Instant::now())));
        }
        rollout.join().map_err(|_| anyhow::anyhow!("the thread that waits for the agent failed"))??;
        Ok::<_, anyhow::Error>(within)
    })?;
    wait::until("the pods to have ended", PODS, || {
        let left = scene.see.items(&["pods", "-n", namespace, "-l", &format!("app={STARTING}")])?;
        let left: Vec<String> = left.iter().map(|pod| text(pod, "/metadata/name")).collect();
        asked.retain(|name, since: &mut Instant| {
            let is_left = left.contains(name);
            slowest = slowest.max(if is_left { Duration::ZERO } else { since.elapsed() });
            is_left
        });
        let left: Vec<&str> = asked.keys().map(String::as_str).collect();
        Ok(if left.is_empty() { Seen::Done(()) } else { Seen::Not(left.join(", ")) })
    })?;
    let failed = failed_unmounts(scene).saturating_sub(failed_before);
    Ok(format!(
        "{count} pods deleted, {replaced} of them while the agent was replaced: all ended, the slowest within {:.1} s; \
         {failed} unmounts had to be tried again",
        slowest.as_secs_f64()
    ))
}

/// How often the kubelets have said that a volume of the agent could not be taken back.
fn failed_unmounts(scene: &Scene<'_>) -> usize {
    let cluster = scene.see.cluster;
    let logs = cluster
        .node_names()
        .into_iter()
        .map(|node| fs::read(cluster.state_dir().join(node).join("logs/kubelet.log")).unwrap_or_default());
    let failed = |line: &str| line.contains("UnmountVolume.TearDown failed") && line.contains("cinch-agent");
    logs.map(|log| String::from_utf8_lossy(&log).lines().filter(|line| failed(line)).count()).sum()
}
