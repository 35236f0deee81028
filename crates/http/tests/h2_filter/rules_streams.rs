//! Rules 5, 6, 8, 13 and 14: which streams live, and what becomes of what comes for the others.

use crate::raw::*;
use crate::scene::{Scene, texts};
use cinch_http::{End, Filter, Limits};
use std::time::Duration;

const OK: &[(&str, &str)] = &[(":status", "200")];

fn kinds(frames: &[Frame]) -> Vec<(u8, u32)> {
    frames.iter().map(|frame| (frame.kind, frame.stream)).collect()
}

#[test]
fn rule_05_streams_above_the_cap_are_refused_until_others_end() {
    let mut scene = Scene::open();
    for stream in 0..1000 {
        scene.client(&get(2 * stream + 1, "/"));
    }
    assert_eq!(scene.app_frames().len(), 1000);
    scene.client(&get(2001, "/"));
    let refused = scene.client_frame();
    assert_eq!((refused.kind, refused.stream, &refused.payload[..]), (RST_STREAM, 2001, &[0, 0, 0, 7][..]));
    assert!(scene.to_app.is_empty());
    scene.app(&headers(501, END_STREAM, OK));
    scene.app(&reset(777, 2));
    scene.client(&[get(2003, "/"), get(2005, "/"), get(2007, "/")].concat());
    assert_eq!(kinds(&scene.app_frames()), [(HEADERS, 2003), (HEADERS, 2005)]);
}

#[test]
fn rule_05_heads_in_flight_are_bounded_together() {
    let mut scene = Scene::open();
    let large = "x".repeat(15_000);
    let mut forwarded = 0;
    for stream in 0..200 {
        scene.client(&headers(2 * stream + 1, END_STREAM, &request("GET", "/", &[("x-a", &large)])));
        forwarded += scene.app_frames().len();
    }
    assert!((60..80).contains(&forwarded), "{forwarded}");
    assert!(scene.filter.held() < 5 << 20, "{}", scene.filter.held());
}

#[test]
fn rule_05_ids_of_the_client_are_odd_and_rise() {
    let mut scene = Scene::open();
    scene.client(&get(2, "/"));
    scene.assert_goaway(1, "an even id");
    let mut scene = Scene::open();
    scene.client(&[get(5, "/a"), get(3, "/b"), get(7, "/c")].concat());
    assert_eq!(kinds(&scene.app_frames()), [(HEADERS, 5), (HEADERS, 7)]);
}

#[test]
fn rule_05_what_comes_for_a_stream_that_never_was_is_a_fault() {
    for late in [data(3, 0, b"x"), reset(3, 8), window_update(3, 1), data(2, 0, b"x"), window_update(2, 1)] {
        let mut scene = Scene::open();
        scene.client(&[get(1, "/"), late.clone()].concat());
        scene.assert_goaway(1, "of the client");
        let mut scene = Scene::open();
        scene.client(&get(1, "/"));
        scene.app(&late);
        scene.assert_goaway(2, "of the app");
    }
    let mut scene = Scene::open();
    scene.client(&get(1, "/"));
    scene.app(&headers(3, 0, OK));
    scene.assert_goaway(2, "an answer to nothing");
}

#[test]
fn rule_05_what_comes_late_is_dropped_in_both_directions() {
    let mut scene = Scene::open();
    scene.client(&[post(1, "/"), post(3, "/deny"), post(5, "/")].concat());
    scene.app(&[headers(1, 0, OK), reset(1, 0)].concat());
    scene.app_frames();
    scene.client_frames();
    let late = |stream| {
        let trailers = headers(stream, END_STREAM, &[("x-a", "1")]);
        [data(stream, 0, b"abc"), window_update(stream, 9), trailers, reset(stream, 8)].concat()
    };
    scene.client(&[late(1), late(3)].concat());
    assert!(scene.to_app.is_empty());
    assert_eq!(scene.client_frame(), frames(&window_update(0, 6))[0]);
    scene.app(&late(1));
    assert!(scene.to_client.is_empty());
    assert_eq!(scene.app_frame(), frames(&window_update(0, 3))[0]);
    assert_eq!(scene.end(), None);
}

#[test]
fn rule_06_dropped_data_is_given_back_whole_and_in_steps() {
    let mut scene = Scene::open();
    scene.client(&post(1, "/deny"));
    scene.client_frames();
    scene.client(&data(1, PADDED, &[&[5][..], b"abc", &[0; 5]].concat()));
    assert_eq!(
        scene.client_frame(),
        frames(&window_update(0, 9))[0],
        "with its padding and the length of it"
    );
    let many = (0..8).flat_map(|_| data(1, 0, &[0; 8192])).collect::<Vec<_>>();
    scene.client(&many);
    let refunds = scene.client_frames();
    assert_eq!(refunds, vec![frames(&window_update(0, 16_384))[0].clone(); 4]);
    for byte in data(1, END_STREAM, &[0; 1000]) {
        scene.client(&[byte]);
    }
    let refunded: u32 = scene
        .client_frames()
        .iter()
        .map(|frame| u32::from_be_bytes(frame.payload[..].try_into().unwrap()))
        .sum();
    assert_eq!(refunded, 1000);
    assert!(scene.to_app.is_empty());
}

#[test]
fn rule_08_a_body_is_passed_without_a_copy_and_in_pieces_of_its_own() {
    let mut scene = Scene::open();
    scene.client(&post(1, "/"));
    scene.app_frames();
    scene.passed = 0;
    let body = data(1, END_STREAM, &[7; 16_384]);
    scene.client(&body);
    assert_eq!((&scene.to_app, scene.passed), (&body, body.len()), "a whole frame, its head too");
    let mut scene = Scene::open();
    scene.client(&[post(1, "/"), post(3, "/deny")].concat());
    scene.app_frames();
    scene.client_frames();
    scene.passed = 0;
    scene.client(&body[..9_009]);
    scene.client(&body[9_009..9_109]);
    assert_eq!(kinds(&scene.app_frames()), [(DATA, 1)], "what is too small waits");
    scene.client(&[&body[9_109..], &data(3, 0, b"dropped")[..]].concat());
    let last = scene.app_frame();
    assert_eq!((last.payload.len(), last.flags), (7_384, END_STREAM));
    assert_eq!(scene.passed, 16_384 - 100);
    assert_eq!(scene.client_frame(), frames(&window_update(0, 7))[0]);
}

#[test]
fn rule_08_padded_data_is_never_framed_anew_and_odd_flags_do_not_pass() {
    let mut scene = Scene::open();
    scene.client(&post(1, "/"));
    scene.app_frames();
    let body = data(1, PADDED | END_STREAM, &[&[100][..], &[7; 5000], &[0; 100]].concat());
    scene.client(&body[..4_000]);
    assert!(scene.to_app.is_empty());
    scene.client(&body[4_000..]);
    assert_eq!(std::mem::take(&mut scene.to_app), body);
    let mut scene = Scene::open();
    scene.client(&[post(1, "/"), frame(DATA, 0xf6, 0x8000_0001, b"abc")].concat());
    assert_eq!(scene.app_frames()[1], frames(&data(1, 0, b"abc"))[0]);
    for (bad, code) in [(&b"\x03abc"[..], None), (b"\x04abc", Some(1)), (b"", Some(6))] {
        let mut scene = Scene::open();
        scene.client(&[post(1, "/"), data(1, PADDED, bad)].concat());
        match code {
            None => assert_eq!(scene.app_frames().len(), 2),
            Some(code) => scene.assert_goaway(code, "padding"),
        }
    }
}

#[test]
fn rule_08_answers_stand_between_frames_also_while_one_is_under_way() {
    let mut scene = Scene::open();
    scene.client(&get(1, "/"));
    scene.app(&headers(1, 0, OK));
    let body = data(1, END_STREAM, &[7; 10_000]);
    scene.app(&body[..5_009]);
    scene.client(&get(3, "/deny"));
    scene.app(&body[5_009..]);
    let frames = scene.client_frames();
    assert_eq!(kinds(&frames), [(HEADERS, 1), (DATA, 1), (HEADERS, 3), (DATA, 1)]);
    assert_eq!((frames[1].flags, frames[3].flags), (0, END_STREAM));
}

#[test]
fn rule_08_nothing_of_ours_stands_within_a_header_block() {
    let large = "x".repeat(20_000);
    let answer = [(":status", "200"), ("x-a", large.as_str())];
    let block = literals(&answer);
    let mut scene = Scene::open();
    scene.client(&get(1, "/"));
    scene.app(&frame(HEADERS, 0, 1, &block[..8_000]));
    assert!(scene.to_client.is_empty(), "a block is passed when it is whole");
    scene.client(&get(3, "/deny"));
    let ours = scene.client_frame();
    assert_eq!((ours.kind, ours.stream, ours.flags), (HEADERS, 3, END_STREAM | END_HEADERS));
    scene.app(&frame(CONTINUATION, 0, 1, &block[8_000..16_000])[..4_000]);
    scene.client(&get(5, "/deny"));
    scene.app(&frame(CONTINUATION, 0, 1, &block[8_000..16_000])[4_000..]);
    scene.app(&frame(CONTINUATION, END_HEADERS, 1, &block[16_000..]));
    scene.client(&get(7, "/deny"));
    let frames = scene.client_frames();
    assert_eq!(kinds(&frames), [(HEADERS, 5), (HEADERS, 1), (CONTINUATION, 1), (HEADERS, 7)]);
    assert_eq!((frames[1].flags, frames[2].flags), (0, END_HEADERS));
    // The other direction: a block of the client, and what we tell the app meanwhile.
    let request = literals(&request("GET", "/", &[("x-a", &large)]));
    let mut scene = Scene::open();
    scene.client(&post(1, "/cut"));
    scene.app_frames();
    scene.client(&frame(HEADERS, END_STREAM, 3, &request[..16_000]));
    scene.tighten();
    scene.client(&frame(CONTINUATION, END_HEADERS, 3, &request[16_000..]));
    assert_eq!(kinds(&scene.app_frames()), [(RST_STREAM, 1), (HEADERS, 3), (CONTINUATION, 3)]);
}

#[test]
fn rule_13_a_policy_change_cuts_what_it_refuses_and_nothing_else() {
    let mut scene = Scene::open();
    scene.client(&[post(1, "/cut/a"), get(3, "/stays"), post(5, "/cut/b")].concat());
    scene.app(&headers(1, 0, OK));
    let half = data(1, 0, &[7; 4_000]);
    scene.client(&half[..2_009]);
    scene.client_frames();
    scene.app_frames();
    scene.tighten();
    for frames in [scene.app_frames(), scene.client_frames()] {
        assert_eq!(kinds(&frames), [(RST_STREAM, 1), (RST_STREAM, 5)]);
        assert!(frames.iter().all(|frame| frame.payload == [0, 0, 0, 8]));
    }
    assert_eq!(scene.rules.finished, [1, 5]);
    // The rest of the body that was under way, and what the app has not yet heard, are given back.
    scene.client(&half[2_009..]);
    assert_eq!(scene.client_frame(), frames(&window_update(0, 2_000))[0]);
    scene.app(&[data(1, 0, &[1; 500]), headers(5, END_STREAM, OK), headers(3, END_STREAM, OK)].concat());
    assert_eq!(scene.app_frame(), frames(&window_update(0, 500))[0]);
    assert_eq!(kinds(&scene.client_frames()), [(HEADERS, 3)]);
    scene.client(&get(7, "/cut/c"));
    assert_eq!(kinds(&scene.client_frames()), [(HEADERS, 7)], "a new one is refused");
}

#[test]
fn rule_13_the_table_of_the_app_stays_right_over_dropped_blocks() {
    let mut scene = Scene::open();
    scene.client(&[get(1, "/cut"), get(3, "/")].concat());
    scene.tighten();
    scene.client_frames();
    let mut table = crate::codec::Table::new(4096);
    for (stream, value) in [(1, "first"), (3, "first")] {
        let mut block = Vec::new();
        crate::codec::encode(&mut table, &texts(&[(":status", "200"), ("x-a", value)]), 0, &mut block);
        scene.app(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &block));
    }
    let head = scene.client_frame();
    assert_eq!(
        (head.stream, scene.client_fields(&head)),
        (3, texts(&[(":status", "200"), ("x-a", "first")]))
    );
}

#[test]
fn rule_14_streams_above_the_apps_goaway_are_not_forwarded() {
    let mut scene = Scene::open();
    scene.client(&[post(1, "/"), post(3, "/"), post(5, "/")].concat());
    scene.app_frames();
    let goodbye = frame(GOAWAY, 0, 0, &[&[0, 0, 0, 3, 0, 0, 0, 11][..], b"too_many_pings"].concat());
    scene.app(&goodbye);
    assert_eq!(scene.client_frame(), frames(&goodbye)[0]);
    assert_eq!(scene.rules.finished, [5]);
    scene.client(&[data(5, 0, b"abc"), get(7, "/"), data(3, 0, b"abc")].concat());
    assert_eq!(kinds(&scene.app_frames()), [(DATA, 3)]);
    assert_eq!(scene.client_frame(), frames(&window_update(0, 3))[0]);
    scene.app(&goaway(9, 0));
    assert_eq!(scene.client_frame(), frames(&goaway(3, 0))[0], "it never raises the last stream");
    scene.app(&goaway(1, 0));
    assert_eq!(scene.client_frame(), frames(&goaway(1, 0))[0]);
}

#[test]
fn rule_14_our_goodbye_comes_in_two_steps() {
    let mut scene = Scene::open();
    scene.client(&get(1, "/"));
    scene.call(&[], |filter, turn| filter.drain(turn));
    assert_eq!(scene.client_frame(), frames(&goaway(0x7fff_ffff, 0))[0]);
    scene.client(&get(3, "/"));
    assert_eq!(scene.app_frames().len(), 2, "it was on its way");
    scene.pass_time(Duration::from_secs(1));
    assert_eq!(scene.client_frame(), frames(&goaway(3, 0))[0]);
    scene.client(&get(5, "/"));
    assert!(scene.to_app.is_empty() && scene.to_client.is_empty());
    scene.app(&headers(1, END_STREAM, OK));
    assert_eq!(scene.end(), None);
    scene.app(&headers(3, END_STREAM, OK));
    assert_eq!(scene.end(), Some(End::Finished));
}

#[test]
fn the_end_of_either_side_ends_the_connection_when_its_streams_have_ended() {
    let mut scene = Scene::open();
    scene.client(&get(1, "/"));
    scene.call(&[], Filter::client_eof);
    assert_eq!(scene.end(), None);
    scene.app(&headers(1, END_STREAM, OK));
    assert_eq!((scene.end(), scene.client_frames().len()), (Some(End::Finished), 1));
    let mut scene = Scene::open();
    scene.client(&get(1, "/"));
    scene.call(&[], Filter::app_eof);
    assert_eq!(scene.end(), Some(End::Finished));
}

#[test]
fn a_quiet_connection_without_streams_ends_and_gives_its_memory_back_before() {
    let mut scene = Scene::open();
    for stream in 0..200 {
        scene.client(&get(2 * stream + 1, "/"));
    }
    scene.pass_time(Limits::default().idle_timeout);
    assert_eq!(scene.end(), None, "streams may be quiet");
    for stream in 0..200 {
        scene.app(&headers(2 * stream + 1, END_STREAM, OK));
    }
    scene.filter.shrink();
    assert!(scene.filter.held() < 1024, "{}", scene.filter.held());
    scene.client_frames();
    scene.pass_time(Limits::default().idle_timeout);
    scene.assert_goaway(0, "idle");
}
