//! TLS 1.3 records (RFC 8446 §5) sealed and opened in place.
//!
//! rustls does the handshake, verifies the peer and derives the traffic secrets; this crate applies the keys, and
//! derives those that follow them. In: a [`Handshake`] around an unbuffered rustls connection, and the bytes of the
//! network. Out: records to send, plaintext that lies where its ciphertext lay, and what the peer says of the
//! connection itself: key updates, close_notify. Nothing is buffered and nothing of rustls stays, so an idle connection
//! costs two keys with their secrets and no more.
//!
//! Why not rustls's own record layer: it copies and allocates per record and keeps a buffer per connection. What
//! must be right here, and is tested against rustls and OpenSSL: nonces and sequence numbers (§5.3), limits on
//! the use of a key (§5.5), key updates (§4.6.3, §7.2), alerts (§6), padding (§5.4) and the lengths of records (§5.1).

mod error;
#[cfg(test)]
mod fixtures;
mod handshake;
mod key;
mod message;
mod records;
mod secrets;

pub use error::RecordError;
pub use handshake::{Handshake, Progress};
pub use records::{Records, Step};

/// The head of a record: type, version, length.
pub const HEADER: usize = 5;
/// What a record adds to its plaintext: the head, the type inside, the tag.
pub const OVERHEAD: usize = HEADER + 1 + TAG;
/// The most plaintext that one record may carry.
pub const MAX_PLAINTEXT: usize = 1 << 14;
/// The longest record, head included (§5.2: at most 256 bytes of expansion).
pub const MAX_RECORD: usize = HEADER + MAX_PLAINTEXT + 256;

/// All three suites of TLS 1.3 that rustls offers have tags of this length.
const TAG: usize = 16;
