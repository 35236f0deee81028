//! Which endpoint of several takes a connection: the one that took the last, where the Service wants that; else, of
//! two ready ones picked at random, the one with fewer open connections of ours.

use crate::context::Endpoint;
use cinch_identity::SpiffeId;
use parking_lot::Mutex;
use rand::RngExt;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Open connections of this proxy, by endpoint.
#[derive(Debug, Default)]
pub(super) struct Loads {
    open: Mutex<HashMap<SocketAddr, usize>>,
}

/// One more connection to an endpoint, until dropped.
#[derive(Debug)]
pub(super) struct Load {
    loads: Arc<Loads>,
    address: SocketAddr,
}

impl Loads {
    pub(super) fn enter(self: &Arc<Self>, address: SocketAddr) -> Load {
        *self.open.lock().entry(address).or_default() += 1;
        Load { loads: self.clone(), address }
    }

    fn of(&self, address: SocketAddr) -> usize {
        self.open.lock().get(&address).copied().unwrap_or(0)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let mut open = self.loads.open.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// The endpoints that a connection has tried.
#[derive(Debug, Default)]
pub(super) struct Tried {
    addresses: Vec<SocketAddr>,
    attempts: usize,
    /// Where another peer was than the record says, and who was expected there.
    wrong: Vec<(SocketAddr, Option<SpiffeId>)>,
}

impl Tried {
    pub(super) fn add(&mut self, address: SocketAddr) {
        self.addresses.push(address);
        self.attempts += 1;
    }

    /// Attempts so far.
    pub(super) fn count(&self) -> usize {
        self.attempts
    }

    /// The peer at `endpoint` is another one. That was no attempt, and another record may say who it is.
    pub(super) fn add_wrong(&mut self, endpoint: &Endpoint) {
        self.addresses.retain(|tried| *tried != endpoint.address);
        self.attempts = self.attempts.saturating_sub(1);
        self.wrong.push((endpoint.address, endpoint.identity.clone()));
    }

    /// How many peers were other ones.
    pub(super) fn count_wrong(&self) -> usize {
        self.wrong.len()
    }

    fn excludes(&self, endpoint: &Endpoint) -> bool {
        self.addresses.contains(&endpoint.address)
            || self.wrong.iter().any(|(address, id)| *address == endpoint.address && *id == endpoint.identity)
    }

    /// Permits `address` once more where there is no other.
    pub(super) fn again_if_alone(&mut self, address: SocketAddr, endpoints: &[Endpoint]) {
        if !endpoints.iter().any(|other| other.ready && !self.excludes(other)) {
            self.addresses.retain(|tried| *tried != address);
        }
    }
}

/// Which endpoint took the last connection to a destination, of Services with `sessionAffinity: ClientIP`: all our
/// connections have the pod as their client.
#[derive(Debug)]
pub(super) struct Affinity {
    last: Mutex<HashMap<SocketAddr, Last>>,
    capacity: usize,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    endpoint: SocketAddr,
    until: Instant,
}

impl Affinity {
    /// Keeps at most `capacity` destinations.
    pub(super) fn new(capacity: usize) -> Self {
        Affinity { last: Mutex::default(), capacity: capacity.max(1) }
    }

    /// The endpoint that took the last connection to `to`, if that was not too long ago.
    pub(super) fn of(&self, to: SocketAddr, now: Instant) -> Option<SocketAddr> {
        let last = *self.last.lock().get(&to)?;
        (now < last.until).then_some(last.endpoint)
    }

    /// Remembers `endpoint` for `within` from `now` on. Where there is no room, what runs out first goes.
    pub(super) fn note(&self, to: SocketAddr, endpoint: SocketAddr, within: Duration, now: Instant) {
        let mut last = self.last.lock();
        if last.len() >= self.capacity && !last.contains_key(&to) {
            last.retain(|_, last| now < last.until);
            if last.len() >= self.capacity
                && let Some(first) = last.iter().min_by_key(|(_, last)| last.until).map(|(to, _)| *to)
            {
                last.remove(&first);
            }
        }
        last.insert(to, Last { endpoint, until: now + within });
    }
}

/// The endpoint for a connection that the app made to `to`: `preferred`, if it takes connections. A pod that was
/// dialled by its own address need not be ready: only Services promise that.
pub(super) fn choose<'a>(
    endpoints: &'a [Endpoint],
    to: SocketAddr,
    preferred: Option<SocketAddr>,
    tried: &Tried,
    loads: &Loads,
) -> Option<&'a Endpoint> {
    let usable = || {
        endpoints
            .iter()
            .filter(|endpoint| endpoint.ready || endpoint.address == to)
            .filter(|endpoint| !tried.excludes(endpoint))
    };
    if let Some(kept) = preferred.and_then(|address| usable().find(|endpoint| endpoint.address == address)) {
        return Some(kept);
    }
    let count = usable().count();
    if count < 2 {
        return usable().next();
    }
    let first = rand::rng().random_range(0..count);
    let second = (first + rand::rng().random_range(1..count)) % count;
    let (first, second) = (usable().nth(first)?, usable().nth(second)?);
    Some(if loads.of(second.address) < loads.of(first.address) { second } else { first })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cinch_policy::Mode;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn endpoints(ready: &[bool]) -> Vec<Endpoint> {
        ready
            .iter()
            .zip(1..)
            .map(|(ready, last)| Endpoint {
                address: address(last),
                meshed: false,
                identity: None,
                mode: Mode::Permissive,
                ready: *ready,
            })
            .collect()
    }

    fn service() -> SocketAddr {
        SocketAddr::from(([10, 96, 0, 1], 80))
    }

    #[test]
    fn the_endpoint_of_the_last_connection_is_kept_until_its_time_is_over_or_it_is_gone() {
        let (all, loads) = (endpoints(&[true, true, true]), Loads::default());
        let (affinity, start) = (Affinity::new(2), Instant::now());
        let chosen = |endpoints: &[Endpoint], now: Instant, tried: &Tried| {
            choose(endpoints, service(), affinity.of(service(), now), tried, &loads).unwrap().address
        };
        let minute = Duration::from_secs(60);
        affinity.note(service(), address(2), minute, start);
        for second in 0..59 {
            assert_eq!(chosen(&all, start + Duration::from_secs(second), &Tried::default()), address(2));
        }
        let others = |endpoints: &[Endpoint], now: Instant, tried: &Tried| {
            (0..50).any(|_| chosen(endpoints, now, tried) != address(2))
        };
        assert!(others(&all, start + minute, &Tried::default()), "its time is over");
        assert_ne!(chosen(&endpoints(&[true, false, true]), start, &Tried::default()), address(2));
        let mut tried = Tried::default();
        tried.add(address(2));
        assert_ne!(chosen(&all, start, &tried), address(2), "it could not be reached");
        assert_eq!(affinity.of(address(1), start), None, "of another destination nothing is known");
    }

    #[test]
    fn affinity_is_bounded_and_what_runs_out_first_goes() {
        let (affinity, start) = (Affinity::new(2), Instant::now());
        let seconds = Duration::from_secs;
        affinity.note(address(1), address(9), seconds(50), start);
        affinity.note(address(2), address(9), seconds(20), start);
        affinity.note(address(2), address(8), seconds(30), start);
        affinity.note(address(3), address(9), seconds(40), start);
        let held = |now: Instant| [1, 2, 3, 4].map(|to| affinity.of(address(to), now).is_some());
        assert_eq!(held(start), [true, false, true, false]);
        let later = start + seconds(45);
        affinity.note(address(4), address(9), seconds(1), later);
        assert_eq!(held(later), [true, false, false, true]);
        assert_eq!(affinity.last.lock().len(), 2);
    }

    #[test]
    fn only_ready_endpoints_are_chosen_and_each_of_them_is() {
        let all = endpoints(&[true, false, true, true]);
        let loads = Arc::new(Loads::default());
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            seen.insert(choose(&all, service(), None, &Tried::default(), &loads).unwrap().address);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [address(1), address(3), address(4)]);
    }

    #[test]
    fn of_two_the_less_loaded_one_is_chosen() {
        let all = endpoints(&[true, true]);
        let loads = Arc::new(Loads::default());
        let held = loads.enter(address(1));
        for _ in 0..50 {
            assert_eq!(choose(&all, service(), None, &Tried::default(), &loads).unwrap().address, address(2));
        }
        drop(held);
        assert!(loads.open.lock().is_empty());
    }

    #[test]
    fn what_was_tried_is_not_chosen_again_unless_alone() {
        let all = endpoints(&[true, true]);
        let loads = Loads::default();
        let mut tried = Tried::default();
        tried.add(address(1));
        tried.again_if_alone(address(1), &all);
        assert_eq!(choose(&all, service(), None, &tried, &loads).unwrap().address, address(2));
        tried.add(address(2));
        assert!(choose(&all, service(), None, &tried, &loads).is_none());
        tried.again_if_alone(address(2), &all);
        assert_eq!(choose(&all, service(), None, &tried, &loads).unwrap().address, address(2));
        assert_eq!(tried.count(), 2);
    }

    #[test]
    fn a_peer_that_is_another_one_is_left_out_until_the_record_says_who_it_is() {
        let id =
            |account: &str| SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/{account}")).ok();
        let meshed = |last: u8, account: &str| Endpoint {
            meshed: true,
            identity: id(account),
            ..endpoints(&[true; 9])[usize::from(last) - 1].clone()
        };
        let (stale, mended) = ([meshed(1, "api"), meshed(2, "api")], [meshed(1, "other"), meshed(2, "api")]);
        let loads = Loads::default();
        let mut tried = Tried::default();
        tried.add(address(1));
        tried.add_wrong(&stale[0]);
        assert_eq!((tried.count(), tried.count_wrong()), (0, 1), "it was no attempt");
        let chosen = |endpoints: &[Endpoint], tried: &Tried| {
            (0..50)
                .map(|_| choose(endpoints, service(), None, tried, &loads).unwrap().address)
                .collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(chosen(&stale, &tried), [address(2)].into());
        assert_eq!(chosen(&mended, &tried), [address(1), address(2)].into());
        tried.add(address(2));
        tried.again_if_alone(address(2), &stale);
        assert_eq!(chosen(&stale, &tried), [address(2)].into(), "alone but for the wrong one");
    }

    #[test]
    fn none_ready_is_none_but_a_pod_dialled_by_its_address_need_not_be() {
        let all = endpoints(&[false, false]);
        let loads = Loads::default();
        assert!(choose(&all, service(), None, &Tried::default(), &loads).is_none());
        assert_eq!(choose(&all, address(2), None, &Tried::default(), &loads).unwrap().address, address(2));
    }
}
