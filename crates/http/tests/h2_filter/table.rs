//! The table of what clients may send (`rows.rs`), played against the filter.

use crate::raw::*;
use crate::rows::{self, Row, Then};
use crate::scene::Scene;
use cinch_http::End;

/// Plays the bytes in pieces of `size`, and checks the outcome.
fn play(row: &Row, size: usize) {
    let (number, name, bytes, then) = row;
    let name = format!("{number} {name}, in pieces of {size}");
    let mut scene = Scene::open();
    for piece in bytes.chunks(size) {
        scene.client(piece);
    }
    let to_app = scene.app_frames();
    let of_one = |kind: u8| to_app.iter().find(|frame| (frame.kind, frame.stream) == (kind, 1));
    let ended = to_app.iter().any(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0);
    let of_connection = [SETTINGS, PING, GOAWAY, WINDOW_UPDATE];
    assert!(
        to_app.iter().all(|frame| frame.stream != 0 || of_connection.contains(&frame.kind)),
        "{name}: {to_app:?}"
    );
    let told = scene.client_frames();
    match then {
        Then::Passed => {
            assert!(of_one(HEADERS).is_some() && of_one(RST_STREAM).is_none(), "{name}: {to_app:?}");
            assert!(told.is_empty() && ended, "{name}: {told:?}");
        }
        Then::Answered(status) => {
            assert!(to_app.is_empty(), "{name}: {to_app:?}");
            assert_eq!(scene.client_fields(&told[0])[0].1, *status, "{name}");
        }
        Then::Reset(code) => {
            assert!(to_app.is_empty() && scene.rules.seen.is_empty(), "{name}: {to_app:?}");
            assert_eq!((told[0].kind, &told[0].payload[..]), (RST_STREAM, &code.to_be_bytes()[..]), "{name}");
        }
        Then::Broken(code) => {
            assert!(of_one(RST_STREAM).is_some() && !ended, "{name}: {to_app:?}");
            let reset = told.iter().find(|frame| frame.kind == RST_STREAM).unwrap();
            assert_eq!(reset.payload, code.to_be_bytes(), "{name}");
        }
        Then::Goaway(code) => {
            let last = told.last().unwrap();
            assert_eq!((last.kind, &last.payload[4..8]), (GOAWAY, &code.to_be_bytes()[..]), "{name}");
            assert_eq!(scene.end(), Some(End::Finished), "{name}");
            assert!(!scene.rules.refused.is_empty(), "{name}: the log must say why");
        }
    }
    let forwarded: Vec<u32> =
        to_app.iter().filter(|frame| frame.kind == HEADERS).map(|frame| frame.stream).collect();
    assert!(forwarded.iter().all(|stream| scene.rules.allowed.contains(stream)), "{name}: {forwarded:?}");
    scene.client(&get(2001, "/marker"));
    let goes_on = !matches!(then, Then::Goaway(_));
    assert_eq!(scene.app_frames().iter().any(|frame| frame.stream == 2001), goes_on, "{name}: what follows");
}

fn play_all(rows: &[Row]) {
    for row in rows {
        for size in [usize::MAX, 1, 7, 100] {
            play(row, size);
        }
    }
}

#[test]
fn rule_10_table_200_to_231_pseudo_fields() {
    play_all(&rows::pseudo_fields());
}

#[test]
fn rule_10_table_240_to_270_fields() {
    play_all(&rows::fields());
}

#[test]
fn rule_10_table_280_to_300_bodies_and_trailers() {
    play_all(&rows::bodies());
}

#[test]
fn rule_09_and_12_table_310_to_338_frames_and_blocks() {
    play_all(&rows::frames_and_blocks());
}

#[test]
fn rule_12_table_340_to_348_floods() {
    play_all(&rows::floods());
}

#[test]
fn every_row_of_the_table_has_its_own_number() {
    let numbers: Vec<u32> = rows::rows().iter().map(|row| row.0).collect();
    assert!(numbers.is_sorted_by(|one, other| one < other), "{numbers:?}");
}
