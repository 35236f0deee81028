//! What both protocols share: the head of a request as the authorizer sees it, its verdict, and what it may change.

use crate::fields::{is_field_name, is_field_value, is_framing};
use cinch_reason::Reason;
use std::ops::Range;

/// A request of one connection: HTTP/1 counts from 0, HTTP/2 takes the stream's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// The version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2
    Http2,
}

/// A field's name, as sent, and its value without surrounding white space.
pub type Header<'a> = (&'a str, &'a [u8]);

/// A request as the app will see it if nothing is patched: what the filter removes by itself (identity headers of
/// the client, upgrades) is not in it.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// Its version.
    pub version: Version,
    /// The method, as sent.
    pub method: &'a str,
    /// Path and query (the origin form of RFC 9112, section 3.2.1), or `*` for OPTIONS. Of an absolute form only
    /// this part; never empty. ASCII without controls and spaces.
    pub target: &'a str,
    /// `Host` or `:authority`, as sent.
    pub authority: Option<&'a str>,
    /// All fields in their order, without pseudo-fields; `host` is among them, in HTTP/2 made of `:authority`,
    /// and cookies in pieces are one field there.
    pub headers: &'a [Header<'a>],
    /// The request asks for an upgrade to WebSocket.
    pub upgrade: bool,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the app, changed by the patch.
    Forward,
    /// It is answered by us.
    Refuse(Refusal),
}

/// The statuses of our own answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// 400
    BadRequest,
    /// 401, with `WWW-Authenticate`
    Unauthorized,
    /// 403
    Forbidden,
    /// 405
    MethodNotAllowed,
    /// 408
    RequestTimeout,
    /// 431
    FieldsTooLarge,
    /// 503
    Unavailable,
    /// 505
    VersionNotSupported,
}

impl Status {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Status::BadRequest => 400,
            Status::Unauthorized => 401,
            Status::Forbidden => 403,
            Status::MethodNotAllowed => 405,
            Status::RequestTimeout => 408,
            Status::FieldsTooLarge => 431,
            Status::Unavailable => 503,
            Status::VersionNotSupported => 505,
        }
    }

    /// The status of gRPC that a call gets instead, by gRPC's own table of HTTP statuses.
    #[must_use]
    pub const fn grpc(self) -> u8 {
        match self {
            Status::RequestTimeout => 4,
            Status::Forbidden => 7,
            Status::FieldsTooLarge => 8,
            Status::MethodNotAllowed => 12,
            Status::BadRequest | Status::VersionNotSupported => 13,
            Status::Unavailable => 14,
            Status::Unauthorized => 16,
        }
    }
}

/// A refusal: what the caller is told, and what the log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the answer. The caller learns nothing else.
    pub status: Status,
    /// The stable word.
    pub reason: Reason,
    /// What was wrong with the message itself, as a clause; empty where the policy decided.
    pub fault: &'static str,
    /// The bound that was passed, for metrics: a field of [`Limits`](crate::Limits), as `http.head_bytes`; empty: none
    /// was.
    pub limit: &'static str,
}

impl Refusal {
    /// A refusal by policy: 403.
    #[must_use]
    pub const fn forbidden(reason: Reason) -> Refusal {
        Refusal { status: Status::Forbidden, reason, fault: "", limit: "" }
    }

    /// A token that came with the request does not count: 401.
    #[must_use]
    pub const fn unauthorized(reason: Reason) -> Refusal {
        Refusal { status: Status::Unauthorized, reason, fault: "", limit: "" }
    }

    /// The message is not understood or not permitted by `fault`, a clause for the log: 400.
    #[must_use]
    pub const fn bad_request(fault: &'static str) -> Refusal {
        Refusal::of(Status::BadRequest, fault)
    }

    /// As [`Refusal::bad_request`], with another status.
    #[must_use]
    pub const fn of(status: Status, fault: &'static str) -> Refusal {
        let reason = match status {
            Status::FieldsTooLarge | Status::RequestTimeout | Status::Unavailable => Reason::Overloaded,
            _ => Reason::BadRequest,
        };
        Refusal { status, reason, fault, limit: "" }
    }

    /// The message passes the bound `limit`; its name is that of metrics, as `http.head_bytes`.
    #[must_use]
    pub const fn over(status: Status, limit: &'static str, fault: &'static str) -> Refusal {
        Refusal { limit, ..Refusal::of(status, fault) }
    }
}

/// One of the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Peer {
    /// Who asks.
    Client,
    /// Who answers.
    App,
}

/// Decides about requests, and hears what becomes of them. The filter knows nothing of policies: the proxy adapts.
pub trait Authorizer {
    /// Decides about a request before any byte of it leaves. What it writes into `patch` (empty before) is done to
    /// the request when it is forwarded.
    fn decide(&mut self, id: RequestId, head: &RequestHead<'_>, patch: &mut Patch) -> Verdict;

    /// Decides again about a request in flight, after the policy has changed. It can't be patched any more.
    fn decide_again(&mut self, id: RequestId, head: &RequestHead<'_>) -> Verdict {
        self.decide(id, head, &mut Patch::default())
    }

    /// Whether a policy reads the field `name` (lower case, `-` and never `_`), or the proxy adds it. A field that
    /// apps could take for it is refused, and one in trailers too.
    fn is_guarded(&self, name: &str) -> bool;

    /// The decisions since the caller's turn began have cost what they may: further requests wait for the next turn.
    fn is_spent(&self) -> bool {
        false
    }

    /// The filter itself refused a request; `decide` was not asked, or has allowed what now turned out bad.
    fn refused(&mut self, _id: RequestId, _refusal: &Refusal) {}

    /// A bound was passed by what only the log and metrics hear of: the app's side of the connection. What becomes of
    /// its requests is told otherwise. `limit` as in [`Refusal::limit`].
    fn over_limit(&mut self, _limit: &'static str) {}

    /// The final status of a request is on its way to the client: the app's (101 for an upgrade, 0 when its answer
    /// can't be read), or that of a refusal.
    fn answered(&mut self, _id: RequestId, _status: u16) {}

    /// So many bytes of the request's body are on their way to the app (of an upgraded connection: of what the client
    /// says). The coding in which they come is not counted.
    fn request_body(&mut self, _id: RequestId, _bytes: usize) {}

    /// So many bytes of the answer's body are on their way to the client (of an upgraded connection: of what the app
    /// says). The coding in which they come is not counted.
    fn answer_body(&mut self, _id: RequestId, _bytes: usize) {}

    /// The answer ends with this `grpc-status`. HTTP/2 only.
    fn grpc_status(&mut self, _id: RequestId, _status: u8) {}

    /// The request's stream was reset by `by`, before it was complete. HTTP/2 only.
    fn reset(&mut self, _id: RequestId, _by: Peer) {}

    /// Request and answer are complete, or (HTTP/2) its stream was reset. Not told of those that are lost with their
    /// connection.
    fn finished(&mut self, _id: RequestId) {}
}

/// What the authorizer asked for can't be done to a message without changing what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPatch {
    /// No path with a query: it must begin with `/` (or be `*`) and hold visible ASCII only.
    #[error("the target is none")]
    Target,
    /// No field name, or a field that says where a message ends or whom it is for.
    #[error("the field can not be set or removed")]
    Name,
    /// It holds CR, LF, NUL or other controls.
    #[error("the value of the field holds controls")]
    Value,
}

/// Changes to one request. Its memory is used again, so that a patch costs no allocation.
#[derive(Debug, Default)]
pub struct Patch {
    text: String,
    values: Vec<u8>,
    target: Option<Range<usize>>,
    removed: Vec<Range<usize>>,
    added: Vec<(Range<usize>, Range<usize>)>,
}

impl Patch {
    /// Forwards another target (path and query) than the client sent.
    ///
    /// # Errors
    /// When it is none; nothing is changed then, and the request should be refused.
    pub fn set_target(&mut self, target: &str) -> Result<(), InvalidPatch> {
        let visible = target.bytes().all(|byte| byte.is_ascii_graphic());
        if !visible || !(target.starts_with('/') || target == "*") {
            return Err(InvalidPatch::Target);
        }
        self.target = Some(self.push(target));
        Ok(())
    }

    /// Removes all fields of this name, in any case.
    ///
    /// # Errors
    /// When it is no field name, or one that frames or routes the message.
    pub fn remove(&mut self, name: &str) -> Result<(), InvalidPatch> {
        check_name(name)?;
        let name = self.push(name);
        self.removed.push(name);
        Ok(())
    }

    /// Replaces all fields of this name by one of ours; `name` in lower case.
    ///
    /// # Errors
    /// As [`Patch::remove`], and when the value is none.
    pub fn set(&mut self, name: &str, value: &[u8]) -> Result<(), InvalidPatch> {
        check_name(name)?;
        if !is_field_value(value) {
            return Err(InvalidPatch::Value);
        }
        let name = self.push(name);
        let start = self.values.len();
        self.values.extend_from_slice(value);
        self.added.push((name, start..self.values.len()));
        Ok(())
    }

    /// It changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.target.is_none() && self.removed.is_empty() && self.added.is_empty()
    }

    /// The target to forward, if it is another.
    #[must_use]
    pub fn target(&self) -> Option<&str> {
        self.target.clone().and_then(|range| self.text.get(range))
    }

    /// Whether the client's field of this name goes.
    #[must_use]
    pub fn removes(&self, name: &str) -> bool {
        let added = self.added.iter().map(|(name, _)| name);
        self.removed.iter().chain(added).any(|range| self.name(range).eq_ignore_ascii_case(name))
    }

    /// The fields to append.
    pub fn added(&self) -> impl Iterator<Item = Header<'_>> {
        self.added
            .iter()
            .map(|(name, value)| (self.name(name), self.values.get(value.clone()).unwrap_or_default()))
    }

    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.values.clear();
        self.target = None;
        self.removed.clear();
        self.added.clear();
    }

    fn name(&self, range: &Range<usize>) -> &str {
        self.text.get(range.clone()).unwrap_or_default()
    }

    fn push(&mut self, text: &str) -> Range<usize> {
        let start = self.text.len();
        self.text.push_str(text);
        start..self.text.len()
    }
}

fn check_name(name: &str) -> Result<(), InvalidPatch> {
    if is_field_name(name) && !is_framing(name) { Ok(()) } else { Err(InvalidPatch::Name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_refuses_what_would_change_the_meaning_of_a_message() {
        let mut patch = Patch::default();
        for target in ["", "x", "/a b", "/a\r\n", "/\u{fc}", "http://a/"] {
            assert_eq!(patch.set_target(target), Err(InvalidPatch::Target), "{target:?}");
        }
        for name in ["", "a b", "a:", "Content-Length", "transfer-encoding", "host", "connection", "upgrade"]
        {
            assert_eq!(patch.remove(name), Err(InvalidPatch::Name), "{name:?}");
            assert_eq!(patch.set(name, b"x"), Err(InvalidPatch::Name), "{name:?}");
        }
        for value in [&b"a\r\nb: c"[..], b"a\nb", b"\0", b"\x7f", b" a", b"a\t"] {
            assert_eq!(patch.set("x", value), Err(InvalidPatch::Value), "{value:?}");
        }
        assert!(patch.is_empty());
    }

    #[test]
    fn a_field_that_is_set_replaces_the_clients() {
        let mut patch = Patch::default();
        patch.set_target("/b?c").unwrap();
        patch.set("x-user", b"ann").unwrap();
        patch.remove("authorization").unwrap();
        assert!(patch.removes("X-User") && patch.removes("Authorization") && !patch.removes("accept"));
        assert_eq!(patch.target(), Some("/b?c"));
        assert_eq!(patch.added().collect::<Vec<_>>(), [("x-user", &b"ann"[..])]);
        patch.clear();
        assert!(patch.is_empty() && !patch.removes("x-user"));
    }
}
