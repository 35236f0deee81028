//! One watched kind of object as a table of what we keep of each, by namespace and name.

use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// Tells waiters that some table changed.
#[derive(Clone)]
pub struct Changes(watch::Sender<u64>);

impl Default for Changes {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Changes {
    /// Wakes whoever waits.
    pub fn announce(&self) {
        self.0.send_modify(|generation| *generation += 1);
    }

    /// A receiver that sees changes from now on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// What happens to a table: the events of a watch, reduced to what is kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<V> {
    /// A new list begins.
    Begin,
    /// An object of the list.
    Listed(Key, Option<V>),
    /// The list is complete; what it did not name is gone.
    Complete,
    /// An object is there or has changed; `None` keeps nothing of it.
    Upsert(Key, Option<V>),
    /// An object is gone.
    Remove(Key),
}

/// Namespace (empty for cluster-wide kinds) and name, as `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key(String);

impl Key {
    /// A key of its parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}"))
    }
}

/// The table. Readers never see half a list.
pub struct Table<V> {
    entries: RwLock<HashMap<Key, V>>,
    listing: RwLock<Option<HashMap<Key, V>>>,
    synced: AtomicBool,
    changes: Changes,
}

impl<V: Clone + PartialEq> Table<V> {
    /// An empty table that has not been listed.
    #[must_use]
    pub fn new(changes: Changes) -> Self {
        Self {
            entries: RwLock::default(),
            listing: RwLock::default(),
            synced: AtomicBool::new(false),
            changes,
        }
    }

    /// What is kept of an object.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<V> {
        self.entries.read().get(&Key::new(namespace, name)).cloned()
    }

    /// The first entry for which `find` gives something.
    pub fn find<T>(&self, find: impl FnMut(&V) -> Option<T>) -> Option<T> {
        self.entries.read().values().find_map(find)
    }

    /// What `keep` gives of each entry, in no order.
    pub fn collect<T>(&self, keep: impl FnMut(&V) -> Option<T>) -> Vec<T> {
        self.entries.read().values().filter_map(keep).collect()
    }

    /// Whether a list has been complete once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// Takes the kind as listed although it can't be: its definition is missing, so there are no objects.
    pub fn assume_empty(&self) {
        if !self.synced.swap(true, Ordering::AcqRel) {
            self.changes.announce();
        }
    }

    /// Takes one event in.
    pub fn apply(&self, event: Event<V>) {
        let changed = match event {
            Event::Begin => {
                *self.listing.write() = Some(HashMap::new());
                false
            }
            Event::Listed(key, value) => {
                if let (Some(listing), Some(value)) = (self.listing.write().as_mut(), value) {
                    listing.insert(key, value);
                }
                false
            }
            Event::Complete => {
                let listed = self.listing.write().take().unwrap_or_default();
                let mut entries = self.entries.write();
                let differs = *entries != listed;
                *entries = listed;
                !self.synced.swap(true, Ordering::AcqRel) || differs
            }
            Event::Upsert(key, Some(value)) => {
                let mut entries = self.entries.write();
                let differs = entries.get(&key) != Some(&value);
                entries.insert(key, value);
                differs
            }
            Event::Upsert(key, None) | Event::Remove(key) => self.entries.write().remove(&key).is_some(),
        };
        if changed {
            self.changes.announce();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    #[test]
    fn a_new_list_replaces_what_was_there_at_once_and_as_a_whole() {
        let table = Table::new(Changes::default());
        table.apply(Event::Begin);
        table.apply(Event::Listed(key("a"), Some(1)));
        assert!(!table.is_synced());
        table.apply(Event::Complete);
        assert!(table.is_synced());
        table.apply(Event::Begin);
        table.apply(Event::Listed(key("b"), Some(2)));
        assert_eq!((table.get("ns", "a"), table.get("ns", "b")), (Some(1), None));
        table.apply(Event::Complete);
        assert_eq!((table.get("ns", "a"), table.get("ns", "b")), (None, Some(2)));
    }

    #[test]
    fn only_what_changes_wakes_waiters() {
        let changes = Changes::default();
        let table = Table::new(changes.clone());
        let mut waiter = changes.subscribe();
        table.apply(Event::Upsert(key("a"), Some(1)));
        assert!(waiter.has_changed().unwrap());
        waiter.borrow_and_update();
        table.apply(Event::Upsert(key("a"), Some(1)));
        table.apply(Event::Remove(key("b")));
        assert!(!waiter.has_changed().unwrap());
        table.apply(Event::Upsert(key("a"), None));
        assert!(waiter.has_changed().unwrap());
        assert_eq!(table.get("ns", "a"), None);
    }
}
