//! What the objects themselves show: status and conditions of policies, what is refused at admission, and what
//! becomes of a policy that came past it.

use super::scene::{Scene, Workload, policy};
use crate::place::{Outcome, SERVED};
use crate::policies;
use crate::see::text;
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;

const SHOWN: Duration = Duration::from_secs(120);
const POLICY: &str = "AuthorizationPolicy";
const POLICIES: &str = "authorizationpolicies";
const REFUSED: &str = include_str!("../../manifests/refused-policies.yaml");
const ACCEPTED: &str = include_str!("../../manifests/accepted-policies.yaml");

/// For each of [`REFUSED`]: the field's path, and what to do, in the API server's words or in ours.
const SENTENCES: [(&str, &str); 8] = [
    ("spec.rules[0].from[1].operation", "belongs under `to`"),
    ("spec.rules[0].from[0].source.principals[0]", "leave the scheme off"),
    ("spec", "needs rules"),
    ("spec.action", "\"ALLOW\""),
    ("spec", "needs a selector"),
    ("spec.rules[0].from[0].source.principal", "did you mean \"principals\"?"),
    ("spec.rules[0].from", "empty"),
    ("spec.action", "CUSTOM"),
];

/// What must be refused is, with the field's path and what to do; what guides tell people to paste is accepted.
pub fn admission(scene: &Scene<'_>) -> Result<String> {
    scene.enrolled(&[])?;
    let (refused, accepted) = (documents(REFUSED)?, documents(ACCEPTED)?);
    ensure!(refused.len() == SENTENCES.len(), "{} examples, {} sentences", refused.len(), SENTENCES.len());
    let dry_run = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("namespace".to_owned(), json!(scene.namespace));
        }
        scene.see.create(&object.to_string(), &["--dry-run=server"])
    };
    let mut lines = Vec::new();
    for (object, (path, advice)) in refused.iter().zip(SENTENCES) {
        let output = dry_run(object)?;
        let (name, said) = (text(object, "/metadata/name"), output.text());
        ensure!(!output.ok(), "{name} was accepted: {}", said.trim());
        ensure!(
            said.contains(path) && said.contains(advice),
            "{name}: not {path} … {advice}: {}",
            said.trim()
        );
        let line = said.lines().find(|line| line.contains(advice)).unwrap_or_default();
        lines.push(format!("{name}: {}", line.trim()));
    }
    for object in &accepted {
        let output = dry_run(object)?;
        ensure!(output.ok(), "{} was refused: {}", text(object, "/metadata/name"), output.text().trim());
    }
    terminal::show(&lines.join("\n"));
    Ok(format!(
        "{} mistakes refused with their field and advice, {} common policies accepted",
        lines.len(),
        accepted.len()
    ))
}

fn documents(text: &str) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(text).context("the examples can't be read")
}

/// A policy that was stored while no webhook looked closes what it selects, and says so in its condition and in
/// the Posture.
pub fn broken(scene: &Scene<'_>) -> Result<String> {
    scene.not_enrolled()?;
    let spec = json!({"selector": {"matchLabels": {"app": "api"}},
        "rules": [{"from": [{"source": {"principal": ["cluster.local/ns/a/sa/b"]}}]}]});
    let object = policy(POLICY, &scene.namespace, "misspelt", json!({}), spec.clone());
    scene.see.apply(&object.to_string())?;
    scene.enrol()?;
    scene.run(&[Workload::meshed("api"), Workload::meshed("other"), Workload::meshed("client")])?;
    let (client, to, other) = (scene.place("client")?, scene.server("api")?, scene.server("other")?);
    scene.until(&client, other, &SERVED)?;
    scene.always(&client, to, &Outcome::Reset)?;
    let condition = policies::fault(&scene.see, POLICIES, &scene.namespace, "misspelt", "principal")?;
    let posture = wait::until("the Posture to name the policy", SHOWN, || {
        let status = scene.see.posture(&scene.namespace)?.get("status").cloned().unwrap_or_default();
        let of = |field: &str| status.get(field).map(Value::to_string).unwrap_or_default();
        let (conditions, blockers) = (of("conditions"), of("blockers"));
        let named = format!("{conditions} {blockers}").contains("misspelt");
        Ok(if named { Seen::Done(conditions) } else { Seen::Not(format!("{conditions} {blockers}")) })
    })?;
    terminal::show(&format!("{condition}\nPosture: {posture}"));
    scene.see.shown(&["get", POLICIES, "-n", &scene.namespace])?;
    // To write it again unchanged is no new mistake; to write it so for the first time is.
    let again =
        scene.see.create(&policy(POLICY, &scene.namespace, "second", json!({}), spec).to_string(), &[])?;
    ensure!(!again.ok(), "the webhook must refuse it now: {}", again.text());
    scene.without_policy(POLICIES, "misspelt")?;
    scene.until(&client, to, &SERVED)?;
    Ok(format!("api closed, another workload open; {condition}; mended: served"))
}

/// The status counts the workloads that a policy selects and the proxies that enforce its current generation.
pub fn status(scene: &Scene<'_>) -> Result<String> {
    let api = Workload { replicas: 2, ..Workload::meshed("api") };
    scene.enrolled(&[api, Workload::meshed("other")])?;
    let mine = json!({"selector": {"matchLabels": {"app": "api"}}, "rules": [{"from": [{"source": {"namespaces": ["a"]}}]}]});
    scene.policy(POLICY, "api", mine)?;
    let first = policies::enforced(&scene.see, POLICIES, &scene.namespace, "api", 2)?;
    scene.policy(
        POLICY,
        "all",
        json!({"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["a"]}}]}]}),
    )?;
    let all = policies::enforced(&scene.see, POLICIES, &scene.namespace, "all", 3)?;
    scene.policy(POLICY, "nobody", json!({"selector": {"matchLabels": {"app": "nobody"}}}))?;
    policies::enforced(&scene.see, POLICIES, &scene.namespace, "nobody", 0)?;
    let generation = |name: &str| -> Result<String> {
        scene.see.kubectl(&[
            "get",
            POLICIES,
            name,
            "-n",
            &scene.namespace,
            "-o",
            "jsonpath={.metadata.generation}",
        ])
    };
    let before = generation("api")?;
    scene.policy(POLICY, "api", json!({"selector": {"matchLabels": {"app": "api"}}, "rules": [{}]}))?;
    ensure!(generation("api")? != before, "a change of the spec makes a new generation");
    policies::enforced(&scene.see, POLICIES, &scene.namespace, "api", 2)?;
    scene.see.kubectl(&["scale", "deployment/api", "-n", &scene.namespace, "--replicas=3"])?;
    scene.see.rolled_out(&scene.namespace, "deployment/api")?;
    let scaled = policies::enforced(&scene.see, POLICIES, &scene.namespace, "api", 3)?;
    scene.see.shown(&["get", POLICIES, "-n", &scene.namespace])?;
    Ok(format!("{first}; of the whole namespace {all}; scaled {scaled}"))
}

/// `kubectl cinch policy explain` says of a running pod which policies select it and what they add up to.
pub fn explain(scene: &Scene<'_>) -> Result<String> {
    scene.enrolled(&[Workload::meshed("api"), Workload::meshed("other")])?;
    let web = json!({"selector": {"matchLabels": {"app": "api"}},
        "rules": [{"from": [{"source": {"principals": [format!("cluster.local/ns/{}/sa/web", scene.namespace)]}}]}]});
    scene.policy(POLICY, "only-web", web)?;
    scene.policy("PeerAuthentication", "strict", json!({"mtls": {"mode": "STRICT"}}))?;
    let told = |workload: &str| -> Result<String> {
        let pod = scene.place(workload)?.pod;
        let output = scene.see.cluster.cinch(&["policy", "explain", &pod, "-n", &scene.namespace])?;
        ensure!(output.ok(), "kubectl cinch policy explain {pod}: {}", output.text());
        terminal::show(&format!(
            "$ kubectl cinch policy explain {pod} -n {}\n{}",
            scene.namespace, output.stdout
        ));
        Ok(output.stdout)
    };
    let (api, other) = (told("api")?, told("other")?);
    for words in ["only-web", "STRICT", "only what an ALLOW rule matches passes", "through mutual TLS alone"]
    {
        ensure!(api.contains(words), "of api it does not say {words:?}: {api}");
    }
    ensure!(!other.contains("only-web"), "the policy does not select other: {other}");
    let sum = |told: &str| told.lines().last().unwrap_or_default().trim().to_owned();
    Ok(format!("api: {}; other: {}", sum(&api), sum(&other)))
}
