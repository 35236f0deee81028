//! A bounded amount of memory that owners share: whoever holds the most gives way to who holds less, and nobody stands
//! in line behind one who wants much.
//!
//! In go who asks and how many bytes; out comes a share, which is given back when it is dropped and may be lost to
//! another owner before.

use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Among whom the memory is shared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Who is connected: an API server, or anybody else in the cluster.
    pub source: IpAddr,
    /// For whom it speaks, where that is known: an API server relays what all its users wrote.
    pub namespace: String,
}

/// The memory.
#[derive(Debug)]
pub struct Lane {
    most: usize,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// What was lost by its owners and is not yet given back; part of `all`.
    leaving: usize,
    next: u64,
    owners: HashMap<Owner, Holding>,
}

/// What one owner has.
#[derive(Debug, Default)]
struct Holding {
    /// Without what was lost.
    bytes: usize,
    /// By their numbers, so that the first is the oldest.
    pieces: BTreeMap<u64, Piece>,
}

#[derive(Debug)]
struct Piece {
    bytes: usize,
    is_lost: bool,
    /// Tells its owner.
    lost: CancellationToken,
}

/// A part of a lane; dropping it gives it back.
#[derive(Debug)]
pub struct Share {
    lane: Arc<Lane>,
    owner: Owner,
    number: u64,
    bytes: usize,
}

impl Lane {
    /// A lane of `most` bytes.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default(), freed: Notify::new() })
    }

    /// Takes `bytes`; waits until they are there. `lost` ends when they went to another owner.
    pub async fn take(self: &Arc<Self>, owner: &Owner, bytes: usize, lost: &CancellationToken) -> Share {
        let piece = || Piece { bytes, is_lost: false, lost: lost.clone() };
        let taken =
            self.once_free(|taken| taken.fits(self.most, owner, bytes).then(|| taken.add(owner, piece())));
        let number = taken.await;
        Share { lane: Arc::clone(self), owner: owner.clone(), number, bytes }
    }

    /// Bytes that nobody has taken.
    #[must_use]
    pub fn left(&self) -> usize {
        self.most.saturating_sub(self.taken.lock().all)
    }

    /// Tries whenever something was given back. Who wants little comes through while others wait for more.
    async fn once_free<T>(&self, mut attempt: impl FnMut(&mut Taken) -> Option<T>) -> T {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // What is given back right after the attempt counts too.
            freed.as_mut().enable();
            let done = attempt(&mut self.taken.lock());
            if let Some(done) = done {
                return done;
            }
            freed.await;
        }
    }
}

impl Share {
    /// Takes `bytes` more; waits until they are there.
    pub async fn grow(&mut self, bytes: usize) {
        let Self { lane, owner, number, .. } = &*self;
        let grown = lane.once_free(|taken| {
            taken.fits(lane.most, owner, bytes).then(|| taken.grow(owner, *number, bytes))
        });
        grown.await;
        self.bytes += bytes;
    }

    /// How many bytes it has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.lane.taken.lock().remove(&self.owner, self.number);
        self.lane.freed.notify_waiters();
    }
}

impl Taken {
    /// Whether `bytes` more are there for `owner`. Where they are not, those who hold more than it would hold then lose
    /// as much as is missing, the largest piece of the greatest first; it comes back in a moment.
    fn fits(&mut self, most: usize, owner: &Owner, bytes: usize) -> bool {
        if self.all + bytes <= most {
            return true;
        }
        let own = self.owners.get(owner).map_or(0, |holding| holding.bytes);
        while self.all.saturating_sub(self.leaving) + bytes > most && self.take_from_greatest(own + bytes) {}
        false
    }

    fn take_from_greatest(&mut self, more_than: usize) -> bool {
        let greatest = self.owners.values_mut().max_by_key(|holding| holding.bytes);
        let Some(holding) = greatest.filter(|holding| holding.bytes > more_than) else { return false };
        let staying = holding.pieces.iter_mut().filter(|(_, piece)| !piece.is_lost);
        let Some((_, piece)) = staying.max_by_key(|(number, piece)| (piece.bytes, Reverse(**number))) else {
            return false;
        };
        piece.is_lost = true;
        piece.lost.cancel();
        holding.bytes = holding.bytes.saturating_sub(piece.bytes);
        self.leaving += piece.bytes;
        true
    }

    fn add(&mut self, owner: &Owner, piece: Piece) -> u64 {
        let number = self.next;
        self.next += 1;
        self.all += piece.bytes;
        let holding = self.owners.entry(owner.clone()).or_default();
        holding.bytes += piece.bytes;
        holding.pieces.insert(number, piece);
        number
    }

    fn grow(&mut self, owner: &Owner, number: u64, bytes: usize) {
        let Some(holding) = self.owners.get_mut(owner) else { return };
        let Some(piece) = holding.pieces.get_mut(&number) else { return };
        piece.bytes += bytes;
        self.all += bytes;
        if piece.is_lost {
            self.leaving += bytes;
        } else {
            holding.bytes += bytes;
        }
    }

    fn remove(&mut self, owner: &Owner, number: u64) {
        let Some(holding) = self.owners.get_mut(owner) else { return };
        let Some(piece) = holding.pieces.remove(&number) else { return };
        self.all = self.all.saturating_sub(piece.bytes);
        if piece.is_lost {
            self.leaving = self.leaving.saturating_sub(piece.bytes);
        } else {
            holding.bytes = holding.bytes.saturating_sub(piece.bytes);
        }
        if holding.pieces.is_empty() {
            self.owners.remove(owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_millis(50);

    fn owner(last: u8) -> Owner {
        Owner { source: IpAddr::from([10, 0, 0, last]), namespace: String::new() }
    }

    async fn take(lane: &Arc<Lane>, last: u8, bytes: usize) -> (Share, CancellationToken) {
        let lost = CancellationToken::new();
        (lane.take(&owner(last), bytes, &lost).await, lost)
    }

    #[tokio::test]
    async fn who_wants_little_comes_through_while_others_wait_for_more() {
        let lane = Lane::new(100);
        let (first, lost) = take(&lane, 1, 60).await;
        let waiting = tokio::spawn({
            let lane = Arc::clone(&lane);
            async move { take(&lane, 1, 50).await.0.bytes() }
        });
        tokio::task::yield_now().await;
        let (small, _) = timeout(SOON, take(&lane, 1, 40)).await.unwrap();
        assert!(!waiting.is_finished() && !lost.is_cancelled());
        drop(small);
        drop(first);
        assert_eq!(waiting.await.unwrap(), 50);
        assert_eq!(lane.left(), 100);
        assert!(lane.taken.lock().owners.is_empty(), "nobody is remembered");
    }

    #[tokio::test]
    async fn whoever_holds_the_most_gives_way_its_largest_piece_first() {
        let lane = Lane::new(100);
        let held = [take(&lane, 1, 30).await, take(&lane, 1, 50).await, take(&lane, 2, 20).await];
        let honest = tokio::spawn({
            let lane = Arc::clone(&lane);
            async move { take(&lane, 3, 10).await }
        });
        held[1].1.cancelled().await;
        assert_eq!([&held[0].1, &held[2].1].map(CancellationToken::is_cancelled), [false, false]);
        assert!(!honest.is_finished(), "it is not yet given back");
        let [small, large, other] = held;
        drop(large);
        let (honest, _) = honest.await.unwrap();
        assert_eq!(lane.left(), 100 - 30 - 20 - honest.bytes());
        drop((small, other, honest));
        assert_eq!((lane.left(), lane.taken.lock().leaving), (100, 0));
    }

    #[tokio::test]
    async fn nobody_gives_way_to_who_would_hold_as_much() {
        let lane = Lane::new(100);
        let held = [take(&lane, 1, 50).await, take(&lane, 2, 50).await];
        assert!(timeout(SOON, take(&lane, 3, 50)).await.is_err());
        assert!(timeout(SOON, take(&lane, 1, 1)).await.is_err(), "nor to itself");
        assert!(held.iter().all(|(_, lost)| !lost.is_cancelled()));
    }

    #[tokio::test]
    async fn a_share_that_grows_is_counted_whole_and_what_it_lost_only_once() {
        let lane = Lane::new(100);
        let (mut large, lost) = take(&lane, 1, 10).await;
        large.grow(70).await;
        assert_eq!((large.bytes(), lane.left()), (80, 20));
        let (_honest, _) = take(&lane, 2, 20).await;
        assert!(timeout(SOON, take(&lane, 2, 5)).await.is_err() && lost.is_cancelled());
        assert_eq!(lane.taken.lock().leaving, 80);
        drop(large);
        assert_eq!((lane.left(), lane.taken.lock().leaving), (80, 0));
    }
}
