//! The data path from app to app over loopback: two proxies with real certificates, real sockets and the wire
//! protocol between them. Only the redirect is replaced, by functions that say what it would have said.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(missing_docs)]

/// `path_by_rustls` has the same tests for the other record layer.
const RECORDS: cinch_identity::RecordLayer = cinch_identity::RecordLayer::InPlace;

mod bounds;
mod choices;
mod declared;
mod endings;
mod evidence;
mod hostile;
mod http;
mod http2;
mod http_bytes;
mod http_tokens;
mod late;
// What only other tests use.
#[allow(dead_code)]
mod mesh;
mod modes;
mod outbound;
mod policies;
mod records;
mod refusals;
mod reuse;
mod slow;
mod states;
mod telemetry;
mod trust;
mod tunnels;
mod web;
