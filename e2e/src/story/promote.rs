//! Plaintext is seen and named, its absence promotes, its return is refused or rolls back.

use super::Story;
use super::encrypt::log_since;
use super::partial;
use crate::see::{See, number, text};
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::Duration;

const BANK: &str = include_str!("../../manifests/bank.yaml");
/// Quiet period, settle and probation of the demo's values, and room for a busy machine.
pub const PROMOTION: Duration = Duration::from_secs(150);
const EVIDENCE: Duration = Duration::from_secs(120);

/// old-client's plaintext works, is counted and named; a scan is shown and does not count as served.
pub fn observe(story: &mut Story<'_>) -> Result<String> {
    let (see, begun) = (&story.see, jiff::Timestamp::now());
    let served =
        see.posture_until("shop", "the Posture of shop to name legacy/old-client", EVIDENCE, |status| {
            let offender = offender(status, "legacy/old-client")?;
            // It calls all the time, so it was seen just now, and not when it was first named.
            let last_seen: jiff::Timestamp = text(&offender, "/lastSeen").parse().ok()?;
            let now = last_seen >= begun && last_seen <= jiff::Timestamp::now();
            (now && number(status, "/plaintext/served") > 0 && number(&offender, "/port") == 8080)
                .then_some(offender)
        })?;
    let logs = see.kubectl(&["logs", "-n", "legacy", "deployment/old-client", "--since=3s"])?;
    ensure!(!logs.contains("failed"), "old-client does not get through: {logs}");
    let posture = see.posture("shop")?;
    let blockers = posture.pointer("/status/blockers").cloned().unwrap_or_default();
    ensure!(blockers.to_string().contains("Plaintext"), "no blocker names the plaintext: {blockers}");
    see.shown(&["get", "postures", "-A"])?;
    terminal::show(&format!("offender: {served}\nblockers: {blockers}"));
    let empty = scan(see)?;
    Ok(format!(
        "offender legacy/old-client, port 8080, last seen {}; {}; the scan: {empty}",
        text(&served, "/lastSeen"),
        first_reason(&blockers)
    ))
}

/// Connects to one of api's pods without a word, from a pod of its own; it counts as empty, not as served.
fn scan(see: &See<'_>) -> Result<String> {
    let api = see.addresses("shop", "app=api")?.first().cloned().context("api has no pod")?;
    let before = number(&see.posture("shop")?, "/status/plaintext/empty");
    let target = format!("--to={api}:8080");
    let image = format!("--image={}", crate::see::APP_IMAGE);
    see.kubectl(&[
        "run",
        "scanner",
        "-n",
        "legacy",
        &image,
        "--restart=Never",
        "--command",
        "--",
        "/cinch-demo-app",
        "scan",
        &target,
        "--to",
        &format!("{api}:8080"),
    ])?;
    let empty = see.posture_until("shop", "the scan to be counted as empty", EVIDENCE, |status| {
        let empty = number(status, "/plaintext/empty");
        (empty > before).then_some(empty)
    })?;
    let status = see.posture("shop")?;
    let named = offender(status.get("status").unwrap_or(&Value::Null), "legacy/scanner");
    ensure!(
        named.as_ref().is_none_or(|scanner| number(scanner, "/count") == 0),
        "the scanner counts as served: {named:?}"
    );
    see.kubectl(&["delete", "pod", "scanner", "-n", "legacy", "--wait=false"])?;
    Ok(format!("{empty} empty connections, none served"))
}

/// Without plaintext the operator goes Eligible, Probation, Strict; labels and Events follow.
pub fn promote(story: &mut Story<'_>) -> Result<String> {
    let see = &story.see;
    see.kubectl(&["scale", "-n", "legacy", "deployment/old-client", "--replicas=0"])?;
    let states = follow(see, "shop", "Strict")?;
    ensure!(states.contains(&"Probation".to_owned()), "it became Strict without probation: {states:?}");
    let namespace = see.json(&["namespace", "shop"])?;
    let labels = namespace.pointer("/metadata/labels").cloned().unwrap_or_default();
    ensure!(text(&labels, "/cinch.dev~1mode") == "STRICT", "labels: {labels}");
    ensure!(text(&labels, "/cinch.dev~1injection") == "required", "labels: {labels}");
    let leftover = namespace.pointer("/metadata/annotations/cinch.dev~1promotion");
    ensure!(leftover.is_none(), "the annotation of the promotion stays after probation: {leftover:?}");
    see.shown(&["get", "namespace", "shop", "-L", "cinch.dev/mesh,cinch.dev/injection,cinch.dev/mode"])?;
    see.shown(&["get", "postures", "-A"])?;
    let events =
        see.shown(&["get", "events", "-n", "shop", "--field-selector", "involvedObject.kind=Posture"])?;
    for word in ["PromotionEligible", "PromotionStarted", "PromotionCompleted"] {
        ensure!(events.contains(word), "no Event {word}");
    }
    let web = story.web_goes_on(40)?;
    Ok(format!("{}; label STRICT; {web}", states.join(" -> ")))
}

/// Follows the states of a Posture until `last`.
fn follow(see: &See<'_>, namespace: &str, last: &str) -> Result<Vec<String>> {
    let mut states: Vec<String> = Vec::new();
    see.posture_until(namespace, &format!("the Posture of {namespace} to be {last}"), PROMOTION, |status| {
        let state = text(status, "/state");
        if states.last() != Some(&state) {
            terminal::show(&format!("{namespace}: {state}"));
            states.push(state.clone());
        }
        (state == last).then_some(())
    })?;
    Ok(states)
}

/// Plaintext to a STRICT port is reset before the app sees a byte.
pub fn enforce(story: &mut Story<'_>) -> Result<String> {
    let see = &story.see;
    let (since, before) = (now(), number(&see.posture("shop")?, "/status/plaintext/denied"));
    see.kubectl(&["scale", "-n", "legacy", "deployment/old-client", "--replicas=1"])?;
    let denied = see.posture_until("shop", "refused connections to be counted", EVIDENCE * 2, |status| {
        let denied = number(status, "/plaintext/denied");
        (denied > before + 2).then_some(denied - before)
    })?;
    let logs = see.kubectl(&["logs", "-n", "legacy", "deployment/old-client", "--tail=50"])?;
    let reset =
        logs.lines().filter(|line| line.contains("failed") && line.to_lowercase().contains("reset")).count();
    ensure!(reset > 0, "old-client was not reset: {logs}");
    let seen = log_since(story, "app=api", &since)?;
    let bytes: Vec<&String> =
        seen.iter().filter(|line| line.contains("client=old-client") || line.starts_with("broken")).collect();
    ensure!(bytes.is_empty(), "api saw bytes of old-client: {bytes:?}");
    ensure!(seen.iter().any(|line| line.contains("client=web")), "api's log shows nothing at all");
    let state = text(&see.posture("shop")?, "/status/state");
    ensure!(state == "Strict", "after probation plaintext must not undo the lock, but the state is {state}");
    terminal::show(&logs.lines().rev().take(2).collect::<Vec<_>>().join("\n"));
    see.kubectl(&["scale", "-n", "legacy", "deployment/old-client", "--replicas=0"])?;
    let web = story.web_goes_on(20)?;
    Ok(format!("{denied} refused, {reset} resets in old-client's log, 0 bytes of it in api's; {web}"))
}

/// In another namespace a client that had been served comes back during probation: rolled back, and named.
pub fn roll_back(story: &mut Story<'_>) -> Result<String> {
    let see = &story.see;
    // First: with nobody who speaks plaintext to it, bank would be promoted within seconds.
    see.kubectl(&["scale", "-n", "legacy", "deployment/late-client", "--replicas=1"])?;
    see.apply(BANK)?;
    // For a later line, which needs it to have run for a while.
    partial::prepare(see)?;
    see.meshed("bank", "deployment", "teller")?;
    see.posture_until("bank", "the Posture of bank to name legacy/late-client", PROMOTION, |status| {
        offender(status, "legacy/late-client")
    })?;
    see.kubectl(&["scale", "-n", "legacy", "deployment/late-client", "--replicas=0"])?;
    follow(see, "bank", "Probation")?;
    see.kubectl(&["scale", "-n", "legacy", "deployment/late-client", "--replicas=1"])?;
    let event = wait::until("the Event of the roll-back", PROMOTION, || {
        let events = see.items(&["events", "-n", "bank"])?;
        let found = events.iter().find(|event| text(event, "/reason") == "PromotionRolledBack");
        Ok(found.map_or_else(
            || {
                Seen::Not(
                    see.posture("bank").map(|posture| text(&posture, "/status/state")).unwrap_or_default(),
                )
            },
            |event| Seen::Done(text(event, "/message")),
        ))
    })?;
    ensure!(event.contains("legacy/late-client"), "the Event does not name the workload: {event}");
    let labels = wait::until("the lock of bank to go", EVIDENCE, || {
        let labels =
            see.json(&["namespace", "bank"])?.pointer("/metadata/labels").cloned().unwrap_or_default();
        let unlocked = labels.get("cinch.dev/mode").is_none();
        Ok(if unlocked { Seen::Done(labels) } else { Seen::Not(labels.to_string()) })
    })?;
    wait::until("late-client to be served again", EVIDENCE, || {
        let logs = see.kubectl(&["logs", "-n", "bank", "deployment/teller", "-c", "app", "--tail=3"])?;
        Ok(if logs.contains("client=late-client") { Seen::Done(()) } else { Seen::Not(logs) })
    })?;
    see.shown(&["get", "postures", "-A"])?;
    terminal::show(&format!("{event}\nlabels: {labels}"));
    // late-client stays: bank must not be promoted while it is served, whoever leads.
    Ok(event)
}

/// The offender of that name, in whatever field it is named.
fn offender(status: &Value, workload: &str) -> Option<Value> {
    let offenders = status.get("offenders")?.as_array()?;
    offenders.iter().find(|offender| text(offender, "/workload").ends_with(workload)).cloned()
}

fn first_reason(blockers: &Value) -> String {
    let (reason, message) = (text(blockers, "/0/reason"), text(blockers, "/0/message"));
    format!("not promoted because {reason}: {message}")
}

/// The begin of the next second, once it is there: logs are asked for by whole seconds, and what was said earlier in
/// this one must not count.
pub fn next_second() -> String {
    let past = u64::try_from(jiff::Timestamp::now().subsec_millisecond()).unwrap_or_default();
    std::thread::sleep(Duration::from_millis(1001_u64.saturating_sub(past)));
    now()
}

/// Now, in the API's form.
pub fn now() -> String {
    format!("{:.0}", jiff::Timestamp::now())
}
