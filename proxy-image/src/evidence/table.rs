//! The bounded table of sources. In go single connections, out comes what each source did; what finds no place is in
//! the totals alone.

use crate::limits::Refusals;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

/// Plaintext connections of one source to one port, or of all.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) served: u64,
    pub(super) denied: u64,
    pub(super) no_listener: u64,
    pub(super) empty: u64,
    pub(super) exempt: u64,
    pub(super) open: u64,
    pub(super) last_served: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Source {
    pub(super) counts: Counts,
    pub(super) last_seen: Instant,
    pub(super) last_denied: Option<Instant>,
    /// The newest of these that the mode alone made.
    pub(super) last_denied_by_mode: Option<Instant>,
}

pub(super) type Key = (IpAddr, u16);

/// Instead of a port: several of them, or one at which nothing was ever served or refused. Who tries all ports takes
/// one entry.
const SEVERAL: u16 = 0;

/// What the table may hold, and who hears what it could not.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Sources, by address and port.
    pub(super) sources: usize,
    /// Ports at which one address is named.
    pub(super) ports: usize,
    pub(super) refusals: Refusals,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) totals: Counts,
    pub(super) sources: HashMap<Key, Source>,
    pub(super) dropped: u64,
    pub(super) sequence: u64,
}

impl Source {
    /// Served or refused here: what promotion and rollback must name.
    pub(super) fn decides(&self) -> bool {
        self.counts.served > 0 || self.counts.open > 0 || self.counts.denied > 0
    }
}

impl Table {
    /// Where a connection counts besides the totals, if it has or finds a place. Only what was served or refused, as
    /// `by_port` says, needs its port.
    pub(super) fn place(&mut self, (ip, port): Key, by_port: bool, bounds: &Bounds) -> Option<Key> {
        let (ip, mut at) = (ip.to_canonical(), port);
        if !self.sources.contains_key(&(ip, port)) {
            let ports = || self.sources.keys().filter(|(known, _)| *known == ip).count();
            if !by_port {
                at = SEVERAL;
            } else if ports() >= bounds.ports {
                bounds.refusals.count("evidence_ports");
                at = SEVERAL;
            }
        }
        let key = (ip, at);
        (self.sources.contains_key(&key) || self.make_room(bounds)).then_some(key)
    }

    /// Applies `change` to the totals and to the source that has the place.
    pub(super) fn change(
        &mut self,
        place: Option<Key>,
        now: Instant,
        change: impl Fn(&mut Counts),
    ) -> Option<&mut Source> {
        change(&mut self.totals);
        let entry = self.sources.entry(place?).or_insert_with(|| Source {
            counts: Counts::default(),
            last_seen: now,
            last_denied: None,
            last_denied_by_mode: None,
        });
        change(&mut entry.counts);
        entry.last_seen = now;
        Some(entry)
    }

    /// Makes room for one more source. The source that goes is the longest unseen one that was never served and
    /// has nothing open, of those that only knocked if there is one: those that were served or refused are what
    /// promotion and rollback must name.
    fn make_room(&mut self, bounds: &Bounds) -> bool {
        if self.sources.len() < bounds.sources {
            return true;
        }
        bounds.refusals.count("evidence_sources");
        self.dropped += 1;
        let victim = self
            .sources
            .iter()
            .filter(|(_, source)| source.counts.served == 0 && source.counts.open == 0)
            .min_by_key(|(_, source)| (source.decides(), source.last_seen))
            .map(|(key, _)| *key);
        victim.is_some_and(|key| self.sources.remove(&key).is_some())
    }
}
