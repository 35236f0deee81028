//! The bound on what all connections that are read as HTTP hold of heads together. In goes what each of them holds;
//! out comes who must go when it is too much: never who holds little, as any honest client does, but who holds most.

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Waker};

/// Who holds no more never goes: the head of nearly any request and its place among those in flight.
const SMALL: usize = 4 * 1024;

/// All connections together.
#[derive(Debug)]
pub(super) struct Holders {
    bytes: Gauge,
    bound: i64,
    /// Those that hold more than [`SMALL`]: few, so that others need no lock.
    large: Mutex<Large>,
}

#[derive(Debug, Default)]
struct Large {
    next: u64,
    holders: HashMap<u64, Holder>,
    /// Bytes of those that were told to go and have not gone yet.
    leaving: i64,
}

#[derive(Debug)]
struct Holder {
    bytes: usize,
    must_go: bool,
    waker: Waker,
}

impl Holders {
    /// Nobody holds anything; `bytes` shows what all do. They may hold `bound` bytes.
    pub(super) fn new(bytes: Gauge, bound: usize) -> Arc<Self> {
        Arc::new(Holders { bytes, bound: signed(bound), large: Mutex::default() })
    }

    /// All hold `total`, which is perhaps too much: tells the largest to go.
    fn relieve(&self, total: i64) {
        if total <= self.bound {
            return;
        }
        let mut large = self.large.lock();
        let mut over = total - large.leaving - self.bound;
        while over > 0 {
            let staying = large.holders.iter_mut().filter(|(_, holder)| !holder.must_go);
            // Of several the newest: it has waited least.
            let largest = staying.max_by_key(|(number, holder)| (holder.bytes, **number));
            let Some((_, largest)) = largest else { return };
            largest.must_go = true;
            largest.waker.wake_by_ref();
            let bytes = signed(largest.bytes);
            large.leaving += bytes;
            over -= bytes;
        }
    }
}

/// What one connection holds, given back when it ends.
#[derive(Debug)]
pub(super) struct Held {
    of: Arc<Holders>,
    bytes: usize,
    /// Its number among the large ones.
    large: Option<u64>,
}

impl Held {
    pub(super) fn new(of: &Arc<Holders>) -> Self {
        Held { of: of.clone(), bytes: 0, large: None }
    }

    /// Says what the connection holds now. `false`: it must go. Its task is woken when it must go later.
    pub(super) fn now(&mut self, bytes: usize, cx: &Context<'_>) -> bool {
        let change = signed(bytes) - signed(self.bytes);
        if change == 0 && self.large.is_none() {
            return true;
        }
        let total = self.of.bytes.inc_by(change) + change;
        self.bytes = bytes;
        if bytes <= SMALL {
            self.forget();
            if change > 0 {
                self.of.relieve(total);
            }
            return true;
        }
        self.note(cx);
        if change > 0 {
            self.of.relieve(total);
        }
        let large = self.of.large.lock();
        self.large.and_then(|number| large.holders.get(&number)).is_none_or(|holder| !holder.must_go)
    }

    /// It is large: writes down by how much, and whom to wake.
    fn note(&mut self, cx: &Context<'_>) {
        let mut large = self.of.large.lock();
        let number = *self.large.get_or_insert_with(|| {
            large.next += 1;
            large.next
        });
        let bytes = self.bytes;
        let mut leaving = 0;
        let holder = large.holders.entry(number).or_insert_with(|| Holder {
            bytes,
            must_go: false,
            waker: cx.waker().clone(),
        });
        if holder.must_go {
            leaving = signed(bytes) - signed(holder.bytes);
        }
        holder.bytes = bytes;
        holder.waker.clone_from(cx.waker());
        large.leaving += leaving;
    }

    fn forget(&mut self) {
        let Some(number) = self.large.take() else { return };
        let mut large = self.of.large.lock();
        if let Some(holder) = large.holders.remove(&number)
            && holder.must_go
        {
            large.leaving -= signed(holder.bytes);
        }
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

    #[test]
    fn who_holds_little_stays_whatever_others_hold_and_who_holds_most_goes() {
        let holders = Holders::new(Gauge::default(), 100_000);
        let woken: Vec<Arc<Woken>> = (0..4).map(|_| Arc::default()).collect();
        let wakers: Vec<Waker> = woken.iter().map(|woken| Waker::from(woken.clone())).collect();
        let cx = |of: usize| Context::from_waker(&wakers[of]);
        let mut held: Vec<Held> = (0..4).map(|_| Held::new(&holders)).collect();
        assert!(held[0].now(60_000, &cx(0)) && held[1].now(39_990, &cx(1)), "just within the bound");
        assert!(held[2].now(300, &cx(2)), "an honest one");
        assert!(held[3].now(4000, &cx(3)), "and another: one is told to go, and that is enough");
        let told: Vec<usize> = woken.iter().map(|woken| woken.0.load(Ordering::Relaxed)).collect();
        assert_eq!(told, [1, 0, 0, 0]);
        assert!(!held[0].now(60_000, &cx(0)) && held[1].now(39_990, &cx(1)));
        held.remove(0);
        assert!(held[0].now(90_000, &cx(1)), "there is room again");
        assert!(!held[0].now(99_000, &cx(1)), "who grows beyond the bound and is the largest goes itself");
        assert!(held[1].now(300, &cx(2)) && held[2].now(4000, &cx(3)));
        drop(held);
        assert_eq!((holders.bytes.get(), holders.large.lock().leaving), (0, 0));
    }

    #[test]
    fn many_that_hold_little_are_not_cut_and_what_they_hold_is_counted() {
        let holders = Holders::new(Gauge::default(), 10_000);
        let waker = Waker::noop();
        let cx = Context::from_waker(waker);
        let mut held: Vec<Held> = (0..10).map(|_| Held::new(&holders)).collect();
        assert!(held.iter_mut().all(|held| held.now(SMALL, &cx)));
        assert_eq!(holders.bytes.get(), 10 * signed(SMALL));
        assert!(!held[0].now(SMALL + 1, &cx), "where all are small, who becomes large goes");
    }
}
