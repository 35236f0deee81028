//! Bodies in chunks: what is one to a plain reader passes unchanged, what is none is told 400, and of that no byte
//! behind the fault passes.
#![no_main]

use cinch_fuzz::play::{Event, play};
use cinch_fuzz::read_h1::{Chunks, assert_authorised, chunks};
use cinch_http::Limits;
use cinch_http::h1::Connection;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use std::time::Instant;

const HEAD: &[u8] = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";

fuzz_target!(|data: &[u8]| {
    let Some((size, body)) = data.split_first() else { return };
    let now = Instant::now();
    let limits = Arc::new(Limits::default());
    let wire = [HEAD, body].concat();
    let events = [Event::Client(&wire)];
    let of = |size: usize| play(Connection::new(Arc::clone(&limits), now), &events, size, now);
    let whole = of(usize::MAX);
    assert_eq!(whole, of(usize::from(*size).max(1)));
    assert_authorised(&whole);
    let refused = !whole.judge.refused.is_empty();
    let passed = &whole.to_app[HEAD.len()..];
    match chunks(body) {
        // What stands behind it is another request, which may be refused too.
        Chunks::Ends(length) if !refused => assert_eq!(passed.get(..length), body.get(..length)),
        // Half a section of trailers waits for the rest.
        Chunks::Ends(_) | Chunks::Goes => assert!(passed.starts_with(&body[..passed.len().min(body.len())])),
        Chunks::Broken => {
            assert!(refused && body.starts_with(passed));
            assert_eq!(chunks(passed), Chunks::Goes, "the app has got all of it");
        }
        Chunks::BrokenTrailers => {
            assert!(body.starts_with(passed));
            assert_eq!(chunks(passed), Chunks::Goes, "the app has got all of it");
        }
    }
});
