//! Many prefixes (or suffixes), and which of them a value has.
//!
//! The keys are sorted; each knows the longest other key that it begins with. All keys that a value begins with
//! are found from the greatest key not above the value upwards along these links: whatever lies between a prefix
//! of the value and the value begins with that prefix too.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Where the keys stand in a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Start,
    End,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Affixes<T> {
    side: Side,
    entries: Vec<Entry<T>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Entry<T> {
    key: Box<[u8]>,
    parent: Option<u32>,
    item: T,
}

impl<T> Affixes<T> {
    /// Builds the table; equal keys must have been joined before.
    pub(crate) fn new(side: Side, items: impl IntoIterator<Item = (Vec<u8>, T)>) -> Self {
        // Suffixes are sorted from their ends.
        let mut sorted = BTreeMap::new();
        for (key, item) in items {
            let order: Vec<u8> = match side {
                Side::Start => key.clone(),
                Side::End => key.iter().rev().copied().collect(),
            };
            sorted.insert(order, (key, item));
        }
        let mut entries: Vec<Entry<T>> = Vec::with_capacity(sorted.len());
        for (_, (key, item)) in sorted {
            // The entry before is the longest affix, or shares it.
            let mut parent = u32::try_from(entries.len()).ok().and_then(|len| len.checked_sub(1));
            while let Some(entry) = parent.and_then(|at| entries.get(at as usize)) {
                if has(side, &entry.key, &key) {
                    break;
                }
                parent = entry.parent;
            }
            entries.push(Entry { key: key.into(), parent, item });
        }
        Affixes { side, entries }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().map(|entry| &*entry.key)
    }

    /// The items, in no particular order.
    pub(crate) fn items(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|entry| &entry.item)
    }

    /// The items of all keys that `value` has, the longest first.
    pub(crate) fn of<'s>(&'s self, value: &'s [u8]) -> impl Iterator<Item = &'s T> {
        let above =
            self.entries.partition_point(|entry| compare(self.side, &entry.key, value) != Ordering::Greater);
        let mut next = u32::try_from(above).ok().and_then(|above| above.checked_sub(1));
        std::iter::from_fn(move || {
            loop {
                let entry = self.entries.get(next? as usize)?;
                next = entry.parent;
                if has(self.side, &entry.key, value) {
                    return Some(&entry.item);
                }
            }
        })
    }
}

fn compare(side: Side, key: &[u8], value: &[u8]) -> Ordering {
    match side {
        Side::Start => key.cmp(value),
        Side::End => key.iter().rev().cmp(value.iter().rev()),
    }
}

fn has(side: Side, key: &[u8], value: &[u8]) -> bool {
    match side {
        Side::Start => value.starts_with(key),
        Side::End => value.ends_with(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_keys_found_are_those_that_a_scan_finds(
            keys in prop::collection::btree_set("[ab]{0,5}", 0..20),
            value in "[abc]{0,7}",
        ) {
            let items = || keys.iter().map(|key| (key.clone().into_bytes(), key.clone()));
            let mut starts: Vec<_> = Affixes::new(Side::Start, items()).of(value.as_bytes()).cloned().collect();
            let mut ends: Vec<_> = Affixes::new(Side::End, items()).of(value.as_bytes()).cloned().collect();
            starts.sort();
            ends.sort();
            let begins: Vec<_> = keys.iter().filter(|key| value.starts_with(key.as_str())).cloned().collect();
            let finishes: Vec<_> = keys.iter().filter(|key| value.ends_with(key.as_str())).cloned().collect();
            prop_assert_eq!(starts, begins);
            prop_assert_eq!(ends, finishes);
        }
    }
}
