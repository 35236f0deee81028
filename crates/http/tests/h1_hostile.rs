//! The table of hostile and odd bytes (`h1_rig/rows.rs`), played against the filter.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod h1_rig;

use cinch_http::{End, Filter, Limits};
use h1_rig::rows::Then::{Broken, Passed, Refused, Same};
use h1_rig::rows::{CHUNKED, CHUNKS, FRAMING, HEADS, NAMES, Row, TARGETS, UPGRADES};
use h1_rig::{Rig, get};

/// Plays the bytes in pieces of `size`, and checks the outcome.
fn play(row: &Row, before: &str, size: usize) {
    let (number, name, bytes, then) = row;
    let name = format!("{number} {name}, in pieces of {size}");
    let sent = [before.as_bytes(), bytes].concat();
    let mut rig = Rig::default();
    for piece in sent.chunks(size) {
        rig.client(piece);
    }
    let passed = match then {
        Refused(status) => {
            assert_eq!((rig.statuses(), rig.app.len()), (vec![*status], 0), "{name}");
            assert!(rig.client.windows(17).any(|window| window == b"connection: close"), "{name}");
            assert!(rig.client_fin && rig.app_fin, "{name}");
            assert!(!rig.judge.refused[0].2.is_empty(), "{name}: the log must say why");
            rig.client(get("/next"));
            assert_eq!(rig.app.len(), 0, "{name}: nothing may follow");
            return;
        }
        Broken(passed) => {
            assert_eq!(rig.statuses(), [400], "{name}");
            assert!(rig.client_fin && rig.app_fin, "{name}");
            [before, passed].concat().into_bytes()
        }
        Passed(passed) => [before, passed].concat().into_bytes(),
        Same => sent,
    };
    assert_eq!(String::from_utf8_lossy(&rig.app), String::from_utf8_lossy(&passed), "{name}");
    if !matches!(then, Broken(_)) {
        assert_eq!((rig.client.len(), rig.end()), (0, None), "{name}");
    }
}

fn play_all(rows: &[Row], before: &str) {
    for row in rows {
        for size in [usize::MAX, 1, 2, 7] {
            play(row, before, size);
        }
    }
}

#[test]
fn rule_5_table_1_to_35_framing() {
    play_all(FRAMING, "");
}

#[test]
fn rule_5_table_40_to_75_heads() {
    play_all(HEADS, "");
}

#[test]
fn rule_5_and_6_table_80_to_92_names_of_fields() {
    play_all(NAMES, "");
}

#[test]
fn rule_4_table_100_to_129_targets_and_hosts() {
    play_all(TARGETS, "");
}

#[test]
fn rule_5_table_140_to_167_chunks_and_trailers() {
    play_all(CHUNKS, CHUNKED);
}

#[test]
fn rule_3_table_170_to_175_upgrades() {
    play_all(UPGRADES, "");
}

#[test]
fn every_row_of_the_table_has_its_own_number() {
    let tables = [FRAMING, HEADS, NAMES, TARGETS, CHUNKS, UPGRADES];
    let numbers: Vec<u32> = tables.iter().flat_map(|rows| rows.iter().map(|row| row.0)).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
}

#[test]
fn rule_5_a_bare_line_feed_behind_the_empty_line_is_refused_however_it_comes() {
    let bytes = b"\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for size in 1..=bytes.len() {
        let mut rig = Rig::default();
        for piece in bytes.chunks(size) {
            rig.client(piece);
        }
        assert_eq!((rig.statuses(), rig.app_got()), (vec![400], String::new()), "in pieces of {size}");
    }
}

#[test]
fn rule_5_heads_and_trailers_are_bounded() {
    let limits = Limits { head_bytes: 1000, head_fields: 40, trailer_bytes: 100, ..Limits::default() };
    let cases = [
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(1000)), "http.head_bytes"),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(1000)), "http.head_bytes"),
        ("x".repeat(1001), "http.head_bytes"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(40)), "http.head_fields"),
        (format!("{CHUNKED}0\r\nX: {}\r\n\r\n", "x".repeat(100)), "http.trailer_bytes"),
    ];
    for (bytes, limit) in cases {
        for size in [usize::MAX, 1, 100] {
            let mut rig = Rig::with(limits.clone());
            for piece in bytes.as_bytes().chunks(size) {
                rig.client(piece);
            }
            assert_eq!(rig.statuses(), [431], "{bytes} in pieces of {size}");
            assert_eq!(rig.judge.limits, [limit], "{bytes}");
            assert!(!rig.app.windows(2).any(|window| window == b"xx"), "{bytes}");
            assert!(rig.filter.held() <= 1001);
        }
    }
    let mut rig = Rig::with(limits);
    rig.client(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(39)));
    assert_eq!((rig.statuses().len(), rig.judge.seen[0].headers.len()), (0, 40), "as many as the limit says");
}

#[test]
fn rule_5_too_many_trailers_and_answers_beyond_the_bounds_are_told_by_their_limits() {
    let limits = Limits { head_bytes: 2000, trailer_bytes: 8000, ..Limits::default() };
    let mut rig = Rig::with(limits.clone());
    rig.client(format!("{CHUNKED}0\r\n{}\r\n", "X: y\r\n".repeat(257)));
    assert_eq!((rig.statuses(), &rig.judge.limits[..]), (vec![431], &["http.head_fields"][..]));
    let answers = [
        (format!("X: {}\r\n", "x".repeat(2000)), "http.head_bytes"),
        ("X:\r\n".repeat(257), "http.head_fields"),
    ];
    for (fields, limit) in answers {
        let mut rig = Rig::with(limits.clone());
        rig.client(get("/a")).app(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n"));
        assert_eq!(rig.judge.limits, [limit]);
        assert!(rig.client_got().starts_with("HTTP/1.1 200 OK"), "it passes, as the last one");
    }
}

#[test]
fn rule_5_a_bad_chunk_behind_an_answer_that_has_begun_cuts_the_connection() {
    let mut rig = Rig::default();
    rig.client(CHUNKED).app("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345").client("zz\r\n");
    assert!(matches!(rig.end(), Some(End::Cut(_))), "the client must not take the answer for complete");
    assert!(rig.client_got().ends_with("12345"));

    let mut rig = Rig::default();
    rig.client(get("/a")).client(CHUNKED).client("zz\r\n");
    assert_eq!((rig.statuses(), rig.app_fin), (vec![], true), "the app learns at once that no more comes");
    rig.app("HTTP/1.1 204 x\r\n\r\n");
    assert_eq!(rig.statuses(), [204, 400], "in its turn");
}
