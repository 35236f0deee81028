//! Connections whose requests are judged one by one, because a policy asks for what only HTTP tells. In go the two
//! sides of an inbound connection, its policy and what is known of it; out come the requests that pass, our answers
//! to the others, and the end of the connection.
//!
//! The parsing is that of `cinch_http`, the judgement that of `cinch_policy`; this module brings both to sockets.
//! Nothing here makes a connection more open: what is no HTTP is cut, and without a policy nothing passes.

mod authorizer;
mod held;
mod judgement;
mod metrics;
mod passes;
mod price;
mod protocol;
mod relay;
mod requests;
mod shared;
mod tell;
mod timer;
mod tokens;
mod unknown_keys;
mod wires;

pub use metrics::{HttpMetrics, Kind, RequestLabels};
pub use relay::{Ended, Job, relay};
pub use shared::Shared;
pub use tokens::{MissingKeys, Tokens};
pub use unknown_keys::{UnknownKey, UnknownKeys};
