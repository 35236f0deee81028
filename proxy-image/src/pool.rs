//! Idle tunnels of the outbound side. In go tunnels whose stream has ended, out they come again, the last one
//! first, for the next connection to the same peer under the same credentials. Each idle tunnel keeps a read
//! armed, so that one which the peer has closed or drained is gone before anybody takes it.

use crate::limits::Limits;
use crate::path_metrics::PathMetrics;
use crate::tunnel_io::Tunnel;
use cinch_identity::SpiffeId;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// How often idle tunnels are looked through for those that are past their time.
const SWEEP: Duration = Duration::from_secs(1);
/// To hand a last word to the kernel; an idle tunnel has room for it.
const GOODBYE: Duration = Duration::from_millis(200);

/// What two connections must have in common to share a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Of the own certificate.
    pub generation: u64,
    /// Of the trust bundle that the peer was verified by.
    pub bundle_version: u64,
    /// Who the peer is.
    pub peer: SpiffeId,
    /// Where it is.
    pub address: SocketAddr,
}

/// Where an idle tunnel waits, shared by the pool's list and the task that reads from it.
struct Slot {
    tunnel: Mutex<Option<Tunnel>>,
    reader: AtomicWaker,
}

struct Idle {
    slot: Arc<Slot>,
    since: Instant,
}

#[derive(Default)]
struct Lists {
    by_key: HashMap<Key, Vec<Idle>>,
    total: usize,
    closed: bool,
}

/// The pool.
pub struct Pool {
    lists: Mutex<Lists>,
    per_peer: usize,
    total: usize,
    idle: Duration,
    metrics: Arc<PathMetrics>,
}

impl Pool {
    /// An empty pool with the bounds of `limits`.
    #[must_use]
    pub fn new(limits: &Limits, metrics: Arc<PathMetrics>) -> Arc<Pool> {
        Arc::new(Pool {
            lists: Mutex::default(),
            per_peer: limits.idle_tunnels_per_peer,
            total: limits.idle_tunnels,
            idle: limits.client_idle,
            metrics,
        })
    }

    /// The tunnel for `key` that was used last, if any is of use.
    #[must_use]
    pub fn take(&self, key: &Key) -> Option<Tunnel> {
        loop {
            let idle = self.pop(key)?;
            let Some(tunnel) = idle.slot.take() else { continue };
            if tunnel.is_reusable() && tunnel.is_quiet() {
                self.metrics.tunnels_reused.inc();
                return Some(tunnel);
            }
        }
    }

    fn pop(&self, key: &Key) -> Option<Idle> {
        let mut lists = self.lists.lock();
        let list = lists.by_key.get_mut(key)?;
        let idle = list.pop();
        if list.is_empty() {
            lists.by_key.remove(key);
        }
        if idle.is_some() {
            lists.total -= 1;
            self.metrics.tunnels_idle.set(count(lists.total));
        }
        idle
    }

    /// Keeps `tunnel` for the next connection, if it is of use and there is room.
    pub fn put(self: &Arc<Self>, key: Key, tunnel: Tunnel) {
        let slot = Arc::new(Slot { tunnel: Mutex::new(None), reader: AtomicWaker::new() });
        if !tunnel.is_reusable() || !self.has_room(&key) {
            tokio::spawn(tunnel.close(GOODBYE));
            return;
        }
        *slot.tunnel.lock() = Some(tunnel);
        {
            let mut lists = self.lists.lock();
            let idle = Idle { slot: slot.clone(), since: Instant::now() };
            lists.by_key.entry(key.clone()).or_default().push(idle);
            lists.total += 1;
            self.metrics.tunnels_idle.set(count(lists.total));
        }
        tokio::spawn(self.clone().read(key, slot));
    }

    fn has_room(&self, key: &Key) -> bool {
        let lists = self.lists.lock();
        let of_peer = lists.by_key.get(key).map_or(0, Vec::len);
        let limit = match () {
            () if lists.closed => return false,
            () if of_peer >= self.per_peer => "idle_tunnels_per_peer",
            () if lists.total >= self.total => "idle_tunnels",
            () => return true,
        };
        self.metrics.count_limit(limit);
        false
    }

    /// Reads from an idle tunnel until somebody takes it or it is of no further use.
    async fn read(self: Arc<Self>, key: Key, slot: Arc<Slot>) {
        let ended = poll_fn(|cx| {
            slot.reader.register(cx.waker());
            let mut place = slot.tunnel.lock();
            match place.as_mut().map(|tunnel| tunnel.poll_idle(cx)) {
                None => Poll::Ready(None),
                Some(Poll::Pending) => Poll::Pending,
                Some(Poll::Ready(())) => Poll::Ready(place.take()),
            }
        })
        .await;
        if let Some(tunnel) = ended {
            self.remove(&key, &slot);
            tunnel.close(GOODBYE).await;
        }
    }

    fn remove(&self, key: &Key, slot: &Arc<Slot>) {
        let mut lists = self.lists.lock();
        let Some(list) = lists.by_key.get_mut(key) else { return };
        let before = list.len();
        list.retain(|idle| !Arc::ptr_eq(&idle.slot, slot));
        let gone = before - list.len();
        if list.is_empty() {
            lists.by_key.remove(key);
        }
        lists.total -= gone;
        self.metrics.tunnels_idle.set(count(lists.total));
    }

    /// Closes the idle tunnels for `key`, whose peer has given no sign of life on another one: they lead to nobody
    /// either, and the next connection shall find that out by dialling, which takes less and leaves it other endpoints.
    pub fn forget(&self, key: &Key) {
        let gone = {
            let mut lists = self.lists.lock();
            let gone = lists.by_key.remove(key).unwrap_or_default();
            lists.total -= gone.len();
            self.metrics.tunnels_idle.set(count(lists.total));
            gone
        };
        for tunnel in gone.into_iter().filter_map(|idle| idle.slot.take()) {
            tokio::spawn(tunnel.close(GOODBYE));
        }
    }

    /// Closes what is past its time or no longer `wanted`.
    pub fn sweep(&self, wanted: impl Fn(&Key) -> bool) {
        let now = Instant::now();
        let mut gone = Vec::new();
        {
            let mut lists = self.lists.lock();
            lists.by_key.retain(|key, list| {
                let keep = wanted(key);
                let past = |idle: &mut Idle| !keep || now.duration_since(idle.since) >= self.idle;
                gone.extend(list.extract_if(.., past));
                !list.is_empty()
            });
            lists.total -= gone.len();
            self.metrics.tunnels_idle.set(count(lists.total));
        }
        for tunnel in gone.into_iter().filter_map(|idle| idle.slot.take()) {
            tokio::spawn(tunnel.close(GOODBYE));
        }
    }

    /// Sweeps for ever. `wanted` says which keys a connection could still ask for.
    pub async fn keep_swept(self: Arc<Self>, wanted: impl Fn(&Key) -> bool) {
        let mut ticks = tokio::time::interval(SWEEP);
        loop {
            ticks.tick().await;
            self.sweep(&wanted);
        }
    }

    /// Closes everything and takes nothing any more.
    pub fn close(&self) {
        self.lists.lock().closed = true;
        self.sweep(|_| false);
    }

    /// How many tunnels are idle.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.lists.lock().total
    }
}

impl Slot {
    /// Takes the tunnel out; the task that reads from it ends.
    fn take(&self) -> Option<Tunnel> {
        let tunnel = self.tunnel.lock().take();
        self.reader.wake();
        tunnel
    }
}

fn count(total: usize) -> i64 {
    i64::try_from(total).unwrap_or(i64::MAX)
}
