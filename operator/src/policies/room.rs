//! Rounds over all policies: judge, tell postures, write what has changed. At most some writes a round and a round a
//! second, so that a mesh full of changes does not flood the API server.

use super::Parts;
use super::gather::{self, Judged, Sources};
use super::verdict::Verdict;
use super::write::{self, Written};
use crate::index::{PolicyInfo, PolicyKey};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// Objects that are read or written in one round.
const WRITES: usize = 20;
/// The status of one object is written at most so often: a rollout changes its counts with each pod.
const WRITE_EVERY: Duration = Duration::from_secs(2);

/// What we wrote for an object.
#[derive(Debug)]
struct Shown {
    info: Arc<PolicyInfo>,
    verdict: Verdict,
    at: Instant,
}

/// What is left to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    /// Objects wait for their turn.
    Some,
}

pub(super) struct Room {
    parts: Parts,
    shown: BTreeMap<PolicyKey, Shown>,
}

impl Room {
    pub(super) fn new(parts: Parts) -> Self {
        Room { parts, shown: BTreeMap::new() }
    }

    /// Looks at every policy once.
    pub(super) async fn round(&mut self) -> Left {
        let parts = &self.parts;
        let judged = gather::judge(&Sources {
            index: &parts.index,
            sessions: &parts.sessions,
            keys: &parts.keys,
            root: &parts.settings.root_namespace,
        });
        parts.broken.take(&judged);
        self.forget(&judged).await;
        let now = Instant::now();
        let waiting: Vec<&Judged> = judged.values().filter(|judged| self.differs(judged)).collect();
        let due: Vec<&Judged> =
            waiting.iter().copied().filter(|judged| self.may(judged, now)).take(WRITES).collect();
        let left = if due.len() < waiting.len() { Left::Some } else { Left::Nothing };
        let mut failed = false;
        for judged in due {
            failed |= !self.show(judged).await;
        }
        if failed { Left::Some } else { left }
    }

    /// Another object of the same name, or another verdict, than what was shown.
    fn differs(&self, judged: &Judged) -> bool {
        let shown = self.shown.get(&judged.info.key);
        shown.is_none_or(|shown| shown.info.uid != judged.info.uid || shown.verdict != judged.verdict)
    }

    fn may(&self, judged: &Judged, now: Instant) -> bool {
        let shown = self.shown.get(&judged.info.key);
        shown.is_none_or(|shown| now.duration_since(shown.at) >= WRITE_EVERY)
    }

    async fn show(&mut self, judged: &Judged) -> bool {
        let (info, verdict) = (Arc::clone(&judged.info), judged.verdict.clone());
        match write::show(&self.parts.client, &info, &verdict).await {
            // A new object of the name has another UID, so that one is shown as soon as its event has come.
            Ok(written @ (Written::Done | Written::Same | Written::Gone)) => {
                debug!(policy = %info.key, ?written, "the status of a policy was looked after");
                self.shown.insert(info.key.clone(), Shown { info, verdict, at: Instant::now() });
                true
            }
            Err(error) => {
                warn!(policy = %info.key, %error, "the status of a policy could not be written and is tried again");
                false
            }
        }
    }

    /// Policies that went are forgotten; where a namespace left the mesh, our status goes too.
    async fn forget(&mut self, judged: &BTreeMap<PolicyKey, Judged>) {
        let gone: Vec<PolicyKey> =
            self.shown.keys().filter(|key| !judged.contains_key(*key)).cloned().collect();
        if gone.is_empty() {
            return;
        }
        let alive: BTreeSet<Arc<str>> =
            self.parts.index.policies().iter().map(|info| Arc::clone(&info.uid)).collect();
        for key in gone.iter().take(WRITES) {
            let Some(shown) = self.shown.remove(key) else { continue };
            if !alive.contains(&shown.info.uid) {
                continue;
            }
            if let Err(error) = write::clear(&self.parts.client, &shown.info).await {
                warn!(policy = %key, %error, "the status of a policy whose namespace left could not be cleared and is tried again");
                self.shown.insert(key.clone(), shown);
            }
        }
    }
}
