//! What stands behind the addresses that apps dial: a bounded cache of the operator's records.
//!
//! In come records and the mesh's CIDRs (the control side) and addresses (the data side); out go destinations,
//! and subscriptions for the control stream. A record stays in force while the operator is away; an address that
//! was never answered for is refused, because guessing would leak plaintext.

mod refuted;

use crate::context::{Destination, Discovery, Endpoint};
use crate::limits::{Limits, Refusals};
use bytes::Bytes;
use cinch_control::v1;
use cinch_identity::SpiffeId;
use cinch_policy::Mode;
use cinch_reason::Reason;
use ipnet::IpNet;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use refuted::Refuted;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::{Instant, timeout_at};

/// A subscription to begin or end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Ask for the address.
    Subscribe(SocketAddr),
    /// It is of no more interest.
    Unsubscribe(SocketAddr),
}

/// Metric handles of the cache.
#[derive(Debug, Clone, Default)]
pub struct DiscoveryMetrics {
    /// Addresses in the cache.
    pub records: Gauge,
    /// Records that had to go for others.
    pub evictions: Counter,
    /// Connections refused because the operator did not answer in time.
    pub unanswered: Counter,
    /// What its limits refuse.
    pub limits: Refusals,
}

#[derive(Debug)]
struct Entry {
    /// What is in force; `None` until there is an answer.
    record: Option<Destination>,
    /// What the operator said, and when to look at it again, where endpoints of it are refuted.
    whole: Option<(Destination, Instant)>,
    used: u64,
    waiters: Option<Arc<Notify>>,
}

#[derive(Debug, Default)]
struct State {
    /// Sorted ranges that do not touch; `None` until the operator has said.
    mesh: Option<Vec<(IpAddr, IpAddr)>>,
    entries: HashMap<SocketAddr, Entry>,
    /// Entries by their last use.
    order: BTreeMap<u64, SocketAddr>,
    clock: u64,
    /// How many destinations lead to an endpoint.
    led_to: HashMap<SocketAddr, usize>,
    refuted: Refuted,
    /// `None` while there is no stream: then all entries are asked for at once when there is one.
    changes: Option<Vec<Change>>,
    /// More changes came than were fetched: the stream must begin anew.
    overflow: bool,
}

enum Look {
    Known(Destination),
    Wait(OwnedNotified),
}

/// The cache.
#[derive(Debug)]
pub struct RecordCache {
    state: Mutex<State>,
    changed: Notify,
    capacity: usize,
    /// How long an app's connection waits for the operator's first answer.
    patience: Duration,
    metrics: DiscoveryMetrics,
}

impl RecordCache {
    /// An empty cache with the bounds of `limits`: beyond so many addresses the longest unused goes.
    #[must_use]
    pub fn new(limits: &Limits, metrics: DiscoveryMetrics) -> Self {
        Self {
            state: Mutex::default(),
            changed: Notify::new(),
            capacity: limits.destinations.max(1),
            patience: limits.discovery_timeout,
            metrics,
        }
    }

    /// Puts the mesh's CIDRs in force. None at all is no mesh but an operator that does not know yet: taken at its
    /// word, everything would pass in plaintext.
    pub fn set_mesh(&self, networks: &[IpNet]) {
        if networks.is_empty() {
            return;
        }
        let mut ranges: Vec<_> =
            IpNet::aggregate(&networks.to_vec()).iter().map(|net| (net.network(), net.broadcast())).collect();
        ranges.sort_unstable();
        let mut state = self.state.lock();
        state.mesh = Some(ranges);
        for waiters in state.entries.values_mut().filter_map(|entry| entry.waiters.take()) {
            waiters.notify_waiters();
        }
    }

    /// Puts a record in force; records that nobody asked for any more are dropped.
    pub fn set_record(&self, record: v1::Record) {
        let Some(address) = record.address.as_ref().and_then(socket_address) else { return };
        let destination = destination_of(record);
        let mut state = self.state.lock();
        let State { entries, refuted, .. } = &mut *state;
        let Some(entry) = entries.get_mut(&address) else { return };
        // Most of the time nothing is refuted, and nothing has to be compared while others wait for the lock.
        for gone in entry.said().map(endpoints_of).unwrap_or_default() {
            if refuted.knows(gone) && !endpoints_of(&destination).iter().any(|known| is_same(known, gone)) {
                refuted.forgive(gone);
            }
        }
        let waiters = entry.waiters.take();
        state.put(address, destination, Some(Destination::Refuse(Reason::PeerIdentityMismatch)));
        if let Some(waiters) = waiters {
            waiters.notify_waiters();
        }
    }

    /// A stream begins: every address of the cache must be asked for again.
    #[must_use]
    pub fn begin_stream(&self) -> Vec<SocketAddr> {
        let mut state = self.state.lock();
        state.changes = Some(Vec::new());
        state.overflow = false;
        state.entries.keys().copied().collect()
    }

    /// The stream ended: changes are no longer collected.
    pub fn end_stream(&self) {
        self.state.lock().changes = None;
    }

    /// Waits until there are changes, and takes them; `None` when more came than could be held, so that the
    /// stream must begin anew.
    pub async fn changes(&self) -> Option<Vec<Change>> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.lock();
                if state.overflow {
                    return None;
                }
                if let Some(changes) = &mut state.changes
                    && !changes.is_empty()
                {
                    return Some(std::mem::take(changes));
                }
            }
            changed.await;
        }
    }

    fn look(&self, to: SocketAddr) -> Look {
        let mut state = self.state.lock();
        if state.is_outside(to.ip()) {
            return Look::Known(Destination::PassThrough);
        }
        if !state.entries.contains_key(&to) {
            if state.entries.len() >= self.capacity {
                state.evict(self.capacity);
                self.metrics.evictions.inc();
                self.metrics.limits.count("destinations");
            }
            state.entries.insert(to, Entry { record: None, whole: None, used: 0, waiters: None });
            state.note(Change::Subscribe(to), self.capacity);
            self.metrics.records.set(i64::try_from(state.entries.len()).unwrap_or(i64::MAX));
            self.changed.notify_one();
        }
        let look = state.touch(to);
        drop(state);
        look
    }
}

impl Entry {
    /// What the operator said last, if it has.
    fn said(&self) -> Option<&Destination> {
        self.whole.as_ref().map(|(said, _)| said).or(self.record.as_ref())
    }
}

impl State {
    fn is_outside(&self, ip: IpAddr) -> bool {
        let Some(ranges) = &self.mesh else { return false };
        let after = ranges.partition_point(|(first, _)| *first <= ip);
        let range = after.checked_sub(1).and_then(|at| ranges.get(at));
        range.is_none_or(|(_, last)| ip > *last)
    }

    /// Puts in force what the operator said of `to`, but for endpoints that are refuted; where nothing else is left of
    /// it, `instead`.
    fn put(&mut self, to: SocketAddr, said: Destination, instead: Option<Destination>) {
        let State { entries, led_to, refuted, .. } = self;
        let Some(entry) = entries.get_mut(&to) else { return };
        let record;
        (record, entry.whole) = match refuted.left_of(&said, Instant::now()) {
            None => (Some(said), None),
            Some((left, until)) => (left.or(instead), Some((said, until))),
        };
        // The new ones first: one that stays must not be gone in between.
        if let Some(record) = &record {
            count(led_to, record);
        }
        if let Some(before) = std::mem::replace(&mut entry.record, record) {
            discount(led_to, &before);
        }
    }

    /// Marks the entry as used and says what it knows.
    fn touch(&mut self, to: SocketAddr) -> Look {
        let whole = self.entries.get(&to).and_then(|entry| entry.whole.as_ref());
        let due = whole.filter(|(_, until)| *until <= Instant::now()).map(|(said, _)| said.clone());
        if let Some(said) = due {
            self.put(to, said, Some(Destination::Refuse(Reason::PeerIdentityMismatch)));
            if let Some(waiters) = self.entries.get_mut(&to).and_then(|entry| entry.waiters.take()) {
                waiters.notify_waiters();
            }
        }
        self.clock += 1;
        let Some(entry) = self.entries.get_mut(&to) else {
            return Look::Known(Destination::Refuse(Reason::DestinationUnknown));
        };
        self.order.remove(&entry.used);
        entry.used = self.clock;
        self.order.insert(self.clock, to);
        match &entry.record {
            Some(record) => Look::Known(record.clone()),
            None => Look::Wait(entry.waiters.get_or_insert_default().clone().notified_owned()),
        }
    }

    fn evict(&mut self, capacity: usize) {
        if let Some((_, oldest)) = self.order.pop_first()
            && let Some(entry) = self.entries.remove(&oldest)
        {
            if let Some(record) = &entry.record {
                discount(&mut self.led_to, record);
            }
            if let Some(waiters) = entry.waiters {
                waiters.notify_waiters();
            }
            self.note(Change::Unsubscribe(oldest), capacity);
        }
    }

    fn note(&mut self, change: Change, capacity: usize) {
        if let Some(changes) = &mut self.changes {
            self.overflow = changes.len() >= 4 * capacity;
            if !self.overflow {
                changes.push(change);
            }
        }
    }
}

impl Discovery for RecordCache {
    fn resolve(&self, to: SocketAddr) -> Pin<Box<dyn Future<Output = Destination> + Send + '_>> {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        Box::pin(async move {
            if to.port() == 0 {
                // No operator could answer for it.
                return Destination::Refuse(Reason::DestinationRefused);
            }
            let deadline = Instant::now() + self.patience;
            loop {
                let answered = match self.look(to) {
                    Look::Known(destination) => return destination,
                    Look::Wait(answered) => answered,
                };
                if timeout_at(deadline, answered).await.is_err() {
                    self.metrics.unanswered.inc();
                    self.metrics.limits.count("discovery_timeout");
                    return Destination::Refuse(Reason::DestinationUnknown);
                }
            }
        })
    }

    fn forget(&self, to: SocketAddr, endpoint: &Endpoint) {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let mut state = self.state.lock();
        let State { entries, refuted, .. } = &mut *state;
        let Some(entry) = entries.get(&to) else { return };
        let known = entry.record.as_ref().map(endpoints_of).unwrap_or_default();
        let Some(said) = entry.said().filter(|_| known.iter().any(|known| is_same(known, endpoint))) else {
            // Another connection found out before, or there was a new record meanwhile.
            return;
        };
        refuted.note(endpoint, Instant::now());
        let said = said.clone();
        state.put(to, said, None);
        state.note(Change::Unsubscribe(to), self.capacity);
        state.note(Change::Subscribe(to), self.capacity);
        self.changed.notify_one();
    }

    fn leads_to(&self, endpoint: SocketAddr) -> bool {
        self.state.lock().led_to.contains_key(&endpoint)
    }
}

fn endpoints_of(destination: &Destination) -> &[Endpoint] {
    match destination {
        Destination::Endpoints(endpoints) | Destination::Sticky(endpoints, _) => endpoints,
        Destination::PassThrough | Destination::Refuse(_) => &[],
    }
}

/// Whether both are the same peer at the same address.
fn is_same(one: &Endpoint, other: &Endpoint) -> bool {
    one.address == other.address && one.identity == other.identity
}

fn count(led_to: &mut HashMap<SocketAddr, usize>, destination: &Destination) {
    for endpoint in endpoints_of(destination) {
        *led_to.entry(endpoint.address).or_default() += 1;
    }
}

fn discount(led_to: &mut HashMap<SocketAddr, usize>, destination: &Destination) {
    for endpoint in endpoints_of(destination) {
        if let Some(count) = led_to.get_mut(&endpoint.address) {
            *count -= 1;
            if *count == 0 {
                led_to.remove(&endpoint.address);
            }
        }
    }
}

/// An address of 4 or 16 bytes.
#[must_use]
pub fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let ip: Option<IpAddr> = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    };
    ip.map(|ip| ip.to_canonical())
}

/// The bytes of an address on the wire.
#[must_use]
pub fn ip_bytes(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}

fn socket_address(address: &v1::Address) -> Option<SocketAddr> {
    Some(SocketAddr::new(ip_address(&address.ip)?, u16::try_from(address.port).ok()?))
}

fn destination_of(record: v1::Record) -> Destination {
    use v1::record::Kind;
    match record.kind() {
        Kind::Unknown | Kind::PassThrough => Destination::PassThrough,
        Kind::Unspecified => Destination::Refuse(Reason::DestinationUnknown),
        Kind::Endpoints => {
            let announced = record.endpoints.len();
            let usable: Arc<[Endpoint]> = record.endpoints.iter().filter_map(endpoint_of).collect();
            if usable.is_empty() && announced > 0 {
                return Destination::Refuse(Reason::DestinationUnknown);
            }
            match record.affinity_seconds {
                0 => Destination::Endpoints(usable),
                seconds => Destination::Sticky(usable, Duration::from_secs(seconds.into())),
            }
        }
    }
}

/// `None` when it can't be dialled safely: no address, or meshed without a usable identity.
fn endpoint_of(endpoint: &v1::Endpoint) -> Option<Endpoint> {
    let address = endpoint.address.as_ref().and_then(socket_address)?;
    let identity = match endpoint.identity.as_str() {
        "" => None,
        id => Some(SpiffeId::parse(id).ok()?),
    };
    if endpoint.meshed && identity.is_none() {
        return None;
    }
    let mode = match endpoint.mode() {
        v1::Mode::Disable => Mode::Disable,
        v1::Mode::Permissive => Mode::Permissive,
        v1::Mode::Strict | v1::Mode::Unspecified => Mode::Strict,
    };
    Some(Endpoint { address, meshed: endpoint.meshed, identity, mode, ready: endpoint.ready })
}

/// The mesh's networks; `None` when one of them can't be read.
#[must_use]
pub fn networks_of(mesh: &v1::Mesh) -> Option<Vec<IpNet>> {
    mesh.cidrs
        .iter()
        .map(|cidr| IpNet::new(ip_address(&cidr.address)?, u8::try_from(cidr.prefix_length).ok()?).ok())
        .collect()
}
