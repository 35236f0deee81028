//! Why a policy object can't be used.

use cinch_reason::Reason;

/// A policy object that this version can't use. Each message names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The object has no usable kind, name or namespace.
    #[error("not a policy object: {0}")]
    NotAPolicy(String),
    /// The spec holds an unknown field, a wrong type or an unknown word.
    #[error("spec can not be read: {0}")]
    Unreadable(String),
    /// A field holds a value that its documentation forbids.
    #[error("{field}: {problem}")]
    Value {
        /// Path of the field, such as `spec.rules[0].from[1].source.principals`.
        field: String,
        /// What is wrong and what to write instead.
        problem: String,
    },
    /// A field or word that this version does not know.
    #[error("{field}: {problem}")]
    Unknown {
        /// Path of the field.
        field: String,
        /// What it may be instead.
        problem: String,
    },
    /// A field of Istio's API that this version does not implement.
    #[error("{field} is not implemented by this version of Cinch; remove it")]
    NotImplemented {
        /// Path of the field.
        field: String,
    },
}

impl PolicyError {
    /// The stable word: always [`Reason::PolicyInvalid`].
    #[must_use]
    pub fn reason(&self) -> Reason {
        Reason::PolicyInvalid
    }

    /// Whether it is not a mistake in a value, but something that this version does not know or do: an object from
    /// before the install may well mean it.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        match self {
            PolicyError::Unreadable(_) | PolicyError::Unknown { .. } | PolicyError::NotImplemented { .. } => {
                true
            }
            PolicyError::NotAPolicy(_) | PolicyError::Value { .. } => false,
        }
    }

    pub(crate) fn unknown(field: impl Into<String>, problem: impl Into<String>) -> Self {
        PolicyError::Unknown { field: field.into(), problem: problem.into() }
    }

    pub(crate) fn value(field: impl Into<String>, problem: impl Into<String>) -> Self {
        PolicyError::Value { field: field.into(), problem: problem.into() }
    }
}

/// For a fault that nobody described.
pub(crate) static UNKNOWN: PolicyError = PolicyError::Unreadable(String::new());
