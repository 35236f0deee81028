//! What passes by proxies, and until when it counts. The newest time of each pod is remembered from one leader to the
//! next: a proxy that has started anew does not know what was seen before it.

use crate::clock;
use crate::facts::{Bypass, Facts, Millis, Pod, PodClass, Transport};
use crate::memory::{Memory, short};
use std::collections::BTreeSet;

/// The same sighting, reported twice, may seem to have come this much later.
const BLUR: Millis = 1_000;
/// At most so many pods of a namespace are remembered; one of them holds a promotion back as well as all.
const REMEMBERED: usize = 256;

/// Notes of each pod when TCP was last seen to pass by, and forgets pods that are gone and what is too old to count.
pub(crate) fn remember(memory: &mut Memory, facts: &Facts) {
    for pod in started(facts) {
        let Some(newest) = newest(pod, Transport::Tcp) else { continue };
        let uid = short(&pod.uid);
        let known = memory.bypass.get(uid).copied();
        let newer = known.is_none_or(|known| newest.last_seen > known.saturating_add(BLUR));
        if newer && (known.is_some() || memory.bypass.len() < REMEMBERED) {
            memory.bypass.insert(uid.to_owned(), newest.last_seen);
        }
    }
    if memory.bypass.is_empty() {
        return;
    }
    let cutoff = cutoff(memory, facts);
    let there = facts.pods.iter().filter(|pod| pod.class != PodClass::Ended);
    let there: BTreeSet<&str> = there.map(|pod| short(&pod.uid)).collect();
    memory.bypass.retain(|uid, seen| *seen >= cutoff && there.contains(uid.as_str()));
}

/// Pods of which TCP passes by the proxy, and what it is, as far as this leader has heard.
pub(crate) fn of_tcp<'a>(memory: &Memory, facts: &'a Facts) -> Vec<(&'a Pod, Option<&'a Bypass>)> {
    let cutoff = cutoff(memory, facts);
    let lately = |pod| newest(pod, Transport::Tcp).filter(|seen| seen.last_seen >= cutoff);
    let remembered = |pod: &Pod| memory.bypass.contains_key(short(&pod.uid));
    let all = started(facts).map(|pod| (pod, lately(pod)));
    all.filter(|(pod, seen)| seen.is_some() || remembered(pod)).collect()
}

/// Pods that speak UDP, with the newest of it.
pub(crate) fn of_udp<'a>(memory: &Memory, facts: &'a Facts) -> Vec<(&'a Pod, &'a Bypass)> {
    let cutoff = cutoff(memory, facts);
    let lately = |pod| newest(pod, Transport::Udp).filter(|seen| seen.last_seen >= cutoff);
    started(facts).filter_map(|pod| Some((pod, lately(pod)?))).collect()
}

/// As with plaintext, what was not seen for a whole quiet period no longer counts.
fn cutoff(memory: &Memory, facts: &Facts) -> Millis {
    facts.now.saturating_sub(clock::period(memory, facts))
}

/// A pod that is gone or has ended takes along what passed by it.
fn started(facts: &Facts) -> impl Iterator<Item = &Pod> {
    facts.pods.iter().filter(|pod| pod.class == PodClass::Started)
}

fn newest(pod: &Pod, transport: Transport) -> Option<&Bypass> {
    pod.bypass.iter().filter(|seen| seen.transport == transport).max_by_key(|seen| seen.last_seen)
}
