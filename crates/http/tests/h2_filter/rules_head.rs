//! Rules 1 to 4, 7, 9 and 11: what is read, rewritten, refused and answered.

use crate::codec::{self, Table};
use crate::raw::*;
use crate::scene::{Scene, texts};
use cinch_http::{End, Filter, Limits};
use cinch_reason::Reason;
use std::time::Duration;

const PROTOCOL_ERROR: u32 = 1;

#[test]
fn rule_01_blocks_of_both_directions_are_written_without_a_table() {
    let mut scene = Scene::open();
    let mut table = Table::new(4096);
    for stream in [1, 3, 5] {
        // The second one is refused: its block fills the client's table, and the app never sees it.
        let path = if stream == 3 { "/deny" } else { "/a" };
        let id = stream.to_string();
        let fields = texts(&request("GET", path, &[("x-a", "1"), ("x-stream", &id), ("x-a", "2")]));
        for round in 0..2 {
            let mut block = Vec::new();
            codec::encode(&mut table, &fields, 0, &mut block);
            let stream = stream + 10 * round;
            scene.client(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &block));
        }
        assert!(!table.is_empty());
    }
    let heads = scene.app_frames();
    assert_eq!(heads.len(), 2 + 1, "3 is below 11, so it is late; 13 is refused");
    assert_eq!(heads[0].payload[0], 0x20);
    assert_ne!(heads[1].payload[0], 0x20);
    for (head, stream) in heads.iter().zip([1, 11, 15]) {
        assert_eq!(head.stream, stream);
        let fields = scene.app_fields(head);
        let id = (stream % 10).to_string();
        assert_eq!(fields, texts(&request("GET", "/a", &[("x-a", "1"), ("x-stream", &id), ("x-a", "2")])));
    }
    let mut table = Table::new(4096);
    scene.client_frames();
    for stream in [1, 11] {
        let mut block = Vec::new();
        let fields = texts(&[(":status", "200"), ("x-app", "one"), ("server", "app")]);
        codec::encode(&mut table, &fields, 0, &mut block);
        scene.app(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &block));
        let head = scene.client_frame();
        assert_eq!(scene.client_fields(&head), fields);
    }
}

#[test]
fn rule_01_the_first_block_to_the_client_may_be_our_own() {
    let mut scene = Scene::open();
    scene.client(&[get(1, "/deny"), get(3, "/a")].concat());
    scene.app(&headers(3, END_STREAM, &[(":status", "204")]));
    let heads = scene.client_frames();
    assert_eq!((heads[0].stream, heads[0].payload[0], heads[1].stream), (1, 0x20, 3));
    assert_ne!(heads[1].payload[0], 0x20);
}

#[test]
fn rule_02_settings_pass_one_to_one_and_so_do_their_acks() {
    let mut scene = Scene::new();
    scene.client(
        &[PREFACE, &settings(&[(1, 0), (5, 1 << 20)]), &settings(&[(1, 65_536)]), &settings(&[])].concat(),
    );
    assert!(scene.to_app.starts_with(PREFACE));
    let sent = scene.app_frames();
    assert_eq!(sent.iter().filter(|frame| frame.kind == SETTINGS && frame.flags == 0).count(), 3);
    assert!(sent.iter().all(|frame| frame.payload.chunks(6).all(|entry| entry[1] != 1 && entry[1] != 5)));
    scene.app(&[settings(&[(1, 100)]), frame(SETTINGS, ACK, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat());
    let acks = scene.client_frames();
    assert_eq!(acks.iter().map(|frame| frame.flags).collect::<Vec<_>>(), [0, ACK, ACK]);
    scene.app(&frame(SETTINGS, ACK, 0, &[]));
    assert_eq!(scene.client_frame().flags, ACK);
    scene.client(&frame(SETTINGS, ACK, 0, &[]));
    assert_eq!(scene.app_frame().flags, ACK);
    scene.client(&frame(SETTINGS, ACK, 0, &[]));
    scene.assert_goaway(PROTOCOL_ERROR, "an ACK of nothing");
}

#[test]
fn rule_03_what_is_not_offered_is_refused() {
    let mut scene = Scene::open();
    scene.client(&frame(DATA, 0, 1, &[0; 16_385])[..9]);
    scene.assert_goaway(6, "a frame of 16385");
    let mut scene = Scene::open();
    scene.client(&get(1, "/a"));
    scene.app_frames();
    scene.app(&frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82]));
    scene.assert_goaway(2, "PUSH_PROMISE of the app");
    assert_eq!(scene.app_frame().payload, [0, 0, 0, 0, 0, 0, 0, 1]);
    let mut scene = Scene::open();
    scene.client(&frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82]));
    scene.assert_goaway(PROTOCOL_ERROR, "PUSH_PROMISE of the client");
}

#[test]
fn rule_04_nothing_goes_to_the_client_before_the_settings_of_the_app() {
    let mut scene = Scene::new();
    scene.client(&[PREFACE, &settings(&[]), &get(1, "/deny"), &get(3, "/a"), &get(5, "/deny")].concat());
    assert!(scene.to_client.is_empty());
    scene.app(&settings(&[]));
    let kinds: Vec<_> = scene.client_frames().iter().map(|frame| (frame.kind, frame.stream)).collect();
    assert_eq!(kinds, [(SETTINGS, 0), (HEADERS, 1), (HEADERS, 5)]);
    let heads: Vec<_> = scene.app_frames().iter().map(|frame| (frame.kind, frame.stream)).collect();
    assert_eq!(heads, [(SETTINGS, 0), (HEADERS, 3)]);
}

#[test]
fn rule_04_a_side_that_says_nothing_is_cut() {
    let mut scene = Scene::new();
    scene.client(&[PREFACE, &settings(&[])].concat());
    scene.pass_time(Duration::from_secs(9));
    assert_eq!(scene.end(), None);
    scene.pass_time(Duration::from_secs(1));
    assert_eq!(scene.end(), Some(End::Cut(Reason::BadAnswer)));
    let mut scene = Scene::new();
    scene.client(&PREFACE[..20]);
    scene.pass_time(Duration::from_secs(10));
    assert_eq!(scene.end(), Some(End::Cut(Reason::Overloaded)));
}

#[test]
fn rule_04_who_does_not_begin_with_preface_and_settings_is_cut_or_sent_away() {
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", b"\0"] {
        let mut scene = Scene::new();
        scene.client(bytes);
        assert_eq!((scene.end(), scene.to_app.len()), (Some(End::Cut(Reason::BadRequest)), 0), "{bytes:?}");
    }
    for first in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, ACK, 0, &[]), get(1, "/")] {
        let mut scene = Scene::new();
        scene.client(&[PREFACE, &first].concat());
        assert_eq!((scene.end(), scene.to_app.len()), (Some(End::Cut(Reason::BadRequest)), 0), "{first:?}");
        let mut scene = Scene::new();
        scene.client(&[PREFACE, &settings(&[])].concat());
        scene.app(&first);
        assert_eq!(scene.end(), Some(End::Cut(Reason::BadAnswer)), "{first:?}");
        assert!(scene.to_client.is_empty());
    }
}

#[test]
fn rule_07_refused_requests_are_answered_by_a_head_alone() {
    let grpc = [("content-type", "application/grpc+proto"), ("te", "trailers")];
    let none: [(&str, &str); 0] = [];
    let length = ("content-length", "0");
    let answer = |status| vec![(":status", status), length];
    let call = |status, message| {
        let kind = ("content-type", "application/grpc");
        vec![(":status", "200"), kind, ("grpc-status", status), ("grpc-message", message)]
    };
    let bearer = ("www-authenticate", "Bearer error=\"invalid_token\"");
    let cases = [
        ("/deny", &none[..], answer("403")),
        ("/400", &none[..], answer("400")),
        ("/401", &none[..], [answer("401"), vec![bearer]].concat()),
        ("/deny", &grpc[..], call("7", "RBAC: access denied")),
        ("/401", &grpc[..], call("16", "Jwt verification fails")),
    ];
    for (path, more, expected) in cases {
        for open in [false, true] {
            let mut scene = Scene::open();
            scene.client(&headers(1, if open { 0 } else { END_STREAM }, &request("POST", path, more)));
            let frames = scene.client_frames();
            assert_eq!(scene.client_fields(&frames[0]), texts(&expected));
            assert_eq!(frames[0].flags, END_STREAM | END_HEADERS);
            assert_eq!(frames.len(), if open { 2 } else { 1 }, "RST_STREAM only where a body could follow");
            if open {
                assert_eq!((frames[1].kind, &frames[1].payload[..]), (RST_STREAM, &[0; 4][..]));
            }
            assert!(scene.to_app.is_empty());
            assert_eq!(scene.rules.answered, [(1, expected[0].1.parse().unwrap())]);
            assert_eq!(scene.rules.finished, [1]);
        }
    }
}

#[test]
fn rule_11_connect_is_refused() {
    let plain = [(":method", "CONNECT"), (":authority", "a:443")];
    let extended = request("CONNECT", "/chat", &[]);
    let extended = [&extended[..4], &[(":protocol", "websocket")]].concat();
    for fields in [&plain[..], &extended] {
        let mut scene = Scene::open();
        scene.client(&headers(1, 0, fields));
        let frames = scene.client_frames();
        assert_eq!(scene.client_fields(&frames[0])[0].1, "405");
        assert_eq!(frames[1].kind, RST_STREAM);
        assert!(scene.to_app.is_empty() && scene.rules.seen.is_empty());
    }
}

#[test]
fn rule_11_interim_answers_and_trailers_pass_and_frames_without_use_do_not() {
    let mut scene = Scene::open();
    scene.client(&get(1, "/"));
    scene.client(&frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9]));
    scene.client(&frame(0x10, 0, 0, b"u=1"));
    scene.client(&frame(0xbe, 0xff, 77, &[7; 3000]));
    assert_eq!(scene.app_frame().kind, HEADERS);
    for status in ["100", "103", "103"] {
        scene.app(&headers(1, 0, &[(":status", status)]));
        let head = scene.client_frame();
        assert_eq!(scene.client_fields(&head), texts(&[(":status", status)]));
    }
    scene.app(&frame(0x0a, 0, 1, b"altsvc"));
    scene.app(&headers(1, 0, &[(":status", "200"), ("content-type", "application/grpc")]));
    scene.app(&data(1, 0, b"abc"));
    scene.app(&headers(1, END_STREAM, &[("grpc-status", "0")]));
    let frames = scene.client_frames();
    assert_eq!(frames.iter().map(|frame| frame.kind).collect::<Vec<_>>(), [HEADERS, DATA, HEADERS]);
    scene.client_fields(&frames[0]);
    assert_eq!(scene.client_fields(&frames[2]), texts(&[("grpc-status", "0")]));
    assert_eq!((&scene.rules.answered[..], &scene.rules.finished[..]), (&[(1, 200)][..], &[1][..]));
}

#[test]
fn rule_09_header_blocks_are_bounded() {
    let bytes = vec![0; 16_384];
    let part = |flags| frame(CONTINUATION, flags, 1, &bytes);
    let block = |fields: &[(&str, &str)]| headers(1, END_STREAM, fields);
    let many: Vec<_> = (0..253).map(|_| ("a", "1")).collect();
    let large = "x".repeat(16_000);
    let many_large = [("a", large.as_str()); 1];
    // A field of 4000 bytes into the table, and sixteen times out of it.
    let bomb = [&[0x40, 1, b'a', 0x7f, 0xa1, 0x1e][..], &[b'b'; 4000], &[0xbe; 16]].concat();
    let short = [frame(HEADERS, 0, 1, &[0]), frame(CONTINUATION, 0, 1, &[0])];
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("65536 bytes and more", vec![frame(HEADERS, 0, 1, &bytes), part(0), part(0), part(0), part(0)]),
        ("an empty CONTINUATION", vec![frame(HEADERS, 0, 1, &[0]), frame(CONTINUATION, 4, 1, &[])]),
        ("17 CONTINUATION", [&short[..1], &vec![short[1].clone(); 17]].concat()),
        ("257 fields", vec![block(&request("GET", "/", &many))]),
        ("a bomb of indexes", vec![frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)]),
    ];
    for (case, frames) in cases {
        let mut scene = Scene::open();
        frames.iter().for_each(|frame| scene.client(frame));
        scene.assert_goaway(11, case);
        assert!(scene.to_app.is_empty(), "{case}");
    }
    let mut scene = Scene::open();
    scene.client(&block(&request("GET", "/", &many[1..])));
    scene.client(&headers(3, END_STREAM, &request("GET", "/", &many_large)));
    assert_eq!(scene.app_frames().len(), 2, "256 fields, and a field of 16000 bytes");
}

#[test]
fn rule_09_a_header_block_comes_within_ten_seconds() {
    for beginning in [frame(HEADERS, 0, 1, &[0]), get(1, "/")[..12].to_vec()] {
        let mut scene = Scene::open();
        scene.client(&beginning);
        scene.pass_time(Duration::from_secs(9));
        scene.client(&[]);
        assert_eq!(scene.end(), None);
        scene.pass_time(Duration::from_secs(1));
        scene.assert_goaway(11, "ten seconds");
    }
    let mut scene = Scene::open();
    scene.client(&[post(1, "/"), data(1, 0, &[0; 10])[..12].to_vec()].concat());
    scene.pass_time(Duration::from_secs(60));
    assert_eq!(scene.end(), None, "a body may come as slowly as it likes");
}

#[test]
fn rule_09_our_blocks_are_split_at_16384() {
    let mut scene = Scene::open();
    let value = "v".repeat(8_000);
    let block = literals(&request("GET", "/", &[("a", &value), ("b", &value), ("c", &value)]));
    let (first, second) = block.split_at(16_000);
    scene.client(
        &[frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, END_HEADERS, 1, second)].concat(),
    );
    let frames = scene.app_frames();
    assert_eq!(frames.iter().map(|frame| frame.kind).collect::<Vec<_>>(), [HEADERS, CONTINUATION]);
    assert_eq!(
        (frames[0].payload.len(), frames[0].flags, frames[1].flags),
        (16_384, END_STREAM, END_HEADERS)
    );
    let block = [&frames[0].payload[..], &frames[1].payload].concat();
    let fields = codec::decode(&mut Table::new(4096), &block);
    assert_eq!(fields, texts(&request("GET", "/", &[("a", &value), ("b", &value), ("c", &value)])));
}

#[test]
fn rule_09_a_block_that_can_not_be_decoded_ends_the_connection() {
    let mut scene = Scene::open();
    scene.client(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff, 0xff, 0xff]));
    scene.assert_goaway(9, "an index of no bound");
    let mut scene = Scene::open();
    scene.client(&get(1, "/"));
    scene.app_frames();
    scene.app(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x80]));
    scene.assert_goaway(2, "index 0 of the app");
    assert_eq!(scene.app_frame().payload[7], 9);
}

#[test]
fn limits_are_settings() {
    let mut scene = Scene::with(Limits { head_bytes: 1000, head_fields: 8, streams: 2, ..Limits::default() });
    scene.greet();
    scene.client(&[post(1, "/"), post(3, "/"), post(5, "/")].concat());
    assert_eq!(scene.client_frame().payload, [0, 0, 0, 7]);
    scene.client(&headers(7, END_STREAM, &request("GET", "/", &[("a", &"b".repeat(1000))])));
    scene.assert_goaway(11, "a head of more than 1000 bytes");
    assert!(!scene.filter.wants_turn());
}
