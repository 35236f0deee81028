//! Who gets how much of what all share: places among the sources that are fetched, and fetches at a time. Whoever may
//! write RequestAuthentications in one namespace must not take those of others. Pure.

use super::held::{MOST_SOURCES, Wanted};
use crate::index::Asker;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Sources that the policies of one namespace may name; the root namespace is whoever runs the mesh.
pub(super) const MOST_OF_ONE: usize = 32;
/// Fetches for one namespace at a time: its issuers may all be such that do not answer.
const MOST_AT_ONCE: usize = 2;
/// Fetches at a time that are not the mesh's own: whatever namespaces name, its keys come.
const MOST_OF_OTHERS: usize = super::MOST_FETCHES - 2;

/// The names of those that are fetched: first the mesh's, then one of each namespace, then the second of each, and so on.
pub(super) fn places(wanted: &BTreeMap<Arc<str>, Wanted>) -> BTreeSet<Arc<str>> {
    let mut of_mesh = Vec::new();
    let mut of_namespaces: BTreeMap<&Asker, Vec<&Arc<str>>> = BTreeMap::new();
    for (name, wanted) in wanted {
        if wanted.askers.contains(&Asker::Mesh) {
            of_mesh.push(name);
            continue;
        }
        for asker in &wanted.askers {
            of_namespaces.entry(asker).or_default().push(name);
        }
    }
    let ranks =
        (0..MOST_OF_ONE).flat_map(|rank| of_namespaces.values().filter_map(move |names| names.get(rank)));
    let mut places = BTreeSet::new();
    for name in of_mesh.iter().chain(ranks) {
        if places.len() >= MOST_SOURCES {
            break;
        }
        places.insert(Arc::clone(name));
    }
    places
}

/// Fetches that run, by who asked for them.
#[derive(Debug, Default)]
pub(super) struct Running {
    by_asker: HashMap<Asker, usize>,
    /// Those for which the mesh did not ask.
    others: usize,
}

impl Running {
    /// Those of `running`.
    pub(super) fn of<'a>(running: impl Iterator<Item = &'a Wanted>) -> Self {
        let mut counts = Self::default();
        running.for_each(|wanted| counts.add(wanted));
        counts
    }

    /// One more.
    pub(super) fn add(&mut self, wanted: &Wanted) {
        for asker in &wanted.askers {
            *self.by_asker.entry(asker.clone()).or_default() += 1;
        }
        self.others += usize::from(!wanted.askers.contains(&Asker::Mesh));
    }

    /// Whether one of those who ask for it has a fetch left, and all others together have.
    pub(super) fn may_begin(&self, wanted: &Wanted) -> bool {
        let has_left = |asker: &Asker| self.by_asker.get(asker).is_none_or(|running| *running < MOST_AT_ONCE);
        let of_others = || self.others < MOST_OF_OTHERS && wanted.askers.iter().any(has_left);
        wanted.askers.contains(&Asker::Mesh) || of_others()
    }
}

#[cfg(test)]
mod tests {
    use super::super::obtain::Origin;
    use super::*;
    use std::time::Duration;

    fn of(name: &str, askers: &[&str]) -> (Arc<str>, Wanted) {
        let asker =
            |name: &&str| if name.is_empty() { Asker::Mesh } else { Asker::Namespace((*name).into()) };
        let origin = Origin::Uri(name.to_owned());
        let askers = askers.iter().map(asker).collect();
        (name.into(), Wanted { origin, timeout: Duration::from_secs(5), askers })
    }

    #[test]
    fn a_namespace_that_names_many_sources_leaves_others_theirs() {
        let mut wanted: BTreeMap<_, _> =
            (0..1000).map(|number| of(&format!("https://0/{number:04}"), &["greedy"])).collect();
        wanted.extend([of("https://z/shop", &["shop"]), of("https://0/0999", &["greedy", "bank"])]);
        let places = places(&wanted);
        assert_eq!(places.len(), MOST_OF_ONE + 2);
        assert!(
            places.contains("https://z/shop") && places.contains("https://0/0999"),
            "named by others too"
        );
    }

    #[test]
    fn where_all_are_too_many_each_has_as_many_as_the_next_and_the_mesh_has_its_own() {
        let names: Vec<String> = (0..40).map(|number| format!("n{number:02}")).collect();
        let mut wanted: BTreeMap<_, _> = names
            .iter()
            .flat_map(|name| {
                (0..MOST_OF_ONE).map(move |number| of(&format!("https://{name}/{number:02}"), &[name]))
            })
            .collect();
        wanted.extend((0..100).map(|number| of(&format!("https://z/{number}"), &[""])));
        let places = places(&wanted);
        assert_eq!(places.len(), MOST_SOURCES);
        assert_eq!(places.iter().filter(|name| name.starts_with("https://z/")).count(), 100);
        for name in names {
            let own = places.iter().filter(|place| place.starts_with(&format!("https://{name}/"))).count();
            assert_eq!(own, 10, "{name}");
        }
    }

    #[test]
    fn a_namespace_has_two_fetches_at_a_time_and_others_theirs() {
        let (first, second) = (of("a", &["greedy"]).1, of("b", &["greedy"]).1);
        let running = Running::of([&first, &second].into_iter());
        assert!(!running.may_begin(&of("c", &["greedy"]).1));
        assert!(
            running.may_begin(&of("d", &["shop"]).1) && running.may_begin(&of("e", &["greedy", "shop"]).1)
        );
        assert!(running.may_begin(&of("f", &[""]).1));
        assert!(Running::of([&first].into_iter()).may_begin(&second));
    }

    #[test]
    fn however_many_namespaces_fetch_the_mesh_has_fetches_left() {
        let names = ["a", "b", "c", "d", "e", "f"];
        let running: Vec<Wanted> = names.map(|name| of(name, &[name]).1).into();
        let running = Running::of(running.iter());
        assert!(!running.may_begin(&of("g", &["shop"]).1));
        assert!(running.may_begin(&of("m", &[""]).1) && running.may_begin(&of("n", &["", "shop"]).1));
        let of_mesh = vec![of("m", &[""]).1; 7];
        assert!(Running::of(of_mesh.iter()).may_begin(&of("g", &["shop"]).1), "what is free is for all");
    }
}
