//! Tokens: real signatures of every algorithm, forged and misused ones, places, several rules, forwarding, bounds.

#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing)]

mod bounds;
mod forwarding;
mod issuer;
mod places;
mod rules;
mod scene;
mod signatures;
