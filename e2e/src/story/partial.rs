//! Nothing is promoted on partial data. A namespace waits for nothing but a person's word. One of its proxies is cut
//! off from the operator, and all operators die; meanwhile the word comes, and plaintext is served that only this proxy
//! has seen. To the next leader all that speak say that all is quiet.

use super::Story;
use super::promote::PROMOTION;
use crate::place::{Place, SERVED};
use crate::see::{See, number, text};
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Context, Result, anyhow, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const VAULT: &str = include_str!("../../manifests/vault.yaml");
const NAMESPACE: &str = "vault";
/// A leader that took silence for quiet would begin as soon as it leads: it looks each second.
const WATCHED: Duration = Duration::from_secs(6);

/// Makes the namespace, long before it is needed: node agents look at a pod some seconds after its start.
pub fn prepare(see: &See<'_>) -> Result<()> {
    see.apply(VAULT).map(drop)
}

/// One of the namespace's pods, whose proxy is kept from the operator.
pub struct Cut<'a> {
    see: See<'a>,
    pod: String,
    node: String,
    address: SocketAddr,
}

impl<'a> Cut<'a> {
    /// Waits until the namespace waits for a person's word alone, and cuts one pod off.
    pub fn begin(story: &Story<'a>) -> Result<Self> {
        let see = story.see;
        see.meshed(NAMESPACE, "deployment", "ledger")?;
        let what = "nothing but a person's word to stand against the promotion of vault";
        see.posture_until(NAMESPACE, what, PROMOTION, |status| {
            let reasons = blockers(status).into_iter().map(|(reason, _)| reason).collect::<Vec<_>>();
            (reasons == ["PromotionPaused"] && number(status, "/pods/reporting") == 2).then_some(())
        })?;
        let pod = see.pods(NAMESPACE, "app=ledger")?.first().cloned().context("ledger has no pod")?;
        let address = text(&pod, "/status/podIP").parse().context("the pod has no address")?;
        let cut = Cut {
            see,
            pod: text(&pod, "/metadata/name"),
            node: text(&pod, "/spec/nodeName"),
            address: SocketAddr::new(address, 8080),
        };
        let rules = format!(
            "table ip cinch_partial {{
               chain forward {{
                 type filter hook forward priority 10; policy accept;
                 ip saddr {address} tcp dport 7443 counter reject with tcp reset
               }}
             }}"
        );
        let loaded = see.cluster.in_node_stdin(&cut.node, &["nft", "-f", "-"], &rules)?;
        ensure!(loaded.ok(), "nft in {}: {}", cut.node, loaded.text());
        terminal::show(&format!("vault/{} is cut off from the operator", cut.pod));
        Ok(cut)
    }

    /// While nobody leads: a person allows the promotion, and the pod serves plaintext. Returns when it did.
    pub fn meanwhile(&self) -> Result<Timestamp> {
        let patch = json!({"spec": {"promotion": "Automatic"}}).to_string();
        self.see.kubectl(&["patch", "posture", "mesh", "-n", NAMESPACE, "--type=merge", "-p", &patch])?;
        let at = Timestamp::now();
        let outcome = Place::outside(self.see.cluster)?.ask(self.address);
        ensure!(outcome == SERVED, "vault is PERMISSIVE, and plaintext came to {outcome}");
        Ok(at)
    }

    /// The leader of now names the pod of which it has not heard, and does not begin with a promotion.
    pub fn holds_back(&self) -> Result<String> {
        let begun = Instant::now();
        let named = wait::until("the Posture of vault to name the silent pod", PROMOTION, || {
            if let Some(labels) = self.promotion()? {
                return Ok(Seen::Done(Err(labels)));
            }
            let status = self.see.posture(NAMESPACE)?.get("status").cloned().unwrap_or_default();
            let mut all = blockers(&status);
            all.retain(|(reason, message)| reason == "PodsNotReporting" && message.contains(&self.pod));
            Ok(match all.pop() {
                Some((_, message)) if begun.elapsed() >= WATCHED => Seen::Done(Ok(message)),
                _ => Seen::Not(status.to_string()),
            })
        })?;
        let message = named.map_err(|metadata| {
            anyhow!("the promotion of vault was begun without the word of {}: {metadata}", self.pod)
        })?;
        terminal::show(&format!("vault is not promoted: {message}"));
        Ok(message)
    }

    /// The namespace's metadata, if the operator has begun to promote it.
    fn promotion(&self) -> Result<Option<Value>> {
        let metadata = self.see.json(&["namespace", NAMESPACE])?.get("metadata").cloned().unwrap_or_default();
        let keys =
            ["/labels/cinch.dev~1injection", "/labels/cinch.dev~1mode", "/annotations/cinch.dev~1promotion"];
        let begun = keys.iter().any(|key| metadata.pointer(key).is_some());
        Ok(begun.then_some(metadata))
    }

    /// Lets the pod speak again.
    pub fn end(&self) -> Result<()> {
        let output =
            self.see.cluster.in_node(&self.node, &["nft", "delete", "table", "ip", "cinch_partial"])?;
        ensure!(output.ok(), "nft in {}: {}", self.node, output.text());
        Ok(())
    }

    /// What the pod has to say is heard, and the namespace is promoted.
    pub fn promotes(&self, served: Timestamp) -> Result<String> {
        let told = self.see.posture_until(
            NAMESPACE,
            "the Posture of vault to tell of the plaintext",
            PROMOTION,
            |status| {
                let last: Timestamp = text(status, "/plaintext/lastTime").parse().ok()?;
                // Times in status are whole seconds.
                (last.as_second() >= served.as_second()).then_some(last)
            },
        )?;
        self.see.posture_until(NAMESPACE, "the Posture of vault to be promoted", PROMOTION, |status| {
            ["Probation", "Strict"].contains(&text(status, "/state").as_str()).then_some(())
        })?;
        self.see.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])?;
        Ok(format!("heard again, it told of plaintext at {told}, and vault was promoted"))
    }
}

/// Reasons and messages.
fn blockers(status: &Value) -> Vec<(String, String)> {
    let all = status.get("blockers").and_then(Value::as_array).into_iter().flatten();
    all.map(|blocker| (text(blocker, "/reason"), text(blocker, "/message"))).collect()
}
