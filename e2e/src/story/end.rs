//! Leaving the mesh: nothing of Cinch is left that could be in the way.

use super::Story;
use crate::see::{APP_IMAGE, PODS, restricted_container, restricted_pod, text};
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// Unenrols both namespaces and uninstalls the chart; then looks for leftovers.
pub fn uninstall(story: &mut Story<'_>) -> Result<String> {
    terminal::show(&story.see.cluster.memory_of_cinch()?);
    for namespace in ["shop", "bank"] {
        let args = ["unenroll", namespace, "--restart", "--reason", "the demo ends"];
        let output = story.see.cluster.cinch(&args)?;
        terminal::show(&format!("$ kubectl cinch {}\n{}", args.join(" "), output.text().trim_end()));
        ensure!(output.ok(), "kubectl cinch {}: {}", args.join(" "), output.text());
    }
    for (namespace, workload) in [
        ("shop", "deployment/api"),
        ("shop", "deployment/web"),
        ("shop", "statefulset/db"),
        ("bank", "deployment/teller"),
    ] {
        story.see.rolled_out(namespace, workload)?;
    }
    // Its sidecar's volume is the agent's to take back, so the agent goes after it.
    story.see.kubectl(&["delete", "pod", "lone", "-n", "shop", "--timeout=180s"])?;
    let web = story.web_goes_on(20)?;
    let helm = story.see.cluster.helm(&["uninstall", "cinch", "-n", "cinch-system", "--wait"])?;
    ensure!(helm.ok(), "helm uninstall: {}", helm.text());
    nothing_left(story)?;
    story.see.apply(&after().to_string())?;
    story.see.kubectl(&["wait", "-n", "shop", "pod/after", "--for=condition=Ready", "--timeout=180s"])?;
    let more = story.web_goes_on(20)?;
    Ok(format!(
        "no configuration, policy, binding or sidecar left; pod shop/after started; {web}, then {more}"
    ))
}

/// An ordinary pod, when all is over.
fn after() -> Value {
    let container = json!({"name": "app", "image": APP_IMAGE, "args": ["serve"],
        "securityContext": restricted_container()});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "after", "namespace": "shop"},
        "spec": {"securityContext": restricted_pod(1000), "containers": [container]}})
}

fn nothing_left(story: &Story<'_>) -> Result<()> {
    wait::until("everything of Cinch to be gone", PODS, || {
        let kinds = "mutatingwebhookconfigurations,validatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings";
        let names = story.see.kubectl(&["get", kinds, "-o", "name"])?;
        let mut left: Vec<String> =
            names.lines().filter(|name| name.contains("cinch")).map(str::to_owned).collect();
        for pod in story.see.items(&["pods", "-A"])? {
            let inits =
                pod.pointer("/spec/initContainers").and_then(Value::as_array).cloned().unwrap_or_default();
            let finished = ["Succeeded", "Failed"].contains(&text(&pod, "/status/phase").as_str());
            if !finished && inits.iter().any(|container| text(container, "/name").starts_with("cinch-")) {
                left.push(format!(
                    "sidecar in {}/{}",
                    text(&pod, "/metadata/namespace"),
                    text(&pod, "/metadata/name")
                ));
            }
        }
        Ok(if left.is_empty() { Seen::Done(()) } else { Seen::Not(left.join(", ")) })
    })
}
