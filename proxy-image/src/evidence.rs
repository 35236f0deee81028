//! What this proxy saw of plaintext, and since when its redirect is proved. In come the ends of connections, out
//! comes the cumulative report for the operator. The table of sources is bounded; what falls out of it stays in
//! the totals, so a scanner can blur names but never hide that plaintext was served.

use crate::bypass::Bypass;
use cinch_control::v1;
use cinch_redirect::sighting::Sightings;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The age of what never happened, on the wire.
const NEVER: u64 = u64::MAX;

/// How a plaintext connection ended, or stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Refused by mode or policy, or cut by them.
    Denied,
    /// Allowed, but the app did not accept.
    NoListener,
    /// Neither side said a byte: a connect scan, or nothing at all came to a STRICT port.
    Empty,
}

/// Plaintext connections of one source to one port, or of all.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    served: u64,
    denied: u64,
    no_listener: u64,
    empty: u64,
    exempt: u64,
    open: u64,
    last_served: Option<Instant>,
}

#[derive(Debug)]
struct Source {
    counts: Counts,
    last_seen: Instant,
    last_denied: Option<Instant>,
}

type Key = (IpAddr, u16);

#[derive(Debug, Default)]
struct Table {
    totals: Counts,
    sources: HashMap<Key, Source>,
    dropped: u64,
    sequence: u64,
}

/// Counters of plaintext since the process began.
#[derive(Debug)]
pub struct Evidence {
    boot_id: u64,
    started: Instant,
    capacity: usize,
    table: Mutex<Table>,
    /// Milliseconds after `started`, plus one; 0: never.
    inbound_proof: AtomicU64,
    outbound_proof: AtomicU64,
    agent_proof: AtomicU64,
    bypass: Mutex<Bypass>,
    /// Told when the outbound redirect does not show itself.
    doubt: Notify,
}

impl Evidence {
    /// Empty counters that name at most `capacity` sources.
    #[must_use]
    pub fn new(capacity: usize) -> Evidence {
        Evidence {
            boot_id: rand::random(),
            started: Instant::now(),
            capacity,
            table: Mutex::default(),
            inbound_proof: AtomicU64::new(0),
            outbound_proof: AtomicU64::new(0),
            agent_proof: AtomicU64::new(0),
            bypass: Mutex::default(),
            doubt: Notify::new(),
        }
    }

    /// Differs with every start of the proxy.
    #[must_use]
    pub fn boot_id(&self) -> u64 {
        self.boot_id
    }

    /// A connection came in through the inbound redirect.
    pub fn note_inbound_proof(&self) {
        self.inbound_proof.store(self.stamp(), Ordering::Relaxed);
    }

    /// The proxy's own dial came back through the outbound redirect.
    pub fn note_outbound_proof(&self) {
        self.outbound_proof.store(self.stamp(), Ordering::Relaxed);
    }

    /// The node agent has found the redirect in force and proved it by a dial of its own.
    pub fn note_agent_proof(&self) {
        self.agent_proof.store(self.stamp(), Ordering::Relaxed);
    }

    /// Takes what the node agent saw pass by this proxy.
    pub fn note_look(&self, found: &Sightings) {
        for new in self.bypass.lock().note(found, Instant::now()) {
            let (way, peer, port) = (new.way, new.peer, new.port);
            let (process, container) = (&*new.process, &*new.container);
            if way.is_tcp() {
                tracing::warn!(?way, ?peer, port, process, container, "a connection passes by the proxy");
            } else {
                tracing::info!(?way, ?peer, port, process, container, "UDP passes by the proxy");
            }
        }
    }

    /// The proxy's own dial did not come back: whoever can set the redirect again should.
    pub fn note_outbound_failure(&self) {
        self.doubt.notify_one();
    }

    /// Returns at the next [`Evidence::note_outbound_failure`], or at once after one that nobody has heard.
    pub async fn outbound_in_doubt(&self) {
        self.doubt.notified().await;
    }

    /// How long ago the node agent last said so.
    #[must_use]
    pub fn agent_proof_age(&self) -> Option<Duration> {
        self.age_of(&self.agent_proof)
    }

    /// How long ago the inbound redirect was last proved.
    #[must_use]
    pub fn inbound_proof_age(&self) -> Option<Duration> {
        self.age_of(&self.inbound_proof)
    }

    /// How long ago the outbound redirect was last proved.
    #[must_use]
    pub fn outbound_proof_age(&self) -> Option<Duration> {
        self.age_of(&self.outbound_proof)
    }

    fn stamp(&self) -> u64 {
        millis(self.started.elapsed()).saturating_add(1)
    }

    fn age_of(&self, stamp: &AtomicU64) -> Option<Duration> {
        let at = stamp.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.started.elapsed().saturating_sub(Duration::from_millis(at)))
    }

    /// Counts a plaintext connection from `source` to `port` that never reached the app.
    pub fn refused(&self, source: IpAddr, port: u16, outcome: Outcome) {
        self.with(source, port, Instant::now(), |counts| match outcome {
            Outcome::Denied => counts.denied += 1,
            Outcome::NoListener => counts.no_listener += 1,
            Outcome::Empty => counts.empty += 1,
        });
        if outcome == Outcome::Denied
            && let Some(entry) = self.table.lock().sources.get_mut(&(source.to_canonical(), port))
        {
            entry.last_denied = Some(entry.last_seen);
        }
    }

    /// Follows a plaintext connection that the app accepted, until the returned guard is dropped. It counts as open
    /// from its first byte on: one that never says a word would lose nothing by the lock, and who only holds
    /// connections open must not be able to hold a namespace back.
    #[must_use]
    pub fn accepted(self: &Arc<Self>, source: IpAddr, port: u16) -> Accepted {
        self.with(source, port, Instant::now(), |_| ());
        Accepted { evidence: self.clone(), source, port, state: State::Silent }
    }

    /// Applies `change` to the totals and, where it has or finds a place, to the source.
    fn with(&self, source: IpAddr, port: u16, now: Instant, change: impl Fn(&mut Counts)) {
        let key = (source.to_canonical(), port);
        let mut table = self.table.lock();
        change(&mut table.totals);
        if !table.sources.contains_key(&key) && !table.make_room(self.capacity) {
            return;
        }
        let entry = table.sources.entry(key).or_insert_with(|| Source {
            counts: Counts::default(),
            last_seen: now,
            last_denied: None,
        });
        change(&mut entry.counts);
        entry.last_seen = now;
    }

    /// The cumulative report. `final_report`: the last one before the process ends.
    #[must_use]
    pub fn report(&self, policy_version: u64, final_report: bool) -> v1::Evidence {
        let now = Instant::now();
        let mut table = self.table.lock();
        table.sequence += 1;
        let sources = table.sources.iter().map(|(key, source)| to_source(key, source, now)).collect();
        let mut report = v1::Evidence {
            boot_id: self.boot_id,
            sequence: table.sequence,
            uptime_ms: millis(now.duration_since(self.started)),
            inbound_proof_age_ms: self.inbound_proof_age().map_or(NEVER, millis),
            outbound_proof_age_ms: self.outbound_proof_age().map_or(NEVER, millis),
            totals: Some(to_counts(&table.totals, now)),
            sources,
            r#final: final_report,
            policy_version,
            sources_dropped: table.dropped,
            ..v1::Evidence::default()
        };
        self.bypass.lock().report(&mut report, now);
        report
    }
}

impl Table {
    /// Makes room for one more source. The source that goes is the longest unseen one that was never served and
    /// has nothing open: those that were served are what promotion and rollback must name.
    fn make_room(&mut self, capacity: usize) -> bool {
        if self.sources.len() < capacity {
            return true;
        }
        self.dropped += 1;
        let victim = self
            .sources
            .iter()
            .filter(|(_, source)| source.counts.served == 0 && source.counts.open == 0)
            .min_by_key(|(_, source)| source.last_seen)
            .map(|(key, _)| *key);
        victim.is_some_and(|key| self.sources.remove(&key).is_some())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Silent,
    Served,
    Cut,
    /// It turned out to be a tunnel: no plaintext at all.
    Tunnel,
}

/// A plaintext connection that the app accepted. Dropping it closes the count: as empty if nobody said a byte.
#[derive(Debug)]
pub struct Accepted {
    evidence: Arc<Evidence>,
    source: IpAddr,
    port: u16,
    state: State,
}

impl Accepted {
    /// A byte went either way: this connection is served plaintext.
    pub fn served(&mut self) {
        if self.state == State::Silent {
            self.state = State::Served;
            let now = Instant::now();
            self.evidence.with(self.source, self.port, now, |counts| {
                counts.served += 1;
                counts.open += 1;
                counts.last_served = Some(now);
            });
        }
    }

    /// The proxy cut it because mode or policy no longer allow it. If neither the client `spoke` nor the app, nobody
    /// can say that it would have been plaintext: it is closed as empty.
    pub fn cut(mut self, spoke: bool) {
        if self.state == State::Silent && !spoke {
            return;
        }
        if self.state == State::Served {
            self.close();
        }
        self.state = State::Cut;
        self.evidence.refused(self.source, self.port, Outcome::Denied);
    }

    /// It ended, and unless it was served, nothing of what the client may have said (`spoke`) was let through.
    pub fn ended(self, spoke: bool) {
        if self.state == State::Silent {
            self.cut(spoke);
        }
    }

    /// A ClientHello came before anybody said a byte: nothing of this was plaintext.
    pub fn became_tunnel(mut self) {
        self.state = State::Tunnel;
    }

    /// Bytes may have gone until now: a long connection is as recent as its end.
    fn close(&self) {
        let now = Instant::now();
        self.evidence.with(self.source, self.port, now, |counts| {
            counts.open = counts.open.saturating_sub(1);
            counts.last_served = Some(now);
        });
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        match self.state {
            State::Silent => {
                self.evidence.with(self.source, self.port, Instant::now(), |counts| counts.empty += 1);
            }
            State::Served => self.close(),
            State::Cut | State::Tunnel => {}
        }
    }
}

fn to_source((ip, port): &Key, source: &Source, now: Instant) -> v1::PlaintextSource {
    v1::PlaintextSource {
        ip: match ip {
            IpAddr::V4(ip) => ip.octets().to_vec().into(),
            IpAddr::V6(ip) => ip.octets().to_vec().into(),
        },
        port: u32::from(*port),
        counts: Some(to_counts(&source.counts, now)),
        last_seen_age_ms: millis(now.saturating_duration_since(source.last_seen)),
        last_denied_age_ms: age(source.last_denied, now),
    }
}

fn to_counts(counts: &Counts, now: Instant) -> v1::PlaintextCounts {
    v1::PlaintextCounts {
        served: counts.served,
        denied: counts.denied,
        no_listener: counts.no_listener,
        empty: counts.empty,
        exempt: counts.exempt,
        open: counts.open,
        last_served_age_ms: age(counts.last_served, now),
    }
}

fn age(at: Option<Instant>, now: Instant) -> u64 {
    at.map_or(NEVER, |at| millis(now.saturating_duration_since(at)))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn totals(evidence: &Evidence) -> v1::PlaintextCounts {
        evidence.report(1, false).totals.unwrap()
    }

    #[test]
    fn a_connection_that_said_a_byte_is_served_once_and_open_until_it_ends() {
        let evidence = Arc::new(Evidence::new(8));
        let mut open = evidence.accepted(ip(1), 80);
        assert_eq!((totals(&evidence).open, totals(&evidence).served), (0, 0));
        open.served();
        open.served();
        assert_eq!((totals(&evidence).open, totals(&evidence).served), (1, 1));
        drop(open);
        let report = evidence.report(7, true);
        let counts = report.totals.unwrap();
        assert_eq!((counts.open, counts.served, counts.empty), (0, 1, 0));
        assert!(counts.last_served_age_ms < 1000);
        assert_eq!((report.sources.len(), report.policy_version, report.r#final), (1, 7, true));
        assert_eq!(report.sources[0].ip, vec![10, 0, 0, 1]);
        assert_eq!(report.sources[0].last_denied_age_ms, NEVER);
    }

    #[test]
    fn a_connect_scan_is_empty_and_not_served() {
        let evidence = Arc::new(Evidence::new(8));
        drop(evidence.accepted(ip(1), 80));
        let counts = totals(&evidence);
        assert_eq!((counts.empty, counts.served, counts.last_served_age_ms), (1, 0, NEVER));
    }

    #[test]
    fn a_late_tunnel_leaves_no_plaintext_behind() {
        let evidence = Arc::new(Evidence::new(8));
        evidence.accepted(ip(1), 80).became_tunnel();
        let counts = totals(&evidence);
        assert_eq!((counts.empty, counts.served, counts.open, counts.denied), (0, 0, 0, 0));
    }

    #[test]
    fn a_cut_connection_is_denied_with_its_source() {
        let evidence = Arc::new(Evidence::new(8));
        let mut open = evidence.accepted(ip(1), 80);
        open.served();
        open.cut(true);
        let report = evidence.report(1, false);
        let counts = report.totals.unwrap();
        assert_eq!((counts.served, counts.denied, counts.open), (1, 1, 0));
        assert!(report.sources[0].last_denied_age_ms < 1000);
    }

    #[test]
    fn a_connection_that_is_cut_before_anybody_spoke_is_empty() {
        for (served, spoke, counted) in [(false, false, (0, 1)), (false, true, (1, 0)), (true, false, (1, 0))]
        {
            let evidence = Arc::new(Evidence::new(8));
            let mut open = evidence.accepted(ip(1), 80);
            if served {
                open.served();
            }
            open.cut(spoke);
            let counts = totals(&evidence);
            assert_eq!(((counts.denied, counts.empty), counts.open), (counted, 0), "{served} {spoke}");
        }
    }

    #[test]
    fn the_table_is_bounded_and_keeps_those_that_were_served() {
        let evidence = Arc::new(Evidence::new(2));
        evidence.accepted(ip(1), 80).served();
        for last in 2..10 {
            evidence.refused(ip(last), 80, Outcome::NoListener);
        }
        let report = evidence.report(1, false);
        assert_eq!(report.sources.len(), 2);
        assert!(report.sources.iter().any(|s| s.ip == vec![10, 0, 0, 1]), "the served one stays");
        assert!(report.sources.iter().any(|s| s.ip == vec![10, 0, 0, 9]), "the newest is there");
        assert_eq!((report.sources_dropped, report.totals.unwrap().no_listener), (7, 8));
    }

    #[test]
    fn mapped_addresses_are_one_source() {
        let evidence = Evidence::new(8);
        evidence.refused(ip(1), 80, Outcome::Denied);
        evidence.refused("::ffff:10.0.0.1".parse().unwrap(), 80, Outcome::Denied);
        let report = evidence.report(1, false);
        assert_eq!((report.sources.len(), report.sources[0].counts.unwrap().denied), (1, 2));
    }

    #[test]
    fn proofs_have_an_age_once_they_were_given() {
        let evidence = Evidence::new(8);
        assert_eq!(evidence.report(1, false).inbound_proof_age_ms, NEVER);
        assert_eq!(evidence.outbound_proof_age(), None);
        evidence.note_inbound_proof();
        evidence.note_outbound_proof();
        assert!(evidence.report(1, false).inbound_proof_age_ms < 1000);
        assert!(evidence.outbound_proof_age().unwrap() < Duration::from_secs(1));
    }
}
