//! A connection of HTTP/2 with both of its sides, ends and changes of policy: whole or in pieces it comes to the same,
//! and what the app gets is to the `h2` crate what was authorised.
#![no_main]

use cinch_fuzz::frames::{PREFACE, SETTINGS, heard};
use cinch_fuzz::play::{Event, Played, events, play};
use cinch_fuzz::read_h2;
use cinch_http::Limits;
use cinch_http::h2::Connection;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use std::time::Instant;

fuzz_target!(|data: &[u8]| {
    let Some((size, data)) = data.split_first() else { return };
    let now = Instant::now();
    let limits = Arc::new(Limits { answer_bytes: usize::MAX, ..Limits::default() });
    let mut all = vec![Event::Client(PREFACE), Event::App(SETTINGS)];
    // Ends come last: before them, the connection may be over between two frames of one piece.
    let (ends, others): (Vec<_>, Vec<_>) =
        events(data).into_iter().partition(|event| matches!(event, Event::ClientEnd | Event::AppEnd));
    all.extend(others);
    all.extend(ends);
    let of = |size: usize| play(Connection::new(Arc::clone(&limits), now), &all, size, now);
    let (whole, pieces) = (of(usize::MAX), of(usize::from(*size).max(1)));
    let seen = |played: &Played| (heard(&played.to_app), heard(&played.to_client), played.fins, played.end);
    assert_eq!(seen(&whole), seen(&pieces));
    assert_eq!(whole.judge, pieces.judge);
    let goes_on = read_h2::assert_authorised(&whole);
    // One that has said nothing has no other reason to leave than what it was sent.
    let app_spoke = all[2..].iter().any(|event| matches!(event, Event::App(_) | Event::AppEnd));
    assert!(goes_on || app_spoke, "the app ends the connection");
});
