//! What this proxy saw of plaintext, and since when its redirect is proved. In come the ends of connections, out
//! comes the cumulative report for the operator. The table of sources is bounded; what falls out of it stays in
//! the totals, so a scanner can blur names but never hide that plaintext was served.

mod table;
mod wire;

use crate::bypass::Bypass;
use crate::limits::{Limits, Refusals};
use cinch_control::v1;
use cinch_redirect::sighting::Sightings;
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use table::{Bounds, Key, Table};
use tokio::sync::Notify;
use wire::{NEVER, millis, to_counts, to_source};

/// How a plaintext connection ended, or stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Refused by policy, whatever the mode says.
    Denied,
    /// Refused by the mode alone, or cut: without it the client would have been served.
    DeniedByMode,
    /// Allowed, but the app did not accept.
    NoListener,
    /// Neither side said a byte: a connect scan, or nothing at all came to a STRICT port.
    Empty,
}

/// Counters of plaintext since the process began.
#[derive(Debug)]
pub struct Evidence {
    boot_id: u64,
    started: Instant,
    bounds: Bounds,
    /// Sources in one report, however many the table holds: those that were served or refused come first.
    reported: usize,
    table: Mutex<Table>,
    /// Milliseconds after `started`, plus one; 0: never.
    inbound_proof: AtomicU64,
    outbound_proof: AtomicU64,
    agent_proof: AtomicU64,
    /// How often the node agent found the redirect gone, and when it did last.
    set_again: AtomicU64,
    set_again_at: AtomicU64,
    bypass: Mutex<Bypass>,
    /// Told when the outbound redirect does not show itself.
    doubt: Notify,
}

impl Evidence {
    /// Empty counters that name at most `capacity` sources, and for the rest have the bounds that nobody has set.
    #[must_use]
    pub fn new(capacity: usize) -> Evidence {
        let limits = Limits { evidence_sources: capacity, ..Limits::default() };
        Self::within(&limits, Refusals::default())
    }

    /// Empty counters with the bounds of `limits`; `refusals` hears of what these keep out.
    #[must_use]
    pub fn within(limits: &Limits, refusals: Refusals) -> Evidence {
        let (sources, ports) = (limits.evidence_sources, limits.evidence_ports);
        Evidence {
            boot_id: rand::random(),
            started: Instant::now(),
            bounds: Bounds { sources, ports, refusals },
            reported: limits.evidence_reported,
            table: Mutex::default(),
            inbound_proof: AtomicU64::new(0),
            outbound_proof: AtomicU64::new(0),
            agent_proof: AtomicU64::new(0),
            set_again: AtomicU64::new(0),
            set_again_at: AtomicU64::new(0),
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

    /// The node agent has found the redirect gone, and set it again.
    pub fn note_set_again(&self) {
        self.set_again_at.store(self.stamp(), Ordering::Relaxed);
        self.set_again.fetch_add(1, Ordering::Relaxed);
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
        let (mut table, now) = (self.table.lock(), Instant::now());
        let denied = matches!(outcome, Outcome::Denied | Outcome::DeniedByMode);
        let place = table.place((source, port), denied, &self.bounds);
        let entry = table.change(place, now, |counts| match outcome {
            Outcome::Denied | Outcome::DeniedByMode => counts.denied += 1,
            Outcome::NoListener => counts.no_listener += 1,
            Outcome::Empty => counts.empty += 1,
        });
        if let Some(entry) = entry
            && denied
        {
            entry.last_denied = Some(now);
            if outcome == Outcome::DeniedByMode {
                entry.last_denied_by_mode = Some(now);
            }
        }
    }

    /// Follows a plaintext connection that the app accepted, until the returned guard is dropped. It counts as open
    /// from its first byte on: one that never says a word would lose nothing by the lock, and who only holds
    /// connections open must not be able to hold a namespace back.
    #[must_use]
    pub fn accepted(self: &Arc<Self>, source: IpAddr, port: u16) -> Accepted {
        Accepted { evidence: self.clone(), source, port, state: State::Silent }
    }

    /// The cumulative report. `final_report`: the last one before the process ends.
    #[must_use]
    pub fn report(&self, policy_version: u64, final_report: bool) -> v1::Evidence {
        let now = Instant::now();
        let mut table = self.table.lock();
        table.sequence += 1;
        let mut named: Vec<_> = table.sources.iter().collect();
        if named.len() > self.reported {
            self.bounds.refusals.count("evidence_reported");
            named.sort_by_key(|(_, source)| (!source.decides(), Reverse(source.last_seen)));
        }
        let untold = u64::try_from(named.len().saturating_sub(self.reported)).unwrap_or(NEVER);
        let told = named.into_iter().take(self.reported);
        let sources = told.map(|(key, source)| to_source(key, source, now)).collect();
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
            sources_dropped: table.dropped.saturating_add(untold),
            redirect_set_again: self.set_again.load(Ordering::Relaxed),
            redirect_set_again_age_ms: self.age_of(&self.set_again_at).map(millis),
            agent_proof_age_ms: self.agent_proof_age().map(millis),
            ..v1::Evidence::default()
        };
        self.bypass.lock().report(&mut report, now);
        report
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Silent,
    /// Counted at this place, if it found one.
    Served(Option<Key>),
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
            let (mut table, now) = (self.evidence.table.lock(), Instant::now());
            let place = table.place((self.source, self.port), true, &self.evidence.bounds);
            self.state = State::Served(place);
            table.change(place, now, |counts| {
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
        if let State::Served(place) = self.state {
            self.close(place);
        }
        self.state = State::Cut;
        self.evidence.refused(self.source, self.port, Outcome::DeniedByMode);
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
    fn close(&self, place: Option<Key>) {
        let now = Instant::now();
        self.evidence.table.lock().change(place, now, |counts| {
            counts.open = counts.open.saturating_sub(1);
            counts.last_served = Some(now);
        });
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        match self.state {
            State::Silent => self.evidence.refused(self.source, self.port, Outcome::Empty),
            State::Served(place) => self.close(place),
            State::Cut | State::Tunnel => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ports at which one address is named.
    const PORTS: usize = 16;

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
    fn what_policy_refuses_too_is_not_the_modes() {
        for (outcome, by_mode) in [(Outcome::Denied, false), (Outcome::DeniedByMode, true)] {
            let evidence = Evidence::new(8);
            evidence.refused(ip(1), 80, outcome);
            let source = evidence.report(1, false).sources[0].clone();
            assert_eq!(source.counts.unwrap().denied, 1);
            assert_eq!(source.last_denied_by_mode_age_ms.unwrap() < NEVER, by_mode, "{outcome:?}");
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
        assert_eq!(evidence.bounds.refusals.of("evidence_sources"), 7);
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

    #[test]
    fn who_tries_all_ports_takes_one_entry() {
        let evidence = Arc::new(Evidence::new(64));
        for port in 1..=60_000 {
            match port % 2 {
                0 => evidence.refused(ip(1), port, Outcome::NoListener),
                _ => drop(evidence.accepted(ip(1), port)),
            }
        }
        let report = evidence.report(1, false);
        assert_eq!((report.sources.len(), report.sources[0].port, report.sources_dropped), (1, 0, 0));
        let counts = report.totals.unwrap();
        assert_eq!((counts.no_listener, counts.empty), (30_000, 30_000));
    }

    #[test]
    fn who_is_refused_at_all_ports_is_named_at_some_and_pushes_nobody_out() {
        let evidence = Arc::new(Evidence::new(64));
        evidence.refused(ip(2), 80, Outcome::Denied);
        for port in 1..=60_000 {
            evidence.refused(ip(1), port, Outcome::Denied);
        }
        let report = evidence.report(1, false);
        assert_eq!((report.sources.len(), report.sources_dropped), (1 + PORTS + 1, 0));
        let rest = report.sources.iter().find(|source| source.port == 0).unwrap();
        assert_eq!(rest.counts.unwrap().denied, 60_000 - 16);
        assert_eq!(evidence.bounds.refusals.of("evidence_ports"), 60_000 - 16);
        assert!(report.sources.iter().all(|source| source.last_denied_age_ms < 60_000));
    }

    #[test]
    fn a_connection_closes_where_it_was_opened() {
        let evidence = Arc::new(Evidence::new(64));
        let mut many: Vec<_> = (1..=40).map(|port| evidence.accepted(ip(1), port)).collect();
        many.iter_mut().for_each(Accepted::served);
        let open = |evidence: &Evidence| -> Vec<u64> {
            let sources = evidence.report(1, false).sources;
            sources.iter().filter_map(|source| source.counts).map(|counts| counts.open).collect()
        };
        assert_eq!(open(&evidence).iter().sum::<u64>(), 40);
        drop(many);
        assert_eq!(open(&evidence), vec![0; PORTS + 1]);
    }

    #[test]
    fn a_report_is_bounded_and_tells_first_of_those_that_were_served_or_refused() {
        let evidence = Arc::new(Evidence::new(10_000));
        let address = |number: u32| IpAddr::from((0x0A00_0000 + number).to_be_bytes());
        evidence.accepted(address(1), 80).served();
        evidence.refused(address(2), 80, Outcome::Denied);
        (3..3000).for_each(|number| evidence.refused(address(number), 80, Outcome::Empty));
        let report = evidence.report(1, false);
        assert_eq!((report.sources.len(), report.sources_dropped), (1024, 2999 - 1024));
        assert_eq!(evidence.bounds.refusals.of("evidence_reported"), 1);
        assert_eq!(evidence.bounds.refusals.of("evidence_sources"), 0);
        for number in [1, 2] {
            assert!(report.sources.iter().any(|source| source.ip == vec![10, 0, 0, number]), "{number}");
        }
    }
}
