//! The bound on what all connections that are read as HTTP hold of heads together. In goes what each of them holds;
//! out comes who must go when it is too much.
//!
//! First who makes others hold what no request is made of: heads that don't come whole, which anybody can send. Only
//! where these are a small part of it, who holds most of requests in flight, of which the busiest honest client has
//! many. Either way it is a connection of the source that holds most, and of these the largest: a crowd of small ones
//! from one host is as bad as a large one.

use cinch_places::source_of;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Waker};

/// Who holds no more, and nothing unfinished, is only counted as long as there is room: the head of nearly any request
/// and its place among those in flight. No setting, nor is the part: they say who needs a lock, and the bound is the same.
const SMALL: usize = 4 * 1024;
/// A part of the bound that is no threat to it, one in so many.
const PART: i64 = 4;

/// What one connection holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holding {
    /// Bytes in all.
    pub(super) bytes: usize,
    /// Of these, what no request has been made of.
    pub(super) unfinished: usize,
}

impl Holding {
    /// All that is held is unfinished.
    pub(super) fn unfinished(bytes: usize) -> Holding {
        Holding { bytes, unfinished: bytes }
    }

    /// With so many bytes of requests beside it.
    pub(super) fn and(self, bytes: usize) -> Holding {
        Holding { bytes: self.bytes + bytes, ..self }
    }
}

/// All connections together.
#[derive(Debug)]
pub(super) struct Holders {
    bytes: Gauge,
    bound: i64,
    /// Those that may have to go. As long as there is room they are few, so that others need no lock.
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    next: u64,
    sources: HashMap<IpAddr, Source>,
    /// What those hold that may stay.
    staying: Sum,
    /// Bytes of those that were told to go and have not gone yet.
    leaving: i64,
}

#[derive(Debug, Default)]
struct Source {
    holders: HashMap<u64, Holder>,
    staying: Sum,
}

#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    bytes: i64,
    unfinished: i64,
}

impl Sum {
    fn add(&mut self, holding: Holding) {
        self.bytes += signed(holding.bytes);
        self.unfinished += signed(holding.unfinished);
    }

    fn subtract(&mut self, holding: Holding) {
        self.bytes -= signed(holding.bytes);
        self.unfinished -= signed(holding.unfinished);
    }
}

#[derive(Debug)]
struct Holder {
    holding: Holding,
    must_go: bool,
    waker: Waker,
}

impl Noted {
    /// Takes a holder out of the sums, or the whole of it.
    fn remove(&mut self, source: IpAddr, number: u64) -> Option<Holder> {
        let of_source = self.sources.get_mut(&source)?;
        let holder = of_source.holders.remove(&number)?;
        if holder.must_go {
            self.leaving -= signed(holder.holding.bytes);
        } else {
            of_source.staying.subtract(holder.holding);
            self.staying.subtract(holder.holding);
        }
        if of_source.holders.is_empty() {
            self.sources.remove(&source);
        }
        Some(holder)
    }

    fn insert(&mut self, source: IpAddr, number: u64, holder: Holder) {
        let of_source = self.sources.entry(source).or_default();
        if holder.must_go {
            self.leaving += signed(holder.holding.bytes);
        } else {
            of_source.staying.add(holder.holding);
            self.staying.add(holder.holding);
        }
        of_source.holders.insert(number, holder);
    }

    /// Tells the worst to go: its bytes. `None`: nobody is left.
    fn send_worst(&mut self, by_unfinished: bool) -> Option<i64> {
        let source = self.sources.iter().max_by_key(|(_, source)| {
            let Sum { bytes, unfinished } = source.staying;
            if by_unfinished { unfinished } else { bytes }
        });
        let (source, of_source) = source.map(|(source, of_source)| (*source, of_source))?;
        let staying = of_source.holders.iter().filter(|(_, holder)| !holder.must_go);
        // Of several the newest: it has waited least.
        let worst = staying.max_by_key(|(number, holder)| {
            let Holding { bytes, unfinished } = holder.holding;
            (if by_unfinished { unfinished } else { bytes }, **number)
        });
        let number = worst.map(|(number, _)| *number)?;
        let holder = self.remove(source, number)?;
        holder.waker.wake_by_ref();
        let bytes = signed(holder.holding.bytes);
        self.insert(source, number, Holder { must_go: true, ..holder });
        Some(bytes)
    }
}

impl Holders {
    /// Nobody holds anything; `bytes` shows what all do. They may hold `bound` bytes.
    pub(super) fn new(bytes: Gauge, bound: usize) -> Arc<Self> {
        Arc::new(Holders { bytes, bound: signed(bound), noted: Mutex::default() })
    }

    /// All hold `total`, which is perhaps too much: tells the worst to go.
    fn relieve(&self, total: i64) {
        if total <= self.bound {
            return;
        }
        let mut noted = self.noted.lock();
        let mut over = total - noted.leaving - self.bound;
        while over > 0 {
            let by_unfinished = noted.staying.unfinished > self.bound / PART;
            let Some(bytes) = noted.send_worst(by_unfinished) else { return };
            over -= bytes;
        }
    }
}

/// What one connection holds, given back when it ends.
#[derive(Debug)]
pub(super) struct Held {
    of: Arc<Holders>,
    source: IpAddr,
    bytes: usize,
    /// Its number among those that are noted.
    number: Option<u64>,
}

impl Held {
    /// Nothing yet, of a connection from `source`.
    pub(super) fn new(of: &Arc<Holders>, source: IpAddr) -> Self {
        Held { of: of.clone(), source: source_of(source), bytes: 0, number: None }
    }

    /// Says what the connection holds now. `false`: it must go. Its task is woken when it must go later.
    pub(super) fn now(&mut self, holding: Holding, cx: &Context<'_>) -> bool {
        let change = signed(holding.bytes) - signed(self.bytes);
        let is_small = holding.bytes <= SMALL && holding.unfinished == 0;
        if change == 0 && is_small && self.number.is_none() {
            return true;
        }
        let total = self.of.bytes.inc_by(change) + change;
        self.bytes = holding.bytes;
        let has_room = total <= self.of.bound / PART;
        // Who has given back what it was told to go for may stay.
        if is_small && (has_room || change < 0) {
            self.forget();
        }
        if !is_small || !has_room {
            self.note(holding, cx);
        }
        if change > 0 {
            self.of.relieve(total);
        }
        let Some(number) = self.number else { return true };
        let noted = self.of.noted.lock();
        let holder = noted.sources.get(&self.source).and_then(|source| source.holders.get(&number));
        holder.is_none_or(|holder| !holder.must_go)
    }

    /// Writes down what it holds, and whom to wake.
    fn note(&mut self, holding: Holding, cx: &Context<'_>) {
        let mut noted = self.of.noted.lock();
        let number = *self.number.get_or_insert_with(|| {
            noted.next += 1;
            noted.next
        });
        let before = noted.remove(self.source, number);
        let (must_go, waker) = match before {
            Some(Holder { must_go, waker, .. }) if waker.will_wake(cx.waker()) => (must_go, waker),
            Some(Holder { must_go, .. }) => (must_go, cx.waker().clone()),
            None => (false, cx.waker().clone()),
        };
        noted.insert(self.source, number, Holder { holding, must_go, waker });
    }

    fn forget(&mut self) {
        let Some(number) = self.number.take() else { return };
        self.of.noted.lock().remove(self.source, number);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.bytes.dec_by(signed(self.bytes));
        self.forget();
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    const KIB: usize = 1024;
    const BOUND: usize = 1024 * KIB;

    fn live(bytes: usize) -> Holding {
        Holding { bytes, unfinished: 0 }
    }

    /// A connection from `10.0.0.{source}`, and how often it was told to go.
    fn from(source: u8, holders: &Arc<Holders>) -> (Held, Arc<Woken>) {
        (Held::new(holders, IpAddr::from([10, 0, 0, source])), Arc::default())
    }

    /// Says what it holds; whether it may stay.
    fn hold((held, woken): &mut (Held, Arc<Woken>), holding: Holding) -> bool {
        let waker = Waker::from(woken.clone());
        held.now(holding, &Context::from_waker(&waker))
    }

    fn told((_, woken): &(Held, Arc<Woken>)) -> bool {
        woken.0.load(Ordering::Relaxed) > 0
    }

    fn hold_nothing(holders: &Arc<Holders>) {
        let noted = holders.noted.lock();
        let sums = (noted.staying.bytes, noted.staying.unfinished, noted.leaving);
        assert_eq!((holders.bytes.get(), sums, noted.sources.len()), (0, (0, 0, 0), 0));
    }

    #[test]
    fn who_keeps_heads_unfinished_goes_before_the_busiest_client() {
        let holders = Holders::new(Gauge::default(), BOUND);
        let mut gateway = from(1, &holders);
        assert!(hold(&mut gateway, live(400 * KIB)), "a thousand calls");
        let mut hostile: Vec<_> = (0..9).map(|source| from(100 + source, &holders)).collect();
        for (number, one) in hostile.iter_mut().enumerate() {
            assert!(hold(one, Holding::unfinished(60 * KIB + number)));
        }
        let mut honest = from(2, &holders);
        assert!(hold(&mut honest, live(100 * KIB)), "another one needs room");
        assert!(hold(&mut gateway, live(410 * KIB)) && !told(&gateway) && !told(&honest));
        let gone: Vec<usize> = (0..9).filter(|number| told(&hostile[*number])).collect();
        assert_eq!(gone, [8], "the largest, and one is enough");
        assert!(!hold(&mut hostile[8], Holding::unfinished(60 * KIB + 8)));
        assert!(hold(&mut hostile[0], Holding::unfinished(60 * KIB)));
        drop((gateway, hostile, honest));
        hold_nothing(&holders);
    }

    #[test]
    fn of_requests_in_flight_the_source_that_has_most_gives_way() {
        let holders = Holders::new(Gauge::default(), BOUND);
        let mut one = from(1, &holders);
        assert!(hold(&mut one, live(200 * KIB)));
        let mut crowd: Vec<_> = (0..16).map(|_| from(2, &holders)).collect();
        assert!(crowd.iter_mut().all(|of_crowd| hold(of_crowd, live(50 * KIB))));
        let mut other = from(3, &holders);
        assert!(hold(&mut other, Holding::unfinished(30 * KIB)), "not much of it is unfinished");
        assert!(!told(&one) && !told(&other), "each of the crowd holds less, but not all together");
        assert_eq!(crowd.iter().filter(|of_crowd| told(of_crowd)).count(), 1);
    }

    #[test]
    fn many_that_hold_little_go_too_once_they_fill_a_quarter() {
        let holders = Holders::new(Gauge::default(), BOUND);
        let mut small: Vec<_> = (0..255).map(|_| from(1, &holders)).collect();
        assert!(small.iter_mut().all(|one| hold(one, live(SMALL))));
        assert!(!small.iter().any(told), "there is room");
        let mut honest = from(2, &holders);
        assert!(hold(&mut honest, live(8 * KIB)) && !told(&honest));
        let going: Vec<usize> = (0..255).filter(|number| told(&small[*number])).collect();
        assert_eq!(going, [254], "4 KiB of them are enough, and the newest has waited least");
        assert!(!hold(&mut small[254], live(SMALL)));
        assert!(hold(&mut small[0], live(SMALL)), "another may stay");
        drop((small, honest));
        hold_nothing(&holders);
    }

    #[test]
    fn who_has_given_back_what_it_was_told_to_go_for_stays() {
        let holders = Holders::new(Gauge::default(), BOUND);
        let mut one = from(1, &holders);
        assert!(hold(&mut one, Holding::unfinished(900 * KIB)));
        let mut other = from(2, &holders);
        assert!(hold(&mut other, live(200 * KIB)) && told(&one));
        assert!(hold(&mut one, live(SMALL)), "its head has come");
        assert_eq!(holders.noted.lock().leaving, 0);
        assert!(
            !hold(&mut other, live(2 * BOUND)),
            "who grows beyond the bound and is the largest goes itself"
        );
        drop((one, other));
        hold_nothing(&holders);
    }

    #[test]
    fn as_long_as_there_is_room_nobody_who_holds_little_is_noted() {
        let holders = Holders::new(Gauge::default(), BOUND);
        let mut few: Vec<_> = (0..64).map(|_| from(1, &holders)).collect();
        assert!(few.iter_mut().all(|one| hold(one, live(SMALL))));
        assert!(holders.noted.lock().sources.is_empty());
        let mut next = from(1, &holders);
        assert!(hold(&mut next, live(1)) && next.0.number.is_some(), "from a quarter of the bound on");
        few.clear();
        assert!(hold(&mut next, live(1)) && next.0.number.is_none());
    }
}
