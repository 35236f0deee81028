//! The book-keeping of evidence, pure: reports and the time go in. Reports are cumulative, so what counts is
//! how far each is ahead of the one before; that difference belongs to whoever holds the address now.

use super::agent::AgentWord;
use super::bypass::Bypasses;
use super::model::{Counts, LastReport, NamespaceEvidence, PodEvidence, VanishedPod};
use super::sources::{Resolve, Seen, Sources, Taking};
use cinch_control::v1;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Late reports of a pod that has gone are still taken for so long: longer than a stream needs to drain.
const GRACE: Duration = Duration::from_secs(60);

/// Sources in one report that are looked at; the proxy's own table is smaller.
const SOURCES_IN_REPORT: usize = 4096;

/// Addresses and sources that are held in all: about 50 MB. Whatever scans a mesh, this process must not grow with it.
const HELD: usize = 200_000;

/// Entries that each table of a pod may have even then: so many can always be named.
const FLOOR: usize = 32;

/// Tables of a pod: what its proxy says now, what the one before said, and the sum by name.
const TABLES: usize = 3;

/// Vanished pods that a namespace remembers by name.
const VANISHED: usize = 256;

/// Folded pods whose late reports must not count again.
const FOLDED: usize = 4096;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) instant: Instant,
    pub(super) unix_ms: u64,
}

impl Clock {
    pub(super) fn now() -> Self {
        let unix_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
        Self { instant: Instant::now(), unix_ms }
    }

    /// The moment that was `age_ms` ago; `u64::MAX` means never.
    pub(super) fn ago(self, age_ms: u64) -> Option<u64> {
        (age_ms != u64::MAX).then(|| self.unix_ms.saturating_sub(age_ms))
    }
}

/// One run of a pod's proxy.
#[derive(Debug)]
struct Boot {
    id: u64,
    sequence: u64,
    uptime_ms: u64,
    last: LastReport,
    totals: Counts,
    seen: HashMap<(IpAddr, u16), Seen>,
    sources_dropped: u64,
}

/// All runs of a pod's proxy.
#[derive(Debug)]
struct PodLedger {
    /// `None` until the index knows the pod.
    namespace: Option<Arc<str>>,
    current: Boot,
    /// The run before: its last report may come after its successor's first.
    previous: Option<Boot>,
    /// The runs before both.
    earlier: Counts,
    earlier_dropped: u64,
    last_served_unix_ms: Option<u64>,
    sources: Sources,
    /// What the change from `previous` to `current` left unsaid, and what all changes before did.
    gap_ms: u64,
    earlier_gaps_ms: u64,
    policy_version: u64,
    inbound_proof_age_ms: Option<u64>,
    outbound_proof_age_ms: Option<u64>,
    bypass: Bypasses,
    agent: AgentWord,
    gone: Option<Clock>,
}

/// What pods leave behind when they go.
#[derive(Debug, Default)]
struct Past {
    totals: Counts,
    last_served_unix_ms: Option<u64>,
    sources: Sources,
    sources_dropped: u64,
    vanished: VecDeque<VanishedPod>,
}

/// All reports of all pods.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pods: HashMap<Arc<str>, PodLedger>,
    past: HashMap<Arc<str>, Past>,
    folded: HashSet<Arc<str>>,
    folded_order: VecDeque<Arc<str>>,
    /// Entries of all tables of all pods and of all that is past.
    held: usize,
}

impl Ledger {
    /// Takes a report; one that is not ahead of the newest known of its boot changes nothing.
    pub(super) fn report(
        &mut self,
        pod_uid: &str,
        namespace: Option<Arc<str>>,
        report: &v1::Evidence,
        clock: Clock,
        resolve: Resolve<'_>,
    ) {
        if self.folded.contains(pod_uid) {
            return;
        }
        let pod = self.pods.entry(Arc::from(pod_uid)).or_insert_with(|| PodLedger::new(report, clock));
        if namespace.is_some() {
            pod.namespace = namespace;
        }
        let others = self.held.saturating_sub(pod.held());
        pod.take(report, Taking { clock, resolve, room: room(others) });
        self.held = others.saturating_add(pod.held());
    }

    pub(super) fn of(&self, pod_uid: &str) -> Option<PodEvidence> {
        let (uid, pod) = self.pods.get_key_value(pod_uid)?;
        Some(PodEvidence {
            pod_uid: Arc::clone(uid),
            boot_id: pod.current.id,
            sequence: pod.current.sequence,
            uptime_ms: pod.current.uptime_ms,
            last_report: pod.current.last,
            totals: pod.totals(),
            last_served_unix_ms: pod.last_served_unix_ms,
            policy_version: pod.policy_version,
            inbound_proof_age_ms: pod.inbound_proof_age_ms,
            outbound_proof_age_ms: pod.outbound_proof_age_ms,
            sources_dropped: pod.dropped(),
            unreported_ms: pod.earlier_gaps_ms.saturating_add(pod.gap_ms),
            bypass: pod.bypass.sorted(),
            last_look_unix_ms: pod.agent.last_look_unix_ms,
            look_was_cut: pod.agent.look_was_cut,
            agent_proof_age_ms: pod.agent.proof_age_ms,
            set_again: pod.agent.set_again,
            last_set_again_unix_ms: pod.agent.last_set_again_unix_ms,
        })
    }

    pub(super) fn last_report(&self, pod_uid: &str) -> Option<LastReport> {
        self.pods.get(pod_uid).map(|pod| pod.current.last)
    }

    /// Forgets what was not seen to pass by the proxies of `pods` since `before_unix_ms`.
    pub(super) fn forget_bypass<'a>(&mut self, pods: impl Iterator<Item = &'a str>, before_unix_ms: u64) {
        for uid in pods {
            if let Some(pod) = self.pods.get_mut(uid) {
                pod.bypass.forget(before_unix_ms);
            }
        }
    }

    pub(super) fn namespace(&self, namespace: &str) -> NamespaceEvidence {
        let mut evidence = NamespaceEvidence::default();
        let mut sources = Sources::default();
        if let Some(past) = self.past.get(namespace) {
            evidence.totals = past.totals;
            evidence.last_served_unix_ms = past.last_served_unix_ms;
            evidence.sources_dropped = past.sources_dropped;
            evidence.vanished = past.vanished.iter().cloned().collect();
            sources.merge(&past.sources, None, usize::MAX);
        }
        for (uid, pod) in self.pods.iter().filter(|(_, pod)| pod.namespace.as_deref() == Some(namespace)) {
            let closed = pod.gone.is_some();
            evidence.totals.add(&if closed { pod.totals().closed() } else { pod.totals() });
            evidence.last_served_unix_ms = evidence.last_served_unix_ms.max(pod.last_served_unix_ms);
            let unnamed = sources.merge(&pod.sources, (!closed).then_some(uid), usize::MAX);
            let dropped = pod.dropped().saturating_add(unnamed);
            evidence.sources_dropped = evidence.sources_dropped.saturating_add(dropped);
            if !closed && !pod.current.last.final_report {
                pod.current.seen.iter().for_each(|((_, port), seen)| sources.add_open(seen, *port));
            }
        }
        evidence.sources = sources.into_sorted();
        evidence
    }

    /// Notices pods that have gone (`namespace_of` no longer knows them), and after a while keeps only what
    /// their namespace remembers. Namespaces that are not `known` any more are forgotten.
    pub(super) fn sweep(
        &mut self,
        clock: Clock,
        namespace_of: &dyn Fn(&str) -> Option<Arc<str>>,
        known: &dyn Fn(&str) -> bool,
    ) {
        let mut fold = Vec::new();
        for (uid, pod) in &mut self.pods {
            if let Some(namespace) = namespace_of(uid) {
                pod.namespace = Some(namespace);
                pod.gone = None;
                continue;
            }
            match pod.gone {
                None => {
                    pod.gone = Some(clock);
                    if let Some(namespace) = &pod.namespace {
                        self.past.entry(Arc::clone(namespace)).or_default().note(uid, pod, clock);
                    }
                }
                Some(since) if clock.instant.duration_since(since.instant) >= GRACE => {
                    fold.push(Arc::clone(uid))
                }
                Some(_) => {}
            }
        }
        for uid in fold {
            self.fold(uid);
        }
        self.past.retain(|namespace, _| known(namespace));
        let past: usize = self.past.values().map(|past| past.sources.len()).sum();
        self.held = self.pods.values().map(PodLedger::held).sum::<usize>().saturating_add(past);
    }

    fn fold(&mut self, uid: Arc<str>) {
        let Some(pod) = self.pods.remove(&uid) else { return };
        let others = self.held.saturating_sub(pod.held());
        if let Some(namespace) = &pod.namespace {
            let past = self.past.entry(Arc::clone(namespace)).or_default();
            past.totals.add(&pod.totals().closed());
            past.last_served_unix_ms = past.last_served_unix_ms.max(pod.last_served_unix_ms);
            let room = room(others.saturating_sub(past.sources.len()));
            let dropped = pod.dropped().saturating_add(past.sources.merge(&pod.sources, None, room));
            past.sources_dropped = past.sources_dropped.saturating_add(dropped);
            if let Some(noted) = past.vanished.iter_mut().find(|vanished| vanished.pod_uid == uid) {
                noted.last_report = pod.current.last;
            }
        }
        if self.folded_order.len() >= FOLDED
            && let Some(oldest) = self.folded_order.pop_front()
        {
            self.folded.remove(&oldest);
        }
        self.folded_order.push_back(Arc::clone(&uid));
        self.folded.insert(uid);
    }
}

impl Past {
    fn note(&mut self, uid: &Arc<str>, pod: &PodLedger, clock: Clock) {
        if self.vanished.iter().any(|vanished| vanished.pod_uid == *uid) {
            return;
        }
        if self.vanished.len() >= VANISHED {
            self.vanished.pop_front();
        }
        self.vanished.push_back(VanishedPod {
            pod_uid: Arc::clone(uid),
            last_report: pod.current.last,
            gone_unix_ms: clock.unix_ms,
        });
    }
}

impl PodLedger {
    fn new(report: &v1::Evidence, clock: Clock) -> Self {
        Self {
            namespace: None,
            current: Boot::new(report, clock),
            previous: None,
            earlier: Counts::default(),
            earlier_dropped: 0,
            last_served_unix_ms: None,
            sources: Sources::default(),
            gap_ms: 0,
            earlier_gaps_ms: 0,
            policy_version: 0,
            inbound_proof_age_ms: None,
            outbound_proof_age_ms: None,
            bypass: Bypasses::default(),
            agent: AgentWord::default(),
            gone: None,
        }
    }

    fn totals(&self) -> Counts {
        let mut totals = self.earlier;
        if let Some(previous) = &self.previous {
            totals.add(&previous.totals.closed());
        }
        totals.add(&if self.current.last.final_report {
            self.current.totals.closed()
        } else {
            self.current.totals
        });
        totals
    }

    fn dropped(&self) -> u64 {
        let previous = self.previous.as_ref().map_or(0, |boot| boot.sources_dropped);
        [previous, self.current.sources_dropped, self.sources.dropped()]
            .into_iter()
            .fold(self.earlier_dropped, u64::saturating_add)
    }

    /// Entries of its tables.
    fn held(&self) -> usize {
        let previous = self.previous.as_ref().map_or(0, |boot| boot.seen.len());
        self.current.seen.len() + previous + self.sources.len()
    }

    fn take(&mut self, report: &v1::Evidence, taking: Taking<'_>) {
        let clock = taking.clock;
        if self.previous.as_ref().is_some_and(|previous| previous.id == report.boot_id) {
            self.take_late(report, taking);
            return;
        }
        if self.current.id != report.boot_id {
            self.rotate(report, clock);
        }
        if !self.current.advance(report, &mut self.sources, taking) {
            return;
        }
        self.policy_version = report.policy_version;
        let proof = |age: u64| (age != u64::MAX).then_some(age);
        self.inbound_proof_age_ms = proof(report.inbound_proof_age_ms);
        self.outbound_proof_age_ms = proof(report.outbound_proof_age_ms);
        self.bypass.take(report, clock, taking.resolve);
        self.agent.take(report, clock);
        self.note_served(report, clock);
    }

    /// The last words of the run before. A final report closes the gap between both runs.
    fn take_late(&mut self, report: &v1::Evidence, taking: Taking<'_>) {
        let Some(previous) = &mut self.previous else { return };
        if previous.advance(report, &mut self.sources, taking) {
            if report.r#final {
                self.gap_ms = 0;
            }
            self.note_served(report, taking.clock);
        }
    }

    fn note_served(&mut self, report: &v1::Evidence, clock: Clock) {
        let served = report.totals.as_ref().and_then(|totals| clock.ago(totals.last_served_age_ms));
        self.last_served_unix_ms = self.last_served_unix_ms.max(served);
    }

    /// A proxy with another boot id has begun.
    fn rotate(&mut self, report: &v1::Evidence, clock: Clock) {
        let ended = std::mem::replace(&mut self.current, Boot::new(report, clock));
        self.earlier_gaps_ms = self.earlier_gaps_ms.saturating_add(self.gap_ms);
        let began = clock.unix_ms.saturating_sub(report.uptime_ms);
        self.gap_ms =
            if ended.last.final_report { 0 } else { began.saturating_sub(ended.last.received_unix_ms) };
        if let Some(before) = self.previous.replace(ended) {
            self.earlier.add(&before.totals.closed());
            self.earlier_dropped = self.earlier_dropped.saturating_add(before.sources_dropped);
        }
    }
}

impl Boot {
    fn new(report: &v1::Evidence, clock: Clock) -> Self {
        Self {
            id: report.boot_id,
            sequence: 0,
            uptime_ms: 0,
            last: LastReport {
                received_at: clock.instant,
                received_unix_ms: clock.unix_ms,
                final_report: false,
            },
            totals: Counts::default(),
            seen: HashMap::new(),
            sources_dropped: 0,
        }
    }

    /// Takes a report of this run; `false` when a newer one has been taken already.
    fn advance(&mut self, report: &v1::Evidence, sources: &mut Sources, taking: Taking<'_>) -> bool {
        // Proxies count from 1; a first report is taken whatever its number.
        if !self.is_fresh() && report.sequence <= self.sequence {
            return false;
        }
        let clock = taking.clock;
        self.sequence = report.sequence;
        self.uptime_ms = report.uptime_ms;
        let final_report = self.last.final_report || report.r#final;
        self.last = LastReport { received_at: clock.instant, received_unix_ms: clock.unix_ms, final_report };
        self.totals = report.totals.as_ref().map(Counts::from_wire).unwrap_or_default();
        // A source that is not in the report has left the proxy's table: it is forgotten here too. Should it come
        // again, the proxy counts it from nothing; and a scan may bring new ones with every report.
        let mut before = std::mem::take(&mut self.seen);
        let told = told(report, &before, taking.room);
        let over = report.sources.len().saturating_sub(told.len());
        self.sources_dropped = report.sources_dropped.saturating_add(over as u64);
        for wire in told {
            let Some(key) = address(wire) else { continue };
            let seen = self.seen.entry(key).or_insert_with(|| {
                before.remove(&key).unwrap_or_else(|| Seen::new((taking.resolve)(key.0), clock))
            });
            seen.advance(wire, key, sources, taking);
        }
        true
    }

    fn is_fresh(&self) -> bool {
        self.sequence == 0 && self.uptime_ms == 0
    }
}

/// Entries that each table of a pod may have when all others have `others`.
fn room(others: usize) -> usize {
    (HELD.saturating_sub(others) / TABLES).max(FLOOR)
}

/// The sources of a report that there is room for: first those that decide, then those that were known `before` and
/// would be counted twice when they came again.
fn told<'a>(
    report: &'a v1::Evidence,
    before: &HashMap<(IpAddr, u16), Seen>,
    room: usize,
) -> Vec<&'a v1::PlaintextSource> {
    let mut sources: Vec<_> = report.sources.iter().collect();
    let room = room.min(SOURCES_IN_REPORT);
    if sources.len() > room {
        sources.sort_by_cached_key(|wire| {
            let decides = wire.counts.as_ref().is_some_and(|counts| Counts::from_wire(counts).decide());
            let known = address(wire).is_some_and(|key| before.contains_key(&key));
            (!decides, !known)
        });
        sources.truncate(room);
    }
    sources
}

/// The source's address and the app's port; `None` when the bytes are neither.
fn address(wire: &v1::PlaintextSource) -> Option<(IpAddr, u16)> {
    let bytes: &[u8] = &wire.ip;
    let ip = if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        IpAddr::from(four)
    } else {
        IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()
    };
    Some((ip, u16::try_from(wire.port).ok()?))
}

/// For tests: how many pods, and addresses of a pod, are held.
#[cfg(test)]
impl Ledger {
    pub(super) fn held(&self) -> usize {
        self.pods.len()
    }

    pub(super) fn entries(&self) -> usize {
        self.held
    }

    pub(super) fn addresses_of(&self, pod_uid: &str) -> usize {
        self.pods.get(pod_uid).map_or(0, |pod| pod.current.seen.len())
    }
}
