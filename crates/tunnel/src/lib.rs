//! Framing and stream states of the `cinch/1` tunnel, without I/O.
//!
//! A tunnel is a TLS 1.3 connection (ALPN [`ALPN`]) that carries app connections one after the other. In go
//! plaintext bytes as TLS delivers them, in pieces of any size, and what the local side wants to say; out come
//! events, and the bytes to send. Bytes that break the protocol are an error, never a panic.
//!
//! Each app connection is a *stream* with two directions. The client begins it with OPEN; the server answers
//! OPENED or REFUSED. Each direction ends with exactly one DATA+FIN, or with RESET (of the server also REFUSED);
//! who is told RESET or REFUSED ends its own direction with RESET unless it has ended already. When both
//! directions have ended, the tunnel is idle again. A RESET that crosses the end of its stream is ignored: while
//! idle, and by a client that waits for the answer to its next OPEN.

mod control;
mod error;
mod frame;
mod session;

pub use control::{Control, Open, RefuseCode, ResetCode, code, tlv};
pub use error::{Misuse, ProtocolError};
pub use frame::{Decoder, Frame, HEAD, Kind, MAX_FRAME, MAX_PAYLOAD, head};
pub use session::{Event, Session, Side};

/// The application protocol that both sides agree to in the TLS handshake.
pub const ALPN: &[u8] = b"cinch/1";
