//! From what is known to the rules that can match. Each rule is filed under one attribute that it constrains in
//! every alternative: the one whose values are shared by the fewest other rules. Rules that constrain none of
//! the attributes here are always candidates.

use crate::decide::facts::{Facts, Host};
use crate::decide::rules::{AllOf, Clause, Rule, Sense};
use crate::decide::test::{HttpTest, Test};
use crate::lookup::{Affixes, Blocks, FastMap, Key, Side};
use ipnet::IpNet;
use std::collections::{BTreeMap, HashMap};

/// Rule numbers in ascending order.
type List = Vec<u32>;

/// Where to look for candidates.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    always: List,
    principals: Texts,
    namespaces: Texts,
    hosts: Texts,
    paths: Texts,
    sources: Blocks<List>,
    ports: FastMap<u16, List>,
}

/// Rules by strings of one attribute.
#[derive(Debug, Clone)]
struct Texts {
    exact: FastMap<Box<[u8]>, List>,
    starts: Affixes<List>,
    ends: Affixes<List>,
}

impl Default for Texts {
    fn default() -> Self {
        Texts {
            exact: FastMap::default(),
            starts: Affixes::new(Side::Start, []),
            ends: Affixes::new(Side::End, []),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Attribute {
    Principal,
    Namespace,
    Host,
    Path,
    Source,
    Port,
}

const OF_CONNECTIONS: [Attribute; 4] =
    [Attribute::Principal, Attribute::Namespace, Attribute::Source, Attribute::Port];
const OF_REQUESTS: [Attribute; 6] = [
    Attribute::Principal,
    Attribute::Path,
    Attribute::Host,
    Attribute::Namespace,
    Attribute::Source,
    Attribute::Port,
];

/// One value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Entry {
    Text(Key),
    Block(IpNet),
    Port(u16),
}

/// What a rule could be filed under.
type Choice = Vec<(Attribute, Vec<Entry>)>;

impl Index {
    /// For requests: everything is known.
    pub(crate) fn of_requests(rules: &[Rule]) -> Self {
        Self::build(rules, &OF_REQUESTS, |_| true)
    }

    /// For connections, of which nothing of HTTP is known: the rules that may match.
    pub(crate) fn of_connections(rules: &[Rule]) -> Self {
        Self::build(rules, &OF_CONNECTIONS, |_| true)
    }

    /// For connections: the rules that may match without a request.
    pub(crate) fn without_http(rules: &[Rule]) -> Self {
        Self::build(rules, &OF_CONNECTIONS, |rule| !rule.asks_http)
    }

    fn build(rules: &[Rule], attributes: &[Attribute], takes: impl Fn(&Rule) -> bool) -> Self {
        let choice = |rule: &Rule| -> Choice {
            attributes.iter().filter_map(|of| Some((*of, entries_of_rule(rule, *of)?))).collect()
        };
        let taken = (0..).zip(rules).filter(|(_, rule)| takes(rule));
        let choices: Vec<(u32, Choice)> = taken.map(|(id, rule)| (id, choice(rule))).collect();
        let mut shared: HashMap<(Attribute, &Entry), usize> = HashMap::new();
        for (attribute, entries) in choices.iter().flat_map(|(_, choice)| choice) {
            for entry in entries {
                *shared.entry((*attribute, entry)).or_default() += 1;
            }
        }
        let crowd = |(attribute, entries): &&(Attribute, Vec<Entry>)| {
            entries.iter().filter_map(|entry| shared.get(&(*attribute, entry))).max().copied()
        };
        let mut index = Index::default();
        let mut filed: HashMap<Attribute, Filing> = HashMap::new();
        for (id, choice) in &choices {
            match choice.iter().min_by_key(crowd) {
                Some((attribute, entries)) => {
                    let of_attribute = filed.entry(*attribute).or_default();
                    entries.iter().for_each(|entry| of_attribute.add(entry, *id));
                }
                None => index.always.push(*id),
            }
        }
        for (attribute, lists) in filed {
            match attribute {
                Attribute::Principal => index.principals = lists.texts(),
                Attribute::Namespace => index.namespaces = lists.texts(),
                Attribute::Host => index.hosts = lists.texts(),
                Attribute::Path => index.paths = lists.texts(),
                Attribute::Source => index.sources = Blocks::new(lists.blocks),
                Attribute::Port => index.ports = lists.ports.into_iter().collect(),
            }
        }
        index
    }

    /// Calls `each` with lists that together hold every rule that can match.
    pub(crate) fn candidates(&self, facts: &Facts<'_>, each: &mut dyn FnMut(&[u32])) {
        each(&self.always);
        if let Some(principal) = facts.principal {
            self.principals.candidates(principal.as_bytes(), each);
        }
        if let Some(namespace) = facts.namespace {
            self.namespaces.candidates(namespace.as_bytes(), each);
        }
        if let Some(list) = self.ports.get(&facts.port) {
            each(list);
        }
        self.sources.of(facts.source).for_each(|list| each(list));
        let Some(http) = &facts.http else { return };
        if let Some((path, _)) = http.path {
            self.paths.candidates(path.as_bytes(), each);
        }
        match http.host {
            Some(Host::Lower(host)) => self.hosts.candidates(host, each),
            Some(Host::Long(_)) => self.hosts.all(each),
            None => {}
        }
    }
}

impl Texts {
    fn candidates(&self, value: &[u8], each: &mut dyn FnMut(&[u32])) {
        if !self.exact.is_empty()
            && let Some(list) = self.exact.get(value)
        {
            each(list);
        }
        if !self.starts.is_empty() {
            self.starts.of(value).for_each(|list| each(list));
        }
        if !self.ends.is_empty() {
            self.ends.of(value).for_each(|list| each(list));
        }
    }

    fn all(&self, each: &mut dyn FnMut(&[u32])) {
        self.exact.values().chain(self.starts.items()).chain(self.ends.items()).for_each(|list| each(list));
    }
}

/// Lists on their way into the index.
#[derive(Default)]
struct Filing {
    exact: BTreeMap<Vec<u8>, List>,
    starts: BTreeMap<Vec<u8>, List>,
    ends: BTreeMap<Vec<u8>, List>,
    blocks: BTreeMap<IpNet, List>,
    ports: BTreeMap<u16, List>,
}

impl Filing {
    fn add(&mut self, entry: &Entry, id: u32) {
        let list = match entry {
            Entry::Text(Key::Exact(key)) => self.exact.entry(key.clone()).or_default(),
            Entry::Text(Key::Start(key)) => self.starts.entry(key.clone()).or_default(),
            Entry::Text(Key::End(key)) => self.ends.entry(key.clone()).or_default(),
            Entry::Block(block) => self.blocks.entry(*block).or_default(),
            Entry::Port(port) => self.ports.entry(*port).or_default(),
        };
        if list.last() != Some(&id) {
            list.push(id);
        }
    }

    fn texts(self) -> Texts {
        Texts {
            exact: self.exact.into_iter().map(|(key, list)| (key.into_boxed_slice(), list)).collect(),
            starts: Affixes::new(Side::Start, self.starts),
            ends: Affixes::new(Side::End, self.ends),
        }
    }
}

/// The values of `attribute` one of which must hold where the rule matches; `None` when it may match others.
fn entries_of_rule(rule: &Rule, attribute: Attribute) -> Option<Vec<Entry>> {
    let of_when = entries_of(&rule.when, attribute);
    [of_when, entries_of_any(&rule.from, attribute), entries_of_any(&rule.to, attribute)]
        .into_iter()
        .flatten()
        .min_by_key(Vec::len)
}

fn entries_of_any(list: &[AllOf], attribute: Attribute) -> Option<Vec<Entry>> {
    if list.is_empty() {
        return None;
    }
    let each: Option<Vec<_>> = list.iter().map(|clauses| entries_of(clauses, attribute)).collect();
    Some(each?.concat())
}

fn entries_of(clauses: &[Clause], attribute: Attribute) -> Option<Vec<Entry>> {
    let positive = clauses.iter().filter(|clause| clause.sense == Sense::Is);
    positive.filter_map(|clause| entries_of_test(&clause.test, attribute)).min_by_key(Vec::len)
}

fn entries_of_test(test: &Test, attribute: Attribute) -> Option<Vec<Entry>> {
    let texts = |keys: Vec<Key>| keys.into_iter().map(Entry::Text).collect();
    match (attribute, test) {
        (Attribute::Principal, Test::Principal(principals)) => principals.keys().map(texts),
        (Attribute::Namespace, Test::Namespace { texts: names, globs }) if globs.is_empty() => {
            names.keys().map(texts)
        }
        (Attribute::Namespace, Test::ServiceAccount(accounts)) => {
            let namespaces = accounts.keys().map(|key| key.split(|byte| *byte == b'/').next());
            let namespaces = namespaces.map(|name| Key::Exact(name.unwrap_or_default().to_vec()));
            Some(texts(namespaces.collect()))
        }
        (Attribute::Host, Test::Http(HttpTest::Host(hosts))) => hosts.keys().map(texts),
        (Attribute::Path, Test::Http(HttpTest::Path(paths))) => paths.keys().map(texts),
        (Attribute::Source, Test::Source(blocks)) => {
            Some(blocks.items().map(|block| Entry::Block(*block)).collect())
        }
        (Attribute::Port, Test::Port(ports)) => Some(ports.keys().map(|port| Entry::Port(*port)).collect()),
        _ => None,
    }
}
