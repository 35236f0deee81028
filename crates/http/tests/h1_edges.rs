//! Patches, HTTP/1.0, half-close both ways, deadlines, and what a connection holds.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod h1_rig;

use cinch_http::{End, Filter, Limits};
use h1_rig::{NO_CONTENT, Rig, WEBSOCKET, get, ok};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn rule_4_http_1_0_closes_after_its_answer() {
    let mut rig = Rig::default();
    rig.client(format!("GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n{}", get("/next")));
    assert_eq!(rig.app_got(), "GET /old HTTP/1.0\r\n\r\n");
    rig.app("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(rig.client_got(), "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert!(rig.client_fin && rig.app_fin);
    rig.client_eof().app_eof();
    assert_eq!(rig.end(), Some(End::Finished));
}

#[test]
fn rule_6_identity_fields_of_the_client_reach_neither_the_policy_nor_the_app() {
    let mut rig = Rig::default();
    rig.client(
        "GET / HTTP/1.1\r\nHost: app\r\nx-forwarded-client-cert: By=me\r\nX-CINCH-PEER: me\r\nA: b\r\n\r\n",
    );
    assert_eq!(rig.app_got(), "GET / HTTP/1.1\r\nHost: app\r\nA: b\r\n\r\n");
    let names: Vec<&str> = rig.judge.seen[0].headers.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["Host", "A"]);
}

#[test]
fn rule_7_a_request_is_rewritten_only_where_the_patch_says_so() {
    let mut rig = Rig::default();
    let body = "Content-Length: 4\r\n\r\nbody";
    rig.client(format!(
        "POST /patched HTTP/1.1\r\nHost: app\r\nX-User: me\r\nAuthorization: Bearer x\r\nB: c\r\n{body}"
    ));
    assert_eq!(
        rig.app_got(),
        "POST /new?q HTTP/1.1\r\nHost: app\r\nB: c\r\nContent-Length: 4\r\nx-user: ann\r\n\r\nbody"
    );
    let odd = format!("POST /a/./b HTTP/1.1\r\nhost:app\r\nB:   c  \r\n{body}");
    rig.client(&odd);
    assert_eq!(rig.app_got(), odd, "what is not patched stays as it was sent");
}

#[test]
fn a_patch_and_an_absolute_form_and_an_upgrade_go_together() {
    let mut rig = Rig::default();
    rig.client("GET http://app/patched HTTP/1.1\r\nHost: app\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n");
    assert_eq!(rig.app_got(), "GET /new?q HTTP/1.1\r\nHost: app\r\nx-user: ann\r\n\r\n");
    assert_eq!(rig.judge.seen[0].target, "/patched");
    assert_eq!(rig.judge.seen[0].authority.as_deref(), Some("app"));
}

#[test]
fn the_clients_end_passes_to_the_app_and_the_answer_still_comes() {
    let mut rig = Rig::default();
    rig.client(get("/a")).client_eof();
    assert!(rig.app_fin && !rig.client_fin);
    rig.app(ok("x"));
    assert_eq!(rig.client_got(), ok("x"));
    assert!(rig.client_fin);
    assert_eq!(rig.end(), Some(End::Finished), "what the app still says is nobody's");
}

#[test]
fn the_clients_end_with_nothing_outstanding_ends_both_at_once() {
    let mut rig = Rig::default();
    rig.client(get("/a")).app(NO_CONTENT).client_eof();
    assert!(rig.app_fin && rig.client_fin, "without waiting for the app");
    rig.app_eof();
    assert_eq!(rig.end(), Some(End::Finished));

    let mut rig = Rig::default();
    rig.client_eof();
    assert_eq!(rig.end(), Some(End::Finished), "no app was ever needed");
}

#[test]
fn the_clients_end_in_the_middle_is_an_end_in_the_middle() {
    let mut rig = Rig::default();
    rig.client("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\n123").client_eof();
    assert!(rig.app_fin && rig.app_got().ends_with("123"));
    rig.app(ok("x"));
    assert_eq!(rig.client_got(), ok("x"));
    assert!(rig.client_fin);

    let mut rig = Rig::default();
    rig.client("GET / HTTP/1.1\r\nHost: a").client_eof();
    assert_eq!(
        (rig.app_got(), rig.end()),
        (String::new(), Some(End::Finished)),
        "half a head reaches nobody"
    );
}

#[test]
fn requests_that_wait_are_forwarded_before_the_clients_end() {
    let mut rig = Rig::with(Limits { pipelined: 1, ..Limits::default() });
    rig.client(format!("{}{}", get("/a"), get("/b"))).client_eof();
    assert_eq!((rig.app_got(), rig.app_fin), (get("/a"), false));
    rig.app(NO_CONTENT);
    assert_eq!((rig.app_got(), rig.app_fin), (get("/b"), true));
    rig.app(NO_CONTENT);
    assert_eq!((rig.statuses(), rig.client_fin), (vec![204, 204], true));

    let mut rig = Rig::default();
    rig.client(format!("{WEBSOCKET}frames")).client_eof();
    assert!(!rig.app_fin);
    rig.app_got();
    rig.app("HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!((rig.app_got(), rig.app_fin), ("frames".into(), true));
    rig.app("bye").app_eof();
    assert!(rig.client_got().ends_with("bye"));
    assert_eq!(rig.end(), Some(End::Finished));
}

#[test]
fn the_apps_end_ends_the_client_wherever_it_comes() {
    let cases = [
        ("", ""),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"),
        ("HTTP/1.1 200 O", "HTTP/1.1 200 O"),
    ];
    for (said, told) in cases {
        let mut rig = Rig::default();
        rig.client(format!("{}{}", get("/a"), get("/denied"))).app(said).app_eof();
        assert_eq!(rig.client_got(), told, "an answer behind one that never came is none");
        assert!(rig.client_fin && rig.app_fin);
        rig.client_eof();
        assert_eq!(rig.end(), Some(End::Finished));
    }
}

#[test]
fn a_head_must_come_in_time() {
    let mut rig = Rig::default();
    rig.client(get("/a")).app(NO_CONTENT).after(HOUR / 2);
    rig.client("GET / HT");
    let begun = rig.now;
    assert_eq!(rig.filter.deadline(), Some(begun + Duration::from_secs(10)));
    for _ in 0..9 {
        rig.after(Duration::from_secs(1)).client("T");
    }
    assert_eq!(
        rig.filter.deadline(),
        Some(begun + Duration::from_secs(10)),
        "a byte now and then does not help"
    );
    rig.after(Duration::from_secs(1));
    assert_eq!(rig.statuses(), [204, 408]);
    assert!(rig.client_fin);
    assert_eq!(rig.judge.refused, [(1, 408, "a head did not come in time")]);
    rig.after(Duration::from_secs(1));
    assert_eq!(rig.end(), Some(End::Finished));
}

#[test]
fn a_late_head_is_refused_behind_the_answers_before_it() {
    let mut rig = Rig::default();
    rig.client(get("/a")).client("GET").after(Duration::from_secs(10));
    assert_eq!(rig.statuses(), [] as [u16; 0]);
    rig.app(NO_CONTENT);
    assert_eq!(rig.statuses(), [204, 408]);
}

#[test]
fn a_head_that_waits_for_room_is_not_late() {
    let mut rig = Rig::with(Limits { pipelined: 1, ..Limits::default() });
    rig.client(get("/a")).client("GET /b HTTP/1.1\r\nHo").after(HOUR);
    assert_eq!(rig.end(), None);
    rig.app(NO_CONTENT);
    assert_eq!(rig.filter.deadline(), Some(rig.now + Duration::from_secs(10)), "now it may come");
    rig.client("st: a\r\n\r\n");
    assert_eq!((rig.statuses(), rig.filter.deadline()), (vec![204], None));
}

#[test]
fn trailers_must_come_in_time() {
    let mut rig = Rig::default();
    rig.client("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX");
    rig.after(Duration::from_secs(10));
    assert_eq!((rig.statuses(), rig.app_fin), (vec![408], true));
}

#[test]
fn a_connection_without_requests_may_idle_for_an_hour() {
    let mut rig = Rig::default();
    rig.after(HOUR - Duration::from_secs(1)).client(get("/a")).app(NO_CONTENT);
    rig.after(HOUR - Duration::from_secs(1));
    assert_eq!((rig.client_fin, rig.end()), (false, None));
    rig.after(Duration::from_secs(1));
    assert!(rig.client_fin && rig.app_fin);
}

#[test]
fn answers_and_upgraded_connections_may_be_quiet_for_ever_but_uploads_not() {
    let mut poll = Rig::default();
    poll.client(get("/a")).after(HOUR * 100);
    assert_eq!((poll.filter.deadline(), poll.end()), (None, None));

    let mut socket = Rig::default();
    socket.client(WEBSOCKET).app("HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n").after(HOUR * 100);
    assert_eq!((socket.filter.deadline(), socket.end()), (None, None));

    let mut upload = Rig::default();
    upload.client("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1").after(HOUR);
    assert_eq!((upload.statuses(), upload.app_fin), (vec![408], true));
    assert_eq!(upload.judge.limits, ["http.idle_timeout"]);
}

#[test]
fn a_quiet_connection_holds_nothing() {
    let mut rig = Rig::default();
    rig.client(get("/a").repeat(3)).client("GET").app(NO_CONTENT.repeat(2)).app("HTTP/1.1 2");
    assert_eq!(rig.filter.held(), 3 + 10 + get("/a").len());
    rig.client(&get("/b")[3..]).app(&NO_CONTENT[10..]).app(NO_CONTENT);
    rig.filter.shrink();
    assert_eq!((rig.filter.held(), rig.statuses().len()), (0, 4));
}

#[test]
fn what_the_app_sends_after_the_end_is_discarded_within_bounds() {
    let mut rig = Rig::default();
    rig.client("GET / HTTP/1.0\r\n\r\n").app(ok("x")).client_got();
    rig.app(vec![b'x'; 60_000]);
    assert_eq!((rig.client_got(), rig.end()), (String::new(), None));
    rig.app(vec![b'x'; 60_000]);
    assert_eq!(rig.end(), Some(End::Finished));
}

#[test]
fn bodies_leave_as_ranges_of_what_came_in() {
    let mut rig = Rig::default();
    let head = "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 60000\r\n\r\n";
    let input = [head.as_bytes(), &[b'x'; 60_000]].concat();
    let mut turn = cinch_http::Turn { now: rig.now, authorizer: &mut rig.judge, out: &mut rig.out };
    rig.filter.client_data(&input, &mut turn);
    let slices: Vec<&[u8]> = rig.out.to_app.slices(&input).collect();
    assert_eq!(slices, [&input[..]], "head and body in one piece");
    assert_eq!((slices[0].as_ptr(), rig.out.to_app.own_len()), (input.as_ptr(), 0));
}

#[test]
fn a_draining_connection_ends_what_is_under_way_and_takes_nothing_more() {
    let drain = |rig: &mut Rig| {
        let mut turn = cinch_http::Turn { now: rig.now, authorizer: &mut rig.judge, out: &mut rig.out };
        rig.filter.drain(&mut turn);
        let closed = (rig.out.to_app.fin(), rig.out.to_client.fin());
        rig.out.clear();
        closed
    };
    let mut busy = Rig::default();
    busy.client("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\n12");
    assert_eq!(drain(&mut busy), (false, false));
    busy.app_got();
    busy.client(format!("34{}", get("/next")));
    assert_eq!(busy.app_got(), "34");
    busy.app("HTTP/1.1 103 Early Hints\r\n\r\n");
    assert_eq!(busy.client_got(), "HTTP/1.1 103 Early Hints\r\n\r\n");
    busy.app(ok("x"));
    let closing = ok("x").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    assert_eq!((busy.client_got(), busy.client_fin), (closing, true));

    let mut several = Rig::default();
    several.client([get("/a"), get("/b")].concat()).app_got();
    assert_eq!(drain(&mut several), (false, false));
    several.app("HTTP/1.1 204 x\r\n\r\nHTTP/1.1 304 y\r\nConnection: close\r\n\r\n");
    let said = several.client_got();
    assert_eq!(
        said, "HTTP/1.1 204 x\r\n\r\nHTTP/1.1 304 y\r\nConnection: close\r\n\r\n",
        "once, in the last one"
    );

    for stays in ["Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n", "connection: x, Keep-Alive\r\n"] {
        let mut kept = Rig::default();
        kept.client(get("/a")).app_got();
        assert_eq!(drain(&mut kept), (false, false));
        kept.app(format!("HTTP/1.1 200 OK\r\nA: Connection: x\r\n{stays}Content-Length: 1\r\n\r\nx"));
        assert_eq!(
            kept.client_got(),
            "HTTP/1.1 200 OK\r\nA: Connection: x\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
            "nothing else is said of the connection"
        );
    }

    let mut idle = Rig::default();
    idle.client(get("/a")).app(NO_CONTENT);
    assert_eq!(drain(&mut idle), (false, false), "a request may be on its way");
    idle.after(Duration::from_millis(999));
    assert_eq!((idle.client_fin, idle.app_fin), (false, false));
    idle.after(Duration::from_millis(1));
    assert_eq!((idle.client_fin, idle.app_fin), (true, true));

    let mut socket = Rig::default();
    socket.client(WEBSOCKET).app("HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n").app_got();
    assert_eq!(drain(&mut socket), (false, false));
    assert_eq!(socket.client("more").app_got(), "more");
}

#[test]
fn a_request_that_crosses_the_drain_is_served_and_its_answer_is_the_last() {
    let closing = NO_CONTENT.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let drain = |rig: &mut Rig| {
        let mut turn = cinch_http::Turn { now: rig.now, authorizer: &mut rig.judge, out: &mut rig.out };
        rig.filter.drain(&mut turn);
        assert!(rig.out.to_client.is_empty() && !rig.out.to_client.fin());
        rig.out.clear();
    };
    let used = |rig: &mut Rig| {
        rig.client(get("/a")).app(NO_CONTENT);
        (rig.app_got(), rig.client_got())
    };
    // A first request, a next one, one whose head is slow, and one behind an answer that has begun.
    for case in ["new", "idle", "slow", "busy"] {
        let mut rig = Rig::default();
        if case != "new" {
            used(&mut rig);
        }
        if case == "busy" {
            rig.client(get("/a")).app("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx");
            rig.app_got();
            rig.client_got();
        }
        drain(&mut rig);
        rig.after(Duration::from_millis(900));
        if case == "busy" {
            rig.after(Duration::from_secs(60)).app("y").after(Duration::from_millis(900));
            assert_eq!(rig.client_got(), "y");
        }
        let crossing = [get("/b"), get("/c")].concat();
        let (first, rest) = crossing.split_at(if case == "slow" { 9 } else { crossing.len() });
        rig.client(first);
        if case == "slow" {
            rig.after(Duration::from_secs(3)).client(rest);
        }
        assert_eq!(rig.app_got(), get("/b"), "{case}: and nothing after it");
        rig.app(NO_CONTENT);
        assert_eq!((rig.client_got(), rig.client_fin), (closing.clone(), true), "{case}");
    }

    let mut refused = Rig::default();
    used(&mut refused);
    drain(&mut refused);
    refused.client(get("/denied"));
    assert!(refused.client_got().contains("\r\nconnection: close\r\n") && refused.client_fin);
}

#[test]
fn an_app_that_is_slow_to_close_keeps_nobody_waiting() {
    let mut rig = Rig::default();
    rig.client(get("/a")).app_got();
    rig.app("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx");
    assert_eq!((rig.client_fin, rig.app_fin, rig.end()), (true, true, None), "the client may still send");
    rig.client_eof();
    assert_eq!(rig.end(), Some(End::Finished));
}
