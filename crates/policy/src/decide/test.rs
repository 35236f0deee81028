//! One compiled field: the values that a policy gives for one attribute, and whether any of them holds.

use super::facts::{Facts, Http, Token};
use crate::lookup::{Blocks, FastMap, TextSet};
use crate::path::{Charset, Template};
use crate::text::{Text, glob_matches};
use ipnet::IpNet;
use serde_json::Value;

/// Claims that are always lists parted by spaces.
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

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
    Path {
        texts: TextSet,
        /// Each with the literal that it begins with.
        templates: Vec<(Box<str>, Template)>,
        charset: Charset,
    },
    /// Issuer and subject.
    RequestPrincipal(Vec<(Text, Text)>),
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
            HttpTest::Host(texts) => http.host.is_some_and(|host| texts.matches(host)),
            HttpTest::Method(texts) => texts.matches(http.method.as_bytes()),
            HttpTest::Path { texts, templates, charset } => http.path.is_some_and(|path| {
                texts.matches(path.as_bytes())
                    || templates.iter().any(|(_, template)| template.matches(path, *charset))
            }),
            HttpTest::RequestPrincipal(rules) => {
                let principal = http.token.as_ref().and_then(Token::principal);
                principal.is_some_and(|(issuer, subject)| {
                    rules.iter().any(|(iss, sub)| iss.matches(issuer) && sub.matches(subject))
                })
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

/// Repeated headers are one value, joined with commas.
fn header_matches(http: &Http<'_>, name: &str, texts: &TextSet) -> bool {
    let mut values = http.headers.iter().filter(|(of, _)| of.eq_ignore_ascii_case(name));
    let Some((_, first)) = values.next() else {
        // HTTP/2 has no Host of its own.
        return name == "host"
            && http.authority.is_some_and(|authority| texts.matches_present(authority.as_bytes()));
    };
    let Some((_, second)) = values.next() else { return texts.matches_present(first) };
    let mut joined = Joined::new();
    joined.push(first);
    joined.push(b",");
    joined.push(second);
    for (_, value) in values {
        joined.push(b",");
        joined.push(value);
    }
    texts.matches_present(joined.as_bytes())
}

/// Bytes put together, on the stack as long as they are few.
struct Joined {
    inline: [u8; Joined::INLINE],
    length: usize,
    heap: Vec<u8>,
}

impl Joined {
    const INLINE: usize = 512;

    fn new() -> Self {
        Joined { inline: [0; Self::INLINE], length: 0, heap: Vec::new() }
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = self.length..self.length + bytes.len();
        if self.heap.is_empty()
            && let Some(room) = self.inline.get_mut(room)
        {
            room.copy_from_slice(bytes);
            self.length += bytes.len();
            return;
        }
        if self.heap.is_empty() {
            self.heap.extend_from_slice(self.inline.get(..self.length).unwrap_or_default());
        }
        self.heap.extend_from_slice(bytes);
    }

    fn as_bytes(&self) -> &[u8] {
        if self.heap.is_empty() { self.inline.get(..self.length).unwrap_or_default() } else { &self.heap }
    }
}

fn claim_matches(token: &Token<'_>, path: &[Box<str>], texts: &TextSet) -> bool {
    let Some(claim) = path.iter().try_fold(token.claims, |value, part| value.as_object()?.get(&**part))
    else {
        return false;
    };
    match claim {
        Value::String(text) => {
            let split = match path {
                [name] => {
                    SPACE_DELIMITED.contains(&&**name)
                        || token.space_delimited.iter().any(|of| **of == **name)
                }
                _ => false,
            };
            if split {
                text.split(' ').any(|part| !part.is_empty() && texts.matches(part.as_bytes()))
            } else {
                texts.matches(text.as_bytes())
            }
        }
        Value::Array(members) => {
            members.iter().filter_map(Value::as_str).any(|member| texts.matches(member.as_bytes()))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_bytes_move_to_the_heap_when_they_are_many() {
        let mut joined = Joined::new();
        let mut expected = Vec::new();
        for length in [0, 3, 500, 0, 9, 1, 700] {
            let bytes = vec![b'a' + u8::try_from(length % 26).unwrap(); length];
            joined.push(&bytes);
            expected.extend_from_slice(&bytes);
            assert_eq!(joined.as_bytes(), expected);
        }
    }
}
