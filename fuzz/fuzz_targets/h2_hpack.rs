//! Header blocks, two of which share a table: what the authorizer sees of them is what the `h2` crate reads in the same
//! bytes, and what it reads in those that the app gets.
#![no_main]

use cinch_fuzz::frames::{PREFACE, SETTINGS};
use cinch_fuzz::play::{Event, play};
use cinch_fuzz::read_h2;
use cinch_http::Limits;
use cinch_http::h2::Connection;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use std::time::Instant;

const HEADERS: u8 = 1;
const ENDS: u8 = 5;

/// A frame whose block ends its headers and its stream.
fn headers(stream: u8, block: &[u8]) -> Vec<u8> {
    let length = (block.len() as u32).to_be_bytes();
    [&length[1..], &[HEADERS, ENDS, 0, 0, 0, stream], block].concat()
}

fuzz_target!(|data: &[u8]| {
    let Some((cut, blocks)) = data.split_first() else { return };
    let (first, second) = blocks.split_at(usize::from(*cut).min(blocks.len()));
    let client = [PREFACE, &headers(1, first), &headers(3, second)].concat();
    let now = Instant::now();
    let filter = Connection::new(Arc::new(Limits::default()), now);
    let played = play(filter, &[Event::App(SETTINGS), Event::Client(&client)], usize::MAX, now);
    assert!(read_h2::assert_authorised(&played), "the app ends the connection");
    for request in read_h2::requests(&client).0 {
        // The filter may refuse more than the reader.
        if let Some(seen) = played.judge.seen.iter().find(|seen| seen.id == u64::from(request.stream)) {
            read_h2::assert_same(&request, seen, false);
        }
    }
});
