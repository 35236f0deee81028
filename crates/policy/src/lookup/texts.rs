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
    exact: FastMap<Box<[u8]>, ()>,
    starts: Affixes<()>,
    ends: Affixes<()>,
    /// `*` is among them.
    present: bool,
}

impl TextSet {
    pub(crate) fn new(rules: impl IntoIterator<Item = Text>) -> Self {
        let mut exact = FastMap::default();
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        let mut present = false;
        for rule in rules {
            match rule {
                Text::Exact(text) => drop(exact.insert(text.into_bytes().into_boxed_slice(), ())),
                Text::Prefix(text) => starts.push((text.into_bytes(), ())),
                Text::Suffix(text) => ends.push((text.into_bytes(), ())),
                Text::Present => present = true,
            }
        }
        TextSet {
            exact,
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

    /// What a value that matches must be, begin with or end with; `None` when it may be anything.
    pub(crate) fn keys(&self) -> Option<Vec<Key>> {
        if self.present {
            return None;
        }
        let exact = self.exact.keys().map(|key| Key::Exact(key.to_vec()));
        Some(exact.chain(self.starts.keys().map(Key::Start)).chain(self.ends.keys().map(Key::End)).collect())
    }

    fn matches_but_presence(&self, value: &[u8]) -> bool {
        (!self.exact.is_empty() && self.exact.contains_key(value))
            || (!self.starts.is_empty() && self.starts.of(value).next().is_some())
            || (!self.ends.is_empty() && self.ends.of(value).next().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_holds_when_any_of_its_rules_does(
            rules in prop::collection::vec("\\*?[ab]{0,3}\\*?", 0..8),
            value in "[ab*]{0,4}",
        ) {
            let texts: Vec<_> = rules.iter().map(|rule| Text::parse(rule)).collect();
            let any = texts.iter().any(|text| text.matches(&value));
            prop_assert_eq!(TextSet::new(texts).matches(value.as_bytes()), any);
        }
    }

    #[test]
    fn an_empty_header_is_present() {
        let any = TextSet::new([Text::Present]);
        assert!(any.matches_present(b"") && !any.matches(b""));
        assert!(!TextSet::new([Text::parse("a*")]).matches_present(b""));
    }
}
