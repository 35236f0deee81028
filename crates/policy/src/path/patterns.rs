//! The values of `paths` or `notPaths`, and whether any of them describes a path.

use super::further::{Spelling, is_plain};
use super::{Charset, Template};
use crate::lookup::{Affixes, Key, Side, TextSet};
use crate::text::Text;
use std::collections::BTreeMap;

/// Where a reading of a path comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// The mode names it.
    Named,
    /// A back end could make it of what is forwarded.
    Further,
}

/// The values of one field.
#[derive(Debug, Clone)]
pub(crate) struct Patterns {
    set: Set,
    charset: Charset,
    /// Where a match lets requests pass, for further readings: the values in each spelling. `None`: as they are.
    respelled: Option<Box<Set>>,
}

#[derive(Debug, Clone)]
struct Set {
    texts: TextSet,
    /// By the literal that they begin with.
    templates: Affixes<Vec<Template>>,
}

impl Patterns {
    /// The strict character set is for values whose match lets requests pass, the other for those whose match
    /// refuses.
    pub(crate) fn new(texts: Vec<Text>, templates: Vec<Template>, charset: Charset) -> Self {
        let plain = texts.iter().all(|text| is_plain(text.literal()))
            && templates.iter().flat_map(Template::literals).all(is_plain);
        let respelled = (charset == Charset::Strict && !plain).then(|| {
            let texts =
                texts.iter().flat_map(|text| Spelling::all().map(|way| text.with(|literal| way.of(literal))));
            let templates = templates
                .iter()
                .flat_map(|template| Spelling::all().map(|way| template.with(|literal| way.of(literal))));
            Box::new(Set::new(texts.collect(), templates.collect()))
        });
        Patterns { set: Set::new(texts, templates), charset, respelled }
    }

    /// Whether any value describes `path`. A further reading counts only beside the named ones, under which the
    /// values are judged as they stand; so there a value that lets requests pass needs no narrow characters.
    pub(crate) fn describe(&self, path: &str, reading: Reading) -> bool {
        match reading {
            Reading::Named => self.set.describes(path, self.charset),
            Reading::Further => self.respelled.as_deref().unwrap_or(&self.set).describes(path, Charset::Any),
        }
    }

    /// What a path that is described must be, begin with or end with; `None` when it may be anything.
    pub(crate) fn keys(&self) -> Option<Vec<Key>> {
        let set = self.respelled.as_deref().unwrap_or(&self.set);
        Some(
            set.texts
                .keys()?
                .into_iter()
                .chain(set.templates.keys().map(|head| Key::Start(head.to_vec())))
                .collect(),
        )
    }
}

impl Set {
    fn new(texts: Vec<Text>, templates: Vec<Template>) -> Self {
        let mut by_head: BTreeMap<Vec<u8>, Vec<Template>> = BTreeMap::new();
        for template in templates {
            let head = template.literals().next().unwrap_or_default().as_bytes().to_vec();
            let of_head = by_head.entry(head).or_default();
            if !of_head.contains(&template) {
                of_head.push(template);
            }
        }
        Set { texts: TextSet::new(texts), templates: Affixes::new(Side::Start, by_head) }
    }

    fn describes(&self, path: &str, charset: Charset) -> bool {
        self.texts.matches(path.as_bytes())
            || (!self.templates.is_empty()
                && self
                    .templates
                    .of(path.as_bytes())
                    .flatten()
                    .any(|template| template.matches(path, charset)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(values: &[&str], charset: Charset) -> Patterns {
        let (mut texts, mut templates) = (Vec::new(), Vec::new());
        for value in values {
            match Template::parse(value).unwrap() {
                Some(template) => templates.push(template),
                None => texts.push(Text::parse(value)),
            }
        }
        Patterns::new(texts, templates, charset)
    }

    #[test]
    fn what_is_allowed_counts_in_each_spelling_under_further_readings_only() {
        // Value, reading, described as named, as further where it allows, as further where it refuses.
        let cases = [
            ("/a%20b", "/a b", false, true, false),
            ("/a%20b*", "/a bc", false, true, false),
            ("*/a%20b", "/x/a b", false, true, false),
            ("/a%20b/{*}", "/a b/c d", false, true, false),
            ("/a;v=1/{**}", "/a/c", false, true, false),
            ("/a/{*}", "/a/c d", false, true, true),
            ("/a/*", "/a/c d", true, true, true),
            ("/a/b", "/admin", false, false, false),
            ("/a;v/b", "/a", false, false, false),
        ];
        for (value, path, named, allows, refuses) in cases {
            let (strict, any) = (patterns(&[value], Charset::Strict), patterns(&[value], Charset::Any));
            assert_eq!(strict.describe(path, Reading::Named), named, "{value} on {path}");
            assert_eq!(strict.describe(path, Reading::Further), allows, "{value} on {path}");
            assert_eq!(any.describe(path, Reading::Further), refuses, "{value} on {path}");
        }
    }

    #[test]
    fn many_templates_are_found_by_their_heads() {
        let values = ["/a/{*}/x", "/a/{*}/y", "/{**}/end", "/a/b/{*}", "/c/{**}"];
        let patterns = patterns(&values, Charset::Any);
        for (path, expected) in [
            ("/a/1/y", true),
            ("/a/b/2", true),
            ("/q/end", true),
            ("/c/", true),
            ("/a/1/z", false),
            ("/", false),
        ] {
            assert_eq!(patterns.describe(path, Reading::Named), expected, "{path}");
        }
        assert_eq!(patterns.keys().unwrap().len(), 4);
    }
}
