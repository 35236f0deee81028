//! Every reason word of Cinch, in one table.
//!
//! A reason is a stable CamelCase word with a sentence that says what is the case and a hint that says what
//! to do. Status, events, metrics, admission messages, logs and the CLI are made from this table, so that a
//! user meets the same word everywhere. Words may be added; they are never renamed.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident: $sentence:literal, $hint:literal;)*) => {
        /// A stable word for why something is as it is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* #[doc = $sentence] $name,)*
        }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &[Reason] = &[$(Reason::$name),*];

            /// The stable word, as it stands in status, events, metrics and messages.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$name => stringify!($name),)* }
            }

            /// One sentence that says what is the case.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Reason::$name => $sentence,)* }
            }

            /// What the reader can do about it; empty where nothing needs doing.
            #[must_use]
            pub const fn hint(self) -> &'static str {
                match self { $(Reason::$name => $hint,)* }
            }
        }
    };
}

mod table;
pub use table::Reason;

impl Reason {
    /// The word, the sentence and the hint as one message: `Word: sentence; hint`.
    #[must_use]
    pub fn message(self) -> String {
        if self.hint().is_empty() {
            format!("{}: {}", self.as_str(), self.sentence())
        } else {
            format!("{}: {}; {}", self.as_str(), self.sentence(), self.hint())
        }
    }

    /// As [`Reason::message`], with `detail` (what was seen, in the caller's words) between sentence and hint.
    #[must_use]
    pub fn message_with(self, detail: &str) -> String {
        let mut text = format!("{}: {} ({detail})", self.as_str(), self.sentence());
        if !self.hint().is_empty() {
            text.push_str("; ");
            text.push_str(self.hint());
        }
        text
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The word is not in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownReason(pub String);

impl fmt::Display for UnknownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no reason that this version knows", self.0)
    }
}

impl std::error::Error for UnknownReason {}

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Reason::ALL
            .iter()
            .copied()
            .find(|reason| reason.as_str() == word)
            .ok_or_else(|| UnknownReason(word.to_owned()))
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        word.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_word_is_unique_and_camel_case_and_parses_back() {
        let mut seen = HashSet::new();
        for reason in Reason::ALL {
            let word = reason.as_str();
            assert!(seen.insert(word), "{word} stands twice");
            assert!(word.starts_with(|c: char| c.is_ascii_uppercase()), "{word}");
            assert!(word.chars().all(|c| c.is_ascii_alphanumeric()), "{word}");
            assert_eq!(word.parse::<Reason>(), Ok(*reason));
        }
    }

    #[test]
    fn every_sentence_reads_in_a_message() {
        for reason in Reason::ALL {
            let sentence = reason.sentence();
            assert!(!sentence.is_empty(), "{reason} has no sentence");
            assert!(!sentence.ends_with('.'), "{reason}: the message adds what follows the sentence");
            assert!(!sentence.contains('\''), "{reason}: an apostrophe would end a CEL string");
            assert!(!reason.hint().contains('\''), "{reason}: an apostrophe would end a CEL string");
        }
    }

    #[test]
    fn a_message_has_word_sentence_detail_and_hint() {
        let text = Reason::SidecarMissing.message_with("pod web");
        assert!(text.starts_with("SidecarMissing: "), "{text}");
        assert!(text.contains("(pod web)"), "{text}");
        assert!(text.ends_with(Reason::SidecarMissing.hint()), "{text}");
    }

    #[test]
    fn an_unknown_word_is_refused_by_name() {
        assert_eq!(
            "NoSuchWord".parse::<Reason>().unwrap_err().to_string(),
            "\"NoSuchWord\" is no reason that this version knows"
        );
    }
}
