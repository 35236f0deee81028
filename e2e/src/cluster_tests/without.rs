//! What holds while parts of Cinch are away: these tests take them away and bring them back.

use super::scene::{Scene, Workload, policy};
use crate::install::NAMESPACE;
use crate::place::{Outcome, SERVED, open};
use crate::policies;
use crate::see::PODS;
use crate::wait::{self, Seen};
use anyhow::{Result, ensure};
use serde_json::json;

const POLICY: &str = "AuthorizationPolicy";
const POLICIES: &str = "authorizationpolicies";

/// Scales a Deployment of Cinch to 0, plays, and brings it back whatever comes of it.
pub(super) fn away(
    scene: &Scene<'_>,
    component: &str,
    play: impl FnOnce() -> Result<String>,
) -> Result<String> {
    let deployment = format!("deployment/cinch-{component}");
    let scale = |replicas: &str| scene.see.kubectl(&["scale", "-n", NAMESPACE, &deployment, replicas]);
    scale("--replicas=0")?;
    let selector = format!("app.kubernetes.io/component={component}");
    let gone = wait::until(&format!("every {component} to be gone"), PODS, || {
        let left = scene.see.items(&["pods", "-n", NAMESPACE, "-l", &selector])?.len();
        Ok(if left == 0 { Seen::Done(()) } else { Seen::Not(format!("{left} pods")) })
    });
    let played = scene.told(gone.and_then(|()| play()));
    scale("--replicas=2")?;
    scene.see.rolled_out(NAMESPACE, &deployment)?;
    played
}

/// Without an operator the policies in force stay, on open and new connections; a change waits for the next one.
pub fn operator(scene: &Scene<'_>) -> Result<String> {
    scene.enrolled(&[Workload::meshed("api"), Workload::meshed("client"), Workload::meshed("other")])?;
    let (client, other, to) = (scene.place("client")?, scene.place("other")?, scene.server("api")?);
    let only = |account: &str| {
        let principal = format!("cluster.local/ns/{}/sa/{account}", scene.namespace);
        json!({"selector": {"matchLabels": {"app": "api"}}, "rules": [{"from": [{"source": {"principals": [principal]}}]}]})
    };
    scene.policy(POLICY, "gate", only("client"))?;
    scene.until(&other, to, &Outcome::Reset)?;
    let mut kept = open(&client, to)?;
    let first = kept.ask();
    ensure!(first == SERVED, "the policy allows client: {first}");
    let shown = away(scene, "operator", || {
        scene.policy(POLICY, "gate", only("other"))?;
        scene.always(&client, to, &SERVED)?;
        scene.always(&other, to, &Outcome::Reset)?;
        let kept = kept.ask();
        ensure!(kept == SERVED, "the open connection without an operator: {kept}");
        Ok("without an operator the old policy held".to_owned())
    })?;
    scene.until(&other, to, &SERVED)?;
    scene.until(&client, to, &Outcome::Reset)?;
    let enforced = policies::enforced(&scene.see, POLICIES, &scene.namespace, "gate", 1)?;
    Ok(format!("{shown}; with one the new policy came into force ({enforced})"))
}

/// Without a webhook no policy is written in an enrolled namespace, any is deleted, and others are not touched.
pub fn webhook(scene: &Scene<'_>) -> Result<String> {
    scene.enrolled(&[])?;
    let spec = json!({"rules": [{}]});
    scene.policy(POLICY, "there", spec.clone())?;
    away(scene, "webhook", || {
        let create = |namespace: &str, dry_run: &[&str]| {
            scene.see.create(&policy(POLICY, namespace, "new", json!({}), spec.clone()).to_string(), dry_run)
        };
        let refused = create(&scene.namespace, &[])?;
        ensure!(!refused.ok(), "nobody looked at it, and it was stored: {}", refused.text());
        let elsewhere = create("default", &["--dry-run=server"])?;
        ensure!(elsewhere.ok(), "a namespace that is not enrolled: {}", elsewhere.text());
        scene.without_policy(POLICIES, "there")?;
        Ok("no webhook: a new policy is refused, deleting one and other namespaces are not in its way"
            .to_owned())
    })
}
