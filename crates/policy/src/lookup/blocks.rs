//! Many address blocks, and which of them hold an address. CIDR blocks lie apart or one in the other, so the
//! blocks around an address are the last one that begins at or before it, and those around that one: the path of
//! a prefix trie, in two sorted arrays.

use ipnet::IpNet;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Blocks<T> {
    v4: Vec<Entry<T>>,
    v6: Vec<Entry<T>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Entry<T> {
    first: u128,
    last: u128,
    parent: Option<u32>,
    item: T,
}

impl<T> Blocks<T> {
    /// Builds the table; equal blocks must have been joined before.
    pub(crate) fn new(items: impl IntoIterator<Item = (IpNet, T)>) -> Self {
        let (mut v4, mut v6) = (BTreeMap::new(), BTreeMap::new());
        for (block, item) in items {
            let ends = (number(block.network()), Reverse(number(block.broadcast())));
            match block {
                IpNet::V4(_) => v4.insert(ends, item),
                IpNet::V6(_) => v6.insert(ends, item),
            };
        }
        Blocks { v4: nested(v4), v6: nested(v6) }
    }

    /// The items of all blocks that hold `address`, the narrowest first.
    pub(crate) fn of(&self, address: IpAddr) -> impl Iterator<Item = &T> {
        let entries = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        let address = number(address);
        let above = entries.partition_point(|entry| entry.first <= address);
        let mut next = u32::try_from(above).ok().and_then(|above| above.checked_sub(1));
        std::iter::from_fn(move || {
            loop {
                let entry = entries.get(next? as usize)?;
                next = entry.parent;
                if address <= entry.last {
                    return Some(&entry.item);
                }
            }
        })
    }

    /// The items, in no particular order.
    pub(crate) fn items(&self) -> impl Iterator<Item = &T> {
        self.v4.iter().chain(&self.v6).map(|entry| &entry.item)
    }
}

impl<T> Blocks<T> {
    /// Whether any block holds `address`.
    pub(crate) fn hold(&self, address: IpAddr) -> bool {
        self.of(address).next().is_some()
    }
}

/// Sorted by their beginnings, of equal beginnings the widest first: each block comes after what surrounds it.
fn nested<T>(sorted: BTreeMap<(u128, Reverse<u128>), T>) -> Vec<Entry<T>> {
    let mut entries: Vec<Entry<T>> = Vec::with_capacity(sorted.len());
    for ((first, Reverse(last)), item) in sorted {
        let mut parent = u32::try_from(entries.len()).ok().and_then(|len| len.checked_sub(1));
        while let Some(entry) = parent.and_then(|at| entries.get(at as usize)) {
            if first <= entry.last {
                break;
            }
            parent = entry.parent;
        }
        entries.push(Entry { first, last, parent, item });
    }
    entries
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_block() -> impl Strategy<Value = IpNet> {
        (0..16_u32, 26..=32_u8).prop_map(|(last, length)| {
            IpNet::new(IpAddr::from((0x0A00_0000 + last * 4).to_be_bytes()), length).unwrap().trunc()
        })
    }

    proptest! {
        #[test]
        fn the_blocks_found_are_those_that_a_scan_finds(
            blocks in prop::collection::btree_set(any_block(), 0..20),
            last in 0..70_u32,
        ) {
            let address = IpAddr::from((0x0A00_0000 + last).to_be_bytes());
            let mut found: Vec<_> =
                Blocks::new(blocks.iter().map(|block| (*block, *block))).of(address).copied().collect();
            found.sort();
            let scanned: Vec<_> = blocks.iter().filter(|block| block.contains(&address)).copied().collect();
            prop_assert_eq!(found, scanned);
        }
    }

    #[test]
    fn families_are_apart() {
        let all = Blocks::new([("::/0".parse().unwrap(), ())]);
        assert!(all.hold("2001:db8::1".parse().unwrap()));
        assert!(!all.hold("10.0.0.1".parse().unwrap()));
        assert!(Blocks::new([("0.0.0.0/0".parse().unwrap(), ())]).hold("255.255.255.255".parse().unwrap()));
    }
}
