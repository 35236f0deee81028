//! The tests of `path`, with the records of all tunnels sealed and opened by rustls.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(missing_docs)]

const RECORDS: cinch_identity::RecordLayer = cinch_identity::RecordLayer::Rustls;

#[path = "path/endings.rs"]
mod endings;
#[path = "path/evidence.rs"]
mod evidence;
#[path = "path/hostile.rs"]
mod hostile;
#[path = "path/http.rs"]
mod http;
#[path = "path/http2.rs"]
mod http2;
#[path = "path/http_bytes.rs"]
mod http_bytes;
#[path = "path/http_tokens.rs"]
mod http_tokens;
// What only `path` uses.
#[allow(dead_code)]
#[path = "path/mesh.rs"]
mod mesh;
#[path = "path/modes.rs"]
mod modes;
#[path = "path/outbound.rs"]
mod outbound;
#[path = "path/policies.rs"]
mod policies;
#[path = "path/records.rs"]
mod records;
#[path = "path/reuse.rs"]
mod reuse;
#[path = "path/slow.rs"]
mod slow;
#[path = "path/states.rs"]
mod states;
#[path = "path/trust.rs"]
mod trust;
#[path = "path/tunnels.rs"]
mod tunnels;
#[path = "path/web.rs"]
mod web;
