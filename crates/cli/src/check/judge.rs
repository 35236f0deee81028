//! What the facts come to: a line for each check. Pure.

use cinch_injection::{AGENT_DRIVER, Redirect};
use cinch_reason::Reason;
use std::fmt;

/// Native sidecars and ValidatingAdmissionPolicy as this version uses them.
const OLDEST_KUBERNETES: (u32, u32) = (1, 33);
/// `socket cgroupv2` of nf_tables came with it.
const OLDEST_KERNEL: (u32, u32) = (5, 13);

/// What was seen of the cluster.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Such as `1.33`.
    pub version: String,
    /// Definitions of kinds that the API server does not serve.
    pub unserved: Vec<String>,
    /// The parts that are Deployments.
    pub parts: Vec<Part>,
    /// Which operator does the work.
    pub leader: Leader,
    /// Webhook configurations by which API servers can't call the webhook.
    pub uncalled: Vec<&'static str>,
    /// Admission policies of Cinch that are not in force: not there, without their binding, or bound otherwise.
    pub not_in_force: Vec<&'static str>,
    /// Who sets the redirect of new pods; `None` where the user may not read it.
    pub redirect: Option<Redirect>,
    /// The ConfigMap that says so.
    pub settings: &'static str,
    /// Whether the API server knows the agent's CSI driver.
    pub driver: bool,
    /// All nodes.
    pub nodes: Vec<NodeFacts>,
    /// Pods whose redirect `cinch-init` has set.
    pub by_init: usize,
}

/// A Deployment of Cinch.
#[derive(Debug, Clone)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// Ready replicas.
    pub ready: i32,
    /// All replicas.
    pub all: i32,
}

/// The operator that leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leader {
    /// None does.
    Nobody,
    /// This pod holds the lease and is not there or not ready.
    NotReady(String),
    /// This pod does.
    Ready(String),
}

/// A node, as far as the redirect cares.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its operating system.
    pub system: String,
    /// The version of its kernel.
    pub kernel: String,
    /// Name and version of its container runtime.
    pub runtime: String,
    /// Its agent.
    pub agent: AgentState,
    /// Whether the kubelet has registered the agent's driver.
    pub registered: bool,
    /// Pods on it that can't end without the agent.
    pub holding: usize,
}

/// The agent of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentState {
    /// There is none.
    Absent,
    /// It answers.
    Ready,
    /// It does not; why, if it said so.
    NotReady(String),
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Good,
    Bad,
    /// Neither: something to know.
    Note,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    mark: Mark,
    what: String,
    hint: String,
}

impl Line {
    fn new(mark: Mark, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { mark, what: what.into(), hint: hint.into() }
    }

    fn good(what: impl Into<String>) -> Self {
        Self::new(Mark::Good, what, "")
    }

    /// Whether the check failed.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.mark == Mark::Bad
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.mark {
            Mark::Good => '✓',
            Mark::Bad => '✗',
            Mark::Note => '!',
        };
        writeln!(f, "{sign} {}", self.what)?;
        if self.hint.is_empty() { Ok(()) } else { writeln!(f, "    {}", self.hint) }
    }
}

/// All checks, in the order in which one would look.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Line> {
    let mut lines = vec![kubernetes(&facts.version), kinds(&facts.unserved)];
    lines.extend(facts.parts.iter().map(part));
    lines.push(leader(&facts.leader));
    lines.push(webhooks(&facts.uncalled));
    lines.push(policies(&facts.not_in_force));
    if facts.redirect.is_none() {
        let what = format!("you may not read ConfigMap {}", facts.settings);
        lines.push(Line::new(Mark::Note, what, "what follows is for redirects that node agents set"));
    }
    match facts.redirect.unwrap_or_default() {
        Redirect::Agent => {
            lines.push(driver(facts.driver));
            lines.extend(facts.nodes.iter().map(node));
            if facts.by_init > 0 {
                let what = format!("{} pods have their redirect from cinch-init", facts.by_init);
                lines.push(Line::new(
                    Mark::Note,
                    what,
                    "they work; restart them to be rid of its capability",
                ));
            }
        }
        Redirect::Init => {
            let what =
                format!("redirects are set by cinch-init (redirect.mode in ConfigMap {})", facts.settings);
            lines.push(Line::good(what));
            lines.extend(facts.nodes.iter().filter_map(left_behind));
        }
    }
    lines
}

fn kubernetes(version: &str) -> Line {
    let (major, minor) = OLDEST_KUBERNETES;
    let what = format!("Kubernetes {version}");
    match numbers(version) {
        Some(found) if found < OLDEST_KUBERNETES => {
            Line::new(Mark::Bad, what, format!("Cinch needs {major}.{minor} or newer"))
        }
        _ => Line::good(what),
    }
}

fn kinds(unserved: &[String]) -> Line {
    if unserved.is_empty() {
        return Line::good("the API server serves Posture and the policies");
    }
    let what = format!("the API server does not serve {}", unserved.join(", "));
    let hint = "install the chart anew, with istioCRDs.install where Istio's definitions are not there";
    Line::new(Mark::Bad, what, hint)
}

fn part(part: &Part) -> Line {
    let Part { name, ready, all } = part;
    let what = format!("{name}: {ready} of {all} ready");
    let mark = match ready {
        0 => Mark::Bad,
        some if some < all => Mark::Note,
        _ => return Line::good(what),
    };
    Line::new(mark, what, format!("look at the pods and the log of Deployment {name}"))
}

fn leader(leader: &Leader) -> Line {
    let hint = "until one does, no new pod of an enrolled namespace starts: look at the log of Deployment cinch-operator";
    match leader {
        Leader::Ready(pod) => Line::good(format!("{pod} leads")),
        Leader::NotReady(pod) => {
            Line::new(Mark::Bad, format!("{pod} holds the lease of the operators and is not ready"), hint)
        }
        Leader::Nobody => Line::new(Mark::Bad, "no operator leads", hint),
    }
}

fn webhooks(uncalled: &[&str]) -> Line {
    if uncalled.is_empty() {
        return Line::good("API servers can call the webhook");
    }
    let what = format!("API servers can not call the webhook: no caBundle in {}", uncalled.join(", "));
    Line::new(Mark::Bad, what, "the operator that leads writes it: look at its log")
}

fn policies(not_in_force: &[&str]) -> Line {
    if not_in_force.is_empty() {
        return Line::good("admission policies in force");
    }
    let what = format!("admission policies not in force: {}", not_in_force.join(", "));
    Line::new(Mark::Bad, what, "what they refuse is accepted; install the chart anew")
}

fn driver(is_there: bool) -> Line {
    if is_there {
        return Line::good(format!("CSIDriver {AGENT_DRIVER}"));
    }
    let hint = "without it the volumes of sidecars are refused; install the chart anew";
    Line::new(Mark::Bad, format!("there is no CSIDriver {AGENT_DRIVER}"), hint)
}

fn node(node: &NodeFacts) -> Line {
    let NodeFacts { name, system, kernel, runtime, agent, registered, .. } = node;
    if system != "linux" {
        return Line::new(Mark::Note, format!("node {name}: its pods can not be meshed ({system})"), "");
    }
    let old = numbers(kernel).is_some_and(|found| found < OLDEST_KERNEL);
    let bad = |why: &str, hint: &str| Line::new(Mark::Bad, format!("node {name}: {why}"), hint);
    let unsupported = |detail: &str| bad(&Reason::NodeUnsupported.message_with(detail), "");
    match agent {
        _ if old => unsupported(&format!("kernel {kernel}")),
        AgentState::Absent => bad(
            "it has no agent, so pods with the sidecar do not start on it",
            "look at the DaemonSet cinch-node, and at node.nodeSelector and node.tolerations of the chart",
        ),
        AgentState::NotReady(why) if why.is_empty() => {
            bad("its agent is not ready", "look at the log of the pod of the DaemonSet cinch-node on it")
        }
        AgentState::NotReady(why) => bad(&format!("its agent is not ready: {why}"), ""),
        AgentState::Ready if !registered => bad(
            "the kubelet has not registered the agent's driver",
            "look at the kubelet's log, and at node.kubeletRoot of the chart",
        ),
        AgentState::Ready => Line::good(format!("node {name}: agent ready (kernel {kernel}, {runtime})")),
    }
}

/// Where the agent was taken away before the pods that were made for it.
fn left_behind(node: &NodeFacts) -> Option<Line> {
    let NodeFacts { name, holding, agent, .. } = node;
    if *holding == 0 {
        return None;
    }
    let what = format!("node {name}: {holding} pods were made for the node agent");
    Some(if *agent == AgentState::Ready {
        Line::new(Mark::Note, what, "restart them before node.install is set back to auto")
    } else {
        Line::new(Mark::Bad, what, "without it they can not end; set node.install=always until none is left")
    })
}

/// The first two numbers of a version.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy(name: &str) -> NodeFacts {
        NodeFacts {
            name: name.to_owned(),
            system: "linux".to_owned(),
            kernel: "6.1.0-26-amd64".to_owned(),
            runtime: "containerd://2.0.1".to_owned(),
            agent: AgentState::Ready,
            registered: true,
            holding: 0,
        }
    }

    fn facts(nodes: Vec<NodeFacts>) -> Facts {
        let parts = vec![Part { name: "cinch-operator", ready: 2, all: 2 }];
        Facts {
            version: "1.37".to_owned(),
            unserved: Vec::new(),
            parts,
            leader: Leader::Ready("cinch-operator-6b5f-x2k7p".to_owned()),
            uncalled: Vec::new(),
            not_in_force: Vec::new(),
            redirect: Some(Redirect::Agent),
            settings: "cinch-settings",
            driver: true,
            nodes,
            by_init: 0,
        }
    }

    fn told(facts: &Facts) -> (String, usize) {
        let lines = judge(facts);
        (lines.iter().map(ToString::to_string).collect(), lines.iter().filter(|line| line.failed()).count())
    }

    #[test]
    fn a_healthy_cluster_passes_every_check() {
        let (text, failed) = told(&facts(vec![healthy("node1")]));
        let expected = "\
✓ Kubernetes 1.37
✓ the API server serves Posture and the policies
✓ cinch-operator: 2 of 2 ready
✓ cinch-operator-6b5f-x2k7p leads
✓ API servers can call the webhook
✓ admission policies in force
✓ CSIDriver node.cinch.dev
✓ node node1: agent ready (kernel 6.1.0-26-amd64, containerd://2.0.1)
";
        assert_eq!((text.as_str(), failed), (expected, 0));
    }

    #[test]
    fn every_node_that_can_not_have_meshed_pods_is_named_with_what_is_wrong() {
        let with = |name: &str, change: fn(&mut NodeFacts)| {
            let mut node = healthy(name);
            change(&mut node);
            node
        };
        let cases = [
            (with("old", |n| n.kernel = "5.10.0-8-amd64".to_owned()), "NodeUnsupported", true),
            (with("bare", |n| n.agent = AgentState::Absent), "it has no agent", true),
            (with("ill", |n| n.agent = AgentState::NotReady("no cgroup2".to_owned())), "no cgroup2", true),
            (with("mute", |n| n.agent = AgentState::NotReady(String::new())), "look at the log", true),
            (with("deaf", |n| n.registered = false), "has not registered", true),
            (with("glass", |n| n.system = "windows".to_owned()), "can not be meshed (windows)", false),
        ];
        for (node, words, fails) in cases {
            let name = format!("node {}", node.name);
            let (text, failed) = told(&facts(vec![healthy("node1"), node]));
            assert_eq!(failed, usize::from(fails), "{text}");
            assert!(text.contains(&name) && text.contains(words), "{words} is missing in {text}");
        }
    }

    #[test]
    fn the_parts_and_the_cluster_are_looked_at_too() {
        let mut facts = facts(Vec::new());
        facts.version = "1.32".to_owned();
        facts.parts = vec![Part { name: "cinch-webhook", ready: 0, all: 2 }];
        facts.driver = false;
        facts.by_init = 3;
        facts.unserved = vec!["postures.cinch.dev".to_owned()];
        let (text, failed) = told(&facts);
        assert_eq!(failed, 4, "{text}");
        let missing = "✗ the API server does not serve postures.cinch.dev";
        for part in ["1.33 or newer", missing, "Deployment cinch-webhook", "no CSIDriver", "! 3 pods"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn without_a_leader_or_a_way_to_the_webhook_the_check_fails() {
        let gone = Leader::NotReady("cinch-operator-6b5f-x2k7p".to_owned());
        for (leader, words) in [(Leader::Nobody, "✗ no operator leads"), (gone, "x2k7p holds the lease")] {
            let facts = Facts { leader, uncalled: vec!["cinch-injector"], ..facts(vec![healthy("node1")]) };
            let (text, failed) = told(&facts);
            assert_eq!(failed, 2, "{text}");
            assert!(text.contains(words) && text.contains("no caBundle in cinch-injector"), "{text}");
        }
    }

    #[test]
    fn what_is_half_there_or_not_to_be_seen_is_no_tick() {
        let mut facts = facts(Vec::new());
        facts.parts = vec![Part { name: "cinch-webhook", ready: 1, all: 2 }];
        facts.redirect = None;
        let (text, failed) = told(&facts);
        assert_eq!(failed, 0, "{text}");
        for part in ["! cinch-webhook: 1 of 2", "! you may not read ConfigMap cinch-settings"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        facts.not_in_force = vec!["cinch-pods", "cinch-exec"];
        let (text, failed) = told(&facts);
        assert_eq!(failed, 1, "{text}");
        assert!(text.contains("✗ admission policies not in force: cinch-pods, cinch-exec"), "{text}");
    }

    #[test]
    fn with_init_only_pods_that_still_need_an_agent_are_missed_one() {
        let mut node = NodeFacts { agent: AgentState::Absent, registered: false, ..healthy("node1") };
        let with_init =
            |node: &NodeFacts| Facts { redirect: Some(Redirect::Init), ..facts(vec![node.clone()]) };
        assert_eq!(told(&with_init(&node)).1, 0);
        node.holding = 2;
        let (text, failed) = told(&with_init(&node));
        assert_eq!(failed, 1, "{text}");
        assert!(text.contains("node1: 2 pods"), "{text}");
        node.agent = AgentState::Ready;
        assert_eq!(told(&with_init(&node)).1, 0);
    }
}
