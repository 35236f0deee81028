//! What Istio's API means here, line by line: the name of a test is the line, and where we are safer than Istio its
//! name ends so. Other lines have their tests elsewhere: PeerAuthentication in `engine/modes.rs`,
//! RequestAuthentication in `tokens/`, the modes of paths in `paths.rs` and `evasion/`, the sentences of refusals in
//! `engine/admission.rs`, what holds of all policies in `engine/properties.rs`.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod ask;
mod decisions;
mod fields;
mod forms;
#[allow(dead_code)]
#[path = "../engine/naive.rs"]
mod naive;
mod paths;
mod scope;
#[allow(dead_code)]
#[path = "../engine/setup.rs"]
mod setup;
mod strings;
mod tcp;
