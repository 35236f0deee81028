//! Who is on stage: two servers whose pods come and go, one of them under a policy of requests; callers that stay,
//! and a stranger whom the policies forbid to call.

use super::growth::Growth;
use super::path_of;
use crate::see::{APP_IMAGE, See, text};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;

/// The namespace.
pub const SOAK: &str = "soak";
/// A server whose connections are judged.
pub const API: &str = "api";
/// A server whose requests are judged.
pub const SHELF: &str = "shelf";
/// Who calls, and may.
const CALLER: &str = "caller";
/// Who calls, and may not.
pub const STRANGER: &str = "stranger";
const PORT: u16 = 8080;

/// Sets it, and waits until all are ready; returns the proxies that stay to the end.
pub fn set(see: &See<'_>, counters: &Path) -> Result<Vec<Growth>> {
    let posture = json!({"apiVersion": "cinch.dev/v1alpha1", "kind": "Posture",
        "metadata": {"name": "mesh", "namespace": SOAK}, "spec": {"promotion": "Paused"}});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": SOAK, "labels": {"cinch.dev/mesh": "enabled"}}});
    apply(see, vec![namespace, posture, service(API), service(SHELF), server(API, 3), server(SHELF, 2)])?;
    apply(see, vec![mode("STRICT"), policy(API, 0), policy(SHELF, 0)])?;
    for name in [API, SHELF] {
        see.rolled_out(SOAK, &format!("deployment/{name}"))?;
    }
    apply(see, vec![client(CALLER, 2, counters), client(STRANGER, 1, counters)])?;
    let mut growth = Vec::new();
    for name in [CALLER, STRANGER] {
        see.rolled_out(SOAK, &format!("deployment/{name}"))?;
        for pod in see.pods(SOAK, &format!("app={name}"))? {
            let pod_name = text(&pod, "/metadata/name");
            let pid = see.cluster.container_pid(SOAK, &pod_name, "cinch-proxy")?;
            let address = text(&pod, "/status/podIP").parse().context("the pod has no address")?;
            growth.push(Growth::new(format!("{SOAK}/{pod_name}"), address, pid));
        }
    }
    ensure!(growth.len() == 3, "{} pods instead of 3", growth.len());
    Ok(growth)
}

/// Server-side apply of objects.
pub fn apply(see: &See<'_>, items: Vec<Value>) -> Result<()> {
    see.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).map(drop)
}

/// The mode of the namespace.
pub fn mode(mode: &str) -> Value {
    security("PeerAuthentication", "default", json!({"mtls": {"mode": mode}}))
}

/// Lets the caller in, by one rule of `further` + 1, and never the stranger.
pub fn policy(server: &str, further: usize) -> Value {
    let of_requests = server == SHELF;
    let mut rules: Vec<Value> =
        (0..further).map(|number| rule(&format!("other-{number}"), of_requests)).collect();
    rules.push(rule(CALLER, of_requests));
    let selector = json!({"matchLabels": {"app": server}});
    security("AuthorizationPolicy", server, json!({"selector": selector, "action": "ALLOW", "rules": rules}))
}

fn rule(account: &str, of_requests: bool) -> Value {
    let mut rule =
        json!({"from": [{"source": {"principals": [format!("cluster.local/ns/{SOAK}/sa/{account}")]}}]});
    if let (true, Some(rule)) = (of_requests, rule.as_object_mut()) {
        rule.insert("to".to_owned(), json!([{"operation": {"methods": ["GET"], "paths": ["/"]}}]));
    }
    rule
}

fn security(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": name, "namespace": SOAK}, "spec": spec})
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SOAK},
        "spec": {"selector": {"app": name}, "ports": [{"name": "web", "port": PORT}]}})
}

fn server(name: &str, replicas: u32) -> Value {
    let ready = json!({"httpGet": {"path": "/ready", "port": PORT}, "periodSeconds": 1});
    let container = json!({"name": "app", "image": APP_IMAGE, "args": ["serve", "--ports", PORT.to_string()],
        "ports": [{"containerPort": PORT}], "readinessProbe": ready});
    deployment(name, replicas, json!({"terminationGracePeriodSeconds": 20, "containers": [container]}))
}

/// Calls both servers, over new connections and over kept ones.
fn client(name: &str, replicas: u32, counters: &Path) -> Value {
    let named = format!("--name={name}");
    let [api, shelf] = [API, SHELF].map(|server| format!("--to={server}.{SOAK}.svc.cluster.local:{PORT}"));
    let args = ["call", &named, &api, &shelf, "--interval=50ms", "--counters=/counters"];
    let container = json!({"name": "app", "image": APP_IMAGE, "args": args,
        "volumeMounts": [{"name": "counters", "mountPath": "/counters"}]});
    let volume = json!({"name": "counters", "hostPath": {"path": path_of(counters), "type": "Directory"}});
    // A datagram that a busy kernel drops costs a second, not a request: each of them has 5 s, as long as a resolver
    // waits before it asks again.
    let options = json!([{"name": "timeout", "value": "1"}, {"name": "attempts", "value": "5"}]);
    let pod = json!({"terminationGracePeriodSeconds": 5, "containers": [container], "volumes": [volume],
        "dnsConfig": {"options": options}});
    deployment(name, replicas, pod)
}

fn deployment(name: &str, replicas: u32, pod: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": SOAK},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod}}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_lets_the_caller_in_and_never_the_stranger() {
        for (server, further) in [(API, 0), (API, 20), (SHELF, 0), (SHELF, 20)] {
            let policy = policy(server, further).to_string();
            assert!(policy.contains("/sa/caller\"") && !policy.contains(STRANGER), "{policy}");
            assert_eq!(policy.contains("methods"), server == SHELF);
        }
    }
}
