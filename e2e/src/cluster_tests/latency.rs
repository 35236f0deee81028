//! How long a change of a policy takes from the API server's answer until all proxies act by it.

use super::scene::{PORT, Scene, Workload};
use crate::cluster::api::Moments;
use crate::place::{Kept, Outcome, Place, SERVED, open};
use crate::terminal;
use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

/// Each round tightens once and loosens once.
const ROUNDS: usize = 20;
const PROXIES: u32 = 3;
/// Far longer than a change may take; how long it took is printed, not judged.
const LIMIT: Duration = Duration::from_secs(120);
/// Between two tries to be served again.
const PAUSE: Duration = Duration::from_millis(5);

/// From the API server's answer, and from the first byte of the request, to the last proxy's deed.
type Taken = (Duration, Duration);

/// Open connections show when a proxy tightens, new ones when it loosens.
pub fn changes_reach_all_proxies(scene: &Scene<'_>) -> Result<String> {
    let api = Workload { replicas: PROXIES, ..Workload::meshed("api") };
    scene.enrolled(&[api, Workload::meshed("client")])?;
    let client = scene.place("client")?;
    let servers: Vec<SocketAddr> = scene
        .places(&scene.namespace, "api")?
        .iter()
        .map(|place| SocketAddr::new(place.address, PORT))
        .collect();
    scene.policy("AuthorizationPolicy", "gate", spec("nobody"))?;
    let mut connection = scene.see.cluster.api()?;
    let path =
        format!("/apis/security.istio.io/v1/namespaces/{}/authorizationpolicies/gate", scene.namespace);
    let (mut tightened, mut loosened) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let kept = servers.iter().map(|server| served(&client, *server)).collect::<Result<Vec<_>>>()?;
        let watching = kept.into_iter().map(|kept| thread::spawn(move || cut(kept))).collect::<Vec<_>>();
        let moments = connection.merge_patch(&path, &json!({"spec": spec(&scene.namespace)}))?;
        tightened.push(last(moments, watching)?);
        let asking = servers.iter().map(|server| {
            let (client, server) = (client.clone(), *server);
            thread::spawn(move || served_again(&client, server))
        });
        let asking = asking.collect::<Vec<_>>();
        let moments = connection.merge_patch(&path, &json!({"spec": spec("nobody")}))?;
        loosened.push(last(moments, asking)?);
    }
    let lines =
        [("tightened", &tightened), ("loosened", &loosened)].map(|(what, taken)| summary(what, taken));
    let all: Vec<Taken> = tightened.iter().chain(&loosened).copied().collect();
    terminal::show(&lines.join("\n"));
    Ok(format!("{}, over {PROXIES} proxies", summary("policy admitted -> enforced on all proxies", &all)))
}

/// Denies the workloads of one namespace.
fn spec(namespace: &str) -> Value {
    json!({"selector": {"matchLabels": {"app": "api"}}, "action": "DENY",
        "rules": [{"from": [{"source": {"namespaces": [namespace]}}]}]})
}

fn served(client: &Place, server: SocketAddr) -> Result<Kept> {
    let mut kept = open(client, server)?;
    let outcome = kept.ask();
    ensure!(outcome == SERVED, "{server} should be open to the client: {outcome}");
    Ok(kept)
}

/// When an idle connection was reset.
fn cut(mut kept: Kept) -> Result<Instant> {
    match kept.ended_within(LIMIT) {
        Outcome::Reset => Ok(Instant::now()),
        other => bail!("an open connection that the policy forbids came to: {other}"),
    }
}

/// When a call was served again.
fn served_again(client: &Place, server: SocketAddr) -> Result<Instant> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        if client.ask(server) == SERVED {
            return Ok(Instant::now());
        }
        thread::sleep(PAUSE);
    }
    bail!("{server} stays closed although no policy forbids the client")
}

/// The time to the last of the watchers' moments.
fn last(moments: Moments, watching: Vec<thread::JoinHandle<Result<Instant>>>) -> Result<Taken> {
    let mut latest = moments.sent;
    for each in watching {
        latest = latest.max(each.join().map_err(|_| anyhow!("a watching thread failed"))??);
    }
    Ok((latest.saturating_duration_since(moments.answered), latest.duration_since(moments.sent)))
}

fn summary(what: &str, taken: &[Taken]) -> String {
    let (answered, sent): (Vec<Duration>, Vec<Duration>) = taken.iter().copied().unzip();
    format!(
        "{what}: p50 {:.0} ms, p99 {:.0} ms after the API server's answer (p50 {:.0} ms, p99 {:.0} ms after the request), {} changes",
        quantile(&answered, 50),
        quantile(&answered, 99),
        quantile(&sent, 50),
        quantile(&sent, 99),
        taken.len()
    )
}

/// In milliseconds: the smallest that so many of a hundred do not exceed.
fn quantile(taken: &[Duration], percent: usize) -> f64 {
    let mut sorted = taken.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).map_or(f64::NAN, |taken| taken.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let taken: Vec<Duration> = (1..=40).rev().map(Duration::from_millis).collect();
        assert_eq!((quantile(&taken, 50), quantile(&taken, 99)), (20.0, 40.0));
        assert_eq!(quantile(&taken[..1], 50), 40.0);
    }
}
