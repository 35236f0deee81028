//! The control plane of Cinch: one leader does everything stateful, standbys keep a warm index.
//!
//! `main` only parses flags; [`run`] wires the rooms below together.

pub mod accounts;
pub mod api_client;
pub mod ca;
pub mod control;
pub mod endpoint_slice;
pub mod evidence;
pub mod health;
pub mod index;
pub mod issuing;
pub mod jwks;
pub mod leader;
pub mod metrics;
pub mod policies;
pub mod posture;
pub mod pulse;
pub mod run;
pub mod settings;
pub mod trust;
pub mod webhook_certificate;
