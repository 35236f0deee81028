//! Which endpoint of several takes a connection: of two ready ones picked at random, the one with fewer open
//! connections of ours.

use crate::context::Endpoint;
use parking_lot::Mutex;
use rand::RngExt;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

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

    /// Permits `address` once more where there is no other.
    pub(super) fn again_if_alone(&mut self, address: SocketAddr, endpoints: &[Endpoint]) {
        if !endpoints.iter().any(|other| other.ready && !self.addresses.contains(&other.address)) {
            self.addresses.retain(|tried| *tried != address);
        }
    }
}

/// The endpoint for a connection that the app made to `to`. A pod that was dialled by its own address need not
/// be ready: only Services promise that.
pub(super) fn choose<'a>(
    endpoints: &'a [Endpoint],
    to: SocketAddr,
    tried: &Tried,
    loads: &Loads,
) -> Option<&'a Endpoint> {
    let usable = || {
        endpoints
            .iter()
            .filter(|endpoint| endpoint.ready || endpoint.address == to)
            .filter(|endpoint| !tried.addresses.contains(&endpoint.address))
    };
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
    fn only_ready_endpoints_are_chosen_and_each_of_them_is() {
        let all = endpoints(&[true, false, true, true]);
        let loads = Arc::new(Loads::default());
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            seen.insert(choose(&all, service(), &Tried::default(), &loads).unwrap().address);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [address(1), address(3), address(4)]);
    }

    #[test]
    fn of_two_the_less_loaded_one_is_chosen() {
        let all = endpoints(&[true, true]);
        let loads = Arc::new(Loads::default());
        let held = loads.enter(address(1));
        for _ in 0..50 {
            assert_eq!(choose(&all, service(), &Tried::default(), &loads).unwrap().address, address(2));
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
        assert_eq!(choose(&all, service(), &tried, &loads).unwrap().address, address(2));
        tried.add(address(2));
        assert!(choose(&all, service(), &tried, &loads).is_none());
        tried.again_if_alone(address(2), &all);
        assert_eq!(choose(&all, service(), &tried, &loads).unwrap().address, address(2));
        assert_eq!(tried.count(), 2);
    }

    #[test]
    fn none_ready_is_none_but_a_pod_dialled_by_its_address_need_not_be() {
        let all = endpoints(&[false, false]);
        let loads = Loads::default();
        assert!(choose(&all, service(), &Tried::default(), &loads).is_none());
        assert_eq!(choose(&all, address(2), &Tried::default(), &loads).unwrap().address, address(2));
    }
}
