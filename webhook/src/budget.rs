//! The memory that reviews may take, in all and for one source address. Charged as it is needed, and waited for when
//! there is none; what a review has taken comes back when it ends.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes for all reviews at one time: a thousand common pods that wait for their accounts, or a few of the largest
/// kind. The container's limit is 256 MiB.
const ALL: usize = 96 << 20;
/// Bytes for one address, so that no single peer can keep an API server waiting.
const ONE_SOURCE: usize = ALL / 2;
/// The unit in which it is counted: a semaphore counts in u32.
const UNIT: usize = 1 << 10;

/// The memory of all reviews.
pub struct Budget {
    all: Arc<Semaphore>,
    sources: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(ALL / UNIT)), sources: Mutex::default() }
    }
}

impl Budget {
    /// The charges of one review from `source`: none yet.
    #[must_use]
    pub fn charges(&self, source: IpAddr) -> Charges {
        let mut sources = self.sources.lock();
        let own = sources.get(&source).and_then(Weak::upgrade).unwrap_or_else(|| {
            // Addresses without a review are forgotten when the next new one comes.
            sources.retain(|_, own| own.strong_count() > 0);
            let own = Arc::new(Semaphore::new(ONE_SOURCE / UNIT));
            sources.insert(source, Arc::downgrade(&own));
            own
        });
        Charges { all: Arc::clone(&self.all), own, held: Vec::new() }
    }

    /// Bytes that nobody has taken.
    #[must_use]
    pub fn left(&self) -> usize {
        self.all.available_permits() * UNIT
    }
}

/// What one review has taken.
pub struct Charges {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
    held: Vec<OwnedSemaphorePermit>,
}

impl Charges {
    /// Takes `bytes` more; waits until the source has them, then until all have. Both are in the order of asking.
    pub async fn add(&mut self, bytes: usize) {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        for semaphore in [&self.own, &self.all] {
            // They are never closed.
            if let Ok(permit) = Arc::clone(semaphore).acquire_many_owned(units).await {
                self.held.push(permit);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn one_address_gets_half_of_it_and_gives_it_back() {
        let budget = Budget::default();
        let [greedy, other] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse::<IpAddr>().unwrap());
        let mut held = budget.charges(greedy);
        held.add(ONE_SOURCE).await;
        let mut more = budget.charges(greedy);
        assert!(timeout(SOON, more.add(1)).await.is_err());
        budget.charges(other).add(ALL / 4).await;
        assert_eq!(budget.left(), ALL - ONE_SOURCE);
        drop(held);
        more.add(1).await;
        drop(more);
        assert_eq!(budget.left(), ALL);
    }

    #[tokio::test]
    async fn all_addresses_together_are_bounded_and_forgotten() {
        let budget = Budget::default();
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let mut held = Vec::new();
        for last in 0..4 {
            let mut charges = budget.charges(address(last));
            charges.add(ALL / 4).await;
            held.push(charges);
        }
        assert!(timeout(SOON, budget.charges(address(9)).add(1)).await.is_err());
        drop(held);
        drop(budget.charges(address(10)));
        assert_eq!(budget.sources.lock().len(), 1);
    }
}
