//! The tree of a document: in go the parser's events, out come nodes. It is no deeper than [`DEPTH`], and what aliases
//! copy is bounded, so that a short file does not become a large tree.

use super::{Place, YamlError};
use granit_parser::{Event, Options, Parser, ScalarStyle, Span, Tag};
use std::collections::{HashMap, HashSet};

/// Nodes within each other.
const DEPTH: usize = 64;
/// What aliases may copy in one file: bytes of text, and nodes.
const COPIED: usize = 1 << 20;

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) content: Content,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    /// `plain`: without quotes, so that it may stand for something else than text.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    /// The keys are scalars, and each stands here once.
    Mapping(Vec<(Node, Node)>),
}

impl Node {
    /// An empty document.
    pub(super) fn null() -> Node {
        let content = Content::Scalar { text: String::new(), plain: true };
        Node { place: Place { line: 1, column: 1 }, content }
    }

    /// How deep it is, and its size as [`COPIED`] counts.
    fn measure(&self) -> (usize, usize) {
        let (below, size) = match &self.content {
            Content::Scalar { text, .. } => return (0, text.len() + 1),
            Content::Sequence(items) => measure_all(items.iter()),
            Content::Mapping(entries) => measure_all(entries.iter().flat_map(|(key, value)| [key, value])),
        };
        (below + 1, size + 1)
    }
}

fn measure_all<'n>(nodes: impl Iterator<Item = &'n Node>) -> (usize, usize) {
    nodes.map(Node::measure).fold((0, 0), |(depth, size), (below, more)| (depth.max(below), size + more))
}

/// The documents of `text`.
pub(super) fn documents(text: &str) -> Result<Vec<Node>, YamlError> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut composer = Composer::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| {
            let mark = error.marker();
            let place = Place { line: mark.line(), column: mark.col() + 1 };
            YamlError::new(place, error.info())
        })?;
        composer.take(event, place(&span))?;
    }
    Ok(composer.documents)
}

fn place(span: &Span) -> Place {
    Place { line: span.start.line(), column: span.start.col() + 1 }
}

/// A collection that has begun.
struct Open {
    place: Place,
    anchor: usize,
    collected: Collected,
}

enum Collected {
    Sequence(Vec<Node>),
    /// With the key whose value comes next.
    Mapping(Vec<(Node, Node)>, Option<Node>),
}

#[derive(Default)]
struct Composer {
    documents: Vec<Node>,
    root: Option<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    copied: usize,
}

impl Composer {
    fn take(&mut self, event: Event<'_>, place: Place) -> Result<(), YamlError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = says_text(tag.as_deref(), place)?;
                let plain = style == ScalarStyle::Plain && !is_text;
                let content = Content::Scalar { text: text.into_owned(), plain };
                self.put(Node { place, content }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                says_text(tag.as_deref(), place)?;
                self.begin(Open { place, anchor, collected: Collected::Sequence(Vec::new()) })
            }
            Event::MappingStart(_, anchor, tag) => {
                says_text(tag.as_deref(), place)?;
                self.begin(Open { place, anchor, collected: Collected::Mapping(Vec::new(), None) })
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(of) => {
                let Some(node) = self.anchors.get(&of).cloned() else {
                    return Err(YamlError::new(place, "an alias to what it stands in"));
                };
                self.copy(&node, place)?;
                self.put(node, 0)
            }
            Event::DocumentEnd => {
                self.anchors.clear();
                self.documents.push(self.root.take().unwrap_or_else(Node::null));
                Ok(())
            }
            // The beginnings and the end of all; comments are not asked for.
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open) -> Result<(), YamlError> {
        self.check_depth(open.place, 1)?;
        self.open.push(open);
        Ok(())
    }

    fn end(&mut self) -> Result<(), YamlError> {
        let Some(Open { place, anchor, collected }) = self.open.pop() else { return Ok(()) };
        let content = match collected {
            Collected::Sequence(items) => Content::Sequence(items),
            Collected::Mapping(entries, _) => {
                let mut seen = HashSet::new();
                for (key, _) in &entries {
                    let Content::Scalar { text, .. } = &key.content else { continue };
                    if !seen.insert(text.as_str()) {
                        return Err(YamlError::new(key.place, format!("{text:?} stands here twice")));
                    }
                }
                Content::Mapping(entries)
            }
        };
        self.put(Node { place, content }, anchor)
    }

    /// Puts a node that is complete where it belongs.
    fn put(&mut self, node: Node, anchor: usize) -> Result<(), YamlError> {
        if anchor != 0 {
            self.copy(&node, node.place)?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.collected) {
            None => self.root = Some(node),
            Some(Collected::Sequence(items)) => items.push(node),
            Some(Collected::Mapping(entries, key)) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => *key = Some(checked_key(node)?),
            },
        }
        Ok(())
    }

    /// Accounts for a copy of `node` at `place`.
    fn copy(&mut self, node: &Node, place: Place) -> Result<(), YamlError> {
        let (depth, size) = node.measure();
        self.copied += size;
        if self.copied > COPIED {
            return Err(YamlError::new(place, "the aliases of this file stand for too much"));
        }
        self.check_depth(place, depth)
    }

    /// What comes now has so many nodes within each other.
    fn check_depth(&self, place: Place, depth: usize) -> Result<(), YamlError> {
        if self.open.len() + depth > DEPTH {
            return Err(YamlError::new(place, format!("more than {DEPTH} collections within each other")));
        }
        Ok(())
    }
}

fn checked_key(key: Node) -> Result<Node, YamlError> {
    match &key.content {
        Content::Scalar { text, plain: true } if text == "<<" => {
            Err(YamlError::new(key.place, "merge keys are not read: write the fields themselves"))
        }
        Content::Scalar { .. } => Ok(key),
        _ => Err(YamlError::new(key.place, "a key must be text")),
    }
}

/// Whether a tag makes the node text, whatever it looks like. Those that say what a node is without them change nothing.
fn says_text(tag: Option<&Tag>, place: Place) -> Result<bool, YamlError> {
    match tag.map(Tag::core_suffix) {
        None | Some(Some("map" | "seq")) => Ok(false),
        Some(Some("str")) => Ok(true),
        Some(_) => Err(YamlError::new(place, "tags are not read")),
    }
}
