//! JSON Patch operations (RFC 6902), written by hand: only the three kinds that injection needs.

use serde::Serialize;
use serde_json::Value;

/// One operation of a JSON Patch.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Op {
    /// Adds a member, replaces an existing member, or inserts into an array.
    Add {
        /// Where, as a JSON Pointer (RFC 6901).
        path: String,
        /// What.
        value: Value,
    },
    /// Replaces what is there.
    Replace {
        /// Where, as a JSON Pointer.
        path: String,
        /// By what.
        value: Value,
    },
    /// Removes what is there.
    Remove {
        /// Where, as a JSON Pointer.
        path: String,
    },
}

impl Op {
    pub(crate) fn add(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::Add { path: path.into(), value: value.into() }
    }

    pub(crate) fn replace(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::Replace { path: path.into(), value: value.into() }
    }

    pub(crate) fn remove(path: impl Into<String>) -> Self {
        Self::Remove { path: path.into() }
    }
}

/// A member's name as a part of a JSON Pointer.
pub(crate) fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
