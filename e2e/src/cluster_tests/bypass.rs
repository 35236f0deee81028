//! What passes by a proxy although the pod's own containers do it: connections of both directions that were opened while
//! the redirect was gone and stay, and UDP, which needs no gap. The node agent sees them in the kernel, the proxy
//! reports them, and each is named with its process, container, peer and port. For TCP the namespace is not promoted,
//! and is once the pod was replaced.

use super::scene::{PORT, Scene, Workload, policy};
use crate::place::{Kept, Outcome, Place, SERVED, open};
use crate::see::{APP_IMAGE, restricted_container, text};
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Context, Result, ensure};
use cinch_redirect::request::ASKED_EVERY;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

/// The workload whose pod is got round, and the containers beside its server: one calls, one speaks UDP.
const AROUND: &str = "client";
const CALLER: &str = "caller";
const SPEAKER: &str = "speaker";
/// Whom both reach, in a namespace of its own: there plaintext is served, and stands against nobody else's promotion.
const PEER: &str = "db";
/// Where the two speakers listen for UDP.
const HEARS: u16 = 5140;
const PEER_HEARS: u16 = 5141;
/// The kernel's name of every process of our image.
const PROCESS: &str = "cinch-demo-app";
/// What one look has seen counts until the next one: the pause between two, and room for a busy machine.
const QUIET: Duration = ASKED_EVERY.saturating_add(Duration::from_secs(8));
/// For what comes within two looks.
const SEEN: Duration = Duration::from_secs(90);
/// For the quiet period, settling and the first look at a new pod.
const DECIDED: Duration = Duration::from_secs(180);
/// The gap lasts until the sidecar's own dial goes astray, mostly a second; it is made again if it was too short.
const GOT_ROUND: Duration = Duration::from_secs(120);
/// Within it a caller calls several times.
const CALLS: Duration = Duration::from_secs(5);
const TABLE: [&str; 3] = ["table", "inet", "cinch"];

/// Plays it.
pub fn bypass(scene: &Scene<'_>) -> Result<String> {
    scene.restricted()?;
    let run = Run::prepare(scene)?;
    run.speaks_udp()?;
    let mut kept = run.get_round()?;
    let gap = Instant::now();
    let tcp = run.tcp_is_named()?;
    let udp = run.udp_is_named()?;
    run.is_shown_by_the_cli()?;
    // So long the gap itself counts too; nobody has to look meanwhile, and others have the processor.
    thread::sleep(QUIET.saturating_sub(gap.elapsed()));
    run.stands_alone_against_it()?;
    ensure!(kept.ask() == SERVED, "the connection past the proxy has ended by itself");
    drop(kept);
    run.is_promoted_once_mended()?;
    Ok(format!("{tcp}; {udp}; not promoted for it alone, and promoted once the pod was replaced"))
}

/// The pods of a run.
struct Run<'s, 'a> {
    scene: &'s Scene<'a>,
    /// Where the peer is.
    peers: String,
    /// Its server.
    peer: SocketAddr,
    /// Whose proxy is got round.
    client: Place,
    outside: Place,
}

impl<'s, 'a> Run<'s, 'a> {
    /// Starts both pods, such that nobody who meets the client's proxy gets through it: what comes through came past it.
    fn prepare(scene: &'s Scene<'a>) -> Result<Self> {
        let peers = format!("{}-peers", scene.namespace);
        scene.enrolled_besides(&peers, &[])?;
        let see = &scene.see;
        let listener = container(SPEAKER, &["udp", "--at", &PEER_HEARS.to_string()]);
        see.apply(&with(PEER, &peers, &[listener]).to_string())?;
        let principal = format!("cluster.local/ns/{}/sa/{AROUND}", scene.namespace);
        let deny = json!({"action": "DENY", "rules": [{"from": [{"source": {"principals": [principal]}}]}]});
        see.apply(&policy("AuthorizationPolicy", &peers, "not-in-the-mesh", json!({}), deny).to_string())?;
        let strict = json!({"selector": {"matchLabels": {"app": AROUND}}, "mtls": {"mode": "STRICT"}});
        scene.policy("PeerAuthentication", AROUND, strict)?;
        see.meshed(&peers, "deployment", PEER)?;
        let peer = scene.places(&peers, PEER)?.into_iter().next().context("no peer")?.address;
        let at = |port: u16| SocketAddr::new(peer, port).to_string();
        let caller = container(CALLER, &["call", "--name", CALLER, "--to", &at(PORT), "--interval", "100ms"]);
        let speaks = ["udp", "--at", &HEARS.to_string(), "--to", &at(PEER_HEARS)];
        let beside = [caller, container(SPEAKER, &speaks)];
        see.apply(&with(AROUND, &scene.namespace, &beside).to_string())?;
        see.meshed(&scene.namespace, "deployment", AROUND)?;
        let client = scene.place(AROUND)?;
        let this = Self {
            scene,
            peers,
            peer: SocketAddr::new(peer, PORT),
            client,
            outside: Place::outside(see.cluster)?,
        };
        let spec =
            json!({"spec": {"promotion": "Automatic", "quietPeriod": format!("{}s", QUIET.as_secs())}});
        let posture = ["posture", "mesh", "-n", &scene.namespace, "--type=merge", "-p", &spec.to_string()];
        see.kubectl(&[&["patch"], &posture[..]].concat())?;
        this.scene.until(&this.client, this.peer, &Outcome::Reset)?;
        this.scene.until(&this.outside, this.server(), &Outcome::Reset)?;
        Ok(this)
    }

    /// The client's own server.
    fn server(&self) -> SocketAddr {
        SocketAddr::new(self.client.address, PORT)
    }

    /// UDP goes its own way from the beginning, and comes back.
    fn speaks_udp(&self) -> Result<()> {
        wait::until("the speaker to be heard", SEEN, || {
            let said = self.said(&self.scene.namespace, AROUND, SPEAKER)?;
            let heard = said.lines().any(|line| line.starts_with("udp ") && line.ends_with("heard=true"));
            Ok(if heard { Seen::Done(()) } else { Seen::Not(said) })
        })
    }

    /// Removes the pod's table. Before it is set again, its caller has a connection to the peer, and somebody outside
    /// one to its server: both stay, for a table that is set again cuts nothing.
    fn get_round(&self) -> Result<Kept> {
        wait::until("connections past the proxy that stay", GOT_ROUND, || {
            ensure!(self.nft("delete")?, "there was no table to remove");
            let inbound = wait::until("a connection from outside, or the table", SEEN, || {
                let kept = open(&self.outside, self.server()).map(|mut kept| (kept.ask() == SERVED, kept));
                if let Ok((true, kept)) = kept {
                    return Ok(Seen::Done(Some(kept)));
                }
                Ok(if self.nft("list")? { Seen::Done(None) } else { Seen::Not("not served".to_owned()) })
            })?;
            wait::until("the agent to set the table again", SEEN, || {
                Ok(if self.nft("list")? { Seen::Done(()) } else { Seen::Not("no table".to_owned()) })
            })?;
            let mut kept = inbound.context("the gap was too short for a connection from outside")?;
            let before = self.calls()?;
            wait::until("calls past the proxy", CALLS, || {
                let calls = self.calls()?;
                Ok(if calls > before { Seen::Done(()) } else { Seen::Not(format!("{calls} calls")) })
            })?;
            let last = kept.ask();
            Ok(if last == SERVED { Seen::Done(kept) } else { Seen::Not(last.to_string()) })
        })
    }

    /// How many of the caller's calls have come to the peer: its proxy's are all refused.
    fn calls(&self) -> Result<usize> {
        let said = self.said(&self.peers, PEER, "app")?;
        Ok(said.lines().filter(|line| line.contains(&format!("client={CALLER} "))).count())
    }

    /// Both connections are named, and the condition Injected says so.
    fn tcp_is_named(&self) -> Result<String> {
        let outbound = format!("{PROCESS} in {CALLER}, TCP to {}/{PEER} port {PORT}", self.peers);
        let inbound = format!("{PROCESS} in app, TCP from {} to port {PORT}", self.outside.address);
        let pod = format!("1 of 1: {} (", self.client.pod);
        let message = self.until("both connections to be named", SEEN, |status| {
            let message = blocker(status, "BypassSeen")?;
            [&pod, &outbound, &inbound].iter().all(|words| message.contains(*words)).then_some(message)
        })?;
        self.until("the condition Injected to say so", SEEN, |status| {
            (condition(status, "Injected") == ("False".to_owned(), "BypassSeen".to_owned())).then_some(())
        })?;
        Ok(message)
    }

    /// The listener and the peer are named, and are no blocker.
    fn udp_is_named(&self) -> Result<String> {
        let peer = format!("{PROCESS} in {SPEAKER}, UDP to {}/{PEER} port {PEER_HEARS}", self.peers);
        let listener = format!("{PROCESS} in {SPEAKER}, UDP at port {HEARS}");
        self.until("UDP to be named", SEEN, |status| {
            let mut debt = status.get("debt").and_then(Value::as_array)?.iter();
            let udp = debt.find(|debt| text(debt, "/reason") == "UdpOutsideMesh")?;
            let message = text(udp, "/message");
            [&self.client.pod, &peer, &listener]
                .iter()
                .all(|words| message.contains(*words))
                .then_some(message)
        })
    }

    /// `kubectl cinch status` tells a person the same.
    fn is_shown_by_the_cli(&self) -> Result<()> {
        let shown = self.scene.see.cluster.cinch(&["status", &self.scene.namespace])?.text();
        for words in ["BypassSeen", "UdpOutsideMesh", &self.client.pod, CALLER, SPEAKER] {
            ensure!(shown.contains(words), "{words} is not in what the status command says: {shown}");
        }
        terminal::show(&format!("$ kubectl cinch status {}\n{}", self.scene.namespace, shown.trim_end()));
        Ok(())
    }

    /// The quiet period has passed, the gap no longer counts, and what passes by is all that stands against the lock.
    fn stands_alone_against_it(&self) -> Result<()> {
        self.until("nothing but the bypass to stand against the lock", DECIDED, |status| {
            let holds = |kind: &str| condition(status, kind).0 == "True";
            let all_else = ["Reporting", "Quiet", "Unpinned"].iter().all(|kind| holds(kind));
            let held = text(status, "/state") == "Blocked" && text(status, "/mode") == "PERMISSIVE";
            (all_else && held && reasons(status) == ["BypassSeen"]).then_some(())
        })
    }

    /// A new pod has its redirect from its first moment on; what passed by the old one went with it.
    fn is_promoted_once_mended(&self) -> Result<()> {
        let see = &self.scene.see;
        see.kubectl(&["delete", "pod", &self.client.pod, "-n", &self.scene.namespace, "--wait=false"])?;
        self.until("the namespace to be STRICT", DECIDED, |status| {
            (text(status, "/mode") == "STRICT").then_some(())
        })?;
        self.until("nothing to be said of a bypass", SEEN, |status| {
            (blocker(status, "BypassSeen").is_none() && condition(status, "Injected").0 == "True")
                .then_some(())
        })
    }

    fn until<T>(&self, what: &str, limit: Duration, wanted: impl FnMut(&Value) -> Option<T>) -> Result<T> {
        self.scene.see.posture_until(&self.scene.namespace, what, limit, wanted)
    }

    fn said(&self, namespace: &str, workload: &str, container: &str) -> Result<String> {
        let of = format!("deployment/{workload}");
        self.scene.see.kubectl(&["logs", &of, "-n", namespace, "-c", container])
    }

    /// Whether nft does this with the table of the client's pod.
    fn nft(&self, what: &str) -> Result<bool> {
        let (scene, pod) = (self.scene, &self.client.pod);
        let mut nft = scene.see.cluster.pod_network_command(&scene.namespace, pod, "app", "nft")?;
        Ok(nft.arg(what).args(TABLE).output()?.status.success())
    }
}

fn container(name: &str, args: &[&str]) -> Value {
    json!({"name": name, "image": APP_IMAGE, "args": args, "securityContext": restricted_container()})
}

/// A meshed server with containers beside it.
fn with(name: &str, namespace: &str, beside: &[Value]) -> Value {
    let mut manifest = Workload::meshed(name).manifest(namespace);
    let containers = manifest.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut);
    if let Some(containers) = containers {
        containers.extend(beside.iter().cloned());
    }
    manifest
}

/// The message of a blocker.
fn blocker(status: &Value, reason: &str) -> Option<String> {
    let blockers = status.get("blockers")?.as_array()?;
    let blocker = blockers.iter().find(|blocker| text(blocker, "/reason") == reason)?;
    Some(text(blocker, "/message"))
}

/// The reasons of all blockers.
fn reasons(status: &Value) -> Vec<String> {
    let blockers = status.get("blockers").and_then(Value::as_array);
    blockers.into_iter().flatten().map(|blocker| text(blocker, "/reason")).collect()
}

/// A condition's status and reason.
fn condition(status: &Value, kind: &str) -> (String, String) {
    let conditions = status.get("conditions").and_then(Value::as_array);
    let found = conditions.into_iter().flatten().find(|condition| text(condition, "/type") == kind);
    found.map(|found| (text(found, "/status"), text(found, "/reason"))).unwrap_or_default()
}
