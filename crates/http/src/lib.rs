//! The HTTP filter, without I/O: it stands between one inbound connection (a client) and one app connection.
//!
//! In go bytes of either side in pieces of any size, ends of directions, instants and policy changes; out come
//! bytes for either side ([`Output`]) and the end of the connection ([`End`]). Each request is shown to an
//! [`Authorizer`] before a byte of it leaves; whatever is ambiguous is refused. Bytes that need no change leave as
//! ranges of the buffer they came in, so that a body is never copied.
//!
//! [`h1`] and [`h2`] are two filters of one shape, [`Filter`]; [`detect`] tells from the first bytes which it is.

mod detect;
mod fields;
pub mod h1;
pub mod h2;
mod limits;
mod message;
mod output;

pub use detect::{Detected, H2_PREFACE, detect};
pub use fields::{folds_to_identity, is_field_name, is_field_value, is_framing, is_identity};
pub use limits::Limits;
pub use message::{
    Authorizer, Header, InvalidPatch, Patch, Peer, Refusal, RequestHead, RequestId, Status, Verdict, Version,
};
pub use output::{Outgoing, Output, Turn};

use cinch_reason::Reason;
use std::time::Instant;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In order, or as orderly as its peers let it: flush what is left, then drop both sides.
    Finished,
    /// It must be reset towards both sides at once; what is not yet flushed may be lost.
    Cut(Reason),
}

/// One connection between a client and an app.
///
/// After each call the caller takes the bytes of [`Turn::out`], sends them, and clears it; what can't be sent at
/// once is the caller's to keep. Back-pressure: the client is read only while [`Filter::wants_client`] holds and
/// nothing is kept for the app *or the client* (our own answers go to the client), the app only while
/// [`Filter::wants_app`] holds and nothing is kept for the client. The filter itself holds at most one read and one
/// head of each side.
///
/// The app may be dialled when the first bytes for it come; an end for an app that was never dialled is ignored.
pub trait Filter {
    /// Takes bytes of the client. Those that can't go yet are held. With an empty `input`: goes on with what is
    /// held, see [`Filter::wants_turn`].
    fn client_data(&mut self, input: &[u8], turn: &mut Turn<'_>);
    /// The client has ended its direction (FIN).
    fn client_eof(&mut self, turn: &mut Turn<'_>);
    /// Takes bytes of the app.
    fn app_data(&mut self, input: &[u8], turn: &mut Turn<'_>);
    /// The app has ended its direction (FIN).
    fn app_eof(&mut self, turn: &mut Turn<'_>);
    /// The policy has changed: asks again for each request in flight; one that is now refused is cut.
    fn reevaluate(&mut self, turn: &mut Turn<'_>);
    /// [`Filter::reevaluate`] stopped because the authorizer is spent. Until [`Filter::go_on_reevaluating`] has asked
    /// for the rest, neither side is to be read.
    fn is_reevaluating(&self) -> bool {
        false
    }
    /// Asks again for further requests in flight.
    fn go_on_reevaluating(&mut self, _turn: &mut Turn<'_>) {}
    /// The instant of [`Filter::deadline`] has come.
    fn wake(&mut self, turn: &mut Turn<'_>);
    /// When to call [`Filter::wake`], if nothing else happens before.
    fn deadline(&self) -> Option<Instant>;
    /// The client may be read.
    fn wants_client(&self) -> bool;
    /// The app may be read.
    fn wants_app(&self) -> bool;
    /// Work is left that only waited for the output to be sent, or for others to have their turn: once it is, call [`Filter::client_data`] with an
    /// empty input.
    fn wants_turn(&self) -> bool;
    /// Bytes that this connection holds of either side: heads in pieces, heads in flight, what waits.
    fn held(&self) -> usize;
    /// Of these, bytes of the client that no request has been made of: what anybody can leave lying who has no leave to
    /// send requests.
    fn held_unfinished(&self) -> usize;
    /// Gives memory back that only saves time; to be called when the connection has been quiet for a while.
    fn shrink(&mut self);
    /// Set once, when the connection is over; no call does anything afterwards.
    fn end(&self) -> Option<End>;
}
