//! Figures of the redirect, which are not tests: what the sidecar adds to the start of a pod, by the node agent and by
//! the init container, each paired with a pod without mesh; and how pods end while the agent is replaced.

use super::Ground;
use super::agent::{ended_while_replaced, nobodys_pods};
use super::scene::{Scene, Workload};
use crate::cluster::Cluster;
use crate::cluster::api::Api;
use crate::install::{self, AGENT_MODE, INIT_MODE};
use crate::see::is_meshed;
use crate::terminal;
use crate::wait::{Seen, until};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at a pod that starts.
const LOOK: Duration = Duration::from_millis(10);
/// A pod that has not started by then has failed.
const STARTED: Duration = Duration::from_secs(120);
/// How many pods start at once, and end while the agent is replaced.
const AT_ONCE: u32 = 30;
/// What a sidecar logs when it has its redirect, before the time that it took since it asked first.
const REDIRECTED: &str = "the node agent has set the redirect took=";

/// Measures and prints all of it; leaves the release as it was.
///
/// # Errors
/// When something can't be started or does not end.
pub fn run(cluster: &Cluster, rounds: usize) -> Result<()> {
    let ground = Ground { cluster, redirect: install::Redirect::Agent };
    let scene = Scene::new(ground, "figures");
    let played = scene.told(all(&scene, rounds));
    scene.close()?;
    played
}

fn all(scene: &Scene<'_>, rounds: usize) -> Result<()> {
    scene.enrolled(&[])?;
    let plain = format!("{}-plain", scene.namespace);
    scene.not_enrolled_besides(&plain)?;
    starts(scene, &plain, "agent", rounds)?;
    let names = nobodys_pods(scene, AT_ONCE)?;
    let times = redirected(scene, &names)?;
    terminal::say(format_args!(
        "{} sidecars started at once, from their start to the redirect: p50 {:.2?}, slowest {:.2?}",
        times.len(),
        times.get(times.len() / 2).copied().unwrap_or_default(),
        times.last().copied().unwrap_or_default()
    ));
    terminal::say(ended_while_replaced(scene, names)?);
    install::redirect_by(scene.see.cluster, INIT_MODE)?;
    let played = starts(scene, &plain, "init", rounds);
    install::redirect_by(scene.see.cluster, AGENT_MODE)?;
    played
}

/// How long each sidecar waited for its redirect, the shortest time first.
fn redirected(scene: &Scene<'_>, names: &[String]) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for name in names {
        let log = scene.see.kubectl(&["logs", name, "-n", &scene.namespace, "-c", "cinch-proxy"])?;
        let took = log.lines().find_map(|line| line.split_once(REDIRECTED)).map(|(_, took)| took.trim());
        let took = took.and_then(duration).with_context(|| format!("{name} does not say how long: {log}"))?;
        times.push(took);
    }
    times.sort_unstable();
    Ok(times)
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
    let mut pairs = Vec::new();
    for round in 0..rounds {
        let name = format!("start-{mode}-{round}");
        let without = start(scene, plain, &name)?;
        let with = start(scene, &scene.namespace, &name)?;
        terminal::say(format_args!("{name}: {without:.2?} without the sidecar, {with:.2?} with it"));
        pairs.push((without, with));
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

/// Starts one pod, looks at it until it is ready, and ends it.
fn start(scene: &Scene<'_>, namespace: &str, name: &str) -> Result<Duration> {
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
    scene.see.kubectl(&["delete", "pod", name, "-n", namespace, "--timeout=120s"])?;
    started
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
