//! Places for connections that have not yet shown who they are: a bound for all, and one for each source, so
//! that no single pod can keep the others from getting their certificates.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// All of them.
pub const MAX_UNBOUND: usize = 512;
/// From one address. All pods of a node may share one behind address translation, so it is not small.
pub const MAX_FROM_ONE: usize = 64;

/// The places that are taken. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Places {
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// A taken place; dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    places: Places,
    source: IpAddr,
}

impl Places {
    /// Takes a place for a connection from `source`; `None` when there is none left.
    #[must_use]
    pub fn take(&self, source: IpAddr) -> Option<Place> {
        let source = source.to_canonical();
        let mut taken = self.taken.lock();
        let own = taken.by_source.get(&source).copied().unwrap_or(0);
        if taken.all >= MAX_UNBOUND || own >= MAX_FROM_ONE {
            return None;
        }
        taken.all += 1;
        taken.by_source.insert(source, own + 1);
        Some(Place { places: self.clone(), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.all = taken.all.saturating_sub(1);
        let left = taken.by_source.get(&self.source).copied().unwrap_or(0).saturating_sub(1);
        if left == 0 {
            taken.by_source.remove(&self.source);
        } else {
            taken.by_source.insert(self.source, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_never_takes_all_places_and_gives_them_back() {
        let places = Places::default();
        let greedy: IpAddr = "10.0.0.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let held: Vec<_> = (0..MAX_FROM_ONE).map(|_| places.take(greedy).unwrap()).collect();
        assert!(places.take(greedy).is_none() && places.take(mapped).is_none());
        assert!(places.take("10.0.0.2".parse().unwrap()).is_some());
        drop(held);
        assert!(places.take(greedy).is_some());
        assert!(places.taken.lock().by_source.is_empty());
    }

    #[test]
    fn all_sources_together_are_bounded() {
        let places = Places::default();
        let source = |n: usize| IpAddr::from([10, 1, 0, u8::try_from(n / MAX_FROM_ONE).unwrap()]);
        let held: Vec<_> = (0..MAX_UNBOUND).map(|n| places.take(source(n)).unwrap()).collect();
        assert!(places.take("10.2.0.1".parse().unwrap()).is_none());
        drop(held);
        assert_eq!(places.taken.lock().all, 0);
    }
}
