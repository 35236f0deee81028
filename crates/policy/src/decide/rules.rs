//! Compiled rules of one action, and the search for the first that matches. An index leads from what is known to
//! the few rules that can match at all; only these are looked at.

use super::facts::Facts;
use super::test::{HttpTest, Test};
use crate::compile::index::Index;
use std::sync::Arc;

/// How much is certain of a rule: the more, the greater. `Unknown`: it depends on the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Truth {
    No,
    Unknown,
    Yes,
}

/// A field holds when any of its values does, or when none does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sense {
    Is,
    IsNot,
}

/// A field of a rule.
#[derive(Debug, Clone)]
pub(crate) struct Clause {
    /// Its path in the object, such as `spec.rules[0].to[0].operation.methods`.
    pub(crate) field: Box<str>,
    pub(crate) sense: Sense,
    pub(crate) test: Test,
}

impl Clause {
    pub(crate) fn truth(&self, facts: &Facts<'_>) -> Truth {
        match (self.test.holds(facts), self.sense) {
            (None, _) => Truth::Unknown,
            (Some(true), Sense::Is) | (Some(false), Sense::IsNot) => Truth::Yes,
            (Some(false), Sense::Is) | (Some(true), Sense::IsNot) => Truth::No,
        }
    }
}

/// Clauses joined by AND: a source, an operation, or `when`.
pub(crate) type AllOf = Vec<Clause>;

/// (any of `from`) and (any of `to`) and `when`; an empty list doesn't constrain.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    /// Which policy it belongs to: an index of [`RuleSet::policies`].
    pub(crate) policy: u32,
    /// Its place within the policy.
    pub(crate) number: u32,
    pub(crate) from: Vec<AllOf>,
    pub(crate) to: Vec<AllOf>,
    pub(crate) when: AllOf,
    /// It has a field that only a request can answer.
    pub(crate) asks_http: bool,
}

impl Rule {
    pub(crate) fn truth(&self, facts: &Facts<'_>) -> Truth {
        let mut truth = all_of(&self.when, facts);
        for part in [&self.to, &self.from] {
            if truth == Truth::No {
                break;
            }
            truth = truth.min(any_of(part, facts));
        }
        truth
    }
}

impl Rule {
    fn clauses(&self) -> impl Iterator<Item = &Clause> {
        self.from.iter().chain(&self.to).chain([&self.when]).flatten()
    }

    fn asks_path(&self) -> bool {
        self.clauses().any(|clause| matches!(clause.test, Test::Http(HttpTest::Path(_))))
    }
}

pub(crate) fn any_of(list: &[AllOf], facts: &Facts<'_>) -> Truth {
    if list.is_empty() {
        return Truth::Yes;
    }
    let mut best = Truth::No;
    for clauses in list {
        best = best.max(all_of(clauses, facts));
        if best == Truth::Yes {
            break;
        }
    }
    best
}

pub(crate) fn all_of(clauses: &[Clause], facts: &Facts<'_>) -> Truth {
    let mut worst = Truth::Yes;
    for clause in clauses {
        worst = worst.min(clause.truth(facts));
        if worst == Truth::No {
            break;
        }
    }
    worst
}

/// A policy and the number of its rule that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found<'p> {
    pub(crate) policy: &'p Arc<str>,
    pub(crate) rule: u32,
}

impl<'p> Found<'p> {
    /// The lower by name, then by rule.
    pub(crate) fn lower(self, other: Option<Self>) -> Self {
        match other {
            Some(other) if (other.policy, other.rule) < (self.policy, self.rule) => other,
            _ => self,
        }
    }
}

/// What a search counts as a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// It matches whatever the request is, also when none ever comes.
    Certain,
    /// It may match, or matches once fields of requests are left out.
    Possible,
}

/// Looking at so many rules costs less than the index that leads to them.
const FEW: usize = 2;

/// All rules of one action: those of the lowest policy first, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct RuleSet {
    pub(crate) policies: Vec<Arc<str>>,
    pub(crate) rules: Vec<Rule>,
    /// By all that a request tells, and by what a connection tells.
    by_request: Index,
    by_connection: Index,
    /// By what a connection tells, the rules that ask for nothing more.
    without_http: Index,
    /// One of the rules asks for the path: the reading makes a difference.
    asks_path: bool,
}

impl RuleSet {
    /// Joins policies that are sorted by name.
    pub(crate) fn new(policies: Vec<Arc<str>>, rules: Vec<Rule>) -> Self {
        let by_request = Index::of_requests(&rules);
        let by_connection = Index::of_connections(&rules);
        let without_http = Index::without_http(&rules);
        let asks_path = rules.iter().any(Rule::asks_path);
        RuleSet { policies, rules, by_request, by_connection, without_http, asks_path }
    }

    pub(crate) fn asks_path(&self) -> bool {
        self.asks_path
    }

    /// The headers that the rules ask for, in lower case.
    pub(crate) fn headers(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().flat_map(Rule::clauses).filter_map(|clause| match &clause.test {
            Test::Http(HttpTest::Header { name, .. }) => Some(&**name),
            _ => None,
        })
    }

    /// Whether there is no policy (a policy without rules is one).
    pub(crate) fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// The first rule that matches.
    pub(crate) fn first(&self, facts: &Facts<'_>, wanted: Wanted) -> Option<Found<'_>> {
        if self.rules.len() <= FEW {
            let mut ids = 0..u32::try_from(self.rules.len()).unwrap_or(u32::MAX);
            return ids.find(|id| self.rule_matches(*id, facts, wanted)).and_then(|id| self.found(id));
        }
        let mut best = u32::MAX;
        self.index(facts, wanted).candidates(facts, &mut |list| {
            for id in list {
                if *id >= best {
                    break;
                }
                if self.rule_matches(*id, facts, wanted) {
                    best = *id;
                    break;
                }
            }
        });
        self.found(best)
    }

    /// Tells `each` the number of every policy of which a rule matches, perhaps more than once.
    pub(crate) fn each_policy(&self, facts: &Facts<'_>, wanted: Wanted, each: &mut dyn FnMut(u32)) {
        self.index(facts, wanted).candidates(facts, &mut |list| {
            for id in list {
                if self.rule_matches(*id, facts, wanted)
                    && let Some(rule) = self.rules.get(*id as usize)
                {
                    each(rule.policy);
                }
            }
        });
    }

    fn index(&self, facts: &Facts<'_>, wanted: Wanted) -> &Index {
        match (&facts.http, wanted) {
            (Some(_), _) => &self.by_request,
            (None, Wanted::Possible) => &self.by_connection,
            (None, Wanted::Certain) => &self.without_http,
        }
    }

    fn rule_matches(&self, id: u32, facts: &Facts<'_>, wanted: Wanted) -> bool {
        let Some(rule) = self.rules.get(id as usize) else { return false };
        match wanted {
            Wanted::Possible => rule.truth(facts) != Truth::No,
            Wanted::Certain => (facts.http.is_some() || !rule.asks_http) && rule.truth(facts) == Truth::Yes,
        }
    }

    fn found(&self, id: u32) -> Option<Found<'_>> {
        let rule = self.rules.get(id as usize)?;
        Some(Found { policy: self.policies.get(rule.policy as usize)?, rule: rule.number })
    }
}
