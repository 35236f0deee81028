//! Figures of the redirect, which are not tests: what the sidecar adds to the start of a pod, by the node agent and by
//! the init container, each paired with a pod without mesh; many pods that start at once; what the agent needs while
//! they run; how long a table is gone that somebody flushed; and how pods end while the agent is replaced.

use super::Ground;
use super::agent::{STARTING, ended_while_replaced, nobodys_pods};
use super::scene::{Scene, Workload};
use crate::cluster::Cluster;
use crate::cluster::api::Api;
use crate::install::{self, AGENT_MODE, INIT_MODE, NAMESPACE};
use crate::see::{PODS, is_meshed, text};
use crate::terminal;
use crate::wait::{Seen, until};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at a pod that starts.
const LOOK: Duration = Duration::from_millis(10);
/// A pod that has not started by then has failed.
const STARTED: Duration = Duration::from_secs(120);
/// What a sidecar logs when it has its redirect, before the time that it took since it asked first.
const REDIRECTED: &str = "the node agent has set the redirect took=";
/// How long the agent is looked at while pods only run: each of them asks twice.
const AT_REST: Duration = Duration::from_secs(60);
/// The kernel's `USER_HZ`, in which it tells of processor time: on all machines that we are built for.
const TICKS: f64 = 100.0;
/// In this many pods the table is flushed, one after the other: so they are at different points of their pauses.
const FLUSHED: u32 = 20;
const BETWEEN_FLUSHES: Duration = Duration::from_millis(700);
/// So many are deleted while the agent is replaced.
const ENDED: usize = 30;
/// Between two looks for the table: each starts a program.
const LOOK_FOR_TABLE: Duration = Duration::from_millis(250);
/// Sidecars try their redirects as often as they report. So often they do by default, and in tests.
const REPORTS_BY_DEFAULT: &str = "proxy.reportInterval=10s";
const REPORTS_OF_TESTS: &str = "proxy.reportInterval=1s";
/// By then each sidecar has been told of the new pause.
const TOLD: Duration = Duration::from_secs(15);

/// Measures and prints all of it; leaves the release as it was. So many pods are started at once, each number after the
/// other; the last ones are looked at while they run, and end while the agent is replaced.
///
/// # Errors
/// When something can't be started or does not end.
pub fn run(cluster: &Cluster, rounds: usize, at_once: &[u32]) -> Result<()> {
    let ground = Ground { cluster, redirect: install::Redirect::Agent };
    let scene = Scene::new(ground, "figures");
    let played = scene.told(all(&scene, rounds, at_once));
    scene.close()?;
    played
}

fn all(scene: &Scene<'_>, rounds: usize, at_once: &[u32]) -> Result<()> {
    scene.enrolled(&[])?;
    let plain = format!("{}-plain", scene.namespace);
    scene.not_enrolled_besides(&plain)?;
    starts(scene, &plain, "agent", rounds)?;
    for (at, count) in at_once.iter().enumerate() {
        let names = many(scene, *count)?;
        if at + 1 < at_once.len() {
            ended(scene)?;
        } else {
            with_many(scene, &names)?;
        }
    }
    install::redirect_by(scene.see.cluster, INIT_MODE)?;
    let played = starts(scene, &plain, "init", rounds);
    install::redirect_by(scene.see.cluster, AGENT_MODE)?;
    played
}

/// Starts so many pods at once; their names.
fn many(scene: &Scene<'_>, count: u32) -> Result<Vec<String>> {
    let names = nobodys_pods(scene, count)?;
    let waits: Result<Vec<Duration>> = names.iter().map(|name| redirected(scene, name)).collect();
    terminal::say(format_args!(
        "{count} sidecars started at once, from their start to the redirect: {}",
        spread(waits?)
    ));
    Ok(names)
}

/// What is measured with these pods, which have ended then.
fn with_many(scene: &Scene<'_>, names: &[String]) -> Result<()> {
    terminal::say(at_rest(scene, names.len())?);
    terminal::say(flushed(scene, names)?);
    let some = names.get(..ENDED).unwrap_or(names);
    terminal::say(ended_while_replaced(scene, some)?);
    ended(scene)
}

/// Deletes what is left of the pods that have started at once, and waits for their end.
fn ended(scene: &Scene<'_>) -> Result<()> {
    let (namespace, chosen) = (scene.namespace.as_str(), format!("app={STARTING}"));
    let limit = format!("--timeout={}s", PODS.as_secs());
    scene.see.kubectl(&["delete", "pods", "-l", &chosen, "-n", namespace, &limit]).map(drop)
}

/// How long a sidecar waited for its redirect.
fn redirected(scene: &Scene<'_>, name: &str) -> Result<Duration> {
    let log = scene.see.kubectl(&["logs", name, "-n", &scene.namespace, "-c", "cinch-proxy"])?;
    let took = log.lines().find_map(|line| line.split_once(REDIRECTED)).map(|(_, took)| took.trim());
    took.and_then(duration).with_context(|| format!("{name} does not say how long: {log}"))
}

/// The middle, and what all but one of a hundred do not exceed: of fewer, the slowest.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: usize| times.get((times.len() * share).div_ceil(100).saturating_sub(1)).copied();
    let [middle, most, all] = [50, 99, 100].map(|share| at(share).unwrap_or_default());
    format!("p50 {middle:.2?}, p99 {most:.2?}, slowest {all:.2?}")
}

/// What the one node's agent needs while so many pods run and ask.
fn at_rest(scene: &Scene<'_>, pods: usize) -> Result<String> {
    let cluster = scene.see.cluster;
    let agents = scene.see.pods(NAMESPACE, "app.kubernetes.io/component=node")?;
    let agent = agents.first().map(|pod| text(pod, "/metadata/name")).context("no agent")?;
    let pid = cluster.container_pid(NAMESPACE, &agent, "cinch-node")?;
    let (begun, before) = (Instant::now(), ticks(pid)?);
    thread::sleep(AT_REST);
    let used = (ticks(pid)? - before) as f64 / TICKS;
    let share = 100.0 * used / begun.elapsed().as_secs_f64();
    let kib = cluster.resident_kib(NAMESPACE, &agent, "cinch-node")?;
    Ok(format!(
        "the agent with {pods} pods that only run, over {} s: {share:.1} % of a core, {:.1} MiB resident",
        AT_REST.as_secs(),
        kib as f64 / 1024.0
    ))
}

fn ticks(pid: i32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    ticks_in(&stat).with_context(|| format!("no times in {stat:?}"))
}

/// A process's own processor time and the kernel's for it: fields 14 and 15 of proc_pid_stat(5). The second field is
/// a name of any letters and ends with the last parenthesis.
fn ticks_in(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut times = rest.split_whitespace().skip(11).map(str::parse::<u64>);
    Some(times.next()?.ok()? + times.next()?.ok()?)
}

/// Removes the tables of some pods and waits until the agent has set them again; how long they were gone.
fn flushed(scene: &Scene<'_>, names: &[String]) -> Result<String> {
    let cluster = scene.see.cluster;
    install::redirect_by(cluster, REPORTS_BY_DEFAULT)?;
    thread::sleep(TOLD);
    let times = flush(scene, names);
    install::redirect_by(cluster, REPORTS_OF_TESTS)?;
    let times = times?;
    Ok(format!(
        "{} tables flushed by hand, each until the agent had set it again, sidecars with their default pauses: {}",
        times.len(),
        spread(times)
    ))
}

fn flush(scene: &Scene<'_>, names: &[String]) -> Result<Vec<Duration>> {
    let nft = |name: &str, what: &str| {
        let mut command = scene.see.cluster.pod_network_command(&scene.namespace, name, "app", "nft")?;
        command.args([what, "table", "inet", "cinch"]);
        Ok::<_, anyhow::Error>(command)
    };
    let pods = names.iter().take(FLUSHED as usize);
    let commands: Result<Vec<_>> = pods.map(|name| Ok((nft(name, "delete")?, nft(name, "list")?))).collect();
    let turns = (0..FLUSHED).map(|turn| BETWEEN_FLUSHES * turn);
    thread::scope(|scope| {
        let gone: Vec<_> = commands?
            .into_iter()
            .zip(turns)
            .map(|((delete, list), turn)| scope.spawn(move || gone_for(delete, list, turn)))
            .collect();
        gone.into_iter().map(|time| time.join().map_err(|_| anyhow!("a thread failed"))?).collect()
    })
}

/// Removes a table after `turn`, and looks for it until it is back.
fn gone_for(mut delete: Command, mut list: Command, turn: Duration) -> Result<Duration> {
    thread::sleep(turn);
    ensure!(delete.output()?.status.success(), "there was no table to flush");
    let gone = Instant::now();
    while !list.output()?.status.success() {
        ensure!(gone.elapsed() < STARTED, "a table was not set again within {} s", STARTED.as_secs());
        thread::sleep(LOOK_FOR_TABLE);
    }
    Ok(gone.elapsed())
}

/// Reads a duration as Rust prints it: `1.5s`, `20ms`, `700µs`.
fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    let (number, unit) = text.split_at_checked(unit)?;
    let seconds = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        _ => return None,
    };
    Some(Duration::from_secs_f64(number.parse::<f64>().ok()? * seconds))
}

/// Pods without and with the sidecar in turn, so that each pair meets the same machine.
fn starts(scene: &Scene<'_>, plain: &str, mode: &str, rounds: usize) -> Result<()> {
    let (mut pairs, mut waits) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let name = format!("start-{mode}-{round}");
        let (without, _) = start(scene, plain, &name)?;
        let (with, waited) = start(scene, &scene.namespace, &name)?;
        terminal::say(format_args!("{name}: {without:.2?} without the sidecar, {with:.2?} with it"));
        pairs.push((without, with));
        waits.extend(waited);
    }
    if !waits.is_empty() {
        terminal::say(format_args!(
            "{mode}, one pod at a time, from a sidecar's start to its redirect: {}",
            spread(waits)
        ));
    }
    let added = pairs.iter().map(|(without, with)| with.saturating_sub(*without)).collect();
    let (without, with) = pairs.into_iter().unzip();
    terminal::say(format_args!(
        "{mode}, from the request to a ready pod, p50 and slowest of {rounds} pairs: without mesh {}, with {}, added {}",
        middle(without),
        middle(with),
        middle(added)
    ));
    Ok(())
}

fn middle(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let seconds = |at: usize| times.get(at).map_or(f64::NAN, Duration::as_secs_f64);
    format!("{:.2} s, {:.2} s", seconds(times.len() / 2), seconds(times.len().saturating_sub(1)))
}

/// Starts one pod, looks at it until it is ready, and ends it: how long it took, and for how much of it its sidecar
/// waited for the agent, if it did.
fn start(scene: &Scene<'_>, namespace: &str, name: &str) -> Result<(Duration, Option<Duration>)> {
    let template = Workload::meshed(name).manifest(namespace);
    let mut spec = template.pointer("/spec/template/spec").cloned().unwrap_or_default();
    // Its own probe would round the times to whole seconds.
    spec.pointer_mut("/containers/0")
        .and_then(Value::as_object_mut)
        .context("no container")?
        .remove("readinessProbe");
    let metadata = json!({"name": name, "namespace": namespace, "labels": {"app": "start"}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
    let mut api = scene.see.cluster.api()?;
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    until("the namespace to be ready for pods", STARTED, || {
        let account = api.get(&format!("/api/v1/namespaces/{namespace}/serviceaccounts/default"));
        Ok(account.map_or_else(|error| Seen::Not(format!("{error:#}")), |_| Seen::Done(())))
    })?;
    let sent = api.create(&path, &pod)?.sent;
    let meshed = namespace == scene.namespace;
    let started = watch(&mut api, &format!("{path}/{name}"), sent, meshed);
    let waited = if meshed { redirected(scene, name).ok() } else { None };
    scene.see.kubectl(&["delete", "pod", name, "-n", namespace, "--timeout=120s"])?;
    Ok((started?, waited))
}

fn watch(api: &mut Api, path: &str, sent: Instant, meshed: bool) -> Result<Duration> {
    while sent.elapsed() < STARTED {
        let pod = api.get(path)?;
        ensure!(is_meshed(&pod) == meshed, "{path}: has the sidecar: {}", !meshed);
        let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
        let ready = |condition: &Value| {
            condition.get("type") == Some(&json!("Ready")) && condition.get("status") == Some(&json!("True"))
        };
        if conditions.is_some_and(|all| all.iter().any(ready)) {
            return Ok(sent.elapsed());
        }
        thread::sleep(LOOK);
    }
    bail!("{path} did not start within {} s", STARTED.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_whole_times() {
        let times = |count: u64| (1..=count).rev().map(Duration::from_secs).collect();
        assert_eq!(spread(times(200)), "p50 100.00s, p99 198.00s, slowest 200.00s");
        assert_eq!(spread(times(50)), "p50 25.00s, p99 50.00s, slowest 50.00s");
        assert_eq!(spread(Vec::new()), "p50 0.00ns, p99 0.00ns, slowest 0.00ns");
    }

    #[test]
    fn the_times_of_a_process_are_read_whatever_its_name() {
        let stat = "7 (a) 1 (b) S 1 7 7 0 -1 4194560 9 8 0 0 120 34 5 6 20 0 1 0 99 1000 2";
        assert_eq!(ticks_in(stat), Some(154));
        assert_eq!(ticks_in("7 (a) S 1"), None);
    }

    #[test]
    fn durations_are_read_as_they_are_logged() {
        for time in [
            Duration::from_millis(21),
            Duration::from_secs(3),
            Duration::from_micros(1500),
            Duration::from_micros(7),
        ] {
            assert_eq!(duration(&format!("{time:?}")), Some(time));
        }
        assert_eq!(duration("soon"), None);
    }
}
