//! Redirects that were gone for a while and set again. What passed meanwhile nobody saw, so that it counts as what was
//! seen to pass by: for a quiet period, and as long as the pod is there. Each pod is told of once.

use crate::clock;
use crate::facts::{Facts, Millis, Pod, PodClass};
use crate::memory::{Memory, short};
use std::collections::BTreeSet;

/// A redirect that somebody removes again and again is told of no more often than this; the same time, reported twice,
/// may also seem to differ a little.
const TOLD_EVERY: Millis = 60_000;
/// At most so many pods of a namespace are remembered; one of them holds a promotion back as well as all.
const REMEMBERED: usize = 256;

/// Notes of each pod when its redirect was last gone, and forgets pods that are gone and what is too old to count; the
/// pods to tell of.
pub(crate) fn remember(memory: &mut Memory, facts: &Facts) -> Option<String> {
    let cutoff = cutoff(memory, facts);
    let mut news = Vec::new();
    for pod in started(facts) {
        let Some(gone) = pod.redirect_gone.filter(|gone| gone.last >= cutoff) else { continue };
        let known = memory.gone.get(short(&pod.uid)).copied();
        let is_new = known.is_none_or(|known| gone.last > known.saturating_add(TOLD_EVERY));
        if is_new && (known.is_some() || memory.gone.len() < REMEMBERED) {
            memory.gone.insert(short(&pod.uid).to_owned(), gone.last);
            news.push(named(pod));
        }
    }
    if !memory.gone.is_empty() {
        let there = facts.pods.iter().filter(|pod| pod.class != PodClass::Ended);
        let there: BTreeSet<&str> = there.map(|pod| short(&pod.uid)).collect();
        memory.gone.retain(|uid, last| *last >= cutoff && there.contains(uid.as_str()));
    }
    (!news.is_empty()).then(|| news.join(", "))
}

/// Pods whose redirect was gone within the quiet period.
pub(crate) fn lately<'a>(memory: &Memory, facts: &'a Facts) -> Vec<&'a Pod> {
    let cutoff = cutoff(memory, facts);
    let is_gone = |pod: &&Pod| {
        pod.redirect_gone.is_some_and(|gone| gone.last >= cutoff) || memory.gone.contains_key(short(&pod.uid))
    };
    started(facts).filter(is_gone).collect()
}

/// The pod, and how often it was if more than once.
pub(crate) fn named(pod: &Pod) -> String {
    match pod.redirect_gone {
        Some(gone) if gone.times > 1 => format!("{} ({} times)", pod.name, gone.times),
        _ => pod.name.clone(),
    }
}

fn cutoff(memory: &Memory, facts: &Facts) -> Millis {
    facts.now.saturating_sub(clock::period(memory, facts))
}

/// A pod that is gone or has ended takes along what went past its proxy.
fn started(facts: &Facts) -> impl Iterator<Item = &Pod> {
    facts.pods.iter().filter(|pod| pod.class == PodClass::Started)
}
