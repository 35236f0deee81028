//! From a watch's events to apply and delete: the same for every kind. A re-list drops what it did not name,
//! also when it was broken off and began anew.

use kube::runtime::watcher::Event;
use std::collections::HashSet;
use std::hash::Hash;

/// A kind of object that the state keeps under a key.
pub(crate) trait Table<K> {
    /// What identifies an object; for pods their UID, as a name may be given anew.
    type Key: Clone + Eq + Hash;
    /// The key of an object; `None` for one that the table does not keep.
    fn key(&mut self, object: &K) -> Option<Self::Key>;
    /// Takes an object's newest state; says whether anything changed.
    fn apply(&mut self, object: &K) -> bool;
    /// Forgets an object; says whether anything changed.
    fn remove(&mut self, key: &Self::Key) -> bool;
    /// The keys of all objects.
    fn keys(&self) -> Vec<Self::Key>;
    /// Everything has been listed; says whether that is the first time.
    fn listed(&mut self) -> bool;
}

/// Where one watch stands.
#[derive(Debug)]
pub(crate) struct Feed<Key> {
    /// The keys named since the re-list began; `None` outside of one.
    relisted: Option<HashSet<Key>>,
}

impl<Key> Default for Feed<Key> {
    fn default() -> Self {
        Self { relisted: None }
    }
}

impl<Key: Clone + Eq + Hash> Feed<Key> {
    /// Hands one event to `table`; says whether anything changed.
    pub(crate) fn event<K, T: Table<K, Key = Key>>(&mut self, table: &mut T, event: Event<K>) -> bool {
        match event {
            Event::Init => {
                self.relisted = Some(HashSet::new());
                false
            }
            Event::InitApply(object) => {
                let Some(key) = table.key(&object) else { return false };
                if let Some(relisted) = &mut self.relisted {
                    relisted.insert(key);
                }
                table.apply(&object)
            }
            Event::InitDone => {
                let mut changed = false;
                if let Some(relisted) = self.relisted.take() {
                    for key in table.keys().iter().filter(|key| !relisted.contains(*key)) {
                        changed |= table.remove(key);
                    }
                }
                table.listed() || changed
            }
            Event::Apply(object) => match table.key(&object) {
                Some(_) => table.apply(&object),
                None => false,
            },
            Event::Delete(object) => match table.key(&object) {
                Some(key) => table.remove(&key),
                None => false,
            },
        }
    }
}
