//! The book-keeping of evidence, pure: reports and the time go in. Reports are cumulative, so what counts is
//! how far each is ahead of the one before; that difference belongs to whoever holds the address now.

use super::bypass::Bypasses;
use super::model::{Counts, LastReport, NamespaceEvidence, PodEvidence, VanishedPod};
use super::sources::{Resolve, Seen, Sources};
use cinch_control::v1;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Late reports of a pod that has gone are still taken for so long: longer than a stream needs to drain.
const GRACE: Duration = Duration::from_secs(60);

/// Sources in one report that are looked at; the proxy's own table is smaller.
const SOURCES_IN_REPORT: usize = 4096;

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
    last_look_unix_ms: Option<u64>,
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
        pod.take(report, clock, resolve);
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
            sources: pod.open_sources().into_sorted(),
            policy_version: pod.policy_version,
            inbound_proof_age_ms: pod.inbound_proof_age_ms,
            outbound_proof_age_ms: pod.outbound_proof_age_ms,
            sources_dropped: pod.dropped(),
            unreported_ms: pod.earlier_gaps_ms.saturating_add(pod.gap_ms),
            bypass: pod.bypass.sorted(),
            last_look_unix_ms: pod.last_look_unix_ms,
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
            sources = past.sources.clone();
        }
        for pod in self.pods.values().filter(|pod| pod.namespace.as_deref() == Some(namespace)) {
            let closed = pod.gone.is_some();
            evidence.totals.add(&if closed { pod.totals().closed() } else { pod.totals() });
            evidence.last_served_unix_ms = evidence.last_served_unix_ms.max(pod.last_served_unix_ms);
            let mut dropped = pod.dropped();
            let of_pod = if closed { pod.sources.clone() } else { pod.open_sources() };
            dropped = dropped.saturating_add(sources.merge(&of_pod));
            evidence.sources_dropped = evidence.sources_dropped.saturating_add(dropped);
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
    }

    fn fold(&mut self, uid: Arc<str>) {
        let Some(pod) = self.pods.remove(&uid) else { return };
        if let Some(namespace) = &pod.namespace {
            let past = self.past.entry(Arc::clone(namespace)).or_default();
            past.totals.add(&pod.totals().closed());
            past.last_served_unix_ms = past.last_served_unix_ms.max(pod.last_served_unix_ms);
            let dropped = pod.dropped().saturating_add(past.sources.merge(&pod.sources));
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
            last_look_unix_ms: None,
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

    /// The sources with the connections that are open now.
    fn open_sources(&self) -> Sources {
        let mut sources = self.sources.clone();
        if !self.current.last.final_report {
            for ((_, port), seen) in &self.current.seen {
                sources.add_open(seen, *port);
            }
        }
        sources
    }

    fn take(&mut self, report: &v1::Evidence, clock: Clock, resolve: Resolve<'_>) {
        if self.previous.as_ref().is_some_and(|previous| previous.id == report.boot_id) {
            self.take_late(report, clock, resolve);
            return;
        }
        if self.current.id != report.boot_id {
            self.rotate(report, clock);
        }
        if !self.current.advance(report, clock, &mut self.sources, resolve) {
            return;
        }
        self.policy_version = report.policy_version;
        let proof = |age: u64| (age != u64::MAX).then_some(age);
        self.inbound_proof_age_ms = proof(report.inbound_proof_age_ms);
        self.outbound_proof_age_ms = proof(report.outbound_proof_age_ms);
        self.bypass.take(report, clock, resolve);
        let look = report.bypass_look_age_ms.and_then(|age| clock.ago(age));
        self.last_look_unix_ms = self.last_look_unix_ms.max(look);
        self.note_served(report, clock);
    }

    /// The last words of the run before. A final report closes the gap between both runs.
    fn take_late(&mut self, report: &v1::Evidence, clock: Clock, resolve: Resolve<'_>) {
        let Some(previous) = &mut self.previous else { return };
        if previous.advance(report, clock, &mut self.sources, resolve) {
            if report.r#final {
                self.gap_ms = 0;
            }
            self.note_served(report, clock);
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
    fn advance(
        &mut self,
        report: &v1::Evidence,
        clock: Clock,
        sources: &mut Sources,
        resolve: Resolve<'_>,
    ) -> bool {
        // Proxies count from 1; a first report is taken whatever its number.
        if !self.is_fresh() && report.sequence <= self.sequence {
            return false;
        }
        self.sequence = report.sequence;
        self.uptime_ms = report.uptime_ms;
        let final_report = self.last.final_report || report.r#final;
        self.last = LastReport { received_at: clock.instant, received_unix_ms: clock.unix_ms, final_report };
        self.totals = report.totals.as_ref().map(Counts::from_wire).unwrap_or_default();
        let over = report.sources.len().saturating_sub(SOURCES_IN_REPORT);
        self.sources_dropped = report.sources_dropped.saturating_add(over as u64);
        // A source that is not in the report has left the proxy's table: it is forgotten here too. Should it come
        // again, the proxy counts it from nothing; and a scan may bring new ones with every report.
        let mut before = std::mem::take(&mut self.seen);
        for wire in report.sources.iter().take(SOURCES_IN_REPORT) {
            let Some(key) = address(wire) else { continue };
            let seen = self
                .seen
                .entry(key)
                .or_insert_with(|| before.remove(&key).unwrap_or_else(|| Seen::new(resolve(key.0), clock)));
            seen.advance(wire, key, clock, sources, resolve);
        }
        true
    }

    fn is_fresh(&self) -> bool {
        self.sequence == 0 && self.uptime_ms == 0
    }
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

    pub(super) fn addresses_of(&self, pod_uid: &str) -> usize {
        self.pods.get(pod_uid).map_or(0, |pod| pod.current.seen.len())
    }
}
