//! Heads of HTTP/1 requests: whole or in pieces they come to the same, and what passes is to httparse what the
//! authorizer saw.
#![no_main]

use cinch_fuzz::play::{Event, play};
use cinch_fuzz::read_h1;
use cinch_http::Limits;
use cinch_http::h1::Connection;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use std::time::Instant;

fuzz_target!(|data: &[u8]| {
    let Some((size, bytes)) = data.split_first() else { return };
    let now = Instant::now();
    // Whether our answers were read between two pieces is not for the pieces to say.
    let limits = Arc::new(Limits { answer_bytes: usize::MAX, ..Limits::default() });
    let events = [Event::Client(bytes)];
    let of = |size: usize| play(Connection::new(Arc::clone(&limits), now), &events, size, now);
    let whole = of(usize::MAX);
    read_h1::assert_authorised(&whole);
    assert_eq!(whole, of(usize::from(*size).max(1)));
});
