//! Bad input: tokens and requests that are not a sidecar's own, certificates of strangers and of yesterday, and bytes
//! that are nothing, on each port. Of each three things are looked at: how it ended for who tried, a counter, and a
//! line in the log.

mod bytes;
mod forged;
mod tokens;
mod witness;

pub use bytes::bytes;
pub use tokens::tokens;
