//! What crosses the pods' veths: never the apps' words between meshed pods, and only on the apps' own ports.

use super::Story;
use crate::capture::{self, Flow, Flows};
use crate::terminal;
use anyhow::{Result, ensure};
use serde_json::Value;

/// Long enough for some dozens of requests of each client.
const SECONDS: u64 = 4;
/// What api answers and what its clients send.
const MARKERS: [&str; 3] = ["cinch-marker-api", "cinch-marker-web", "cinch-marker-old"];

/// Between web and api no packet holds a marker; between an unmeshed client and api they do.
pub fn encrypt(story: &mut Story<'_>) -> Result<String> {
    let see = &story.see;
    see.rolled_out("legacy", "deployment/old-client")?;
    let web = see.addresses("shop", "app=web")?;
    let old = see.addresses("legacy", "app=old-client")?;
    let api = see.addresses("shop", "app=api")?;
    let own = see.kubectl(&["get", "service", "web", "-n", "shop", "-o", "jsonpath={.spec.clusterIP}"])?;
    let flows = capture::on_all_nodes(see.cluster, SECONDS, &MARKERS, &[])?;
    let (meshed, plain) = (between(&flows, &web, &api), between(&flows, &old, &api));
    let itself = between(&flows, &web, &[own]);
    terminal::show(&format!(
        "web <-> api: {meshed:?}\nold-client <-> api: {plain:?}\nweb <-> its own Service: {itself:?}"
    ));
    ensure!(meshed.packets > 20, "too few packets between web and api to say anything: {meshed:?}");
    ensure!(meshed.marked == 0, "{} packets between web and api hold a marker", meshed.marked);
    ensure!(plain.marked > 0, "the capture does not see the marker where it must: {plain:?}");
    ensure!(itself.marked == 0, "web's calls of itself left the pod in plaintext: {itself:?}");
    Ok(format!(
        "web <-> api: {} packets, 0 hold the marker; old-client <-> api: {} packets, {} do",
        meshed.packets, plain.packets, plain.marked
    ))
}

/// A filter on the node's forward path that lets only the apps' own ports, DNS and the operator through for
/// shop's pods changes nothing: tunnels keep the apps' ports.
pub fn own_ports_only(story: &mut Story<'_>) -> Result<String> {
    let mut pods = story.see.addresses("shop", "app=api")?;
    pods.extend(story.see.addresses("shop", "app=web")?);
    let set = pods.join(", ");
    let rules = format!(
        "table ip cinch_demo {{
           chain forward {{
             type filter hook forward priority 10; policy accept;
             ip saddr != {{ {set} }} ip daddr != {{ {set} }} accept
             meta l4proto udp udp dport 53 accept
             meta l4proto udp udp sport 53 accept
             tcp dport {{ 53, 7443, 8080 }} accept
             tcp sport {{ 53, 7443, 8080 }} accept
             counter drop
           }}
         }}"
    );
    let nodes = story.see.cluster.node_names();
    for node in &nodes {
        let loaded = story.see.cluster.in_node_stdin(node, &["nft", "-f", "-"], &rules)?;
        ensure!(loaded.ok(), "nft in {node}: {}", loaded.text());
    }
    let held = story.web_goes_on(60);
    let mut dropped = Vec::new();
    for node in &nodes {
        let counted = story.see.cluster.in_node(node, &["nft", "list", "table", "ip", "cinch_demo"])?;
        let line = counted.stdout.lines().find(|line| line.contains("drop")).unwrap_or_default().trim();
        dropped.push(format!("{node}: {line}"));
        story.see.cluster.in_node(node, &["nft", "delete", "table", "ip", "cinch_demo"])?;
    }
    terminal::show(&format!("{rules}\n{}", dropped.join("\n")));
    let web = held?;
    let none = dropped.iter().all(|line| line.contains("packets 0 "));
    ensure!(none, "something used another port: {}", dropped.join("; "));
    Ok(format!("{web}, with only port 8080, DNS and the operator open; {}", dropped.join("; ")))
}

/// Both directions between two sets of addresses.
fn between(flows: &Flows, some: &[String], others: &[String]) -> Flow {
    let mut sum = Flow::default();
    for (one, other) in some.iter().flat_map(|one| others.iter().map(move |other| (one, other))) {
        for pair in [format!("{one}>{other}"), format!("{other}>{one}")] {
            if let Some(flow) = flows.get(&pair) {
                sum.add(flow);
            }
        }
    }
    sum
}

/// The log lines of a workload's container since a time (RFC 3339).
pub fn log_since(story: &Story<'_>, selector: &str, since: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for pod in story.see.pods("shop", selector)? {
        let name = pod.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let since = format!("--since-time={since}");
        let text = story.see.kubectl(&["logs", "-n", "shop", &name, "-c", "app", &since])?;
        lines.extend(text.lines().map(str::to_owned));
    }
    Ok(lines)
}
