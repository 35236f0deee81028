//! A small cluster around the machine: pods that report, clients that send plaintext, labels that change when
//! an action is applied, and leaders that die. It knows the truth, so tests can compare.
#![allow(dead_code)]

use cinch_promotion::{
    Action, Bypass, Counts, Departure, Facts, Injection, Memory, Millis, Namespace, Outcome, Plaintext, Pod,
    PodClass, Policy, RedirectGone, Report, Slot, Source, SourceName, Spec, State, Word, short, step,
};
use std::collections::BTreeMap;

pub const SECOND: Millis = 1_000;
pub const START: Millis = 1_700_000_000_000;

/// A proxy with what it counted, and what it has said.
#[derive(Debug, Clone, Default)]
pub struct Proxy {
    pub name: String,
    pub class: PodClass,
    pub boot: u64,
    pub boot_started: Millis,
    pub mute: bool,
    pub acknowledges: bool,
    pub node_down: bool,
    /// When the redirect last proved itself, if it no longer does: inbound, outbound.
    pub unproved: [Option<Millis>; 2],
    pub heard: Option<Report>,
    pub bypass: Vec<Bypass>,
    /// Injected for the node agent.
    pub by_agent: bool,
    /// When the agent looked last; [`World::LOOKED`]: it looks all the time.
    pub last_look: Option<Millis>,
    pub look_was_cut: bool,
    /// When the agent confirmed the redirect last, as `last_look`.
    pub confirmed: Option<Millis>,
    pub redirect_gone: Option<RedirectGone>,
}

pub struct World {
    pub now: Millis,
    pub spec: Spec,
    pub namespace: Namespace,
    pub pods: BTreeMap<String, Proxy>,
    pub departures: Vec<Departure>,
    pub sources: Vec<Source>,
    pub findings: Vec<cinch_promotion::Finding>,
    pub slot: Slot,
    pub memory: Memory,
    pub events: Vec<String>,
    pub actions: Vec<(Millis, Action)>,
    pub states: Vec<State>,
    /// When the label `mode: STRICT` was written, each time.
    pub locks: Vec<Millis>,
    next: u64,
}

impl World {
    /// The agent looks all the time.
    pub const LOOKED: Option<Millis> = Some(Millis::MAX);

    /// Automatic, quiet 15 s, probation 20 s, settle 3 s, reports each second.
    pub fn new() -> Self {
        World {
            now: START,
            spec: Spec {
                generation: 1,
                word: Word::Unwritten,
                has_agents: false,
                policy: Policy::Automatic,
                quiet: 15 * SECOND,
                probation: 20 * SECOND,
                settle: 3 * SECOND,
                report_interval: SECOND,
                approve: None,
            },
            namespace: Namespace { name: "shop".to_owned(), ..Namespace::default() },
            pods: BTreeMap::new(),
            departures: Vec::new(),
            sources: Vec::new(),
            findings: Vec::new(),
            slot: Slot::Free,
            memory: Memory::default(),
            events: Vec::new(),
            actions: Vec::new(),
            states: Vec::new(),
            locks: Vec::new(),
            next: 1,
        }
    }

    /// Two meshed pods.
    pub fn meshed() -> Self {
        let mut world = World::new();
        world.add("api-1", PodClass::Started);
        world.add("web-1", PodClass::Started);
        world
    }

    pub fn add(&mut self, name: &str, class: PodClass) -> String {
        let uid = format!("{:08x}-0000-4000-8000-000000000000", self.next);
        let boot = self.next;
        self.next += 1;
        let proxy = Proxy {
            name: name.to_owned(),
            class,
            boot,
            boot_started: self.now,
            acknowledges: true,
            ..Proxy::default()
        };
        self.pods.insert(uid.clone(), proxy);
        uid
    }

    /// The pod goes; a clean one says its last word first.
    pub fn remove(&mut self, uid: &str, clean: bool) {
        let Some(proxy) = self.pods.remove(uid) else { return };
        let through =
            if clean { self.now } else { proxy.heard.map_or(proxy.boot_started, |report| report.received) };
        self.departures.push(Departure { uid: uid.to_owned(), through, last_word: clean });
    }

    /// The proxy dies and starts again, without a last word.
    pub fn restart(&mut self, uid: &str) {
        self.next += 1;
        let (next, now) = (self.next, self.now);
        if let Some(proxy) = self.pods.get_mut(uid) {
            proxy.boot = next;
            proxy.boot_started = now;
        }
    }

    pub fn workload(name: &str, created: Millis) -> SourceName {
        SourceName::Workload {
            namespace: "legacy".to_owned(),
            kind: "Deployment".to_owned(),
            name: name.to_owned(),
            created,
        }
    }

    fn source(&mut self, name: SourceName) -> &mut Source {
        if let Some(at) = self.sources.iter().position(|source| source.name == name) {
            return &mut self.sources[at];
        }
        self.sources.push(Source {
            name,
            port: 8080,
            counts: Counts::default(),
            open: 0,
            last_seen: None,
            last_served: None,
            last_denied: None,
            last_denied_by_mode: None,
            reported_by: None,
        });
        self.sources.last_mut().expect("just pushed")
    }

    /// A client sends plaintext: served, or refused where the namespace is locked.
    pub fn plaintext(&mut self, name: SourceName) {
        let (now, locked) = (self.now, self.namespace.locked);
        let source = self.source(name);
        source.last_seen = Some(now);
        if locked {
            source.counts.denied += 1;
            source.last_denied = Some(now);
            source.last_denied_by_mode = Some(now);
        } else {
            source.counts.served += 1;
            source.last_served = Some(now);
        }
    }

    /// A policy refuses a client.
    pub fn refused(&mut self, name: SourceName) {
        let now = self.now;
        let source = self.source(name);
        source.counts.denied += 1;
        source.last_seen = Some(now);
        source.last_denied = Some(now);
    }

    /// A connect scan.
    pub fn scan(&mut self, name: SourceName) {
        let now = self.now;
        let source = self.source(name);
        source.counts.empty += 1;
        source.last_seen = Some(now);
    }

    pub fn hold_open(&mut self, name: SourceName, open: u64) {
        self.source(name).open = open;
    }

    /// Another leader takes over: it has what was written, and nothing else.
    pub fn change_leader(&mut self) {
        let written = serde_json::to_string(&self.memory).expect("memory is JSON");
        self.memory = serde_json::from_str(&written).expect("memory reads back");
        for proxy in self.pods.values_mut() {
            proxy.heard = None;
        }
        self.departures.clear();
    }

    pub fn facts(&self) -> Facts {
        let mut totals = Counts::default();
        for source in &self.sources {
            totals.served += source.counts.served;
            totals.denied += source.counts.denied;
            totals.empty += source.counts.empty;
        }
        let pods = self.pods.iter().map(|(uid, proxy)| Pod {
            uid: uid.clone(),
            name: proxy.name.clone(),
            class: proxy.class,
            by_agent: proxy.by_agent,
            node_reachable: !proxy.node_down,
            report: proxy.heard,
            acknowledged_lock: self.namespace.locked && proxy.acknowledges,
            bypass: proxy.bypass.clone(),
            redirect_gone: proxy.redirect_gone,
        });
        // Sources are known only once somebody has reported them.
        let known = self.pods.is_empty() || self.pods.values().any(|proxy| proxy.heard.is_some());
        let sources = if known { self.sources.clone() } else { Vec::new() };
        Facts {
            now: self.now,
            spec: self.spec.clone(),
            namespace: self.namespace.clone(),
            pods: pods.collect(),
            departures: self.departures.clone(),
            plaintext: Plaintext {
                totals: if known { totals } else { Counts::default() },
                open: sources.iter().map(|source| source.open).sum(),
                last_served: sources.iter().filter_map(|source| source.last_served).max(),
                sources,
            },
            findings: self.findings.clone(),
            slot: self.slot,
        }
    }

    fn report_all(&mut self) {
        let now = self.now;
        for proxy in self.pods.values_mut() {
            if proxy.class == PodClass::Started && !proxy.mute && !proxy.node_down {
                let age = |since: Option<Millis>| Some(since.map_or(0, |since| now - since));
                proxy.heard = Some(Report {
                    boot: proxy.boot,
                    boot_started: proxy.boot_started,
                    received: now,
                    last_word: false,
                    inbound_proof_age: age(proxy.unproved[0]),
                    outbound_proof_age: age(proxy.unproved[1]),
                    last_look: proxy.last_look.map(|look| look.min(now)),
                    look_was_cut: proxy.look_was_cut,
                    agent_proof_age: proxy.confirmed.map(|at| now.saturating_sub(at)),
                });
            }
        }
    }

    /// Everybody reports, one step is made, and its action is applied.
    pub fn tick(&mut self) -> Outcome {
        self.report_all();
        self.step()
    }

    /// One step without new reports.
    pub fn step(&mut self) -> Outcome {
        let outcome = step(&self.facts(), &self.memory);
        self.memory = outcome.memory.clone();
        self.events.extend(outcome.events.iter().map(|event| event.reason.as_str().to_owned()));
        if self.states.last() != Some(&outcome.state) {
            self.states.push(outcome.state);
        }
        if let Some(action) = outcome.action {
            self.apply(action);
        }
        outcome
    }

    fn apply(&mut self, action: Action) {
        self.actions.push((self.now, action));
        match action {
            Action::RequireInjection { started } => {
                self.namespace.injection_required = true;
                self.namespace.promotion = Some(started);
            }
            Action::Lock => {
                assert!(
                    self.namespace.promotion.is_some(),
                    "admission refuses a rollback without the annotation"
                );
                self.locks.push(self.now);
                self.namespace.locked = true;
            }
            Action::TakeBack { injection } => {
                assert!(
                    self.namespace.promotion.is_some(),
                    "admission refuses to take back without the annotation"
                );
                self.namespace.locked = false;
                self.namespace.promotion = None;
                self.namespace.injection_required &= injection == Injection::Keep;
            }
            Action::FinishProbation => self.namespace.promotion = None,
        }
    }

    /// Ticks once a second for `seconds`; the last outcome.
    pub fn run(&mut self, seconds: u64) -> Outcome {
        let mut last = self.tick();
        for _ in 0..seconds {
            self.now += SECOND;
            last = self.tick();
        }
        last
    }

    /// Ticks until the state is reached.
    pub fn until(&mut self, state: State, at_most: u64) -> Outcome {
        let mut last = self.tick();
        for _ in 0..at_most {
            if last.state == state {
                return last;
            }
            self.now += SECOND;
            last = self.tick();
        }
        panic!("{state:?} was not reached within {at_most} s: {:?} {:?}", last.state, last.blockers);
    }

    pub fn reasons(outcome: &Outcome) -> Vec<&'static str> {
        outcome.blockers.iter().map(|blocker| blocker.reason.as_str()).collect()
    }

    pub fn tracked(&self, uid: &str) -> bool {
        self.memory.tracked().any(|name| name == short(uid))
    }
}
