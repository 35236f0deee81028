//! Many string rules joined by OR.

use super::{Affixes, FastMap, Side};
use crate::text::Text;

/// What a value must be, begin with or end with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Exact(Vec<u8>),
    Start(Vec<u8>),
    End(Vec<u8>),
}

/// A set of string rules. Whether any holds costs one hash and two searches, however many there are.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TextSet {
    exact: Exact,
    starts: Affixes<()>,
    ends: Affixes<()>,
    /// `*` is among them.
    present: bool,
}

/// Whole strings. Comparing with a few is faster than hashing.
#[derive(Debug, Clone, PartialEq)]
enum Exact {
    Few(Vec<Box<[u8]>>),
    Many(FastMap<Box<[u8]>, ()>),
}

impl Exact {
    const FEW: usize = 3;

    fn new(mut texts: Vec<Box<[u8]>>) -> Self {
        texts.sort_unstable();
        texts.dedup();
        if texts.len() <= Self::FEW {
            Exact::Few(texts)
        } else {
            Exact::Many(texts.into_iter().map(|text| (text, ())).collect())
        }
    }

    fn holds(&self, value: &[u8]) -> bool {
        match self {
            Exact::Few(texts) => texts.iter().any(|text| **text == *value),
            Exact::Many(texts) => texts.contains_key(value),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let (few, many) = match self {
            Exact::Few(texts) => (Some(texts.iter()), None),
            Exact::Many(texts) => (None, Some(texts.keys())),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten()).map(|text| &**text)
    }
}

/// A value that does not lie in memory in one piece, or not in the form in which it is compared.
pub(crate) trait Scattered {
    fn is(&self, text: &[u8]) -> bool;
    fn begins_with(&self, text: &[u8]) -> bool;
    fn ends_with(&self, text: &[u8]) -> bool;
}

impl TextSet {
    pub(crate) fn new(rules: impl IntoIterator<Item = Text>) -> Self {
        let (mut exact, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let mut present = false;
        for rule in rules {
            match rule {
                Text::Exact(text) => exact.push(text.into_bytes().into_boxed_slice()),
                Text::Prefix(text) => starts.push((text.into_bytes(), ())),
                Text::Suffix(text) => ends.push((text.into_bytes(), ())),
                Text::Present => present = true,
            }
        }
        TextSet {
            exact: Exact::new(exact),
            starts: Affixes::new(Side::Start, starts),
            ends: Affixes::new(Side::End, ends),
            present,
        }
    }

    /// Whether any rule holds of `value`; `*` holds of what is not empty.
    pub(crate) fn matches(&self, value: &[u8]) -> bool {
        (self.present && !value.is_empty()) || self.matches_but_presence(value)
    }

    /// As [`TextSet::matches`], for headers: `*` holds of whatever is there, even empty.
    pub(crate) fn matches_present(&self, value: &[u8]) -> bool {
        self.present || self.matches_but_presence(value)
    }

    /// As [`TextSet::matches_present`], rule by rule: for the few values that can't be had in one piece without an
    /// allocation.
    pub(crate) fn matches_scattered(&self, value: &impl Scattered) -> bool {
        self.present
            || self.exact.iter().any(|text| value.is(text))
            || self.starts.keys().any(|text| value.begins_with(text))
            || self.ends.keys().any(|text| value.ends_with(text))
    }

    /// What a value that matches must be, begin with or end with; `None` when it may be anything.
    pub(crate) fn keys(&self) -> Option<Vec<Key>> {
        if self.present {
            return None;
        }
        let exact = self.exact.iter().map(|key| Key::Exact(key.to_vec()));
        let starts = self.starts.keys().map(|key| Key::Start(key.to_vec()));
        let ends = self.ends.keys().map(|key| Key::End(key.to_vec()));
        Some(exact.chain(starts).chain(ends).collect())
    }

    fn matches_but_presence(&self, value: &[u8]) -> bool {
        self.exact.holds(value)
            || (!self.starts.is_empty() && self.starts.of(value).next().is_some())
            || (!self.ends.is_empty() && self.ends.of(value).next().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Whole<'a>(&'a [u8]);

    impl Scattered for Whole<'_> {
        fn is(&self, text: &[u8]) -> bool {
            self.0 == text
        }
        fn begins_with(&self, text: &[u8]) -> bool {
            self.0.starts_with(text)
        }
        fn ends_with(&self, text: &[u8]) -> bool {
            self.0.ends_with(text)
        }
    }

    proptest! {
        #[test]
        fn a_set_holds_when_any_of_its_rules_does(
            rules in prop::collection::vec("\\*?[ab]{0,3}\\*?", 0..12),
            value in "[ab*]{0,4}",
        ) {
            let texts: Vec<_> = rules.iter().map(|rule| Text::parse(rule)).collect();
            let any = texts.iter().any(|text| text.matches(&value));
            let set = TextSet::new(texts);
            prop_assert_eq!(set.matches(value.as_bytes()), any);
            prop_assert_eq!(set.matches_scattered(&Whole(value.as_bytes())), set.matches_present(value.as_bytes()));
        }
    }

    #[test]
    fn an_empty_header_is_present() {
        let any = TextSet::new([Text::Present]);
        assert!(any.matches_present(b"") && !any.matches(b""));
        assert!(!TextSet::new([Text::parse("a*")]).matches_present(b""));
    }
}
