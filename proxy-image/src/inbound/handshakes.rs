//! Bounds the handshakes that strangers begin. In goes a peer's address, out comes a pass for the time of its handshake,
//! or a refusal.
//!
//! What a handshake computes is done at once, one after the other, on the thread of the data path; the rest of its time
//! it waits for its peer, and anybody may keep us waiting. So there are many more places than the client's side has for
//! those that it begins itself, a host has its share of them, and when there are no more, the place of one that has been
//! waited for goes to who has fewer: the oldest of the host that has most. Among equals, and where all are young, the
//! next one waits.

use crate::gate::{Gate, NoTurn, Turn};
use cinch_places::source_of;
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// One host may have such a part of the places.
const SHARE: usize = 8;

/// A handshake that is younger keeps its place: peers that are there need milliseconds, or are as busy as we are.
const GRACE: Duration = Duration::from_millis(500);

/// The places.
#[derive(Debug)]
pub(super) struct Handshakes {
    most: usize,
    grace: Duration,
    /// Lets those of one host in, in their turn; its own places are not used.
    turns: Arc<Gate>,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    next: u64,
    /// By their numbers, so that the first is the oldest.
    by_host: HashMap<IpAddr, BTreeMap<u64, UnderWay>>,
}

#[derive(Debug)]
struct UnderWay {
    since: Instant,
    lost: CancellationToken,
}

/// A place; free again when dropped.
#[derive(Debug)]
pub(super) struct Pass {
    of: Arc<Handshakes>,
    host: IpAddr,
    number: u64,
    lost: CancellationToken,
    _turn: Turn,
}

impl Handshakes {
    /// `most` at once; of those that wait, as [`Gate::new`] has it.
    pub(super) fn new(most: usize, waiting: usize) -> Arc<Handshakes> {
        Self::with(most, waiting, GRACE)
    }

    fn with(most: usize, waiting: usize, grace: Duration) -> Arc<Handshakes> {
        let share = (most / SHARE).max(1);
        let turns = Gate::new(most, share, waiting);
        Arc::new(Handshakes { most, grace, turns, taken: Mutex::default(), freed: Notify::new() })
    }

    /// Waits at most `limit` for a place.
    ///
    /// # Errors
    /// The name of the limit: there is none, or too many wait already.
    pub(super) async fn enter(
        self: &Arc<Self>,
        source: IpAddr,
        limit: Duration,
    ) -> Result<Pass, &'static str> {
        let host = source_of(source);
        let entering = async {
            let turn = self.turns.queue(host, limit).await.map_err(|why| match why {
                NoTurn::Late => "handshakes_inbound",
                NoTurn::TooMany => "handshakes_waiting",
            })?;
            let (number, lost) = loop {
                if let Some(place) = self.take(host) {
                    break place;
                }
                // Those that are too young to go grow older.
                let _ = tokio::time::timeout(self.grace, self.freed.notified()).await;
            };
            Ok(Pass { of: self.clone(), host, number, lost, _turn: turn })
        };
        tokio::time::timeout(limit, entering).await.unwrap_or(Err("handshakes_inbound"))
    }

    fn take(&self, host: IpAddr) -> Option<(u64, CancellationToken)> {
        let (mut taken, now) = (self.taken.lock(), Instant::now());
        if taken.all >= self.most && !taken.make_room(host, now, self.grace) {
            return None;
        }
        let (number, lost) = (taken.next, CancellationToken::new());
        taken.next += 1;
        taken.all += 1;
        let under_way = UnderWay { since: now, lost: lost.clone() };
        taken.by_host.entry(host).or_default().insert(number, under_way);
        Some((number, lost))
    }
}

impl Taken {
    /// Takes a place back for `host`, if somebody has more than it would have then.
    fn make_room(&mut self, host: IpAddr, now: Instant, grace: Duration) -> bool {
        let own = self.by_host.get(&host).map_or(0, BTreeMap::len);
        let overdue = self.by_host.iter().filter_map(|(host, held)| {
            let (number, oldest) = held.first_key_value()?;
            let is_old = now.saturating_duration_since(oldest.since) >= grace;
            (is_old && held.len() > own + 1).then_some((held.len(), Reverse(*number), *host))
        });
        let Some((_, Reverse(number), host)) = overdue.max() else { return false };
        if let Some(under_way) = self.remove(host, number) {
            under_way.lost.cancel();
        }
        true
    }

    fn remove(&mut self, host: IpAddr, number: u64) -> Option<UnderWay> {
        let held = self.by_host.get_mut(&host)?;
        let removed = held.remove(&number)?;
        if held.is_empty() {
            self.by_host.remove(&host);
        }
        self.all = self.all.saturating_sub(1);
        Some(removed)
    }
}

impl Pass {
    /// Ends when the place was given to another peer: the handshake must end.
    pub(super) async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        // One that was lost is not there any more.
        let removed = self.of.taken.lock().remove(self.host, self.number);
        if removed.is_some() {
            self.of.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(20);

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    /// All places, taken by `hosts` hosts.
    async fn full(handshakes: &Arc<Handshakes>, hosts: u8) -> Vec<Pass> {
        let mut held = Vec::new();
        for number in 0..handshakes.most {
            let host = ip(u8::try_from(number).unwrap() % hosts);
            held.push(handshakes.enter(host, LONG).await.unwrap());
        }
        held
    }

    fn lost(held: &[Pass]) -> Vec<usize> {
        (0..held.len()).filter(|at| held[*at].lost.is_cancelled()).collect()
    }

    #[tokio::test]
    async fn who_keeps_us_waiting_makes_room_for_who_has_fewer() {
        let handshakes = Handshakes::with(16, 64, Duration::ZERO);
        let held = full(&handshakes, 8).await;
        let honest = handshakes.enter(ip(100), WAIT).await.expect("a place");
        assert_eq!(lost(&held), [0], "the oldest of those who have most");
        let _second = handshakes.enter(ip(101), WAIT).await.expect("a place");
        assert_eq!(lost(&held), [0, 1]);
        assert!(!honest.lost.is_cancelled());
        assert!(handshakes.enter(ip(2), WAIT).await.is_err(), "it has its share");
        drop(held);
        assert_eq!(handshakes.taken.lock().all, 2, "what was lost is not given back twice");
    }

    #[tokio::test]
    async fn the_young_keep_their_places_and_who_waits_gets_one_that_becomes_free() {
        let handshakes = Handshakes::with(16, 64, LONG);
        let mut held = full(&handshakes, 8).await;
        assert!(handshakes.enter(ip(100), WAIT).await.is_err());
        assert_eq!(lost(&held), [0; 0]);
        let waiter = tokio::spawn({
            let handshakes = handshakes.clone();
            async move { handshakes.enter(ip(100), LONG).await.is_ok() }
        });
        tokio::task::yield_now().await;
        held.pop();
        assert!(waiter.await.unwrap());
    }

    #[tokio::test]
    async fn who_waits_gets_a_place_once_others_have_had_their_time() {
        let handshakes = Handshakes::with(8, 64, Duration::from_millis(50));
        let held = full(&handshakes, 8).await;
        assert!(handshakes.enter(ip(100), 3 * WAIT).await.is_err(), "all have as few as it would have");
        assert_eq!(lost(&held), [0; 0]);
        drop(held);
        let handshakes = Handshakes::with(16, 64, Duration::from_millis(50));
        let held = full(&handshakes, 8).await;
        assert!(handshakes.enter(ip(100), LONG).await.is_ok());
        assert_eq!(lost(&held), [0]);
    }

    #[tokio::test]
    async fn a_host_has_its_share_however_its_address_is_written() {
        let handshakes = Handshakes::with(16, 8, Duration::ZERO);
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let _held = [handshakes.enter(ip(1), WAIT).await, handshakes.enter(mapped, WAIT).await];
        for address in [ip(1), mapped] {
            assert!(handshakes.enter(address, WAIT).await.is_err());
        }
        // Pods of one node have addresses of one network.
        let at = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 7, 1, 2, 3, last]);
        let _pod = [handshakes.enter(at(1), WAIT).await, handshakes.enter(at(1), WAIT).await];
        assert!(handshakes.enter(at(1), WAIT).await.is_err());
        assert!(handshakes.enter(at(2), WAIT).await.is_ok());
    }
}
