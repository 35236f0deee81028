//! The power of a node fails: all its processes and network namespaces are gone. It starts again, the kubelet
//! publishes the volumes anew, and no app is without its redirect.

use super::residents::Residents;
use super::scene::{Scene, Workload};
use crate::install::{NAMESPACE, Redirect, agents_ready};
use crate::place::{Outcome, Place, SERVED};
use crate::see::{PODS, number, text};
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Everything on the node starts at once.
const BOOT: Duration = Duration::from_secs(240);

/// Plays it on the node of the test's pods. The story's client counts every request, and those that die with a node
/// are lost by nature: it rests meanwhile.
pub fn reboot(scene: &Scene<'_>) -> Result<String> {
    scene.restricted()?;
    scene.run(&[Workload::meshed("api"), Workload::meshed("client")])?;
    let principal = format!("cluster.local/ns/{}/sa/client", scene.namespace);
    let rules = json!([{"from": [{"source": {"principals": [principal]}}]}]);
    let spec = json!({"selector": {"matchLabels": {"app": "api"}}, "rules": rules});
    scene.policy("AuthorizationPolicy", "gate", spec)?;
    let outside = Place::outside(scene.see.cluster)?;
    scene.until(&outside, scene.server("api")?, &Outcome::Reset)?;
    let client = scene.see.pods(&scene.namespace, "app=client")?;
    let node = client.first().map(|pod| text(pod, "/spec/nodeName")).unwrap_or_default();
    let rests = web(scene, 0)?;
    let residents = Residents::of(&scene.see, &node)?;
    let begun = Instant::now();
    let played = scene.see.cluster.fail_power_of(&node).and_then(|()| started_again(scene, &outside));
    let took = begun.elapsed();
    let played = scene.told(played);
    let back = scene.told(all_are_back(scene, &residents));
    if rests {
        web(scene, 1)?;
    }
    back?;
    let restarts = played?;
    Ok(format!(
        "{node} was off; its sidecars restarted ({restarts} times), then client was served by its name and plaintext \
         refused, {:.0} s after the power failed; all {} pods of the node came back with new addresses",
        took.as_secs_f64(),
        residents.count()
    ))
}

/// Scales the story's client, where there is one; whether there is.
fn web(scene: &Scene<'_>, replicas: u32) -> Result<bool> {
    if !scene.see.attempt(&["get", "deployment", "web", "-n", "shop"])?.ok() {
        return Ok(false);
    }
    scene.see.kubectl(&["scale", "deployment/web", "-n", "shop", &format!("--replicas={replicas}")])?;
    if replicas > 0 {
        scene.see.rolled_out("shop", "deployment/web")?;
        return Ok(true);
    }
    wait::until("web to have ended", PODS, || {
        let left = scene.see.items(&["pods", "-n", "shop", "-l", "app=web"])?.len();
        Ok(if left == 0 { Seen::Done(true) } else { Seen::Not(format!("{left} pods")) })
    })
}

/// Both pods run again in networks of their own; what an app sends goes through its sidecar, and what comes in too.
fn started_again(scene: &Scene<'_>, outside: &Place) -> Result<u64> {
    let restarts = wait::until("the pods to have started again", BOOT, || {
        let pods = scene.see.pods(&scene.namespace, "app")?;
        let restarts: Vec<u64> = pods.iter().map(restarts_of_the_sidecar).collect();
        let ready = |pod: &Value| {
            let app = pod.pointer("/status/containerStatuses/0");
            app.is_some_and(|app| number(app, "/restartCount") > 0 && app.get("ready") == Some(&json!(true)))
        };
        let all = pods.len() == 2 && pods.iter().all(ready) && restarts.iter().all(|count| *count > 0);
        let seen = format!("{} pods, restarts of sidecars {restarts:?}", pods.len());
        Ok(if all { Seen::Done(restarts.iter().sum()) } else { Seen::Not(seen) })
    })?;
    let (client, to) = (scene.place("client")?, scene.server("api")?);
    terminal::show(&format!("client is {} now, api {to}", client.address));
    scene.until(&client, to, &SERVED)?;
    let plain = outside.ask(to);
    ensure!(plain == Outcome::Reset, "plaintext to api after the reboot: {plain}");
    scene.always(&client, to, &SERVED)?;
    Ok(restarts)
}

fn restarts_of_the_sidecar(pod: &Value) -> u64 {
    let statuses = pod.pointer("/status/initContainerStatuses").and_then(Value::as_array);
    let mut sidecars = statuses.into_iter().flatten().filter(|status| text(status, "/name") == "cinch-proxy");
    sidecars.next().map_or(0, |status| number(status, "/restartCount"))
}

/// Cinch's own parts, and whatever else was on the node: what is called before it is there is lost by nature too.
fn all_are_back(scene: &Scene<'_>, residents: &Residents) -> Result<()> {
    for workload in ["deployment/cinch-operator", "deployment/cinch-webhook"] {
        scene.see.rolled_out(NAMESPACE, workload)?;
    }
    if scene.redirect == Redirect::Agent {
        agents_ready(scene.see.cluster)?;
    }
    wait::until("every pod of the node to be back", BOOT, || residents.are_back(&scene.see))
}
