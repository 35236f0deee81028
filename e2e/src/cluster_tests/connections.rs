//! Policies of the connection, for tunnels and plaintext alike: who is refused, and what becomes of connections
//! that are open when a policy changes.

use super::scene::{PORT, Scene, Workload};
use crate::place::{Kept, Outcome, Place, SERVED, open};
use crate::policies;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Far longer than a change takes to a proxy.
const CUT: Duration = Duration::from_secs(120);
/// Where a pod's proxy tells its metrics.
const METRICS: u16 = 15020;
const POLICY: &str = "AuthorizationPolicy";
const POLICIES: &str = "authorizationpolicies";

/// A DENY policy with one source.
fn deny(source: Value) -> Value {
    json!({"selector": {"matchLabels": {"app": "api"}}, "action": "DENY", "rules": [{"from": [{"source": source}]}]})
}

/// A label edit on a running pod moves it under a policy and out again; its connections follow.
pub fn live_labels(scene: &Scene<'_>) -> Result<String> {
    scene.enrolled(&[Workload::meshed("api"), Workload::meshed("client")])?;
    let (client, api) = (scene.place("client")?, scene.place("api")?);
    let to = SocketAddr::new(api.address, PORT);
    scene.policy(POLICY, "closed", json!({"selector": {"matchLabels": {"tier": "closed"}}}))?;
    scene.until(&client, to, &SERVED)?;
    let mut kept = open(&client, to)?;
    ensure!(kept.ask() == SERVED, "no policy selects api yet");
    let label = |label: &str| scene.see.shown(&["label", "pod", &api.pod, "-n", &scene.namespace, label]);
    label("tier=closed")?;
    let end = kept.ended_within(CUT);
    ensure!(end == Outcome::Reset, "the open connection of a pod that a policy now selects: {end}");
    scene.always(&client, to, &Outcome::Reset)?;
    let enforced = policies::enforced(&scene.see, POLICIES, &scene.namespace, "closed", 1)?;
    label("tier-")?;
    scene.until(&client, to, &SERVED)?;
    let left = policies::enforced(&scene.see, POLICIES, &scene.namespace, "closed", 0)?;
    Ok(format!(
        "tier=closed: the open connection was reset ({enforced}); without the label served again ({left})"
    ))
}

/// Namespaces and principals are those of certificates: plaintext has none, and is met by address or by
/// `notPrincipals: ["*"]`.
pub fn plaintext_clients(scene: &Scene<'_>) -> Result<String> {
    scene.enrolled(&[Workload::meshed("api"), Workload::meshed("meshed"), Workload::unmeshed("plain")])?;
    let (meshed, plain) = (scene.place("meshed")?, scene.place("plain")?);
    let to = scene.server("api")?;
    scene.until(&plain, to, &SERVED)?;
    let block = format!("{}/32", plain.address);
    let cases = [
        ("namespaces", json!({"namespaces": [scene.namespace]}), Outcome::Reset, SERVED),
        ("ipBlocks", json!({"ipBlocks": [block]}), SERVED, Outcome::Reset),
        ("notPrincipals", json!({"notPrincipals": ["*"]}), SERVED, Outcome::Reset),
    ];
    let mut seen = Vec::new();
    for (field, source, of_meshed, of_plain) in cases {
        let (mut tunnel, mut plaintext) = (open(&meshed, to)?, open(&plain, to)?);
        ensure!(
            (tunnel.ask(), plaintext.ask()) == (SERVED, SERVED),
            "nothing forbids anything before {field}"
        );
        scene.policy(POLICY, "gate", deny(source))?;
        let (cut, stays) =
            if of_plain == SERVED { (&mut tunnel, &mut plaintext) } else { (&mut plaintext, &mut tunnel) };
        let end = cut.ended_within(CUT);
        ensure!(end == Outcome::Reset, "{field}: the open connection that it forbids came to {end}");
        let other = stays.ask();
        ensure!(other == SERVED, "{field}: the open connection that it does not forbid came to {other}");
        scene.always(&meshed, to, &of_meshed)?;
        scene.always(&plain, to, &of_plain)?;
        seen.push(format!("DENY {field}: meshed {of_meshed}, plaintext {of_plain}"));
        scene.without_policy(POLICIES, "gate")?;
        scene.until(&meshed, to, &SERVED)?;
        scene.until(&plain, to, &SERVED)?;
    }
    Ok(seen.join("; "))
}

/// A PeerAuthentication that tightens cuts open plaintext on the ports that it closes, and nothing else.
pub fn peer_authentication(scene: &Scene<'_>) -> Result<String> {
    let api = Workload { ports: &[PORT, 9090], ..Workload::meshed("api") };
    scene.enrolled(&[api, Workload::meshed("meshed"), Workload::unmeshed("plain")])?;
    let (meshed, plain) = (scene.place("meshed")?, scene.place("plain")?);
    let strict = scene.server("api")?;
    let permissive = SocketAddr::new(strict.ip(), 9090);
    scene.until(&plain, strict, &SERVED)?;
    let mut plaintext = open(&plain, strict)?;
    let mut stays = [open(&plain, permissive)?, open(&meshed, strict)?, open(&meshed, permissive)?];
    let all_served = |stays: &mut [Kept; 3]| stays.iter_mut().all(|kept| kept.ask() == SERVED);
    ensure!(plaintext.ask() == SERVED && all_served(&mut stays), "everything is permissive at first");
    let spec = json!({"selector": {"matchLabels": {"app": "api"}}, "mtls": {"mode": "STRICT"},
        "portLevelMtls": {"9090": {"mode": "PERMISSIVE"}}});
    scene.policy("PeerAuthentication", "api", spec)?;
    let end = plaintext.ended_within(CUT);
    ensure!(end == Outcome::Reset, "open plaintext on a port that became STRICT: {end}");
    ensure!(all_served(&mut stays), "tunnels, or plaintext on the permissive port, were cut as well");
    scene.always(&plain, strict, &Outcome::Reset)?;
    scene.always(&plain, permissive, &SERVED)?;
    scene.always(&meshed, strict, &SERVED)?;
    scene.see.shown(&["get", "peerauthentications", "-n", &scene.namespace])?;
    scene.without_policy("peerauthentications", "api")?;
    scene.until(&plain, strict, &SERVED)?;
    Ok("8080 STRICT: open plaintext reset, tunnels untouched; 9090 PERMISSIVE: plaintext untouched"
        .to_owned())
}

/// A dry run is counted and refuses nobody; the same policy without the annotation does.
pub fn dry_run(scene: &Scene<'_>) -> Result<String> {
    scene.enrolled(&[Workload::meshed("api"), Workload::meshed("client")])?;
    let (client, to) = (scene.place("client")?, scene.server("api")?);
    let spec = deny(json!({"principals": [format!("cluster.local/ns/{}/sa/client", scene.namespace)]}));
    let mut kept = open(&client, to)?;
    ensure!(kept.ask() == SERVED, "no policy is there yet");
    scene.policy_with(POLICY, "gate", json!({"istio.io/dry-run": "true"}), spec.clone())?;
    let counted = policies::enforced(&scene.see, POLICIES, &scene.namespace, "gate", 1)?;
    scene.always(&client, to, &SERVED)?;
    ensure!(kept.ask() == SERVED, "a dry run must not cut an open connection");
    let reported = reports(scene, to.ip(), "gate")?;
    // An ALLOW that is only tried makes no implicit deny.
    let nobody = json!({"selector": {"matchLabels": {"app": "api"}}});
    scene.policy_with(POLICY, "nobody", json!({"istio.io/dry-run": "true"}), nobody)?;
    policies::enforced(&scene.see, POLICIES, &scene.namespace, "nobody", 1)?;
    scene.always(&client, to, &SERVED)?;
    scene.policy_with(POLICY, "gate", json!({"istio.io/dry-run": "false"}), spec)?;
    let end = kept.ended_within(CUT);
    ensure!(end == Outcome::Reset, "enforced, it cuts the open connection, which came to {end}");
    scene.always(&client, to, &Outcome::Reset)?;
    Ok(format!(
        "dry run: served, also over the open connection ({counted}); counted: {reported}; enforced: reset"
    ))
}

/// What a pod's proxy counts of a policy that is only tried.
fn reports(scene: &Scene<'_>, pod: IpAddr, policy: &str) -> Result<String> {
    let metrics = Place::outside(scene.see.cluster)?.read(SocketAddr::new(pod, METRICS), "/metrics")?;
    let policy = format!("policy=\"{}/{policy}\"", scene.namespace);
    let line = metrics.lines().find(|line| {
        line.contains("policy_reports") && line.contains(&policy) && line.contains("rule=\"dry-run\"")
    });
    let line = line.with_context(|| format!("no dry run of {policy} is counted: {metrics}"))?;
    let count = line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok()).unwrap_or_default();
    ensure!(count > 0, "nothing was counted: {line}");
    Ok(line.to_owned())
}
