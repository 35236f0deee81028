//! The bounds of HTTP as settings say them. The crate that keeps them reads no settings.

use crate::tuning::duration;
use serde::Deserialize;
use std::time::Duration;

/// The fields of [`cinch_http::Limits`], which says what they bound.
#[derive(Deserialize)]
#[serde(
    remote = "cinch_http::Limits",
    rename_all = "camelCase",
    deny_unknown_fields,
    default = "cinch_http::Limits::default"
)]
pub(super) struct HttpLimits {
    head_bytes: usize,
    head_fields: usize,
    trailer_bytes: usize,
    pipelined: usize,
    #[serde(deserialize_with = "duration")]
    head_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    idle_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    linger: Duration,
    discard_bytes: usize,
    answer_bytes: usize,
    streams: u32,
    stream_head_bytes: usize,
    continuations: u32,
    idle_frames: u32,
    idle_frames_per_second: u32,
    early_resets_after: u32,
}
