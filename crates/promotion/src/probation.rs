//! Who was served before the lock, and whose refusal after it is a reason to go back.

use crate::facts::{Facts, Millis, Source, SourceName};
use crate::memory::Memory;

/// At most so many workloads are remembered in each list; beyond it the newest are left out, and a workload
/// that existed before the lock still counts as one that would have been served.
const REMEMBERED: usize = 256;
/// Proxies learn within this time that the lock is gone.
const UNLOCKED_WITHIN: Millis = 30_000;

fn key(name: &SourceName) -> Option<String> {
    match name {
        SourceName::Workload { namespace, kind, name, .. } => Some(format!("{namespace}/{kind}/{name}")),
        SourceName::Node(_) | SourceName::External(_) => None,
    }
}

/// Notes who is served and who is only refused, until the lock.
pub(crate) fn remember(memory: &mut Memory, facts: &Facts) {
    if facts.namespace.locked || memory.locked_since.is_some() {
        return;
    }
    for source in &facts.plaintext.sources {
        let Some(key) = key(&source.name) else { continue };
        if source.counts.served > 0 {
            insert(&mut memory.served, &key);
        } else if source.last_denied.is_some_and(|time| time > memory.locked_until) {
            insert(&mut memory.refused, &key);
        }
    }
    let Memory { served, refused, .. } = memory;
    refused.retain(|key| served.binary_search(key).is_err());
}

/// Notes that the lock is gone.
pub(crate) fn unlocked(memory: &mut Memory, now: Millis) {
    if memory.locked_since.take().is_some() {
        memory.locked_until = now.saturating_add(UNLOCKED_WITHIN);
    }
}

/// Notes a client as one that would have been served.
pub(crate) fn note_served(memory: &mut Memory, name: &SourceName) {
    if let Some(key) = key(name) {
        insert(&mut memory.served, &key);
    }
}

fn insert(list: &mut Vec<String>, key: &str) {
    if let Err(at) = list.binary_search_by(|held| held.as_str().cmp(key))
        && list.len() < REMEMBERED
    {
        list.insert(at, key.to_owned());
    }
}

/// The source whose refusal since the lock takes it back: a workload that was served here before, or one that
/// existed then and would have been: no policy of now refuses it. Nodes, external addresses and newer workloads don't
/// count, so nobody can undo a lock by knocking from a new pod; nor by knocking where only peers that are known may.
pub(crate) fn broken_client<'a>(memory: &Memory, facts: &'a Facts) -> Option<&'a Source> {
    let locked_since = memory.locked_since?;
    facts.plaintext.sources.iter().find(|source| {
        let SourceName::Workload { created, .. } = &source.name else { return false };
        let Some(key) = key(&source.name) else { return false };
        let since_the_lock = |refused: Option<Millis>| refused.is_some_and(|time| time > locked_since);
        let was_served = memory.served.binary_search(&key).is_ok();
        let would_have_been = *created < locked_since && memory.refused.binary_search(&key).is_err();
        (was_served && since_the_lock(source.last_denied))
            || (would_have_been && since_the_lock(source.last_denied_by_mode))
    })
}
