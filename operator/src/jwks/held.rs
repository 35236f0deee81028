//! What is known of each source of keys: when it is fetched, what is held, and what went wrong last. Pure; the
//! room carries it out.

use super::fault::Fault;
use super::obtain::{KeySet, Origin};
use super::schedule::{Schedule, Timing};
use super::shares::{self, MOST_OF_ONE, Running};
use crate::index::Asker;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Sources that one operator fetches, of 256 KiB at most each. Beyond them a fault is told.
pub(super) const MOST_SOURCES: usize = 500;

/// A source as RequestAuthentications name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Where its keys are.
    pub(super) origin: Origin,
    /// How long a fetch may take.
    pub(super) timeout: Duration,
    /// Whose policies they are.
    pub(super) askers: BTreeSet<Asker>,
}

/// How it stands with a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyState {
    /// The first fetch has not ended yet.
    Pending,
    /// Keys are held and fresh.
    Held,
    /// The last fetch failed.
    Failed {
        /// Why.
        fault: Fault,
        /// Keys of an earlier fetch are still in use.
        keeps_old: bool,
    },
}

#[derive(Debug)]
struct Source {
    wanted: Wanted,
    schedule: Schedule,
    /// The number of the fetch that runs.
    running: Option<u64>,
    tried: bool,
    keys: Option<KeySet>,
    fault: Option<Fault>,
}

/// A fetch that is to be carried out.
#[derive(Debug)]
pub(super) struct Fetch {
    number: u64,
    /// The source's name.
    pub(super) name: Arc<str>,
    /// The source as it was when the fetch began.
    pub(super) wanted: Wanted,
}

/// All sources.
#[derive(Debug, Default)]
pub(super) struct Held {
    sources: BTreeMap<Arc<str>, Source>,
    /// For whom fetches run, by their numbers: also those of sources that have gone or become others since. Whoever
    /// renames his sources gets no more fetches by that.
    running: BTreeMap<u64, Wanted>,
    begun: u64,
    /// Sources over the bounds, and over which.
    left_out: BTreeMap<Arc<str>, Fault>,
}

/// What ended a fetch changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nobody wants the source any more, or what became of it since is fetched for itself.
    Unwanted,
    /// A new document is in force.
    Changed(Arc<[u8]>),
    /// The document is the one that was held.
    Same,
    /// It failed; what was held is still in force.
    Failed,
}

impl Held {
    /// Takes in which sources are wanted now; the names of those that are no longer, or have no place any more.
    pub(super) fn want(&mut self, wanted: BTreeMap<Arc<str>, Wanted>, now: Instant) -> Vec<Arc<str>> {
        let places = shares::places(&wanted);
        let fault = if places.len() < MOST_SOURCES {
            Fault::TooManyOfOne(MOST_OF_ONE)
        } else {
            Fault::TooMany(MOST_SOURCES)
        };
        let gone: Vec<_> = self.sources.keys().filter(|name| !places.contains(*name)).cloned().collect();
        for name in &gone {
            self.sources.remove(name);
        }
        self.left_out.clear();
        for (name, wanted) in wanted {
            match self.sources.get_mut(&name) {
                // The same name may have become an issuer's instead of a URI's.
                Some(source) if source.wanted.origin == wanted.origin => source.wanted = wanted,
                Some(source) => *source = Source::new(wanted, now),
                None if places.contains(&name) => {
                    self.sources.insert(name, Source::new(wanted, now));
                }
                None => {
                    self.left_out.insert(name, fault.clone());
                }
            }
        }
        gone
    }

    /// Sources that are due and whose askers have a fetch left, as many as `room` has, the longest due first; they count
    /// as running from now on.
    pub(super) fn begin(&mut self, now: Instant, room: usize, timing: &Timing) -> Vec<Fetch> {
        let mut running = self.running();
        let idle = self.sources.iter_mut().filter(|(_, source)| source.running.is_none());
        let mut due: Vec<_> = idle.filter(|(_, source)| source.schedule.due() <= now).collect();
        due.sort_by_key(|(_, source)| source.schedule.due());
        let mut begun = Vec::new();
        for (name, source) in due {
            if begun.len() < room && running.may_begin(&source.wanted) {
                running.add(&source.wanted);
                self.begun += 1;
                source.running = Some(self.begun);
                source.schedule.begin(now, timing);
                self.running.insert(self.begun, source.wanted.clone());
                begun.push(Fetch {
                    number: self.begun,
                    name: Arc::clone(name),
                    wanted: source.wanted.clone(),
                });
            }
        }
        begun
    }

    fn running(&self) -> Running {
        Running::of(self.running.values())
    }

    /// When the next one is due that may begin then; whoever waits for a fetch of his to end begins when it does.
    pub(super) fn next(&self) -> Option<Instant> {
        let running = self.running();
        let idle = self.sources.values().filter(|source| source.running.is_none());
        let idle = idle.filter(|source| running.may_begin(&source.wanted));
        idle.map(|source| source.schedule.due()).min()
    }

    /// A fetch ended. `chance` is between 0 and 1.
    pub(super) fn end(
        &mut self,
        fetch: &Fetch,
        result: Result<KeySet, Fault>,
        timing: &Timing,
        (now, chance): (Instant, f64),
    ) -> Outcome {
        self.running.remove(&fetch.number);
        let source = self.sources.get_mut(&fetch.name).filter(|source| source.running == Some(fetch.number));
        let Some(source) = source else { return Outcome::Unwanted };
        source.running = None;
        source.tried = true;
        match result {
            Ok(keys) => {
                source.schedule.succeeded(now, keys.max_age, timing, chance);
                source.fault = None;
                let same = source.keys.as_ref().is_some_and(|held| held.document == keys.document);
                let document = Arc::clone(&keys.document);
                source.keys = Some(keys);
                if same { Outcome::Same } else { Outcome::Changed(document) }
            }
            Err(fault) => {
                source.schedule.failed(now, timing, chance);
                source.fault = Some(fault);
                Outcome::Failed
            }
        }
    }

    /// A token named the key `kid` of `name`. Whether that brings a fetch sooner.
    pub(super) fn asked(&mut self, name: &str, kid: &str, now: Instant, timing: &Timing) -> bool {
        let Some(source) = self.sources.get_mut(name) else { return false };
        // A proxy may be a document behind.
        let known = source.keys.as_ref().is_some_and(|keys| keys.ids.contains(kid));
        !known && source.schedule.asked(now, timing)
    }

    /// How it stands with a source; `None` for one that nobody wants.
    pub(super) fn state(&self, name: &str) -> Option<KeyState> {
        if let Some(fault) = self.left_out.get(name) {
            return Some(KeyState::Failed { fault: fault.clone(), keeps_old: false });
        }
        let source = self.sources.get(name)?;
        Some(match (&source.fault, &source.keys) {
            (Some(fault), keys) => KeyState::Failed { fault: fault.clone(), keeps_old: keys.is_some() },
            (None, Some(_)) => KeyState::Held,
            (None, None) => KeyState::Pending,
        })
    }

    /// Every source has been tried once.
    pub(super) fn all_tried(&self) -> bool {
        self.sources.values().all(|source| source.tried)
    }

    /// How many there are, and how many of them failed last.
    pub(super) fn count(&self) -> (usize, usize) {
        let failing = self.sources.values().filter(|source| source.fault.is_some()).count();
        (self.sources.len() + self.left_out.len(), failing + self.left_out.len())
    }
}

impl Source {
    fn new(wanted: Wanted, now: Instant) -> Self {
        Source { wanted, schedule: Schedule::new(now), running: None, tried: false, keys: None, fault: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing { refresh: Duration::from_secs(1200), retry: Duration::from_secs(60) };

    fn wanted(name: &str) -> (Arc<str>, Wanted) {
        asked_by(Asker::Mesh, name)
    }

    fn asked_by(asker: Asker, name: &str) -> (Arc<str>, Wanted) {
        let (origin, timeout) = (Origin::Uri(name.to_owned()), Duration::from_secs(5));
        (name.into(), Wanted { origin, timeout, askers: [asker].into() })
    }

    fn keys(text: &str, ids: &[&str]) -> KeySet {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        KeySet { document: text.as_bytes().into(), ids, max_age: None }
    }

    fn ended(held: &mut Held, fetch: &Fetch, result: Result<KeySet, Fault>, now: Instant) -> Outcome {
        held.end(fetch, result, &TIMING, (now, 0.5))
    }

    /// Plays the one fetch that is due, which ends so.
    fn fetched(held: &mut Held, result: Result<KeySet, Fault>, now: Instant) -> Outcome {
        let begun = held.begin(now, 8, &TIMING);
        assert_eq!(begun.len(), 1);
        ended(held, &begun[0], result, now)
    }

    fn names(begun: &[Fetch]) -> Vec<&str> {
        begun.iter().map(|fetch| &*fetch.name).collect()
    }

    #[test]
    fn the_last_good_keys_stay_in_force_when_a_fetch_fails() {
        let (mut held, now) = (Held::default(), Instant::now());
        assert!(held.want([wanted("https://a/k")].into(), now).is_empty());
        assert_eq!(held.state("https://a/k"), Some(KeyState::Pending));
        let begun = held.begin(now, 8, &TIMING);
        assert_eq!(names(&begun), ["https://a/k"]);
        assert!(held.begin(now, 8, &TIMING).is_empty(), "it runs already");
        assert_eq!(ended(&mut held, &begun[0], Ok(keys("1", &[])), now), Outcome::Changed((*b"1").into()));
        let mut now = now;
        let mut fetched = |held: &mut Held, result| {
            now += 2 * TIMING.refresh;
            fetched(held, result, now)
        };
        assert_eq!(fetched(&mut held, Ok(keys("1", &[]))), Outcome::Same);
        let fault = Fault::Unresolved("a".to_owned());
        assert_eq!(fetched(&mut held, Err(fault.clone())), Outcome::Failed);
        assert_eq!(held.state("https://a/k"), Some(KeyState::Failed { fault, keeps_old: true }));
        assert_eq!(held.count(), (1, 1));
        assert_eq!(fetched(&mut held, Ok(keys("1", &[]))), Outcome::Same);
        assert_eq!(held.state("https://a/k"), Some(KeyState::Held));
    }

    #[test]
    fn a_source_that_nobody_wants_goes_and_what_comes_late_of_it_is_dropped() {
        let (mut held, now) = (Held::default(), Instant::now());
        held.want([wanted("https://a/k"), wanted("https://b/k")].into(), now);
        let begun = held.begin(now, 8, &TIMING);
        assert_eq!(names(&begun), ["https://a/k", "https://b/k"]);
        let gone = held.want([wanted("https://b/k")].into(), now);
        assert_eq!(gone, [Arc::from("https://a/k")]);
        assert_eq!(ended(&mut held, &begun[0], Ok(keys("1", &[])), now), Outcome::Unwanted);
        assert_eq!(held.state("https://a/k"), None);
    }

    #[test]
    fn a_namespace_that_names_other_sources_while_its_fetches_run_gets_no_more_of_them() {
        let (mut held, now) = (Held::default(), Instant::now());
        let of = |name: &str| asked_by(Asker::Namespace("greedy".into()), name);
        let mut begun = Vec::new();
        for number in 0..4 {
            held.want([of(&format!("https://{number}/a")), of(&format!("https://{number}/b"))].into(), now);
            begun.extend(held.begin(now, 8, &TIMING));
        }
        assert_eq!(names(&begun), ["https://0/a", "https://0/b"]);
        assert_eq!(held.next(), None, "those of now wait for these to end");
        assert_eq!(ended(&mut held, &begun[0], Ok(keys("1", &[])), now), Outcome::Unwanted);
        assert_eq!(names(&held.begin(now, 8, &TIMING)), ["https://3/a"]);
    }

    #[test]
    fn the_end_of_a_fetch_is_not_taken_for_that_of_a_later_one_of_the_same_name() {
        let (mut held, now) = (Held::default(), Instant::now());
        let (name, as_uri) = wanted("https://a/k");
        let as_issuer = Wanted { origin: Origin::Issuer(name.to_string()), ..as_uri.clone() };
        let mut begun = Vec::new();
        for wanted in [&as_uri, &as_issuer, &as_uri] {
            held.want([(Arc::clone(&name), wanted.clone())].into(), now);
            begun.extend(held.begin(now, 8, &TIMING));
        }
        assert_eq!(begun.len(), 3);
        assert_eq!(ended(&mut held, &begun[0], Ok(keys("old", &[])), now), Outcome::Unwanted);
        assert_eq!(ended(&mut held, &begun[1], Ok(keys("old", &[])), now), Outcome::Unwanted);
        assert!(held.begin(now, 8, &TIMING).is_empty(), "the third still runs");
        assert_eq!(
            ended(&mut held, &begun[2], Ok(keys("new", &[])), now),
            Outcome::Changed((*b"new").into())
        );
    }

    #[test]
    fn only_a_key_that_is_not_held_brings_a_fetch() {
        let (mut held, now) = (Held::default(), Instant::now());
        held.want([wanted("https://a/k")].into(), now);
        fetched(&mut held, Ok(keys("1", &["old"])), now);
        let later = now + Duration::from_secs(100);
        assert!(!held.asked("https://a/k", "old", later, &TIMING));
        assert!(!held.asked("https://other/k", "new", later, &TIMING));
        assert!(held.begin(later, 8, &TIMING).is_empty());
        assert!(held.asked("https://a/k", "new", later, &TIMING));
        assert_eq!(held.begin(later, 8, &TIMING).len(), 1);
    }

    #[test]
    fn sources_beyond_the_bound_are_told_and_not_fetched() {
        let (mut held, now) = (Held::default(), Instant::now());
        let many = (0..=MOST_SOURCES).map(|number| wanted(&format!("https://a/{number:04}"))).collect();
        held.want(many, now);
        assert_eq!(held.begin(now, usize::MAX, &TIMING).len(), MOST_SOURCES);
        let last = format!("https://a/{MOST_SOURCES:04}");
        let fault = Fault::TooMany(MOST_SOURCES);
        assert_eq!(held.state(&last), Some(KeyState::Failed { fault, keeps_old: false }));
        let few = [wanted(&last)].into();
        held.want(few, now);
        assert_eq!(held.state(&last), Some(KeyState::Pending));
    }

    #[test]
    fn a_namespace_whose_issuers_hang_delays_nobody_else_and_is_told_what_is_too_much() {
        let (mut held, start) = (Held::default(), Instant::now());
        let asker = |name: &str| Asker::Namespace(name.into());
        let greedy =
            (0..=MOST_OF_ONE).map(|number| asked_by(asker("greedy"), &format!("https://0/{number:02}")));
        let mut all: BTreeMap<_, _> = greedy.collect();
        held.want(all.clone(), start);
        let of_greedy = held.begin(start, 8, &TIMING);
        assert_eq!(names(&of_greedy), ["https://0/00", "https://0/01"]);
        assert_eq!(held.next(), None, "the others wait for these");
        let last = format!("https://0/{MOST_OF_ONE:02}");
        let fault = Fault::TooManyOfOne(MOST_OF_ONE);
        assert_eq!(held.state(&last), Some(KeyState::Failed { fault, keeps_old: false }));
        all.extend([asked_by(asker("shop"), "https://z/k")]);
        held.want(all, start);
        assert_eq!(held.next(), Some(start));
        assert_eq!(names(&held.begin(start, 8, &TIMING)), ["https://z/k"]);
        ended(&mut held, &of_greedy[0], Ok(keys("1", &[])), start);
        assert_eq!(names(&held.begin(start, 8, &TIMING)), ["https://0/02"]);
    }

    #[test]
    fn who_has_been_due_for_longest_is_fetched_first() {
        let (mut held, start) = (Held::default(), Instant::now());
        held.want([wanted("https://b/k")].into(), start);
        let later = start + Duration::from_secs(1);
        held.want([wanted("https://a/k"), wanted("https://b/k")].into(), later);
        assert_eq!(names(&held.begin(later, 1, &TIMING)), ["https://b/k"]);
    }
}
