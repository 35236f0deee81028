//! Rule 10: what RFC 9113, sections 8.2 and 8.3, demands of heads, trailers and bodies.

use crate::raw::*;
use crate::scene::{Scene, texts};
use cinch_http::Status;

const PROTOCOL_ERROR: u32 = 1;

type Fields<'a> = &'a [(&'a str, &'a str)];

#[test]
fn rule_10_malformed_heads_are_reset_and_never_reach_the_app() {
    let base = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    let with = |field: (&'static str, &'static str)| [&base[..], &[field]].concat();
    let without = |name: &str| base.iter().copied().filter(|field| field.0 != name).collect::<Vec<_>>();
    let instead = |field: (&'static str, &'static str)| [without(field.0), vec![field]].concat();
    let cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("a capital in a name", with(("X-a", "1"))),
        ("an empty name", with(("", "1"))),
        ("a space in a name", with(("x a", "1"))),
        ("a colon in a name", with(("x:a", "1"))),
        ("a control in a name", with(("x\u{1}", "1"))),
        ("a byte beyond ASCII in a name", with(("x\u{fc}", "1"))),
        ("CR in a value", with(("x-a", "1\r2"))),
        ("LF in a value", with(("x-a", "1\n2"))),
        ("NUL in a value", with(("x-a", "1\u{0}2"))),
        ("a value that begins with a space", with(("x-a", " 1"))),
        ("a value that ends with a tab", with(("x-a", "1\t"))),
        ("connection", with(("connection", "close"))),
        ("proxy-connection", with(("proxy-connection", "close"))),
        ("keep-alive", with(("keep-alive", "1"))),
        ("transfer-encoding", with(("transfer-encoding", "chunked"))),
        ("upgrade", with(("upgrade", "h2c"))),
        ("te that is more than trailers", with(("te", "trailers, gzip"))),
        ("a pseudo-field behind others", [&[("x-a", "1")][..], &base].concat()),
        ("a pseudo-field at the end", [&base[..3], &[("x-a", "1"), (":authority", "a")]].concat()),
        ("two methods", with((":method", "GET"))),
        ("two schemes", with((":scheme", "http"))),
        ("two paths", with((":path", "/"))),
        ("two authorities", with((":authority", "a"))),
        ("an unknown pseudo-field", with((":x", "1"))),
        ("a status in a request", with((":status", "200"))),
        ("extended CONNECT without CONNECT", with((":protocol", "websocket"))),
        ("no method", without(":method")),
        ("no scheme", without(":scheme")),
        ("no path", without(":path")),
        ("no authority and no host", without(":authority")),
        ("an empty method", instead((":method", ""))),
        ("a method with a space", instead((":method", "GET /"))),
        ("an unknown scheme", instead((":scheme", "ftp"))),
        ("an empty path", instead((":path", ""))),
        ("a path without slash", instead((":path", "a"))),
        ("an absolute path", instead((":path", "http://a/"))),
        ("a star without OPTIONS", instead((":path", "*"))),
        ("a space in the path", instead((":path", "/a b"))),
        ("LF in the path", instead((":path", "/a\nb"))),
        ("a byte beyond ASCII in the path", instead((":path", "/\u{fc}"))),
        ("an empty authority", instead((":authority", ""))),
        ("user information", instead((":authority", "u@a"))),
        ("a path in the authority", instead((":authority", "a/b"))),
        ("a host that is another", with(("host", "b"))),
        ("two hosts", [&base[..], &[("host", "a"), ("host", "a")]].concat()),
        ("a content-length of a request that has ended", with(("content-length", "1"))),
        ("two content-lengths", [&base[..], &[("content-length", "0"), ("content-length", "0")]].concat()),
        ("a content-length with a sign", with(("content-length", "+0"))),
        ("an empty content-length", with(("content-length", ""))),
        ("a content-length above 2^53", with(("content-length", "9007199254740993"))),
    ];
    for (case, fields) in cases {
        let mut scene = Scene::open();
        scene.client(&headers(1, END_STREAM, &fields));
        let answer = scene.client_frame();
        assert_eq!((answer.kind, answer.stream), (RST_STREAM, 1), "{case}");
        assert_eq!(answer.payload, PROTOCOL_ERROR.to_be_bytes(), "{case}");
        assert!(scene.to_app.is_empty() && scene.rules.seen.is_empty(), "{case}");
        assert_eq!(scene.rules.refused[0].1.status, Status::BadRequest, "{case}");
        scene.client(&headers(3, END_STREAM, &base));
        assert_eq!(scene.app_frame().stream, 3, "{case}");
    }
}

#[test]
fn rule_10_well_formed_heads_pass_as_they_were_authorised() {
    let mut scene = Scene::open();
    let fields = [
        (":scheme", "https"),
        (":path", "/a?b=%20"),
        (":method", "POST"),
        ("host", "Shop:80"),
        ("cookie", "a=1"),
        ("x-forwarded-client-cert", "By=me"),
        ("x-cinch-peer", "me"),
        ("cookie", "b=2"),
        ("te", "trailers"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
        ("content-length", "3"),
    ];
    scene.client(&headers(1, 0, &fields));
    let seen = scene.rules.seen.pop().unwrap();
    assert_eq!((&*seen.method, &*seen.target, &*seen.authority), ("POST", "/a?b=%20", "Shop:80"));
    let shown = [("host", "Shop:80"), ("cookie", "a=1; b=2"), ("te", "trailers"), ("content-length", "3")];
    assert_eq!(seen.headers, texts(&shown));
    let head = scene.app_frame();
    let sent = [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/a?b=%20"),
        (":authority", "Shop:80"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("te", "trailers"),
        ("content-length", "3"),
    ];
    assert_eq!(scene.app_fields(&head), texts(&sent));
    scene.client(&headers(
        3,
        END_STREAM,
        &[&request("OPTIONS", "*", &[])[..], &[("host", "SHOP:8080")]].concat(),
    ));
    let head = scene.app_frame();
    assert_eq!(scene.app_fields(&head), texts(&request("OPTIONS", "*", &[])));
}

#[test]
fn rule_10_patches_are_what_the_app_reads() {
    let mut scene = Scene::open();
    let more = [("x-gone", "1"), ("x-cinch-peer", "forged"), ("x-stays", "2"), ("x-gone", "3")];
    scene.client(&headers(1, END_STREAM, &request("GET", "/patch/a?b", &more)));
    let head = scene.app_frame();
    let ours = ("x-cinch-peer", "spiffe://td/ns/a/sa/b");
    let expected = request("GET", "/patched/a?b", &[("x-stays", "2"), ours]);
    assert_eq!(scene.app_fields(&head), texts(&expected));
}

#[test]
fn rule_10_names_that_could_be_taken_for_others_are_answered_with_400() {
    for name in
        ["x_forwarded_client_cert", "x_user_role", "x.user-role", "content_length", "transfer_encoding"]
    {
        let mut scene = Scene::open();
        scene.client(&headers(1, END_STREAM, &request("GET", "/", &[(name, "1")])));
        let head = scene.client_frame();
        assert_eq!(scene.client_fields(&head)[0].1, "400", "{name}");
        assert!(scene.to_app.is_empty() && scene.rules.seen.is_empty(), "{name}");
    }
}

#[test]
fn rule_10_a_body_is_as_long_as_its_content_length() {
    let open = |length| headers(1, 0, &request("POST", "/", &[("content-length", length)]));
    let trailers = headers(1, END_STREAM, &[("x-a", "1")]);
    let cases: [(&str, Vec<u8>, bool); 7] = [
        ("3", data(1, END_STREAM, b"abc"), true),
        ("3", [data(1, 0, b"ab"), data(1, PADDED, b"\x02c\0\0"), trailers.clone()].concat(), true),
        ("0", data(1, END_STREAM, b""), true),
        ("3", data(1, 0, b"abcd"), false),
        ("3", data(1, END_STREAM, b"ab"), false),
        ("3", [data(1, 0, b"ab"), trailers].concat(), false),
        ("0", data(1, 0, b"a"), false),
    ];
    for (length, body, good) in cases {
        let mut scene = Scene::open();
        scene.client(&open(length));
        scene.app_frames();
        scene.client(&body);
        let app = scene.app_frames();
        let told = scene.client_frames();
        if good {
            assert!(told.is_empty(), "{length} {body:?}");
            continue;
        }
        assert_eq!(
            (app.last().unwrap().kind, &app.last().unwrap().payload[..]),
            (RST_STREAM, &[0, 0, 0, 8][..])
        );
        assert!(app.iter().all(|frame| frame.flags & END_STREAM == 0), "{length} {body:?}");
        let reset = told.iter().find(|frame| frame.kind == RST_STREAM).unwrap();
        assert_eq!(reset.payload, PROTOCOL_ERROR.to_be_bytes());
        assert_eq!(scene.rules.finished, [1]);
    }
}

#[test]
fn rule_10_trailers_hold_nothing_that_frames_routes_or_identifies() {
    let cases: [(&[(&str, &str)], bool); 10] = [
        (&[("x-a", "1"), ("grpc-x", "2")], true),
        (&[(":path", "/b")], false),
        (&[("content-length", "1")], false),
        (&[("host", "b")], false),
        (&[("te", "trailers")], false),
        (&[("x-user-role", "admin")], false),
        (&[("x_user_role", "admin")], false),
        (&[("x-forwarded-client-cert", "By=me")], false),
        (&[("connection", "close")], false),
        (&[("X", "1")], false),
    ];
    for (trailers, good) in cases {
        let mut scene = Scene::open();
        scene.client(&[post(1, "/"), data(1, 0, b"abc")].concat());
        scene.app_frames();
        scene.client(&headers(1, END_STREAM, trailers));
        let frame = scene.app_frame();
        assert_eq!(frame.kind, if good { HEADERS } else { RST_STREAM }, "{trailers:?}");
        if good {
            assert_eq!((scene.app_fields(&frame), frame.flags), (texts(trailers), END_STREAM | END_HEADERS));
        }
    }
    let mut scene = Scene::open();
    scene.client(&[post(1, "/"), headers(1, 0, &[("x-a", "1")])].concat());
    assert_eq!(scene.app_frames().pop().unwrap().kind, RST_STREAM, "a second head that ends nothing");
}

#[test]
fn rule_10_malformed_answers_are_reset_on_both_sides() {
    let cases: [(&str, u8, Fields<'_>); 13] = [
        ("no status", 0, &[("x", "1")]),
        ("a bad status", 0, &[(":status", "20")]),
        ("two statuses", 0, &[(":status", "200"), (":status", "200")]),
        ("a status behind others", 0, &[("x", "1"), (":status", "200")]),
        ("a method", 0, &[(":status", "200"), (":method", "GET")]),
        ("switching protocols", 0, &[(":status", "101")]),
        ("an interim answer at the end", END_STREAM, &[(":status", "100")]),
        ("a capital", 0, &[(":status", "200"), ("X", "1")]),
        ("LF in a value", 0, &[(":status", "200"), ("x", "1\n2")]),
        ("connection", 0, &[(":status", "200"), ("connection", "close")]),
        ("upgrade", 0, &[(":status", "200"), ("upgrade", "h2c")]),
        ("two lengths", 0, &[(":status", "200"), ("content-length", "1"), ("content-length", "1")]),
        ("a length of nothing", END_STREAM, &[(":status", "200"), ("content-length", "1")]),
    ];
    for (case, flags, fields) in cases {
        let mut scene = Scene::open();
        scene.client(&get(1, "/"));
        scene.app_frames();
        scene.app(&headers(1, flags, fields));
        let (app, client) = (scene.app_frame(), scene.client_frame());
        assert_eq!(
            (app.kind, app.stream, client.kind, client.stream),
            (RST_STREAM, 1, RST_STREAM, 1),
            "{case}"
        );
        assert_eq!(client.payload, [0, 0, 0, 2], "{case}");
        assert_eq!(
            (&scene.rules.answered[..], &scene.rules.finished[..]),
            (&[(1, 502)][..], &[1][..]),
            "{case}"
        );
    }
    for (case, body) in [("too long", data(1, 0, b"abcd")), ("too short", data(1, END_STREAM, b"ab"))] {
        let mut scene = Scene::open();
        scene.client(&get(1, "/"));
        scene.app(&headers(1, 0, &[(":status", "200"), ("content-length", "3")]));
        scene.client_frames();
        scene.app(&body);
        assert_eq!(scene.client_frame().kind, RST_STREAM, "{case}");
    }
    let mut scene = Scene::open();
    scene.client(&headers(1, END_STREAM, &request("HEAD", "/", &[])));
    scene.app(&headers(1, END_STREAM, &[(":status", "200"), ("content-length", "3")]));
    assert_eq!(scene.client_frame().kind, HEADERS, "an answer to HEAD declares what it does not send");
}
