//! The other way to set the redirect, for nodes that can't run the agent: the release is switched to it, a namespace
//! is played through until it is locked, and the release is switched back. The agent stays meanwhile, as it must
//! where pods that were made for it run on.

use super::scene::{PORT, RESTRICTED, Scene, Workload};
use super::without::away;
use crate::capture::{self, Flow};
use crate::install;
use crate::place::{MARKER, Outcome, Place, SERVED};
use crate::see::{PODS, text};
use crate::story::admission;
use crate::wait::{self, Seen};
use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

const SECONDS: u64 = 2;
const PAUSE: Duration = Duration::from_millis(20);
/// The times of the install, and as long again for a namespace before this one that is still in probation.
const PROMOTED: Duration = Duration::from_secs(120);

/// Plays it, and switches back whatever came of it.
pub fn init(scene: &Scene<'_>) -> Result<String> {
    let played = install::redirect_by(scene.see.cluster, install::INIT_MODE).and_then(|()| play(scene));
    let played = scene.told(played);
    install::redirect_by(scene.see.cluster, install::AGENT_MODE)?;
    played
}

fn play(scene: &Scene<'_>) -> Result<String> {
    scene.enrolled(&[Workload::meshed("api"), Workload::meshed("client")])?;
    for pod in scene.see.pods(&scene.namespace, "app")? {
        shape(&pod)?;
    }
    let (client, api) = (scene.place("client")?, scene.place("api")?);
    let to = SocketAddr::new(api.address, PORT);
    let outside = Place::outside(scene.see.cluster)?;
    let packets = sealed(scene, &client, &outside, &api)?;
    // From here on nobody speaks plaintext; what else there is to see is seen during the quiet period.
    promotes(scene)?;
    left_out_where_restricted(scene)?;
    let required = ["label", "namespace", &scene.namespace, "cinch.dev/injection=required"];
    scene.see.kubectl(&required)?;
    let canonical = admission::canonical(&scene.see, &pod_of(scene, &scene.namespace, "canonical"))?;
    let tried = away(scene, "webhook", || {
        Ok(format!("{} cases of admission", admission::rules_with_init(&scene.see, &canonical)?))
    })?;
    let strict = |status: &Value| (text(status, "/mode") == "STRICT").then_some(());
    scene.see.posture_until(&scene.namespace, "the namespace to be STRICT", PROMOTED, strict)?;
    scene.until(&outside, to, &Outcome::Reset)?;
    scene.always(&client, to, &SERVED)?;
    Ok(format!(
        "cinch-init and cinch-proxy first, probes answered; {packets}; restricted pods left out; promoted to STRICT; {tried}"
    ))
}

/// Both containers in front, no volume of the agent, and the app's probe led to the proxy.
fn shape(pod: &Value) -> Result<()> {
    let name = text(pod, "/metadata/name");
    let names = ["/spec/initContainers/0/name", "/spec/initContainers/1/name"].map(|path| text(pod, path));
    ensure!(names == ["cinch-init", "cinch-proxy"], "{name} begins with {names:?}");
    ensure!(!pod.to_string().contains("cinch-agent"), "{name} has something of the agent");
    let probe = pod.pointer("/spec/containers/0/readinessProbe/httpGet/port").and_then(Value::as_u64);
    ensure!(probe == Some(15021), "the probe of {name} goes to {probe:?}");
    Ok(())
}

/// Calls between the pods while the nodes' packets are looked at: none can be read, but those of an unmeshed client
/// are.
fn sealed(scene: &Scene<'_>, client: &Place, outside: &Place, api: &Place) -> Result<String> {
    let to = SocketAddr::new(api.address, PORT);
    let flows = thread::scope(|scope| {
        let capturing = scope.spawn(|| capture::on_all_nodes(scene.see.cluster, SECONDS, &[MARKER], &[]));
        while !capturing.is_finished() {
            let outcomes = [client.ask(to), outside.ask(to)];
            ensure!(outcomes == [SERVED, SERVED], "a meshed and an unmeshed call: {outcomes:?}");
            thread::sleep(PAUSE);
        }
        capturing.join().map_err(|_| anyhow!("the capture's thread failed"))?
    })?;
    let between = |from: &Place| {
        let mut sum = Flow::default();
        for pair in [format!("{}>{}", from.address, api.address), format!("{}>{}", api.address, from.address)]
        {
            if let Some(flow) = flows.get(&pair) {
                sum.add(flow);
            }
        }
        sum
    };
    let (meshed, plain) = (between(client), between(outside));
    ensure!(meshed.packets > 20 && meshed.marked == 0, "between meshed pods: {meshed:?}");
    ensure!(plain.marked > 0, "the capture does not see the marker where it must: {plain:?}");
    Ok(format!("{} packets between pods, none readable", meshed.packets))
}

fn pod_of(scene: &Scene<'_>, namespace: &str, name: &str) -> String {
    let template = Workload::meshed(name).manifest(&scene.namespace);
    let spec = template.pointer("/spec/template/spec").cloned().unwrap_or_default();
    let metadata = json!({"name": name, "namespace": namespace, "labels": {"app": name}});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}).to_string()
}

/// A namespace whose Pod Security refuses the init container keeps its pods as they are, and they say why.
fn left_out_where_restricted(scene: &Scene<'_>) -> Result<()> {
    let namespace = format!("{}-restricted", scene.namespace);
    scene.enrolled_besides(&namespace, &[])?;
    scene.see.kubectl(&["label", "namespace", &namespace, RESTRICTED])?;
    wait::until("a pod to be left out for Pod Security", PODS, || {
        let made =
            scene.see.create(&pod_of(scene, &namespace, "left-out"), &["--dry-run=server", "-o", "json"])?;
        ensure!(made.ok(), "{}", made.text());
        let pod: Value = serde_json::from_str(&made.stdout)?;
        let word = text(&pod, "/metadata/annotations/cinch.dev~1injected");
        Ok(if word == "PodSecurityForbidsInit" { Seen::Done(()) } else { Seen::Not(word) })
    })
}

/// What holds in other namespaces holds here: without plaintext it is locked.
fn promotes(scene: &Scene<'_>) -> Result<()> {
    let patch = json!({"spec": {"promotion": "Automatic"}}).to_string();
    let args = ["patch", "posture", "mesh", "-n", &scene.namespace, "--type=merge", "-p", &patch];
    scene.see.kubectl(&args).map(drop)
}
