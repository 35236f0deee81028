//! A connection that passes by the proxy: the node agent sees it in the kernel, the proxy reports it, and the
//! namespace is not promoted.

use super::scene::{PORT, Scene, Workload};
use crate::place::{SERVED, open};
use crate::see::text;
use crate::wait::{self, Seen};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::time::Duration;

/// Sidecars ask each half minute, and at once when their redirect is in doubt.
const TOLD: Duration = Duration::from_secs(60);
/// A connection of before the table is as good as any that gets round it.
const TABLE: [&str; 4] = ["delete", "table", "inet", "cinch"];

/// Plays it: somebody removes the table of a pod, and before it is set again a connection is opened.
pub fn bypass(scene: &Scene<'_>) -> Result<String> {
    scene.restricted()?;
    scene.run(&[Workload::meshed("api"), Workload::meshed("client")])?;
    let (client, to) = (scene.place("client")?, scene.server("api")?);
    scene.until(&client, to, &SERVED)?;
    let cluster = scene.see.cluster;
    let nft = |arguments: [&str; 4]| {
        let mut command = cluster.pod_network_command(&scene.namespace, &client.pod, "app", "nft")?;
        Ok::<_, anyhow::Error>(command.args(arguments).output()?.status.success())
    };
    ensure!(nft(TABLE)?, "there was no table to remove");
    let mut kept = open(&client, to)?;
    wait::until("the agent to set the table again", TOLD, || {
        let there = nft(["list", "table", "inet", "cinch"])?;
        Ok(if there { Seen::Done(()) } else { Seen::Not("no table".to_owned()) })
    })?;
    let last = kept.ask();
    ensure!(last == SERVED, "a table that is set again cuts nothing: {last}");
    let message = scene.see.posture_until(&scene.namespace, "the bypass to be named", TOLD, named)?;
    ensure!(message.contains(&client.pod), "another pod is named: {message}");
    ensure!(message.contains(&format!("port {PORT}")), "another port is named: {message}");
    let status = scene.see.posture(&scene.namespace)?;
    let injected = status.pointer("/status/conditions").and_then(Value::as_array);
    let injected = injected.into_iter().flatten().find(|condition| text(condition, "/type") == "Injected");
    let reason = injected.map(|condition| text(condition, "/reason")).unwrap_or_default();
    ensure!(reason == "BypassSeen", "the condition Injected: {reason}");
    Ok(message)
}

/// The message of the blocker.
fn named(status: &Value) -> Option<String> {
    let blockers = status.get("blockers")?.as_array()?;
    let blocker = blockers.iter().find(|blocker| text(blocker, "/reason") == "BypassSeen")?;
    Some(text(blocker, "/message"))
}
