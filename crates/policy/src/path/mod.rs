//! Paths: the target of a request goes in, with the mode that the mesh chose; the form to forward and the
//! readings under which path rules are judged come out ([`normalize`]). Templates of `paths` live here too.
//!
//! Back ends read paths differently. By default ([`PathNormalization::Safe`]) a request therefore passes only if it
//! passes under each reading that a back end could give to what is forwarded: those that the mode names, and those
//! of back ends that decode every escape, once or twice, or drop `;parameters`. Under the latter a value that lets
//! requests pass counts in each spelling of itself, so that what is allowed as `/a%20b` stays allowed.
//! Not covered, and to be written into rules where a back end does it: ignoring case.

mod form;
mod further;
mod patterns;
mod readings;
mod template;

pub(crate) use patterns::{Patterns, Reading};
pub use readings::{Readings, normalize, normalize_within};
pub use template::{Charset, Template, TemplateError};

use cinch_reason::Reason;
use serde::{Deserialize, Serialize};

/// Bytes that all forms of a path may have together, where nobody says otherwise: their readings must not cost the proxy
/// more than the sender. A path of 3 KiB with common escapes is within it, one with parameters and escapes of escapes up
/// to some 300 bytes.
pub const FORM_BYTES: usize = 10 * 1024;

/// How paths are read, for matching and for forwarding (Istio's `pathNormalization`, and our default).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PathNormalization {
    /// Judged under all readings of the other modes; the BASE form is forwarded.
    #[default]
    Safe,
    /// `%2F` and `%5C` become `/`, then as MERGE_SLASHES.
    DecodeAndMergeSlashes,
    /// As BASE, then `//` becomes `/`.
    MergeSlashes,
    /// `\` becomes `/`, unreserved characters are decoded, `.` and `..` are resolved.
    Base,
    /// Only the fragment goes.
    None,
}

/// A path that is refused with status 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// It holds a NUL, plain or as `%00`: back ends in C would read only what stands before it.
    #[error("the path holds a NUL (%00)")]
    Nul,
    /// It is no absolute path (RFC 9112, section 3.2.1).
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// It holds escapes or parameters, so that back ends could read it in many ways, and is too long to be judged
    /// under all of them. In mode SAFE only.
    #[error("the path is long and its escapes or parameters can be read in many ways")]
    TooLong,
}

impl BadPath {
    /// The stable word: always [`Reason::BadRequest`].
    #[must_use]
    pub fn reason(self) -> Reason {
        Reason::BadRequest
    }
}
