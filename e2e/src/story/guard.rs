//! What admission refuses: pods without the sidecar, look-alikes, and every way back from STRICT.

use super::Story;
use super::admission;
use crate::see::{APP_IMAGE, PODS, See, restricted_container, restricted_pod, text};
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::time::Duration;

const USERS: &str = include_str!("../../manifests/users.yaml");

/// A pod that Pod Security has nothing against, so that it is ours to refuse.
fn pod(name: &str, namespace: &str, labels: Value, init: Value) -> String {
    let container = json!({"name": "app", "image": APP_IMAGE, "args": ["serve", "--drain", "0s"],
        "securityContext": restricted_container()});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"securityContext": restricted_pod(1000), "initContainers": init, "containers": [container]},
    })
    .to_string()
}

fn opted_out(namespace: &str) -> String {
    pod("opted-out", namespace, json!({"cinch.dev/inject": "disabled"}), json!([]))
}

/// A container that calls itself cinch-proxy and is something else.
fn look_alike(image: &str, args: &[&str], command: &[&str]) -> String {
    let command = (!command.is_empty()).then_some(command);
    // A command of null is the same to the API as none.
    let proxy = json!({"name": "cinch-proxy", "image": image, "args": args, "command": command,
        "restartPolicy": "Always", "securityContext": restricted_container()});
    pod("look-alike", "shop", json!({}), json!([proxy]))
}

/// One in a pod that the webhook would leave as it is, for its container declares a port of ours.
fn look_alike_that_is_left_alone() -> Result<String> {
    let mut pod: Value = serde_json::from_str(&look_alike("cinch.local/cinch-proxy:0.1.0", &["run"], &[]))?;
    admission::set(&mut pod, "/spec/containers/0", "ports", json!([{"containerPort": 15000}]));
    Ok(pod.to_string())
}

const LOOK_ALIKES: [(&str, &[&str], &[&str]); 3] = [
    (APP_IMAGE, &["pause"], &[]),
    ("cinch.local/cinch-proxy:0.1.0", &["version"], &[]),
    ("cinch.local/cinch-proxy:0.1.0", &["run"], &["/cinch-proxy", "version"]),
];

/// With the webhook alive.
pub fn reject(story: &mut Story<'_>) -> Result<String> {
    let see = &story.see;
    let sentence = see.refused(&see.create(&opted_out("shop"), &[])?, "SidecarMissing")?;
    ensure!(sentence.contains("remove the label"), "the sentence does not say what to do: {sentence}");
    for (image, args, command) in LOOK_ALIKES {
        let output = see.create(&look_alike(image, args, command), &["--dry-run=server", "-o", "json"])?;
        ensure!(output.ok(), "the webhook should have overwritten it: {}", output.text());
        let stored: Value = serde_json::from_str(&output.stdout)?;
        let containers = stored.pointer("/spec/initContainers").and_then(Value::as_array);
        let (first, ours) = (containers.into_iter().flatten(), story.redirect.containers());
        let first: Vec<&Value> = first.take(ours.len()).collect();
        let names: Vec<String> = first.iter().map(|container| text(container, "/name")).collect();
        ensure!(names == ours, "in front are {names:?}");
        let proxy = first.last().copied().cloned().unwrap_or_default();
        let canonical = text(&proxy, "/image").ends_with("/cinch-proxy:0.1.0")
            && proxy.get("args") == Some(&json!(["run"]))
            && proxy.get("command").is_none();
        ensure!(canonical, "not overwritten: {proxy}");
        terminal::show(&format!("a cinch-proxy with {image} {args:?} {command:?} was overwritten"));
    }
    let kept = look_alike_that_is_left_alone()?;
    let kept = see.refused(&see.create(&kept, &["--dry-run=server"])?, "ReservedName")?;
    let running = see
        .pods("shop", "app=api")?
        .first()
        .map(|pod| text(pod, "/metadata/name"))
        .context("no pod of api")?;
    let output = see.attempt(&[
        "set",
        "image",
        &format!("pod/{running}"),
        "-n",
        "shop",
        &format!("cinch-proxy={APP_IMAGE}"),
    ])?;
    let image = see.refused(&output, "SidecarImage")?;
    let into = into_the_sidecar(see, &running)?;
    Ok(format!(
        "{sentence}\n3 look-alikes overwritten\none with a port of ours: {kept}\nset image: {image}\n{into}"
    ))
}

/// Nobody gets into a running sidecar, whose cgroup the redirect lets through.
fn into_the_sidecar(see: &See<'_>, pod: &str) -> Result<String> {
    let image = format!("--image={APP_IMAGE}");
    let debug =
        ["debug", pod, "-n", "shop", &image, "--target=cinch-proxy", "--profile=restricted", "--", "pause"];
    let debugged = see.refused(&see.attempt(&debug)?, "EphemeralIntoSidecar")?;
    let exec = ["exec", pod, "-n", "shop", "-c", "cinch-proxy", "--", "/cinch-proxy", "version"];
    let executed = see.refused(&see.attempt(&exec)?, "ExecIntoSidecar")?;
    Ok(format!("kubectl debug: {debugged}\nkubectl exec: {executed}"))
}

/// With the webhook scaled to 0.
pub fn reject_without_webhook(story: &mut Story<'_>) -> Result<String> {
    let see = &story.see;
    let canonical =
        admission::canonical(see, &pod("canonical", "shop", json!({"app": "canonical"}), json!([])))?;
    see.kubectl(&["scale", "-n", "cinch-system", "deployment/cinch-webhook", "--replicas=0"])?;
    wait::until("the webhook to be gone", PODS, || {
        let left =
            see.items(&["pods", "-n", "cinch-system", "-l", "app.kubernetes.io/component=webhook"])?.len();
        Ok(if left == 0 { Seen::Done(()) } else { Seen::Not(format!("{left} pods")) })
    })?;
    let played = without_webhook(see, &canonical);
    see.kubectl(&["scale", "-n", "cinch-system", "deployment/cinch-webhook", "--replicas=2"])?;
    see.rolled_out("cinch-system", "deployment/cinch-webhook")?;
    let shown = played?;
    let web = story.web_goes_on(20)?;
    Ok(format!("{shown}; {web}"))
}

fn without_webhook(see: &See<'_>, canonical: &Value) -> Result<String> {
    let sentence = see.refused(&see.create(&opted_out("shop"), &[])?, "SidecarMissing")?;
    see.refused(&see.create(&pod("plain", "shop", json!({}), json!([])), &[])?, "SidecarMissing")?;
    for (image, args, command) in LOOK_ALIKES {
        let output = see.create(&look_alike(image, args, command), &[])?;
        if output.ok() {
            bail!("a look-alike was stored while the webhook was dead: {image} {args:?} {command:?}");
        }
        ensure!(output.text().contains("Sidecar"), "not our sentence: {}", output.text());
    }
    let normal = see.create(&pod("normal", "legacy", json!({}), json!([])), &[])?;
    ensure!(normal.ok(), "a pod of a namespace that is not enrolled: {}", normal.text());
    see.kubectl(&["wait", "-n", "legacy", "pod/normal", "--for=condition=Ready", "--timeout=180s"])?;
    see.kubectl(&["delete", "pod", "normal", "-n", "legacy", "--wait=false"])?;
    let rules = admission::rules(see, canonical)?;
    Ok(format!("{sentence}\n3 look-alikes refused; {rules}; pod legacy/normal started"))
}

/// Every way back that a user with edit and update on namespaces could try.
pub fn ratchet(story: &mut Story<'_>) -> Result<String> {
    let see = &story.see;
    see.apply(USERS)?;
    let (mut tries, mut refused) = (0, Vec::new());
    let mut note = |output: &crate::process::Output, word: &str| -> Result<()> {
        tries += 1;
        let sentence = see.refused(output, word)?;
        refused.push(sentence);
        Ok(())
    };
    for (label, word) in [
        ("cinch.dev/mode", "NamespaceLocked"),
        ("cinch.dev/mesh", "NamespaceLocked"),
        ("cinch.dev/injection", "InjectionRequired"),
    ] {
        let eve = "--as=eve";
        note(&see.attempt(&[eve, "label", "namespace", "shop", &format!("{label}-")])?, word)?;
        let patch = json!({"metadata": {"labels": {label: null}}}).to_string();
        let status =
            ["patch", "namespace", "shop", "--subresource=status", "--type=merge", "-p", &patch, eve];
        note(&see.attempt(&status)?, word)?;
        let mut namespace = see.json(&["namespace", "shop"])?;
        if let Some(labels) = namespace.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
            labels.remove(label);
        }
        let raw = ["replace", "--raw", "/api/v1/namespaces/shop/finalize", "-f", "-", eve];
        note(&see.cluster.kubectl_stdin(&raw, &namespace.to_string())?, word)?;
    }
    let weaken =
        see.attempt(&["--as=eve", "label", "namespace", "shop", "cinch.dev/mode=PERMISSIVE", "--overwrite"])?;
    note(&weaken, "NamespaceLocked")?;
    let annotate = see.attempt(&["--as=eve", "annotate", "namespace", "shop", "cinch.dev/promotion=mine"])?;
    note(&annotate, "PromotionAnnotation")?;
    note(
        &see.attempt(&["--as=eve", "create", "token", "api", "-n", "shop", "--audience=cinch.dev"])?,
        "TokenMint",
    )?;
    let patch = json!({"data": {"bundle.pem": "mine"}}).to_string();
    let trust = ["--as=eve", "patch", "configmap", "cinch-trust", "-n", "shop", "--type=merge", "-p", &patch];
    note(&see.attempt(&trust)?, "TrustBundleGuarded")?;
    let reason_alone =
        json!({"metadata": {"labels": {"cinch.dev/mode": null}, "annotations": {"cinch.dev/relax-reason": "mine"}}}).to_string();
    note(
        &see.attempt(&["--as=eve", "patch", "namespace", "shop", "--type=merge", "-p", &reason_alone])?,
        "NamespaceLocked",
    )?;
    note(&see.attempt(&["--as=rae", "label", "namespace", "shop", "cinch.dev/mode-"])?, "NamespaceLocked")?;
    // Also where nothing is locked a posture does not ask for less than the installation.
    for namespace in ["shop", "bank"] {
        for spec in [json!({"quietPeriod": "1s"}), json!({"probation": "1000d"}), json!({"probation": "0s"})]
        {
            let patch = json!({"spec": spec}).to_string();
            let posture = ["patch", "posture", "mesh", "-n", namespace, "--type=merge", "-p", &patch];
            let by_eve = [&["--as=eve"], &posture[..], &["--dry-run=server"]].concat();
            note(&see.attempt(&by_eve)?, "PostureGuarded")?;
            let by_rae = [&["--as=rae"], &posture[..], &["--dry-run=server"]].concat();
            ensure!(see.attempt(&by_rae)?.ok(), "who may relax may also do this: {spec}");
        }
    }
    Ok(format!(
        "{tries} ways back tried, {} refused by our sentences; e.g. {}",
        refused.len(),
        refused.first().cloned().unwrap_or_default()
    ))
}

/// A person with `relax` and a reason can.
pub fn relax(story: &mut Story<'_>) -> Result<String> {
    let see = &story.see;
    see.apply(USERS)?;
    let patch = json!({"metadata": {
        "labels": {"cinch.dev/mode": null},
        "annotations": {"cinch.dev/relax-reason": "the demo shows that it can be done"},
    }});
    see.shown(&["--as=rae", "patch", "namespace", "shop", "--type=merge", "-p", &patch.to_string()])?;
    let state =
        see.posture_until("shop", "the Posture of shop to be Relaxed", Duration::from_secs(120), |status| {
            let state = text(status, "/state");
            (state == "Relaxed" && text(status, "/mode") == "PERMISSIVE").then_some(state)
        })?;
    see.shown(&["get", "postures", "-A"])?;
    let web = story.web_goes_on(20)?;
    Ok(format!("shop is PERMISSIVE, {state}; {web}"))
}
