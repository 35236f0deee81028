//! The rules for HTTP/1.x, each with its number: queue and framing of answers, refusals, upgrades.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod h1_rig;

use cinch_http::{End, Filter, Limits, Turn};
use cinch_reason::Reason;
use h1_rig::{DENIED, DENIED_CLOSE, NO_CONTENT, Rig, WEBSOCKET, get, ok};
use std::time::Duration;

#[test]
fn rule_1_requests_and_answers_pass_unchanged_and_the_connection_stays_open() {
    let mut rig = Rig::default();
    for turn in 0..3 {
        let request =
            format!("POST /a?{turn} HTTP/1.1\r\nhost:app\r\nX-Odd:  a  \r\ncontent-length: 5\r\n\r\nhello");
        rig.client(&request);
        assert_eq!(rig.app_got(), request);
        rig.app(ok("world"));
        assert_eq!(rig.client_got(), ok("world"));
    }
    assert_eq!((rig.end(), rig.app_fin, rig.client_fin), (None, false, false));
    assert_eq!(rig.judge.answered, [(0, 200), (1, 200), (2, 200)]);
    assert_eq!(rig.judge.finished, [0, 1, 2]);
}

#[test]
fn rule_1_sixteen_requests_are_pipelined_and_then_reading_stops() {
    let mut rig = Rig::default();
    let requests: String = (0..20).map(|n| get(&format!("/{n}"))).collect();
    rig.client(&requests);
    assert_eq!(rig.app_got(), requests.split_inclusive("\r\n\r\n").take(16).collect::<String>());
    assert!(!rig.filter.wants_client());
    rig.app(NO_CONTENT);
    assert_eq!(rig.app_got(), get("/16"), "an answer makes room for one more");
    assert!(!rig.filter.wants_client());
    for _ in 0..19 {
        rig.app(NO_CONTENT);
    }
    assert_eq!(rig.statuses(), [204; 20]);
    assert!(rig.filter.wants_client());
    assert_eq!((rig.filter.held(), rig.end()), (0, None));
}

#[test]
fn rule_1_large_heads_in_flight_stop_reading_before_sixteen() {
    let mut rig = Rig::default();
    let large = format!("GET / HTTP/1.1\r\nHost: app\r\nX: {}\r\n\r\n", "x".repeat(30_000));
    for _ in 0..3 {
        rig.client(&large);
    }
    rig.client(get("/late"));
    assert!(!rig.filter.wants_client());
    assert!(!rig.app_got().contains("/late"));
    rig.app(NO_CONTENT);
    assert!(rig.app_got().contains("/late"));
}

#[test]
fn rule_1_interim_answers_do_not_count() {
    let mut rig = Rig::default();
    rig.client("POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").app_got();
    rig.app("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    assert_eq!(rig.statuses(), [100, 103]);
    rig.client("ok");
    assert_eq!(rig.app_got(), "ok");
    rig.app(ok("done")).client(get("/next"));
    assert_eq!(rig.statuses(), [100, 103, 200]);
    assert_eq!(rig.app_got(), get("/next"));
    assert_eq!(rig.judge.answered, [(0, 200)]);
}

#[test]
fn rule_1_head_204_and_304_have_no_body() {
    let cases = [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n"),
    ];
    for (method, answer) in cases {
        let mut rig = Rig::default();
        rig.client(format!("{method} / HTTP/1.1\r\nHost: app\r\n\r\n{}", get("/next")))
            .app(answer)
            .app(ok("x"));
        assert_eq!(rig.judge.finished, [0, 1], "{method} {answer}");
        assert_eq!(rig.client_got(), format!("{answer}{}", ok("x")));
    }
}

#[test]
fn rule_1_bodies_end_by_chunks_length_or_the_end_of_the_connection() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: v\r\n\r\n";
    let mut rig = Rig::default();
    rig.client(get("/a")).client(get("/b")).client(get("/c"));
    rig.app(format!("{chunked}{}", ok("two")));
    assert_eq!(rig.judge.finished, [0, 1]);
    rig.app("HTTP/1.1 200 OK\r\n\r\nand so").app(" on").app_eof();
    assert!(rig.client_got().ends_with("\r\n\r\nand so on"));
    assert_eq!(rig.judge.finished, [0, 1, 2]);
    assert!(rig.client_fin && rig.app_fin);
}

#[test]
fn rule_1_after_an_answer_without_a_certain_end_nothing_is_forwarded() {
    let cases = [
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 3\n\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n folded: x\r\n\r\n",
        "hello, this is no HTTP\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: foo\r\n\r\n",
    ];
    for answer in cases {
        let mut rig = Rig::default();
        rig.client(get("/a")).app(answer).app_got();
        rig.client(get("/smuggled")).app("HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(rig.app_got(), "", "{answer}");
        rig.app_eof();
        assert_eq!(
            rig.client_got(),
            format!("{answer}HTTP/1.1 200 OK\r\n\r\n"),
            "all of it belongs to the answer"
        );
        assert!(rig.client_fin, "{answer}");
    }
}

#[test]
fn rule_1_what_the_app_says_unasked_reaches_nobody() {
    let mut rig = Rig::default();
    rig.client(get("/a")).app(format!("{}{}", ok("x"), ok("poison")));
    assert_eq!(rig.client_got(), ok("x"));
    assert!(rig.client_fin && rig.app_fin);
    rig.app_got();
    rig.client(get("/next"));
    assert_eq!((rig.app_got(), rig.client_got()), (String::new(), String::new()));

    let mut rig = Rig::default();
    rig.app("HTTP/1.1 408 Request Timeout\r\n\r\n");
    assert_eq!(rig.client_got(), "");
    assert!(rig.client_fin);
}

#[test]
fn rule_1_connection_close_of_either_side_ends_it() {
    let mut rig = Rig::default();
    rig.client(format!("GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n{}", get("/next")));
    assert!(!rig.app_got().contains("/next"));
    rig.app(ok("x"));
    assert!(rig.client_fin && rig.app_fin);

    let mut rig = Rig::default();
    rig.client(get("/a")).app_got();
    rig.app("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n");
    rig.client(get("/next"));
    assert_eq!(rig.app_got(), "");
    rig.app("ok").client_eof().app_eof();
    assert!(rig.client_fin && rig.app_fin);
    assert_eq!(rig.end(), Some(End::Finished));
}

#[test]
fn rule_2_a_denied_request_is_answered_in_its_turn_and_the_connection_goes_on() {
    let mut rig = Rig::default();
    rig.client(format!("{}{}{}", get("/a"), get("/denied"), get("/b")));
    assert_eq!(rig.app_got(), format!("{}{}", get("/a"), get("/b")));
    assert_eq!(rig.client_got(), "", "the answer to the first comes first");
    rig.app(ok("x"));
    assert_eq!(rig.client_got(), format!("{}{DENIED}", ok("x")));
    rig.app(ok("y")).client(get("/denied")).client(get("/token"));
    let rest = rig.client_got();
    assert!(rest.starts_with(&format!("{}{DENIED}HTTP/1.1 401 Unauthorized\r\n", ok("y"))), "{rest}");
    assert!(rest.contains("www-authenticate: Bearer error=\"invalid_token\"\r\n"), "{rest}");
    assert_eq!(rig.judge.answered, [(0, 200), (1, 403), (2, 200), (3, 403), (4, 401)]);
    assert_eq!(rig.end(), None);
    rig.client("HEAD /denied HTTP/1.1\r\nHost: app\r\n\r\n");
    assert!(rig.client_got().ends_with("\r\n\r\n"), "no body after HEAD");
}

#[test]
fn rule_2_a_denied_request_with_a_body_or_expectation_closes_the_connection() {
    for rest in [
        "Content-Length: 5\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        "Expect: 100-continue\r\n\r\n",
        "Connection: close\r\n\r\n",
    ] {
        let mut rig = Rig::default();
        rig.client(get("/a")).app_got();
        rig.client(format!("POST /denied HTTP/1.1\r\nHost: app\r\n{rest}{}", get("/next")));
        assert!(!rig.client_fin);
        rig.app(ok("x"));
        assert_eq!(rig.client_got(), format!("{}{DENIED_CLOSE}", ok("x")), "{rest}");
        assert!(rig.client_fin && rig.app_fin, "{rest}");
        assert_eq!(rig.app_got(), "", "{rest}");
        assert_eq!(rig.end(), None, "the client may read its answer first");
        rig.client(get("/more")).client_eof().app_eof();
        assert_eq!((rig.end(), rig.app_got()), (Some(End::Finished), String::new()));
    }
}

#[test]
fn rule_2_after_a_refusal_64_kib_or_one_second_are_discarded() {
    let denied = "POST /denied HTTP/1.1\r\nHost: app\r\nContent-Length: 1000000\r\n\r\n";
    let mut rig = Rig::default();
    rig.client(denied).client(vec![b'x'; 60_000]);
    assert!(rig.filter.wants_client());
    assert_eq!(rig.end(), None);
    rig.client(vec![b'x'; 6_000]);
    assert_eq!((rig.end(), rig.filter.wants_client()), (Some(End::Finished), false));

    let mut rig = Rig::default();
    rig.client(denied);
    assert_eq!(rig.filter.deadline(), Some(rig.now + Duration::from_secs(1)));
    rig.after(Duration::from_millis(999));
    assert_eq!(rig.end(), None);
    rig.after(Duration::from_millis(1));
    assert_eq!(rig.end(), Some(End::Finished));
}

#[test]
fn rule_2_a_final_status_before_the_body_ended_lets_it_end_and_then_closes() {
    let mut rig = Rig::default();
    rig.client("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\n12345").app(ok("early"));
    assert_eq!(rig.client_got(), ok("early"));
    assert!(!rig.client_fin && rig.judge.finished.is_empty());
    rig.app_got();
    rig.client(format!("67890{}", get("/next")));
    assert_eq!(rig.app_got(), "67890", "the body is finished, and the next request goes nowhere");
    assert!(rig.client_fin && rig.app_fin);
    assert_eq!(rig.judge.finished, [0]);

    let mut rig = Rig::default();
    rig.client("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\n12345")
        .app(ok("early"))
        .client_eof();
    assert!(rig.client_fin && rig.app_fin, "the body will never end");
}

#[test]
fn rule_2_a_final_status_to_an_expectation_ends_the_request() {
    let mut rig = Rig::default();
    rig.client("POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 50\r\n\r\n")
        .app_got();
    rig.app("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n");
    assert!(rig.client_fin && rig.app_fin);
    rig.client(get("/smuggled"));
    assert_eq!(rig.app_got(), "", "apps differ on whether this is the body");
}

#[test]
fn rule_2_an_answer_without_leave_to_send_the_body_tells_the_app_that_none_comes() {
    let mut rig = Rig::default();
    rig.client("POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").app_got();
    rig.app("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
    assert!(rig.app_fin && !rig.client_fin, "an app that waits for the body must not wait for ever");
    rig.client("body");
    rig.app("0\r\n\r\n");
    assert!(rig.app_got().is_empty() && rig.client_got().ends_with("0\r\n\r\n") && rig.client_fin);
}

#[test]
fn rule_2_with_leave_to_send_it_the_body_goes_on_under_an_early_answer() {
    let mut rig = Rig::default();
    rig.client("POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 8\r\n\r\n").app_got();
    rig.app("HTTP/1.1 100 Continue\r\n\r\n").client("body");
    rig.app("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nbody").client("more");
    assert_eq!((rig.app_got(), rig.app_fin), ("bodymore".into(), false));
    rig.app("more").client(get("/next"));
    assert!(rig.client_got().ends_with("bodymore") && rig.client_fin && rig.app_fin);
    assert_eq!((rig.app_got(), &*rig.judge.finished), (String::new(), &[0][..]));
}

#[test]
fn rule_2_our_own_answers_wait_for_the_client_to_read_them() {
    let mut rig = Rig::with(Limits { answer_bytes: 1000, ..Limits::default() });
    let mut turn = Turn { now: rig.now, authorizer: &mut rig.judge, out: &mut rig.out };
    let many = get("/denied").repeat(1000);
    rig.filter.client_data(many.as_bytes(), &mut turn);
    assert!(rig.out.to_client.len() < 1000 + DENIED.len(), "{}", rig.out.to_client.len());
    assert!(rig.filter.wants_turn() && !rig.filter.wants_client());
    rig.out.clear();
    rig.client([]);
    assert_eq!(rig.judge.answered.len(), 1000);
    assert!(rig.filter.wants_client() && !rig.filter.wants_turn());
}

#[test]
fn rule_2_decisions_that_cost_much_let_others_have_their_turn() {
    let mut rig = Rig::default();
    rig.judge.patience = Some(16);
    let mut turn = Turn { now: rig.now, authorizer: &mut rig.judge, out: &mut rig.out };
    rig.filter.client_data(get("/denied").repeat(50).as_bytes(), &mut turn);
    assert_eq!(rig.judge.seen.len(), 16);
    assert!(rig.filter.wants_turn() && !rig.filter.wants_client());
    rig.out.clear();
    rig.client([]);
    assert_eq!(rig.judge.answered.len(), 50, "none is lost");
    assert!(rig.filter.wants_client() && !rig.filter.wants_turn());
}

#[test]
fn rule_3_bytes_after_a_websocket_request_wait_for_the_101() {
    let mut rig = Rig::default();
    rig.client(WEBSOCKET).client("frames");
    assert_eq!(rig.app_got(), WEBSOCKET);
    assert!(rig.judge.seen[0].upgrade && !rig.filter.wants_client());
    let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\r\n";
    rig.app(format!("{switch}hello"));
    assert_eq!((rig.app_got(), rig.client_got()), ("frames".into(), format!("{switch}hello")));
    rig.client("GET / HTTP/1.1\r\nno: http\r\n\r\n").app("HTTP/1.1 x");
    assert_eq!(rig.app_got(), "GET / HTTP/1.1\r\nno: http\r\n\r\n");
    rig.client_eof();
    assert!(rig.app_fin && !rig.client_fin);
    rig.app("last words").app_eof();
    assert_eq!(rig.client_got(), "HTTP/1.1 xlast words");
    assert_eq!((rig.client_fin, rig.end()), (true, Some(End::Finished)));
    assert_eq!((&*rig.judge.answered, &*rig.judge.finished), (&[(0, 101)][..], &[0][..]));
}

#[test]
fn rule_3_on_any_other_status_the_bytes_are_the_next_request() {
    let mut rig = Rig::default();
    rig.client(format!("{WEBSOCKET}{}{}", get("/denied"), get("/next")));
    assert_eq!(rig.app_got(), WEBSOCKET);
    rig.app("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(rig.app_got(), get("/next"));
    assert!(rig.client_got().ends_with(DENIED));

    let mut rig = Rig::default();
    rig.client(format!("{WEBSOCKET}{}", get("/smuggled"))).app_got();
    rig.app("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n");
    assert_eq!(rig.app_got(), "", "an upgrade that nobody asked for");
}

#[test]
fn rule_3_any_other_upgrade_is_removed_with_its_token() {
    let cases = [
        (
            "GET",
            "1.1",
            "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n",
            "",
        ),
        (
            "GET",
            "1.1",
            "Upgrade: websocket, h2c\r\nConnection: keep-alive, Upgrade\r\n",
            "connection: keep-alive\r\n",
        ),
        ("GET", "1.1", "Upgrade: websocket\r\nUpgrade: h2c\r\nConnection: upgrade\r\n", ""),
        ("GET", "1.1", "Upgrade: websocket\r\n", ""),
        (
            "GET",
            "1.1",
            "Upgrade: foo\r\nConnection: te\r\nConnection: upgrade, x\r\n",
            "connection: te, x\r\n",
        ),
        ("POST", "1.1", "Upgrade: websocket\r\nConnection: upgrade\r\n", ""),
        ("GET", "1.0", "Upgrade: websocket\r\nConnection: upgrade\r\n", ""),
        (
            "GET",
            "1.1",
            "Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 2\r\n",
            "Content-Length: 2\r\n",
        ),
    ];
    for (method, version, fields, left) in cases {
        let mut rig = Rig::default();
        rig.client(format!("{method} / HTTP/{version}\r\nHost: app\r\n{fields}\r\n"));
        assert_eq!(
            rig.app_got(),
            format!("{method} / HTTP/{version}\r\nHost: app\r\n{left}\r\n"),
            "{fields}"
        );
        let seen = &rig.judge.seen[0];
        assert!(!seen.upgrade && !seen.headers.iter().any(|(name, _)| name == "Upgrade"), "{fields}");
    }
}

#[test]
fn rule_3_a_denied_upgrade_is_an_ordinary_denial() {
    let mut rig = Rig::default();
    rig.client(WEBSOCKET.replace("/chat", "/denied")).client(get("/a"));
    assert_eq!((rig.client_got(), rig.app_got()), (DENIED.into(), get("/a")));
}

#[test]
fn rule_6_a_policy_change_cuts_what_is_now_denied_and_nothing_else() {
    let mut rig = Rig::default();
    rig.client(get("/a")).client(get("/poll")).client(get("/denied"));
    rig.reevaluate();
    assert_eq!((rig.end(), &*rig.judge.asked_again), (None, &[0, 1][..]));
    rig.judge.revoked = Some("/poll");
    rig.app(ok("x")).reevaluate();
    assert_eq!(rig.end(), Some(End::Cut(Reason::DeniedByPolicy)));
    assert_eq!(rig.judge.asked_again, [0, 1, 1], "what is answered is in flight no more");
    rig.app(ok("y")).client(get("/b"));
    assert!(!rig.client_got().contains('y') && !rig.app_got().contains("/b"), "nothing passes after a cut");
    assert_eq!((rig.filter.held(), rig.filter.deadline()), (0, None));
}

#[test]
fn rule_6_uploads_streams_and_websockets_are_in_flight() {
    let mut upload = Rig::default();
    upload.client("POST /x HTTP/1.1\r\nHost: app\r\nContent-Length: 9\r\n\r\n1").app(ok("early"));
    let mut stream = Rig::default();
    stream.client(get("/x")).app("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
    let mut socket = Rig::default();
    socket.client(WEBSOCKET.replace("/chat", "/x"));
    socket.app("HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n").client("frames");
    for (name, mut rig) in [("upload", upload), ("stream", stream), ("socket", socket)] {
        rig.reevaluate();
        assert_eq!(rig.end(), None, "{name}");
        rig.judge.revoked = Some("/x");
        rig.reevaluate();
        assert_eq!(rig.end(), Some(End::Cut(Reason::DeniedByPolicy)), "{name}");
    }
}
