//! What the targets of the HTTP filter share: both of its sides played by bytes, and readers that are not its own, for
//! what it lets pass.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, missing_docs)]

pub mod frames;
pub mod play;
pub mod read_h1;
pub mod read_h2;
