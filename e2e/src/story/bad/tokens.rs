//! Tokens and requests that are not a sidecar's own: each is refused with its reason, counted and told.

use super::witness::{Trace, Witness};
use crate::see::{APP_IMAGE, See, text};
use crate::story::Story;
use crate::terminal;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;

/// Tokens of another audience, of a pod that is not meshed, and stolen from a meshed one; and a good one with a request
/// for more than a key.
pub fn tokens(story: &mut Story<'_>) -> Result<String> {
    let see = &story.see;
    let service =
        ["get", "service", "cinch-operator", "-n", "cinch-system", "-o", "jsonpath={.spec.clusterIP}"];
    let operator = format!("{}:7443", see.kubectl(&service)?);
    let api = see.pods("shop", "app=api")?.first().cloned().context("no pod of api")?;
    let meshed = text(&api, "/metadata/name");
    let bound =
        ["create", "token", "api", "-n", "shop", "--bound-object-kind=Pod", "--bound-object-name", &meshed];
    see.apply(&holder_of_a_token().to_string())?;
    see.kubectl(&["wait", "-n", "legacy", "pod/token-holder", "--for=condition=Ready", "--timeout=60s"])?;
    let cases = [
        ("no token at all", "garbage".to_owned(), "TokenRejected"),
        ("of another audience", see.kubectl(&["create", "token", "api", "-n", "shop"])?, "TokenRejected"),
        ("of another audience, bound to a pod", see.kubectl(&bound)?, "TokenRejected"),
        (
            "of our audience, of a pod that is not meshed",
            token_of(see, "legacy", "token-holder", "app")?,
            "PodNotMeshed",
        ),
        (
            "stolen from a meshed pod, used by another",
            token_of(see, "shop", &meshed, "cinch-proxy")?,
            "PodMismatch",
        ),
    ];
    let holder = see.json(&["pod", TOKEN_HOLDER.1, "-n", TOKEN_HOLDER.0])?;
    let witness = Witness::of_leader(*see)?;
    let mut traces = Vec::new();
    for (what, token, word) in &cases {
        let answer = first_certificate(see, &operator, token.trim(), TOKEN_HOLDER, &[])?;
        ensure!(answer.starts_with(word), "a token {what}: the operator answered {answer}");
        traces.push(trace(format!("a token {what}: {answer}"), word, &holder));
    }
    let own = token_of(see, "shop", &meshed, "cinch-proxy")?;
    let answer = first_certificate(see, &operator, own.trim(), ("shop", &meshed), &["--ambitious"])?;
    ensure!(answer.starts_with("CsrInvalid"), "a request for another's name and the CA flag: {answer}");
    let what = format!("a good token, a request for another's name and the CA flag: {answer}");
    traces.push(trace(what, "CsrInvalid", &api));
    terminal::show(&witness.noticed(&traces)?);
    see.kubectl(&["delete", "pod", "token-holder", "-n", "legacy", "--wait=false"])?;
    Ok(format!(
        "{} bad tokens and one bad request, each refused with its reason, counted and told",
        cases.len()
    ))
}

/// What the operator must have noticed of a refusal with the reason `word`, to a pod.
fn trace(what: String, word: &str, asker: &Value) -> Trace {
    let peer = format!("peer={} ", text(asker, "/status/podIP"));
    Trace {
        what,
        counters: vec![format!("cinch_operator_certificates_refused_total{{reason=\"{word}\"}}")],
        line: vec!["refused a first certificate".to_owned(), peer, format!("reason={word} ")],
    }
}

/// Namespace and name of the pod that asks with others' tokens.
const TOKEN_HOLDER: (&str, &str) = ("legacy", "token-holder");

/// A pod of a namespace that is not enrolled may ask its kubelet for a token of any audience.
fn holder_of_a_token() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "token-holder", "namespace": "legacy"},
        "spec": {
            "containers": [{
                "name": "app", "image": APP_IMAGE, "args": ["serve", "--drain", "0s"],
                "volumeMounts": [{"name": "token", "mountPath": "/var/run/cinch/token"}],
            }],
            "volumes": [{"name": "token", "projected": {"sources": [
                {"serviceAccountToken": {"audience": "cinch.dev", "expirationSeconds": 3600, "path": "token"}},
            ]}}],
        },
    })
}

/// Reads a running container's token as root of its node can.
fn token_of(see: &See<'_>, namespace: &str, pod: &str, container: &str) -> Result<String> {
    let pid = see.cluster.container_pid(namespace, pod, container)?;
    let path = format!("/proc/{pid}/root/var/run/cinch/token/token");
    std::fs::read_to_string(&path).with_context(|| path.clone())
}

/// What the operator answers when somebody in the network of the pod `asker` asks for a first certificate with
/// this token.
fn first_certificate(
    see: &See<'_>,
    operator: &str,
    token: &str,
    asker: (&str, &str),
    more: &[&str],
) -> Result<String> {
    let bundle = see.json(&["configmap", "cinch-trust", "-n", "shop"])?;
    let input = format!("{token}\n{}", text(&bundle, "/data/bundle.pem"));
    let program = see.cluster.state_dir().join("cinch-e2e").display().to_string();
    let mut command = see.cluster.pod_network_command(asker.0, asker.1, "app", &program)?;
    command.args(["ask", operator, "spiffe://cluster.local/ns/cinch-system/sa/cinch-operator"]).args(more);
    let output = crate::process::capture(&mut command, Some(&input), Duration::from_secs(30))?;
    ensure!(output.ok(), "the operator could not be asked: {}", output.text());
    Ok(output.stdout.trim().to_owned())
}
