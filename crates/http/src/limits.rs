//! The bounds of one connection.

use std::time::Duration;

/// The bounds of one connection, each with its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one head (HTTP/1), or of one header block, encoded and decoded (HTTP/2).
    pub head_bytes: usize,
    /// Fields of one head; at most [`Limits::MAX_FIELDS`].
    pub head_fields: usize,
    /// Bytes of the trailers of one request.
    pub trailer_bytes: usize,
    /// HTTP/1: requests outstanding at once; more are not read.
    pub pipelined: usize,
    /// From the first byte of a head (or trailer section) to its last.
    pub head_timeout: Duration,
    /// Without a byte while no request is outstanding, or while one is unfinished.
    pub idle_timeout: Duration,
    /// How long a client that was told `close` may take to end its side, and its bytes be discarded.
    pub linger: Duration,
    /// So many of them.
    pub discard_bytes: usize,
    /// Bytes of our own answers that wait to be sent before further requests are looked at.
    pub answer_bytes: usize,
    /// HTTP/2: streams of one connection that live at once.
    pub streams: u32,
    /// HTTP/2: bytes of the heads of all these; further streams are refused.
    pub stream_head_bytes: usize,
    /// HTTP/2: CONTINUATION frames of one header block. RFC 9113 sets no bound; each costs its sender nine bytes.
    pub continuations: u32,
    /// HTTP/2: frames of one side, sent at once, that move nothing (PING, SETTINGS, empty DATA, PRIORITY, GOAWAY, and
    /// what is of no known type or stream). Every frame that moves something earns one more.
    pub idle_frames: u32,
    /// And so many of them a second for ever.
    pub idle_frames_per_second: u32,
    /// HTTP/2: after so many streams, a client that has reset half of them before their answers began is sent away.
    pub early_resets_after: u32,
}

impl Limits {
    /// The most fields that any setting permits.
    pub const MAX_FIELDS: usize = 256;
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            head_bytes: 64 * 1024,
            head_fields: Limits::MAX_FIELDS,
            trailer_bytes: 8 * 1024,
            pipelined: 16,
            head_timeout: Duration::from_secs(10),
            // As long as Envoy's: an app that closes earlier decides for itself.
            idle_timeout: Duration::from_secs(3600),
            linger: Duration::from_secs(1),
            discard_bytes: 64 * 1024,
            answer_bytes: 16 * 1024,
            streams: 1000,
            stream_head_bytes: 1024 * 1024,
            continuations: 16,
            idle_frames: 1000,
            // Far above any keepalive.
            idle_frames_per_second: 20,
            early_resets_after: 500,
        }
    }
}
