//! The control plane dies, first its leader, then all of it: traffic goes on, and nothing is promoted on
//! partial data.

use super::Story;
use super::partial::Cut;
use crate::see::{APP_IMAGE, PODS, restricted_container, restricted_pod, text};
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;

/// Kills the leader with SIGKILL, then every operator pod, while one pod of a namespace is cut off.
pub fn survive(story: &mut Story<'_>) -> Result<String> {
    let locked = text(&story.see.posture("shop")?, "/status/lockedSince");
    let (first, term) = (leader(story)?, term(story)?);
    story.see.cluster.kill_container("cinch-system", &first, "cinch-operator")?;
    let after_leader = story.web_goes_on(40)?;
    let second = new_leader(story, &term)?;
    terminal::show(&format!("leader {first} was killed; {second} leads; {after_leader}"));
    let cut = Cut::begin(story)?;
    let played = without_any(story, &cut, &locked);
    let healed = cut.end();
    let (served, shown) = played?;
    healed?;
    let promoted = cut.promotes(served)?;
    let web = story.web_goes_on(20)?;
    Ok(format!("leader killed: {after_leader}\n{shown}\n{promoted}; {web}"))
}

/// Kills all operators; what the next one makes of what it finds. Also returns when the pod that is cut off served
/// plaintext.
fn without_any(story: &Story<'_>, cut: &Cut<'_>, locked: &str) -> Result<(Timestamp, String)> {
    let pods = story.see.pods("cinch-system", "app.kubernetes.io/component=operator")?;
    for pod in &pods {
        story.see.cluster.kill_container("cinch-system", &text(pod, "/metadata/name"), "cinch-operator")?;
    }
    let served = cut.meanwhile()?;
    let without_any = story.web_goes_on(40)?;
    let third = wait::until("an operator to lead again", PODS, || {
        let holder = leader(story)?;
        let reporting = story.see.posture("shop")?;
        let pods = (
            crate::see::number(&reporting, "/status/pods/reporting"),
            crate::see::number(&reporting, "/status/pods/injected"),
        );
        let fresh = !holder.is_empty() && pods.0 == pods.1 && pods.1 > 0;
        Ok(if fresh {
            Seen::Done(holder)
        } else {
            Seen::Not(format!("leader {holder:?}, reporting {pods:?}"))
        })
    })?;
    let held_back = cut.holds_back()?;
    story.see.rolled_out("cinch-system", "deployment/cinch-operator")?;
    let posture = story.see.posture("shop")?;
    let (state, since) = (text(&posture, "/status/state"), text(&posture, "/status/lockedSince"));
    ensure!(
        state == "Strict" && since == locked,
        "shop is {state} since {since}, and was locked at {locked}"
    );
    let bank = text(&story.see.posture("bank")?, "/status/state");
    ensure!(
        bank != "Probation" && bank != "Strict",
        "bank was promoted while it is served plaintext: {bank}"
    );
    story.see.shown(&["get", "postures", "-A"])?;
    let shown = format!(
        "all operators killed: {without_any}\n{third} leads; shop Strict since {since}, bank {bank}\n\
         vault not promoted: {held_back}"
    );
    Ok((served, shown))
}

fn leader(story: &Story<'_>) -> Result<String> {
    lease(story, "{.spec.holderIdentity}")
}

/// What is new when somebody takes over: a killed operator that is restarted at once may be the next leader.
fn term(story: &Story<'_>) -> Result<String> {
    lease(story, "{.spec.holderIdentity} {.spec.acquireTime}")
}

fn lease(story: &Story<'_>, fields: &str) -> Result<String> {
    let fields = format!("jsonpath={fields}");
    story.see.kubectl(&["get", "lease", "cinch-operator", "-n", "cinch-system", "-o", &fields])
}

fn new_leader(story: &Story<'_>, before: &str) -> Result<String> {
    wait::until("an operator to take over", PODS, || {
        let (holder, now) = (leader(story)?, term(story)?);
        Ok(if !holder.is_empty() && now != before { Seen::Done(holder) } else { Seen::Not(now) })
    })
}

/// With no operator at all a new pod's app does not start, and the pod's status says why.
pub fn no_operator(story: &mut Story<'_>) -> Result<String> {
    let see = &story.see;
    see.kubectl(&["scale", "-n", "cinch-system", "deployment/cinch-operator", "--replicas=0"])?;
    let container = json!({"name": "app", "image": APP_IMAGE, "args": ["serve", "--drain", "0s"],
        "securityContext": restricted_container()});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "early", "namespace": "shop"},
        "spec": {"securityContext": restricted_pod(1000), "containers": [container]}});
    wait::until("every operator to be gone", PODS, || {
        let left =
            see.items(&["pods", "-n", "cinch-system", "-l", "app.kubernetes.io/component=operator"])?.len();
        Ok(if left == 0 { Seen::Done(()) } else { Seen::Not(format!("{left} pods")) })
    })?;
    let created = see.create(&pod.to_string(), &[])?;
    let seen = created.ok().then_some(()).context(created.text()).and_then(|()| waits_and_says_why(story));
    story.see.kubectl(&["scale", "-n", "cinch-system", "deployment/cinch-operator", "--replicas=2"])?;
    let why = seen?;
    story.see.rolled_out("cinch-system", "deployment/cinch-operator")?;
    story.see.kubectl(&["wait", "-n", "shop", "pod/early", "--for=condition=Ready", "--timeout=180s"])?;
    story.see.kubectl(&["delete", "pod", "early", "-n", "shop", "--wait=false"])?;
    let web = story.web_goes_on(20)?;
    Ok(format!("{why}; with the operator back the pod became ready; {web}"))
}

fn waits_and_says_why(story: &Story<'_>) -> Result<String> {
    wait::until("the pod's status to say why its app does not start", Duration::from_secs(90), || {
        let pod = story.see.json(&["pod", "early", "-n", "shop"])?;
        let started = pod.pointer("/status/containerStatuses/0/state/running").is_some();
        ensure!(!started, "the app started without its proxy");
        let statuses = pod.pointer("/status/initContainerStatuses").and_then(Value::as_array);
        let mut statuses = statuses.into_iter().flatten();
        let sidecar = statuses.find(|status| text(status, "/name") == "cinch-proxy").cloned();
        let sidecar = sidecar.unwrap_or_default();
        let last = ["state", "lastState"]
            .iter()
            .map(|state| text(&sidecar, &format!("/{state}/terminated/message")));
        let message = last.filter(|message| !message.is_empty()).collect::<Vec<_>>().join(" ");
        Ok(if message.contains("ControlUnreachable") {
            terminal::show(&format!("pod shop/early: cinch-proxy: {}", message.trim()));
            Seen::Done(message.trim().to_owned())
        } else {
            Seen::Not(sidecar.to_string())
        })
    })
}
