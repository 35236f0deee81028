//! Bounds TLS handshakes: so many at once, so many of one peer address, so many that wait. In goes a peer's
//! address, out comes a turn, and then a pass that is held for the time of the handshake, or a refusal.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of one side.
#[derive(Debug)]
pub struct Gate {
    places: Arc<Semaphore>,
    per_source: usize,
    waiting: usize,
    sources: Mutex<HashMap<IpAddr, Source>>,
}

#[derive(Debug)]
struct Source {
    places: Arc<Semaphore>,
    /// Inside or waiting.
    present: usize,
}

/// A turn among those of one address; the next one's when dropped.
#[derive(Debug)]
pub struct Turn {
    // In this order: the turn is the next one's before the source may be forgotten.
    own: OwnedSemaphorePermit,
    presence: Presence,
}

/// A place; free again when dropped.
#[derive(Debug)]
pub struct Pass {
    // In this order: the places are free before the source may be forgotten.
    _place: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
    _presence: Presence,
}

/// Why there is no turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoTurn {
    /// It did not come in time.
    Late,
    /// Too many wait already.
    TooMany,
}

#[derive(Debug)]
struct Presence {
    gate: Arc<Gate>,
    source: IpAddr,
}

impl Gate {
    /// `places` at once, `per_source` of them for one address. At most `waiting` addresses are inside or wait, and
    /// of one address a quarter of that.
    #[must_use]
    pub fn new(places: usize, per_source: usize, waiting: usize) -> Arc<Gate> {
        Arc::new(Gate {
            places: Arc::new(Semaphore::new(places)),
            per_source,
            waiting,
            sources: Mutex::default(),
        })
    }

    /// Waits at most `limit` for a turn among those of `source`, which keeps nobody else from anything.
    ///
    /// # Errors
    /// [`NoTurn`].
    pub async fn queue(self: &Arc<Self>, source: IpAddr, limit: Duration) -> Result<Turn, NoTurn> {
        let (own, presence) = self.announce(source.to_canonical()).ok_or(NoTurn::TooMany)?;
        match tokio::time::timeout(limit, own.acquire_owned()).await {
            Ok(Ok(own)) => Ok(Turn { own, presence }),
            Ok(Err(_)) | Err(_) => Err(NoTurn::Late),
        }
    }

    fn announce(self: &Arc<Self>, source: IpAddr) -> Option<(Arc<Semaphore>, Presence)> {
        let mut sources = self.sources.lock();
        if sources.len() >= self.waiting && !sources.contains_key(&source) {
            return None;
        }
        let entry = sources
            .entry(source)
            .or_insert_with(|| Source { places: Arc::new(Semaphore::new(self.per_source)), present: 0 });
        if entry.present >= self.per_source + self.waiting / 4 {
            return None;
        }
        entry.present += 1;
        Some((entry.places.clone(), Presence { gate: self.clone(), source }))
    }
}

impl Turn {
    /// Waits at most `limit` for a place among those of all addresses. `None`: none became free.
    pub async fn enter(self, limit: Duration) -> Option<Pass> {
        let places = self.presence.gate.places.clone();
        let place = tokio::time::timeout(limit, places.acquire_owned()).await.ok()?.ok()?;
        Some(Pass { _place: place, _own: self.own, _presence: self.presence })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut sources = self.gate.sources.lock();
        if let Some(entry) = sources.get_mut(&self.source) {
            entry.present = entry.present.saturating_sub(1);
            if entry.present == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_millis(20);

    impl Gate {
        async fn enter(self: &Arc<Self>, source: IpAddr, limit: Duration) -> Option<Pass> {
            self.queue(source, limit).await.ok()?.enter(limit).await
        }
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test]
    async fn one_source_cannot_take_all_places() {
        let gate = Gate::new(4, 2, 8);
        let (first, second) = (gate.enter(ip(1), WAIT).await, gate.enter(ip(1), WAIT).await);
        assert!(first.is_some() && second.is_some());
        assert!(gate.enter(ip(1), WAIT).await.is_none(), "its places are taken");
        assert!(gate.enter(ip(2), WAIT).await.is_some(), "another source has room");
        drop(first);
        assert!(gate.enter(ip(1), WAIT).await.is_some());
    }

    #[tokio::test]
    async fn who_waits_gets_the_place_that_becomes_free() {
        let gate = Gate::new(1, 1, 8);
        let held = gate.enter(ip(1), WAIT).await.unwrap();
        let waiter = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(ip(2), Duration::from_secs(5)).await.is_some() }
        });
        tokio::task::yield_now().await;
        drop(held);
        assert!(waiter.await.unwrap());
        assert!(gate.sources.lock().is_empty(), "nobody is remembered");
    }

    #[tokio::test]
    async fn a_turn_takes_no_place_and_leads_to_one() {
        let gate = Gate::new(1, 1, 8);
        let turn = gate.queue(ip(1), WAIT).await.unwrap();
        assert_eq!(gate.queue(ip(1), WAIT).await.err(), Some(NoTurn::Late), "it is another's turn");
        let held = gate.enter(ip(2), WAIT).await.unwrap();
        assert!(turn.enter(WAIT).await.is_none(), "the place is taken");
        drop(held);
        assert!(gate.queue(ip(1), WAIT).await.unwrap().enter(WAIT).await.is_some());
        assert!(gate.sources.lock().is_empty());
    }

    #[tokio::test]
    async fn waiting_is_bounded() {
        let gate = Gate::new(1, 1, 4);
        let _held = gate.enter(ip(1), WAIT).await.unwrap();
        let waiting: Vec<_> = (0..3).map(|_| gate.announce(ip(1))).collect();
        assert_eq!(waiting.iter().filter(|place| place.is_some()).count(), 1, "a quarter of four");
        assert_eq!(gate.queue(ip(1), WAIT).await.err(), Some(NoTurn::TooMany));
    }
}
