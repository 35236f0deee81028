//! An AuthorizationPolicy that lets only web call api: another meshed client is refused, on the connections that
//! it has open too; web goes on. Without the policy the other client works again.

use super::Story;
use super::encrypt::log_since;
use super::promote::{next_second, now};
use crate::place::{Kept, Outcome, Place, SERVED, open};
use crate::policies;
use crate::see::{PODS, See};
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Context, Result, ensure};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const MARKET: &str = include_str!("../../manifests/market.yaml");
const ONLY_WEB: &str = include_str!("../../manifests/api-from-web.yaml");
/// Far longer than a policy takes to all proxies; how long it took is printed.
const IN_FORCE: Duration = Duration::from_secs(120);

/// A meshed client besides web, and what it calls.
struct Other {
    clerk: Place,
    api: Vec<SocketAddr>,
    kept: Vec<Kept>,
}

/// Plays it, and leaves shop as it was whatever comes of it.
pub fn authorise(story: &mut Story<'_>) -> Result<String> {
    let see = story.see;
    see.apply(MARKET)?;
    let played = only_web(story);
    see.kubectl(&["delete", "authorizationpolicies", "api-from-web", "-n", "shop", "--ignore-not-found"])?;
    let played = played.and_then(|seen| Ok(format!("{seen}\n{}", works_again(story)?)));
    see.kubectl(&["delete", "namespace", "market", "--wait=false"])?;
    let seen = played?;
    Ok(format!("{seen}; {}", story.web_goes_on(20)?))
}

fn only_web(story: &Story<'_>) -> Result<String> {
    let see = story.see;
    see.meshed("market", "deployment", "clerk")?;
    let mut other = other(&see)?;
    let before = open_connections_work(&mut other)?;
    let applied = see.apply(ONLY_WEB)?;
    let (admitted, since) = (Instant::now(), now());
    terminal::show(&format!("$ kubectl apply -f api-from-web.yaml\n{}", applied.trim()));
    let mut ends = Vec::new();
    for (kept, address) in other.kept.iter_mut().zip(&other.api) {
        let end = kept.ended_within(IN_FORCE);
        ensure!(end == Outcome::Reset, "clerk's open connection to {address} was not reset, but: {end}");
        ends.push(format!("{address} after {:.0} ms", admitted.elapsed().as_secs_f64() * 1000.0));
    }
    for address in &other.api {
        let outcome = other.clerk.ask(*address);
        ensure!(outcome == Outcome::Reset, "clerk called {address} once more: {outcome}");
    }
    terminal::show(&format!("clerk's open connections, reset by api's proxies: {}", ends.join(", ")));
    let refused = clerk_says_so(story, &since)?;
    let enforced =
        policies::enforced(&see, "authorizationpolicies", "shop", "api-from-web", other.api.len())?;
    see.shown(&["get", "authorizationpolicies", "-n", "shop"])?;
    let quiet = next_second();
    let web = story.web_goes_on(40)?;
    let seen = log_since(story, "app=api", &quiet)?;
    let of_clerk = seen.iter().filter(|line| line.contains("client=clerk")).count();
    ensure!(of_clerk == 0, "api saw {of_clerk} requests of clerk while only web was allowed");
    ensure!(seen.iter().any(|line| line.contains("client=web")), "api's log shows nothing at all");
    Ok(format!(
        "{before}; with the policy {} open connections reset, {refused} calls refused, 0 in api's log; {enforced}; {web}",
        ends.len()
    ))
}

/// Clerk's pod, and a connection to each of api's pods.
fn other(see: &See<'_>) -> Result<Other> {
    let pods = see.pods("market", "app=clerk")?;
    let clerk = Place::of(see.cluster, pods.first().context("clerk has no pod")?)?;
    let api = see.addresses("shop", "app=api")?;
    let api: Vec<SocketAddr> = api.iter().map(|ip| format!("{ip}:8080").parse()).collect::<Result<_, _>>()?;
    ensure!(!api.is_empty(), "api has no pod");
    let kept = api.iter().map(|address| open(&clerk, *address)).collect::<Result<_>>()?;
    Ok(Other { clerk, api, kept })
}

fn open_connections_work(other: &mut Other) -> Result<String> {
    for (kept, address) in other.kept.iter_mut().zip(&other.api) {
        for _ in 0..2 {
            let outcome = kept.ask();
            ensure!(outcome == SERVED, "clerk is meshed and nothing forbids it to call {address}: {outcome}");
        }
    }
    Ok(format!("before, clerk was served over {} kept connections", other.kept.len()))
}

/// What the client itself tells: its calls over new and over kept connections fail with a reset.
fn clerk_says_so(story: &Story<'_>, since: &str) -> Result<usize> {
    let since = format!("--since-time={since}");
    let args = ["logs", "-n", "market", "deployment/clerk", "-c", "app", &since];
    wait::until("clerk's own log to tell of resets", IN_FORCE, || {
        let log = story.see.kubectl(&args)?;
        let of = |way: &str| {
            let way = format!("connection={way} ");
            let lines = log.lines().filter(move |line| line.starts_with("failed ") && line.contains(&way));
            lines.filter(|line| line.to_lowercase().contains("reset")).count()
        };
        let (new, kept) = (of("new"), of("kept"));
        if new == 0 || kept == 0 {
            return Ok(Seen::Not(log));
        }
        terminal::show(
            &log.lines().filter(|line| line.starts_with("failed ")).take(2).collect::<Vec<_>>().join("\n"),
        );
        Ok(Seen::Done(new + kept))
    })
}

fn works_again(story: &Story<'_>) -> Result<String> {
    let see = story.see;
    let other = other(&see)?;
    wait::until("clerk to be served again", PODS, || {
        let outcomes: Vec<Outcome> = other.api.iter().map(|address| other.clerk.ask(*address)).collect();
        let all = outcomes.iter().all(|outcome| *outcome == SERVED);
        Ok(if all { Seen::Done(()) } else { Seen::Not(format!("{outcomes:?}")) })
    })?;
    Ok("the policy is deleted: clerk is served again".to_owned())
}
