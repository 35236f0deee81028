//! Conditions on the claims of a verified token.

use super::facts::Token;
use crate::lookup::{FastMap, TextSet};
use crate::text::Text;
use serde_json::Value;
use std::collections::BTreeMap;

/// Claims that are always lists parted by spaces.
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

/// Values of `requestPrincipals`: rules for issuer and subject.
#[derive(Debug, Clone)]
pub(crate) struct RequestPrincipals {
    /// The rules for subjects, by whole issuers.
    issuers: FastMap<Box<[u8]>, TextSet>,
    others: Vec<(Text, TextSet)>,
}

impl RequestPrincipals {
    /// `iss/sub`, split at the last slash. Without a slash only `*`, `*sub` and `iss*` can hold of anything.
    pub(crate) fn new(values: &[String]) -> Self {
        let split = |value: &String| match value.rsplit_once('/') {
            Some((issuer, subject)) => Some((issuer.to_owned(), Text::parse(subject))),
            None => match Text::parse(value) {
                Text::Present => Some(("*".to_owned(), Text::Present)),
                suffix @ Text::Suffix(_) => Some(("*".to_owned(), suffix)),
                Text::Prefix(_) => Some((value.clone(), Text::Present)),
                Text::Exact(_) => None,
            },
        };
        let mut by_issuer: BTreeMap<String, Vec<Text>> = BTreeMap::new();
        for (issuer, subject) in values.iter().filter_map(split) {
            by_issuer.entry(issuer).or_default().push(subject);
        }
        let mut principals = RequestPrincipals { issuers: FastMap::default(), others: Vec::new() };
        for (issuer, subjects) in by_issuer {
            match Text::parse(&issuer) {
                Text::Exact(issuer) => {
                    principals.issuers.insert(issuer.into_bytes().into_boxed_slice(), TextSet::new(subjects));
                }
                other => principals.others.push((other, TextSet::new(subjects))),
            }
        }
        principals
    }

    /// Whether any value holds of a token of `issuer` for `subject`.
    pub(crate) fn hold(&self, issuer: &str, subject: &str) -> bool {
        let subject = subject.as_bytes();
        self.issuers.get(issuer.as_bytes()).is_some_and(|subjects| subjects.matches(subject))
            || self.others.iter().any(|(of, subjects)| of.matches(issuer) && subjects.matches(subject))
    }
}

/// Whether the claim at `path` is a string, or a list with a string, that is one of `texts`.
pub(super) fn claim_matches(token: &Token<'_>, path: &[Box<str>], texts: &TextSet) -> bool {
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
