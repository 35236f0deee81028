//! Who is connected: one entry for each pod whose proxy has a bound stream, with what it acknowledged.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Bytes of a nack that are kept; proxies send no longer ones.
const MAX_NACK: usize = 64 * 1024;

/// The registry of bound streams. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    by_pod: Mutex<Table>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Arc<str>, Entry>,
    next: u64,
}

/// What a pod's proxy last said of its policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acked {
    /// The version in force, on live connections too.
    pub version: u64,
    /// What of it could not be used, in the proxy's words: lines of `namespace/name: what is wrong`; empty when all
    /// of it is in force as meant.
    pub nack: Arc<str>,
    /// When it said so.
    pub at: Instant,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    /// The policy that it said to hold when the stream began.
    held: Option<u64>,
    acked: Option<Acked>,
    cancel: CancellationToken,
}

impl Sessions {
    /// The policy version that a pod's proxy says is in force; `None` while it is not connected or has none.
    #[must_use]
    pub fn acknowledged(&self, pod_uid: &str) -> Option<u64> {
        let table = self.shared.by_pod.lock();
        let entry = table.entries.get(pod_uid)?;
        entry.acked.as_ref().map(|acked| acked.version).or(entry.held)
    }

    /// What a pod's proxy last acknowledged on the stream that it has now; `None` while it has not.
    #[must_use]
    pub fn acked(&self, pod_uid: &str) -> Option<Acked> {
        self.shared.by_pod.lock().entries.get(pod_uid).and_then(|entry| entry.acked.clone())
    }

    /// The pod's proxy has a bound stream.
    #[must_use]
    pub fn connected(&self, pod_uid: &str) -> bool {
        self.shared.by_pod.lock().entries.contains_key(pod_uid)
    }

    /// How many streams are bound.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shared.by_pod.lock().entries.len()
    }

    /// A number that grows whenever a stream comes, goes or acknowledges.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Enters a stream; an older one of the same pod is told to end, since a proxy has one stream only.
    /// `policy_version` is what the proxy said to hold, 0 for none.
    #[must_use]
    pub fn open(&self, pod_uid: &str, policy_version: u64) -> SessionEntry {
        let pod_uid: Arc<str> = pod_uid.into();
        let cancel = CancellationToken::new();
        let number = {
            let mut table = self.shared.by_pod.lock();
            table.next += 1;
            let number = table.next;
            let entry = Entry {
                number,
                held: Some(policy_version).filter(|version| *version != 0),
                acked: None,
                cancel: cancel.clone(),
            };
            if let Some(older) = table.entries.insert(Arc::clone(&pod_uid), entry) {
                older.cancel.cancel();
            }
            number
        };
        self.changed();
        SessionEntry { sessions: self.clone(), pod_uid, number, cancel }
    }

    fn changed(&self) {
        self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// A bound stream's place in the registry; dropping it takes the stream out.
#[derive(Debug)]
pub struct SessionEntry {
    sessions: Sessions,
    pod_uid: Arc<str>,
    number: u64,
    cancel: CancellationToken,
}

impl SessionEntry {
    /// Notes what the proxy acknowledged.
    pub fn acknowledge(&self, policy_version: u64, nack: &str) {
        {
            let mut table = self.sessions.shared.by_pod.lock();
            let Some(entry) = table.entries.get_mut(&self.pod_uid).filter(|e| e.number == self.number) else {
                return;
            };
            entry.acked = acked(policy_version, nack);
            entry.held = None;
        }
        self.sessions.changed();
    }

    /// Fires when a newer stream of the same pod took the place.
    #[must_use]
    pub fn superseded(&self) -> &CancellationToken {
        &self.cancel
    }
}

impl Drop for SessionEntry {
    fn drop(&mut self) {
        {
            let mut table = self.sessions.shared.by_pod.lock();
            if table.entries.get(&self.pod_uid).is_some_and(|entry| entry.number == self.number) {
                table.entries.remove(&self.pod_uid);
            }
        }
        self.sessions.changed();
    }
}

/// Version 0 means that the proxy has no policy. The nack is kept for status, so it may not be long.
fn acked(version: u64, nack: &str) -> Option<Acked> {
    let nack = nack.get(..nack.floor_char_boundary(MAX_NACK)).unwrap_or_default();
    (version != 0).then(|| Acked { version, nack: nack.into(), at: Instant::now() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_known_from_open_to_drop() {
        let sessions = Sessions::default();
        let entry = sessions.open("a", 0);
        assert!(sessions.connected("a"));
        assert_eq!(sessions.acknowledged("a"), None);
        entry.acknowledge(7, "");
        assert_eq!(sessions.acknowledged("a"), Some(7));
        drop(entry);
        assert!(!sessions.connected("a"));
        assert_eq!((sessions.acknowledged("a"), sessions.count()), (None, 0));
    }

    #[test]
    fn the_last_acknowledgement_and_its_nack_are_kept() {
        let sessions = Sessions::default();
        let entry = sessions.open("a", 3);
        assert_eq!(
            (sessions.acknowledged("a"), sessions.acked("a")),
            (Some(3), None),
            "nothing is acked yet"
        );
        entry.acknowledge(7, "shop/broken: no: such field\nshop/late: lacks a feature");
        let acked = sessions.acked("a").unwrap();
        assert_eq!((acked.version, acked.nack.lines().count()), (7, 2));
        assert_eq!(sessions.acknowledged("a"), Some(7));
        entry.acknowledge(8, &"x".repeat(10 * MAX_NACK));
        assert_eq!(sessions.acked("a").unwrap().nack.len(), MAX_NACK, "a nack is bounded");
        entry.acknowledge(9, "");
        assert_eq!(sessions.acked("a").map(|acked| (acked.version, acked.nack)), Some((9, "".into())));
    }

    #[test]
    fn a_newer_stream_of_the_same_pod_takes_the_place() {
        let sessions = Sessions::default();
        let older = sessions.open("a", 3);
        let newer = sessions.open("a", 5);
        assert!(older.superseded().is_cancelled());
        older.acknowledge(9, "late");
        drop(older);
        assert!(sessions.connected("a"));
        assert_eq!(sessions.acknowledged("a"), Some(5));
        assert!(!newer.superseded().is_cancelled());
    }
}
