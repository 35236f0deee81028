//! The engine against tables, against a second evaluator, and against what must always hold.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod admission;
mod generate;
mod modes;
mod naive;
mod properties;
mod setup;
mod tables;
mod token_ports;
