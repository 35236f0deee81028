//! YAML, as the files of `cinch-proxy run --config` have it. In goes text, out comes what serde makes of it, or what is
//! wrong and where.
//!
//! The syntax is `granit-parser`'s; here its events become a tree, and the tree what serde asks for. A whole YAML
//! library for serde is half a megabyte in each sidecar, and no sidecar in a pod reads YAML. What such files do not
//! need is refused by name, not guessed at: tags, merge keys, keys that are no text, a key twice.

mod read;
mod tree;

use serde::de::{self, DeserializeOwned};
use std::fmt;

/// What is wrong with a text, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YamlError {
    place: Option<Place>,
    /// The fields that lead to it, from the innermost on.
    path: Vec<String>,
    problem: String,
}

/// A line and a column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    line: usize,
    column: usize,
}

impl YamlError {
    fn new(place: Place, problem: impl Into<String>) -> Self {
        YamlError { place: Some(place), path: Vec::new(), problem: problem.into() }
    }

    /// The same, at `place` unless it is known better.
    fn at(mut self, place: Place) -> Self {
        self.place.get_or_insert(place);
        self
    }

    /// The same, within the field `name`.
    fn within(mut self, name: String) -> Self {
        self.path.push(name);
        self
    }
}

impl fmt::Display for YamlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { line, column }) = self.place {
            write!(f, "line {line}, column {column}: ")?;
        }
        for (above, name) in self.path.iter().rev().enumerate() {
            write!(f, "{}{name}", if above == 0 { "" } else { "." })?;
        }
        if !self.path.is_empty() {
            f.write_str(": ")?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for YamlError {}

impl de::Error for YamlError {
    fn custom<T: fmt::Display>(problem: T) -> Self {
        YamlError { place: None, path: Vec::new(), problem: problem.to_string() }
    }
}

/// The only document of `text`.
///
/// # Errors
/// When it is no YAML, has several documents, or is not what `T` asks for.
pub fn one<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    let mut documents = tree::documents(text)?.into_iter();
    let document = documents.next().unwrap_or_else(tree::Node::null);
    if let Some(second) = documents.next() {
        return Err(YamlError::new(second.place, "a second document"));
    }
    read::read(document)
}

/// All documents of `text`, in their order; those that are empty are null.
///
/// # Errors
/// When it is no YAML, or a document is not what `T` asks for.
pub fn all<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, YamlError> {
    tree::documents(text)?.into_iter().map(read::read).collect()
}

#[cfg(test)]
mod tests;
