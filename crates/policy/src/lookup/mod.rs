//! Immutable tables that answer which of many values hold of one: exact strings by hash, prefixes, suffixes and
//! address blocks by search. Built once, searched without an allocation.

mod affix;
mod blocks;
mod hash;
mod texts;

pub(crate) use affix::{Affixes, Side};
pub(crate) use blocks::Blocks;
pub(crate) use hash::FastMap;
pub(crate) use texts::{Key, Scattered, TextSet};
