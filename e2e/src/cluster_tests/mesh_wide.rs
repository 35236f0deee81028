//! Objects of the root namespace hold in every enrolled namespace.

use super::scene::{PORT, Scene, Workload, policy};
use crate::install::NAMESPACE as ROOT;
use crate::place::{Outcome, SERVED};
use crate::terminal;
use anyhow::Result;
use serde_json::{Value, json};
use std::net::SocketAddr;

/// An AuthorizationPolicy and a PeerAuthentication of the root namespace, one after the other.
pub fn root_namespace(scene: &Scene<'_>) -> Result<String> {
    let second = format!("{}-b", scene.namespace);
    let (client, other) = (Workload::meshed("client"), Workload::meshed("other"));
    scene.enrolled(&[Workload::meshed("api"), client, other, Workload::unmeshed("plain")])?;
    scene.enrolled_besides(&second, &[Workload::meshed("api")])?;
    let far = scene.places(&second, "api")?.into_iter().map(|api| SocketAddr::new(api.address, PORT)).next();
    let servers: Vec<SocketAddr> = [Some(scene.server("api")?), far].into_iter().flatten().collect();
    let played = denied_everywhere(scene, &servers)
        .and_then(|denied| Ok((denied, strict_everywhere(scene, &servers)?)));
    for kind in ["authorizationpolicies", "peerauthentications"] {
        scene.see.kubectl(&["delete", kind, "mesh-test", "-n", ROOT, "--ignore-not-found"])?;
    }
    let (denied, strict) = played?;
    Ok(format!("{denied}; {strict}"))
}

fn root(scene: &Scene<'_>, kind: &str, spec: Value) -> Result<()> {
    let said = scene.see.apply(&policy(kind, ROOT, "mesh-test", json!({}), spec.clone()).to_string())?;
    terminal::show(&format!("$ kubectl apply -n {ROOT} -f {kind}.yaml    # {spec}\n{}", said.trim()));
    Ok(())
}

/// Denies one client by its name: in both namespaces, and nobody else.
fn denied_everywhere(scene: &Scene<'_>, servers: &[SocketAddr]) -> Result<String> {
    let (client, other) = (scene.place("client")?, scene.place("other")?);
    let principal = format!("cluster.local/ns/{}/sa/client", scene.namespace);
    root(
        scene,
        "AuthorizationPolicy",
        json!({"action": "DENY", "rules": [{"from": [{"source": {"principals": [principal]}}]}]}),
    )?;
    for to in servers {
        scene.until(&client, *to, &Outcome::Reset)?;
        scene.always(&other, *to, &SERVED)?;
    }
    scene.see.kubectl(&["delete", "authorizationpolicies", "mesh-test", "-n", ROOT])?;
    for to in servers {
        scene.until(&client, *to, &SERVED)?;
    }
    Ok(format!("DENY of one principal held in {} namespaces", servers.len()))
}

/// STRICT for the whole mesh refuses plaintext in both namespaces, and a namespace's own object wins over it.
fn strict_everywhere(scene: &Scene<'_>, servers: &[SocketAddr]) -> Result<String> {
    let (client, plain) = (scene.place("client")?, scene.place("plain")?);
    for to in servers {
        scene.until(&plain, *to, &SERVED)?;
    }
    root(scene, "PeerAuthentication", json!({"mtls": {"mode": "STRICT"}}))?;
    for to in servers {
        scene.until(&plain, *to, &Outcome::Reset)?;
        scene.always(&client, *to, &SERVED)?;
    }
    scene.policy("PeerAuthentication", "here", json!({"mtls": {"mode": "PERMISSIVE"}}))?;
    if let [near, far] = servers {
        scene.until(&plain, *near, &SERVED)?;
        scene.always(&plain, *far, &Outcome::Reset)?;
    }
    scene.see.kubectl(&["delete", "peerauthentications", "mesh-test", "-n", ROOT])?;
    for to in servers {
        scene.until(&plain, *to, &SERVED)?;
    }
    Ok(format!(
        "STRICT for the mesh held in {} namespaces, and the namespace's own PERMISSIVE over it",
        servers.len()
    ))
}
