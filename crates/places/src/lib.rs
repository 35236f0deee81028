//! What peers that have not shown who they are may have: places for their connections, how often they may ask, and
//! how much of the log.
//!
//! Of places there are so many, and somebody must go when there are no more: a listener takes a place for each
//! connection that it accepts and ends the connection when the place is taken back.
//!
//! Refusing those who come last would let a few peers that hold their connections open keep everybody else out,
//! a kubelet's probe or an API server's review among them. So the place comes from the source that holds
//! the most, and its oldest connection goes. Where connections take their time, nobody loses a place to a source that
//! holds as many as itself: a crowd of honest peers would only push each other out, and none would come to its end.

mod lines;
mod rate;

pub use lines::Lines;
pub use rate::{Pace, RateLimit};

use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Who is behind `address`, as fair shares are counted: the address, IPv4 also where it is written as IPv6. Not the
/// network of 64 bits that it is of: a host outside may have as many addresses of its network as it likes, but the pods of
/// a node, or of a whole cluster, are numbered out of one such network, and one of them would use up the share of all.
#[must_use]
pub fn source_of(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// What happens when a source holds as many places as one source may, or nobody holds more than it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtLimit {
    /// It gets no more: connections take their time, and the older ones may be nearly done.
    Refuse,
    /// The oldest connection goes, so that a new one always gets in: each is over in a moment unless somebody holds it
    /// open.
    DropOldest,
}

/// How many places there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub most: usize,
    /// For one source ([`source_of`]).
    pub of_one_source: usize,
    /// For one that wants more than that.
    pub at_limit: AtLimit,
}

/// The places of one listener. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Places {
    limits: Limits,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    next: u64,
    /// By their numbers, so that the first is the oldest.
    by_source: HashMap<IpAddr, BTreeMap<u64, CancellationToken>>,
}

/// A taken place; dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    places: Places,
    source: IpAddr,
    number: u64,
    lost: CancellationToken,
}

impl Places {
    /// Places of which none is taken.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, taken: Arc::default() }
    }

    /// Takes a place for a connection from `source`, from another connection if need be; `None` when there is none
    /// for it.
    #[must_use]
    pub fn take(&self, source: IpAddr) -> Option<Place> {
        let source = source_of(source);
        let mut taken = self.taken.lock();
        let own = taken.held_by(&source);
        if own >= self.limits.of_one_source {
            match self.limits.at_limit {
                AtLimit::Refuse => return None,
                AtLimit::DropOldest => taken.drop_oldest_of(&source),
            }
        } else if taken.all >= self.limits.most {
            let (greatest, held) = taken.greatest()?;
            if held <= own + 1 && self.limits.at_limit == AtLimit::Refuse {
                return None;
            }
            taken.drop_oldest_of(&greatest);
        }
        let (number, lost) = (taken.next, CancellationToken::new());
        taken.next += 1;
        taken.all += 1;
        taken.by_source.entry(source).or_default().insert(number, lost.clone());
        Some(Place { places: self.clone(), source, number, lost })
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.lock().all
    }
}

impl Taken {
    fn held_by(&self, source: &IpAddr) -> usize {
        self.by_source.get(source).map_or(0, BTreeMap::len)
    }

    /// The source that holds the most, and how many; of several that with the oldest connection.
    fn greatest(&self) -> Option<(IpAddr, usize)> {
        let rank =
            |held: &BTreeMap<u64, CancellationToken>| (held.len(), Reverse(held.keys().next().copied()));
        let greatest = self.by_source.iter().max_by_key(|(_, held)| rank(held))?;
        Some((*greatest.0, greatest.1.len()))
    }

    fn drop_oldest_of(&mut self, source: &IpAddr) {
        let Some(oldest) = self.by_source.get(source).and_then(|held| held.keys().next().copied()) else {
            return;
        };
        if let Some(lost) = self.remove(source, oldest) {
            lost.cancel();
        }
    }

    fn remove(&mut self, source: &IpAddr, number: u64) -> Option<CancellationToken> {
        let held = self.by_source.get_mut(source)?;
        let removed = held.remove(&number)?;
        if held.is_empty() {
            self.by_source.remove(source);
        }
        self.all = self.all.saturating_sub(1);
        Some(removed)
    }
}

impl Place {
    /// The place was given to another connection.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Ends when the place was given to another connection: this one must end too. Never ends once the place was
    /// given back.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        self.lost.clone().cancelled_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // One that was lost is not there any more.
        let _ = self.places.taken.lock().remove(&self.source, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(most: usize, of_one_source: usize, at_limit: AtLimit) -> Places {
        Places::new(Limits { most, of_one_source, at_limit })
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn is_lost(place: &Place) -> bool {
        place.is_lost()
    }

    #[test]
    fn a_source_at_its_limit_gets_no_more_until_it_gives_one_back() {
        let places = places(100, 3, AtLimit::Refuse);
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let held: Vec<_> = (0..3).map(|_| places.take(address(1)).unwrap()).collect();
        assert!(places.take(address(1)).is_none() && places.take(mapped).is_none());
        assert!(!held.iter().any(is_lost));
        assert!(places.take(address(2)).is_some());
        drop(held);
        assert!(places.take(mapped).is_some());
        assert_eq!(places.taken(), 0);
        assert!(places.taken.lock().by_source.is_empty(), "no address is remembered");
    }

    #[test]
    fn where_connections_are_short_a_source_loses_its_oldest() {
        let places = places(100, 2, AtLimit::DropOldest);
        let [first, second, third] = [1; 3].map(|source| places.take(address(source)).unwrap());
        assert_eq!([&first, &second, &third].map(is_lost), [true, false, false]);
        assert_eq!(places.taken(), 2);
        drop(first);
        assert_eq!(places.taken(), 2, "what was lost is not given back twice");
    }

    #[test]
    fn those_who_hold_the_most_make_room_for_those_who_hold_less() {
        let places = places(64, 32, AtLimit::Refuse);
        let greedy: Vec<_> = (0..64).map(|n| places.take(address(1 + n / 32)).unwrap()).collect();
        let honest: Vec<_> = (10..40).map(|last| places.take(address(last)).unwrap()).collect();
        assert!(!honest.iter().any(is_lost));
        assert_eq!(greedy.iter().filter(|place| is_lost(place)).count(), 30);
        assert_eq!(places.taken(), 64);
        // The greedy come again, and get only what they hold in turn.
        let again: Vec<_> = (0..64).filter_map(|n| places.take(address(1 + n % 2))).collect();
        assert!(!honest.iter().any(is_lost));
        assert!(again.len() < 64);
        assert_eq!(places.taken(), 64);
    }

    #[test]
    fn a_source_is_one_address_however_it_is_written() {
        let v6 = |text: &str| text.parse::<IpAddr>().unwrap();
        let mapped = v6("::ffff:10.0.0.1");
        assert_eq!((source_of(mapped), source_of(address(1))), (address(1), address(1)));
        let places = places(64, 64, AtLimit::Refuse);
        let greedy: Vec<_> =
            (0..64).map(|n| places.take(if n % 2 == 0 { mapped } else { address(1) }).unwrap()).collect();
        // Pods of one node have addresses of one network, and each has its own share.
        let other = places.take(v6("fd00:0:0:2::1")).unwrap();
        let neighbour = places.take(v6("fd00:0:0:2::2")).unwrap();
        assert!(!is_lost(&other) && !is_lost(&neighbour) && is_lost(&greedy[0]) && is_lost(&greedy[1]));
        assert!(places.take(mapped).is_none(), "it has its share, whatever it calls itself");
    }

    #[test]
    fn equals_do_not_push_each_other_out() {
        let places = places(8, 4, AtLimit::Refuse);
        let crowd: Vec<_> = (0..8).map(|last| places.take(address(last)).unwrap()).collect();
        assert!(places.take(address(9)).is_none());
        assert!(!crowd.iter().any(is_lost));
    }

    #[test]
    fn where_connections_are_short_even_equals_make_room_the_oldest_first() {
        let places = places(4, 4, AtLimit::DropOldest);
        let crowd: Vec<_> = (0..4).map(|last| places.take(address(last)).unwrap()).collect();
        let late = places.take(address(9)).unwrap();
        assert_eq!(crowd.iter().map(is_lost).collect::<Vec<_>>(), [true, false, false, false]);
        assert!(!is_lost(&late));
    }

    #[tokio::test]
    async fn who_loses_a_place_is_told() {
        let places = places(2, 2, AtLimit::Refuse);
        let first = places.take(address(1)).unwrap();
        let _second = places.take(address(1)).unwrap();
        let _other = places.take(address(2)).unwrap();
        first.lost().await;
    }

    #[tokio::test]
    async fn a_place_that_was_given_back_is_never_lost() {
        let places = places(1, 1, AtLimit::DropOldest);
        let first = places.take(address(1)).unwrap();
        let lost = first.lost();
        drop(first);
        let _next = [places.take(address(1)), places.take(address(1))];
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), lost).await.is_err());
    }
}
