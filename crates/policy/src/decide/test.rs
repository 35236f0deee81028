//! One compiled field: the values that a policy gives for one attribute, and whether any of them holds.

use super::claim::{RequestPrincipals, claim_matches};
use super::facts::{Facts, Host, Http, Token};
use super::header::header_matches;
use crate::lookup::{Blocks, FastMap, TextSet};
use crate::path::Patterns;
use crate::text::glob_matches;
use ipnet::IpNet;

/// The values of a field.
#[derive(Debug, Clone)]
pub(crate) enum Test {
    Principal(TextSet),
    Namespace {
        texts: TextSet,
        globs: Vec<Box<str>>,
    },
    /// Keys are `<namespace>/sa/<account>`.
    ServiceAccount(FastMap<Box<[u8]>, ()>),
    TrustDomain(TextSet),
    Source(Blocks<IpNet>),
    Remote(Blocks<IpNet>),
    Destination(Blocks<IpNet>),
    Port(FastMap<u16, ()>),
    Sni(TextSet),
    /// Of a request: unknown until there is one.
    Http(HttpTest),
}

/// The values of a field that only a request can answer.
#[derive(Debug, Clone)]
pub(crate) enum HttpTest {
    Host(TextSet),
    Method(TextSet),
    Path(Patterns),
    RequestPrincipal(RequestPrincipals),
    Header {
        /// In lower case.
        name: Box<str>,
        texts: TextSet,
    },
    Claim {
        path: Vec<Box<str>>,
        texts: TextSet,
    },
}

impl Test {
    /// Whether any value holds; `None` when only a request could tell. What is missing holds of nothing.
    pub(crate) fn holds(&self, facts: &Facts<'_>) -> Option<bool> {
        let found = match self {
            Test::Principal(texts) => some_matches(texts, facts.principal),
            Test::Namespace { texts, globs } => facts.namespace.is_some_and(|namespace| {
                texts.matches(namespace.as_bytes()) || globs.iter().any(|glob| glob_matches(glob, namespace))
            }),
            Test::ServiceAccount(accounts) => {
                facts.account.is_some_and(|account| accounts.contains_key(account.as_bytes()))
            }
            Test::TrustDomain(texts) => some_matches(texts, facts.trust_domain()),
            Test::Source(blocks) => blocks.hold(facts.source),
            Test::Remote(blocks) => blocks.hold(facts.remote),
            Test::Destination(blocks) => blocks.hold(facts.destination),
            Test::Port(ports) => ports.contains_key(&facts.port),
            Test::Sni(texts) => some_matches(texts, facts.sni),
            Test::Http(test) => return facts.http.as_ref().map(|http| test.holds(http)),
        };
        Some(found)
    }
}

impl HttpTest {
    fn holds(&self, http: &Http<'_>) -> bool {
        match self {
            HttpTest::Host(texts) => match http.host {
                Some(Host::Lower(host)) => texts.matches(host),
                Some(Host::Long(host)) => texts.matches_scattered(&host),
                None => false,
            },
            HttpTest::Method(texts) => texts.matches(http.method.as_bytes()),
            HttpTest::Path(patterns) => {
                http.path.is_some_and(|(path, reading)| patterns.describe(path, reading))
            }
            HttpTest::RequestPrincipal(rules) => {
                let principal = http.token.as_ref().and_then(Token::principal);
                principal.is_some_and(|(issuer, subject)| rules.hold(issuer, subject))
            }
            HttpTest::Header { name, texts } => header_matches(http, name, texts),
            HttpTest::Claim { path, texts } => {
                http.token.as_ref().is_some_and(|token| claim_matches(token, path, texts))
            }
        }
    }
}

fn some_matches(texts: &TextSet, value: Option<&str>) -> bool {
    value.is_some_and(|value| texts.matches(value.as_bytes()))
}
