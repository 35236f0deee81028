//! Plaintext by source. A proxy counts by address; people think in workloads, and addresses change hands.
//! So each report's growth goes to the name that the address has now, and replicas are added up.

use super::ledger::Clock;
use super::model::{Counts, SourceEvidence};
use crate::index::SourceName;
use cinch_control::v1;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Who an address is.
pub(super) type Resolve<'a> = &'a dyn Fn(IpAddr) -> SourceName;

/// What goes with a report that is taken.
#[derive(Clone, Copy)]
pub(super) struct Taking<'a> {
    /// When it came.
    pub(super) clock: Clock,
    /// Who addresses are now.
    pub(super) resolve: Resolve<'a>,
    /// Entries that a table of this pod may have now.
    pub(super) room: usize,
}

/// Workloads and nodes by port that one table names.
const NAMED: usize = 2048;

/// Addresses from outside by port that one table names. A bound of their own: a scan from many addresses must
/// not push workloads out.
const EXTERNAL: usize = 1024;

/// An address that the index did not know may be that of a pod it had not seen yet. For so long after its
/// first appearance a new name takes over what was counted before.
const SETTLES: Duration = Duration::from_secs(30);

/// What one proxy said of one address and port.
#[derive(Debug)]
pub(super) struct Seen {
    counts: Counts,
    name: SourceName,
    since: Instant,
}

impl Seen {
    pub(super) fn new(name: SourceName, clock: Clock) -> Self {
        Self { counts: Counts::default(), name, since: clock.instant }
    }

    /// Takes the newest counts of this address and adds what is new to `sources`.
    pub(super) fn advance(
        &mut self,
        wire: &v1::PlaintextSource,
        (ip, port): (IpAddr, u16),
        sources: &mut Sources,
        Taking { clock, resolve, room }: Taking<'_>,
    ) {
        let name = resolve(ip);
        if name != self.name {
            let settles = clock.instant.duration_since(self.since) < SETTLES;
            if settles && matches!(self.name, SourceName::External(_)) {
                sources.rename(&self.name, &name, port, room);
            }
            self.name = name;
        }
        let wire_counts = wire.counts.unwrap_or_default();
        let counts = Counts::from_wire(&wire_counts);
        let mut delta = counts.since(&self.counts);
        if shrank(&counts, &self.counts) {
            // The proxy forgot this source and met it again.
            delta = counts;
        }
        self.counts = counts;
        delta.open = 0;
        if delta.is_zero() && counts.open == 0 {
            return;
        }
        // The newest times belong to this name only if it made them.
        let when = |grew: bool, age: u64| if grew { clock.ago(age) } else { None };
        let mut evidence = SourceEvidence::new(self.name.clone(), port);
        evidence.counts = delta;
        evidence.last_seen_unix_ms = clock.ago(wire.last_seen_age_ms);
        evidence.last_served_unix_ms = when(delta.served > 0, wire_counts.last_served_age_ms);
        evidence.last_denied_unix_ms = when(delta.denied > 0, wire.last_denied_age_ms);
        // A proxy that does not tell whose refusals they were may mean the mode's.
        let by_mode = wire.last_denied_by_mode_age_ms.unwrap_or(wire.last_denied_age_ms);
        evidence.last_denied_by_mode_unix_ms = when(delta.denied > 0, by_mode);
        sources.add(&evidence, room);
    }
}

fn shrank(now: &Counts, before: &Counts) -> bool {
    now.served < before.served
        || now.denied < before.denied
        || now.no_listener < before.no_listener
        || now.empty < before.empty
        || now.exempt < before.exempt
}

/// A bounded table of sources by name and port.
#[derive(Debug, Clone, Default)]
pub(super) struct Sources {
    by_name: HashMap<(SourceName, u16), SourceEvidence>,
    external: usize,
    /// Entries of which nothing was ever served, refused or open.
    idle: usize,
    dropped: u64,
}

impl Sources {
    /// Sources that found no place.
    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How many it names.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Adds what a source did. A table of more than `room` sources takes no new one that only knocked.
    pub(super) fn add(&mut self, evidence: &SourceEvidence, room: usize) {
        if !self.admit(evidence, None, room) {
            self.dropped += 1;
        }
    }

    /// Adds every source of `other`, which the pod `seen_by` tells of; returns how many found no place.
    pub(super) fn merge(&mut self, other: &Sources, seen_by: Option<&Arc<str>>, room: usize) -> u64 {
        other.by_name.values().map(|evidence| u64::from(!self.admit(evidence, seen_by, room))).sum()
    }

    /// Adds the connections that an address has open now.
    pub(super) fn add_open(&mut self, seen: &Seen, port: u16) {
        if seen.counts.open > 0 {
            let mut evidence = SourceEvidence::new(seen.name.clone(), port);
            evidence.counts.open = seen.counts.open;
            self.add(&evidence, usize::MAX);
        }
    }

    /// What was counted for `from` belongs to `to`.
    fn rename(&mut self, from: &SourceName, to: &SourceName, port: u16, room: usize) {
        let Some(mut evidence) = self.remove(&(key(from), port)) else { return };
        evidence.source = to.clone();
        self.add(&evidence, room);
    }

    fn remove(&mut self, key: &(SourceName, u16)) -> Option<SourceEvidence> {
        let evidence = self.by_name.remove(key)?;
        self.external -= usize::from(is_external(&evidence.source)).min(self.external);
        self.idle -= usize::from(!evidence.counts.decide()).min(self.idle);
        Some(evidence)
    }

    fn admit(&mut self, evidence: &SourceEvidence, seen_by: Option<&Arc<str>>, room: usize) -> bool {
        let key = (key(&evidence.source), evidence.port);
        let decides = evidence.counts.decide();
        if let Some(known) = self.by_name.get_mut(&key) {
            self.idle -= usize::from(decides && !known.counts.decide()).min(self.idle);
            let newer = evidence.last_seen_unix_ms > known.last_seen_unix_ms;
            if seen_by.is_some() && (newer || known.seen_by.is_none()) {
                known.seen_by = seen_by.cloned();
            }
            known.merge(evidence);
            known.source = older(&known.source, &evidence.source);
            return true;
        }
        let external = is_external(&evidence.source);
        if self.is_full(external, room) && !(decides && self.make_room(external, room)) {
            return false;
        }
        self.external += usize::from(external);
        self.idle += usize::from(!decides);
        let mut evidence = evidence.clone();
        evidence.seen_by = seen_by.cloned();
        self.by_name.insert(key, evidence);
        true
    }

    fn is_full(&self, external: bool, room: usize) -> bool {
        let named = self.by_name.len() - self.external;
        self.by_name.len() >= room || if external { self.external >= EXTERNAL } else { named >= NAMED }
    }

    /// Lets one go that only knocked, for one that decides.
    fn make_room(&mut self, external: bool, room: usize) -> bool {
        if self.idle == 0 {
            return false;
        }
        // Where only one kind is full, one of the other kind would make no room.
        let any = self.by_name.len() >= room;
        let fits =
            |held: &SourceEvidence| !held.counts.decide() && (any || is_external(&held.source) == external);
        let victim = self.by_name.iter().find(|(_, held)| fits(held)).map(|(key, _)| key.clone());
        let gone = victim.and_then(|key| self.remove(&key)).is_some();
        self.dropped += u64::from(gone);
        gone && !self.is_full(external, room)
    }

    /// All sources: most served first, then most denied, then by name.
    pub(super) fn into_sorted(self) -> Vec<SourceEvidence> {
        let mut sources: Vec<_> = self.by_name.into_values().collect();
        sources.sort_by(|a, b| {
            let served = b.counts.served.cmp(&a.counts.served);
            let denied = b.counts.denied.cmp(&a.counts.denied);
            served.then(denied).then_with(|| (&a.source, a.port).cmp(&(&b.source, b.port)))
        });
        sources
    }
}

fn is_external(name: &SourceName) -> bool {
    matches!(name, SourceName::External(_))
}

/// Replicas and generations of a workload are one source, whenever each was created.
fn key(name: &SourceName) -> SourceName {
    match name {
        SourceName::Workload { name, .. } => SourceName::Workload { name: name.clone(), created_unix_ms: 0 },
        other => other.clone(),
    }
}

/// The name with the earlier creation.
fn older(one: &SourceName, other: &SourceName) -> SourceName {
    match (one, other) {
        (
            SourceName::Workload { name, created_unix_ms: a },
            SourceName::Workload { created_unix_ms: b, .. },
        ) => SourceName::Workload { name: name.clone(), created_unix_ms: *a.min(b) },
        _ => one.clone(),
    }
}
