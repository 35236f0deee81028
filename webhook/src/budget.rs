//! The memory that reviews may take: a lane for those of common size, one for large ones and one for those that wait.
//! Charged as it is needed, and given back when the answer is gone.
//!
//! API servers relay what all their users wrote, so one address is not one will: a handful of large objects, whoever
//! sends them, must not keep common ones out. And anybody in the cluster may connect, so a handful of addresses must not
//! keep an API server out: within a lane whoever holds the most gives way.

use crate::lane::{Lane, Owner, Share};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// What one review of common size is charged at most: one of 10 KB with 300 values, 60 of them maps, is charged a tenth.
const LARGEST_SMALL: usize = 1 << 20;
/// What the values of any review are charged at most. Those of an object of 1.5 MiB, which is what etcd takes, are more
/// only if it was made for the purpose.
pub const LARGEST: usize = 32 << 20;
/// For reviews of common size. They are answered within milliseconds, or wait in a lane of their own.
const SMALL: usize = 32 << 20;
/// For larger ones.
const LARGE: usize = 48 << 20;
/// For those that wait for an account: some 250 common pods at one time. The next are told at once what they would wait
/// for, and their controllers come again.
const WAITING: usize = 24 << 20;
/// How long a review of common size waits for memory.
const SMALL_PATIENCE: Duration = Duration::from_millis(500);
/// How long one waits that holds what others wait for: those who give way do so at once.
const PATIENCE: Duration = Duration::from_millis(20);

/// There is no memory for a review.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoMemory;

/// The memory of all reviews.
#[derive(Debug)]
pub struct Budget {
    small: Arc<Lane>,
    large: Arc<Lane>,
    waiting: Arc<Lane>,
    /// Large reviews are read one at a time: they take milliseconds, and there are two threads.
    turn: Semaphore,
}

impl Default for Budget {
    fn default() -> Self {
        let [small, large, waiting] = [SMALL, LARGE, WAITING].map(Lane::new);
        Self { small, large, waiting, turn: Semaphore::new(1) }
    }
}

impl Budget {
    /// The charges of one review from `source`: none yet.
    #[must_use]
    pub fn charges(&self, source: IpAddr) -> Charges {
        let owner = Owner { source, namespace: String::new() };
        let lanes = [&self.small, &self.large, &self.waiting].map(Arc::clone);
        Charges { lanes, owner, is_large: false, lost: CancellationToken::new(), share: None }
    }

    /// The turn of a review to be read. Those of common size need none.
    pub async fn turn(&self, charges: &Charges) -> Option<SemaphorePermit<'_>> {
        if charges.is_large { self.turn.acquire().await.ok() } else { None }
    }

    /// Bytes that nobody has taken.
    #[must_use]
    pub fn left(&self) -> usize {
        self.small.left() + self.large.left() + self.waiting.left()
    }
}

/// What one review has taken.
#[derive(Debug)]
pub struct Charges {
    lanes: [Arc<Lane>; 3],
    owner: Owner,
    is_large: bool,
    lost: CancellationToken,
    share: Option<Share>,
}

impl Charges {
    /// Takes `bytes` more; waits a little until they are there.
    ///
    /// # Errors
    /// They were not there in time.
    pub async fn add(&mut self, bytes: usize) -> Result<(), NoMemory> {
        let Self { lanes: [small, large, _], owner, is_large, lost, share } = self;
        let total = share.as_ref().map_or(0, Share::bytes) + bytes;
        let was_large = *is_large;
        *is_large = was_large || total > LARGEST_SMALL;
        let (lane, patience) = if *is_large { (large, PATIENCE) } else { (small, SMALL_PATIENCE) };
        let stays = *is_large == was_large;
        let added = async {
            match share {
                Some(share) if stays => share.grow(bytes).await,
                // What it had in the other lane is given back once it has all of it here.
                _ => *share = Some(lane.take(owner, total, lost).await),
            }
        };
        timeout(patience, added).await.map_err(|_| NoMemory)
    }

    /// Makes way for others while it waits for something that concerns `namespace`.
    ///
    /// # Errors
    /// It is large, or there are too many that wait: it must not wait.
    pub async fn park(&mut self, namespace: &str) -> Result<(), NoMemory> {
        if self.is_large {
            return Err(NoMemory);
        }
        let [_, _, waiting] = &self.lanes;
        let owner = Owner { namespace: namespace.to_owned(), ..self.owner.clone() };
        let bytes = self.share.as_ref().map_or(0, Share::bytes);
        let parked = timeout(PATIENCE, waiting.take(&owner, bytes, &self.lost)).await;
        self.share = Some(parked.map_err(|_| NoMemory)?);
        Ok(())
    }

    /// Gives all of it back.
    pub fn release(&mut self) {
        self.share = None;
    }

    /// Ends when what it had went to another owner: it must end too.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: usize = SMALL + LARGE + WAITING;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test]
    async fn large_reviews_take_nothing_from_those_of_common_size_whoever_sends_them() {
        let budget = Budget::default();
        let mut held = Vec::new();
        // All from the address of an API server, as its users' objects are.
        for _ in 0..LARGE / (8 << 20) {
            let mut charges = budget.charges(address(1));
            // As a body grows.
            for _ in 0..8 {
                charges.add(1 << 20).await.unwrap();
            }
            held.push(charges);
        }
        assert_eq!(budget.large.left(), 0);
        assert_eq!(budget.charges(address(1)).add(2 << 20).await, Err(NoMemory), "it does not wait in line");
        for _ in 0..100 {
            budget.charges(address(1)).add(64 << 10).await.unwrap();
        }
        assert!(held.iter().all(|charges| !charges.lost().is_cancelled()));
        drop(held);
        assert_eq!(budget.left(), ALL);
    }

    #[tokio::test]
    async fn a_review_that_grows_large_changes_its_lane_with_all_it_has() {
        let budget = Budget::default();
        let mut charges = budget.charges(address(1));
        charges.add(LARGEST_SMALL).await.unwrap();
        assert_eq!((budget.small.left(), budget.large.left()), (SMALL - LARGEST_SMALL, LARGE));
        assert!(budget.turn(&charges).await.is_none());
        charges.add(1).await.unwrap();
        assert_eq!((budget.small.left(), budget.large.left()), (SMALL, LARGE - LARGEST_SMALL - 1));
        assert!(budget.turn(&charges).await.is_some());
        charges.release();
        assert_eq!(budget.left(), ALL);
    }

    #[tokio::test]
    async fn addresses_that_fill_a_lane_make_room_for_one_that_holds_less() {
        let budget = Budget::default();
        for (each, count) in [(LARGEST_SMALL, SMALL / LARGEST_SMALL), (8 << 20, LARGE / (8 << 20))] {
            let mut held = Vec::new();
            for number in 0..count {
                // Of three addresses.
                let mut charges = budget.charges(address(u8::try_from(number % 3).unwrap()));
                charges.add(each).await.unwrap();
                held.push(charges);
            }
            let lost = async {
                while held.iter().all(|charges| !charges.lost().is_cancelled()) {
                    tokio::task::yield_now().await;
                }
                held.retain(|charges| !charges.lost().is_cancelled());
            };
            let mut honest = budget.charges(address(9));
            let (added, ()) = tokio::join!(honest.add(each / 2), lost);
            assert_eq!(added, Ok(()));
        }
    }

    #[tokio::test]
    async fn those_that_wait_are_bounded_for_each_namespace_and_hold_up_nobody_else() {
        let budget = Budget::default();
        let mut waiting = Vec::new();
        for _ in 0..WAITING / LARGEST_SMALL {
            let mut charges = budget.charges(address(1));
            charges.add(LARGEST_SMALL).await.unwrap();
            charges.park("greedy").await.unwrap();
            waiting.push(charges);
        }
        assert_eq!((budget.small.left(), budget.waiting.left()), (SMALL, 0));
        let mut more = budget.charges(address(1));
        more.add(1000).await.unwrap();
        assert_eq!(more.park("greedy").await, Err(NoMemory), "it is told at once");
        // Another namespace of the same API server.
        let lost = async {
            while waiting.iter().all(|charges| !charges.lost().is_cancelled()) {
                tokio::task::yield_now().await;
            }
            waiting.retain(|charges| !charges.lost().is_cancelled());
        };
        let (parked, ()) = tokio::join!(more.park("modest"), lost);
        assert_eq!(parked, Ok(()));
        let mut large = budget.charges(address(2));
        large.add(2 * LARGEST_SMALL).await.unwrap();
        assert_eq!(large.park("other").await, Err(NoMemory), "a large one does not wait");
    }
}
