//! Why an agent does not do what it was asked for, in the words that the pod's status shows.

use cinch_reason::Reason;
use cinch_redirect::request::Answer;
use std::fmt;

/// A reason and what was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The stable word.
    pub reason: Reason,
    /// What was seen; one sentence without its full stop.
    pub sentence: String,
}

impl Refusal {
    /// A refusal for `reason`.
    #[must_use]
    pub fn new(reason: Reason, sentence: impl Into<String>) -> Self {
        Self { reason, sentence: sentence.into() }
    }

    /// The answer that tells the sidecar.
    #[must_use]
    pub fn answer(&self) -> Answer {
        Answer::Refused { reason: self.reason.as_str().to_owned(), sentence: self.sentence.clone() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.sentence)
    }
}
