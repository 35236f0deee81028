//! A connection of HTTP/1 with both of its sides, ends and changes of policy: whole or in pieces it comes to the same,
//! and the app gets what was authorised and nothing else.
#![no_main]

use cinch_fuzz::play::{events, play};
use cinch_fuzz::read_h1;
use cinch_http::Limits;
use cinch_http::h1::Connection;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use std::time::Instant;

fuzz_target!(|data: &[u8]| {
    let Some((size, data)) = data.split_first() else { return };
    let now = Instant::now();
    let limits = Limits { answer_bytes: usize::MAX, pipelined: 2, head_bytes: 500, ..Limits::default() };
    let limits = Arc::new(Limits { trailer_bytes: 100, ..limits });
    let events = events(data);
    let of = |size: usize| play(Connection::new(Arc::clone(&limits), now), &events, size, now);
    let whole = of(usize::MAX);
    read_h1::assert_authorised(&whole);
    assert_eq!(whole, of(usize::from(*size).max(1)));
});
