//! The HTTP/2 filter between peers that are not its own: raw frames, two reference codecs, and the `h2` crate.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod codec;
mod model;
mod peer;
mod peers;
mod raw;
mod readers;
mod rows;
mod rules_fields;
mod rules_head;
mod rules_limits;
mod rules_streams;
mod scene;
mod segments;
mod table;
