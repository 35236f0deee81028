//! Every step of a stream on both sides, and every step that is not permitted.

use super::*;
use crate::ProtocolError::OutOfPlace;

/// Two ends and what each has received.
struct Pair {
    client: Session,
    server: Session,
}

fn pair() -> Pair {
    Pair { client: Session::new(Side::Client), server: Session::new(Side::Server) }
}

fn give(to: &mut Session, bytes: &[u8]) -> Result<Vec<String>, ProtocolError> {
    let mut input = bytes;
    let mut events = Vec::new();
    while let Some(event) = to.receive(&mut input)? {
        events.push(match event {
            Event::Open(_) => "open".to_owned(),
            Event::Opened => "opened".to_owned(),
            Event::Refused(why) => format!("refused {why:?}"),
            Event::Data { bytes, fin } => format!("data {}{}", bytes.len(), if fin { " fin" } else { "" }),
            Event::Reset(why) => format!("reset {why:?}"),
            Event::Drain => "drain".to_owned(),
        });
    }
    Ok(events)
}

fn data(from: &mut Session, length: usize, fin: bool) -> Vec<u8> {
    let mut out = from.data(length, fin).unwrap().to_vec();
    out.resize(HEAD + length, 7);
    out
}

fn say(call: impl FnOnce(&mut Vec<u8>) -> Result<(), Misuse>) -> Vec<u8> {
    let mut out = Vec::new();
    call(&mut out).unwrap();
    out
}

fn opened() -> Pair {
    let mut p = pair();
    let open = say(|out| p.client.open(Open::default(), out));
    assert_eq!(give(&mut p.server, &open).unwrap(), ["open"]);
    let answer = say(|out| p.server.opened(out));
    assert_eq!(give(&mut p.client, &answer).unwrap(), ["opened"]);
    p
}

fn both_idle(p: &Pair) -> bool {
    p.client.is_reusable() && p.server.is_reusable()
}

#[test]
fn a_stream_goes_through_both_half_closes_back_to_idle_twice() {
    let mut p = opened();
    for round in 0..2 {
        if round > 0 {
            let open = say(|out| p.client.open(Open::default(), out));
            give(&mut p.server, &open).unwrap();
            let answer = say(|out| p.server.opened(out));
            give(&mut p.client, &answer).unwrap();
        }
        let up = data(&mut p.client, 3, true);
        assert_eq!(give(&mut p.server, &up).unwrap(), ["data 3 fin"]);
        assert!(p.server.remote_ended() && !p.server.local_ended() && !p.server.is_idle());
        let down = data(&mut p.server, 0, true);
        assert!(p.server.is_idle());
        assert_eq!(give(&mut p.client, &down).unwrap(), ["data 0 fin"]);
        assert!(both_idle(&p));
    }
}

#[test]
fn data_may_follow_open_at_once() {
    let mut p = pair();
    let mut bytes = say(|out| p.client.open(Open { features: 1 }, out));
    bytes.extend(data(&mut p.client, 5, true));
    assert_eq!(give(&mut p.server, &bytes).unwrap(), ["open", "data 5 fin"]);
    assert_eq!(p.server.data(1, false), Err(Misuse("DATA")), "a server answers first");
    let mut answer = say(|out| p.server.opened(out));
    answer.extend(data(&mut p.server, 2, true));
    assert_eq!(give(&mut p.client, &answer).unwrap(), ["opened", "data 2 fin"]);
    assert!(both_idle(&p));
}

#[test]
fn a_refused_stream_leaves_the_tunnel_usable() {
    let mut p = pair();
    let open = say(|out| p.client.open(Open::default(), out));
    let early = data(&mut p.client, 9, false);
    give(&mut p.server, &open).unwrap();
    let refused = say(|out| p.server.refused(RefuseCode::NoListener, out));
    assert_eq!(give(&mut p.server, &early).unwrap(), [""; 0], "early data of a refused stream is discarded");
    assert_eq!(give(&mut p.client, &refused).unwrap(), ["refused NoListener"]);
    assert!(!p.client.is_idle(), "the client still owes the end of its direction");
    let reset = say(|out| p.client.reset(ResetCode::Answer, out));
    assert_eq!(give(&mut p.server, &reset).unwrap(), [""; 0]);
    assert!(both_idle(&p));
}

#[test]
fn a_refusal_after_fin_needs_no_answer() {
    let mut p = pair();
    let mut bytes = say(|out| p.client.open(Open::default(), out));
    bytes.extend(data(&mut p.client, 0, true));
    give(&mut p.server, &bytes).unwrap();
    let refused = say(|out| p.server.refused(RefuseCode::Denied, out));
    assert_eq!(give(&mut p.client, &refused).unwrap(), ["refused Denied"]);
    assert!(both_idle(&p));
}

#[test]
fn a_reset_is_answered_and_what_was_under_way_is_discarded() {
    let mut p = opened();
    let reset = say(|out| p.client.reset(ResetCode::App, out));
    let under_way = data(&mut p.server, 4, false);
    assert_eq!(give(&mut p.client, &under_way).unwrap(), [""; 0]);
    assert_eq!(give(&mut p.server, &reset).unwrap(), ["reset App"]);
    let answer = say(|out| p.server.reset(ResetCode::Answer, out));
    assert_eq!(give(&mut p.client, &answer).unwrap(), [""; 0]);
    assert!(both_idle(&p));
}

#[test]
fn resets_that_cross_end_the_stream_without_further_answers() {
    let mut p = opened();
    let up = say(|out| p.client.reset(ResetCode::App, out));
    let down = say(|out| p.server.reset(ResetCode::Cut, out));
    assert_eq!(give(&mut p.server, &up).unwrap(), [""; 0]);
    assert_eq!(give(&mut p.client, &down).unwrap(), [""; 0]);
    assert!(both_idle(&p));
}

#[test]
fn a_reset_that_crosses_the_end_of_its_stream_is_ignored() {
    // Server: FIN, then its app resets; meanwhile the client has sent FIN and its next OPEN.
    let mut p = opened();
    let fin = data(&mut p.server, 1, true);
    let late = say(|out| p.server.reset(ResetCode::App, out));
    let mut up = data(&mut p.client, 1, true);
    assert_eq!(give(&mut p.client, &fin).unwrap(), ["data 1 fin"]);
    up.extend(say(|out| p.client.open(Open::default(), out)));
    assert_eq!(
        give(&mut p.client, &late).unwrap(),
        [""; 0],
        "before the answer it belongs to the stream before"
    );
    assert_eq!(give(&mut p.server, &up).unwrap(), ["open"]);
    let answer = say(|out| p.server.opened(out));
    assert_eq!(give(&mut p.client, &answer).unwrap(), ["opened"]);
    // Client: FIN, then reset; meanwhile the server has sent FIN.
    let fin_up = data(&mut p.client, 1, true);
    let late = say(|out| p.client.reset(ResetCode::App, out));
    let down = data(&mut p.server, 1, true);
    assert_eq!(give(&mut p.server, &fin_up).unwrap(), ["data 1 fin"]);
    assert_eq!(give(&mut p.server, &late).unwrap(), [""; 0]);
    assert_eq!(give(&mut p.client, &down).unwrap(), [""; 0], "who has reset takes nothing more");
    assert!(both_idle(&p));
}

#[test]
fn a_client_that_gives_up_before_the_answer_still_hears_it() {
    for accept in [true, false] {
        let mut p = pair();
        let mut bytes = say(|out| p.client.open(Open::default(), out));
        bytes.extend(say(|out| p.client.reset(ResetCode::App, out)));
        assert_eq!(give(&mut p.server, &bytes).unwrap(), ["open", "reset App"]);
        let answer = if accept {
            let mut answer = say(|out| p.server.opened(out));
            answer.extend(say(|out| p.server.reset(ResetCode::Answer, out)));
            answer
        } else {
            say(|out| p.server.refused(RefuseCode::Cancelled, out))
        };
        assert_eq!(give(&mut p.client, &answer).unwrap(), [""; 0]);
        assert!(both_idle(&p), "accept {accept}");
    }
}

#[test]
fn drain_lets_the_stream_end_and_no_other_begin() {
    let mut p = opened();
    let drain = say(|out| p.server.drain(out));
    assert_eq!(say(|out| p.server.drain(out)), [0u8; 0], "it is said once");
    assert_eq!(give(&mut p.client, &drain).unwrap(), ["drain"]);
    let up = data(&mut p.client, 1, true);
    let down = data(&mut p.server, 1, true);
    give(&mut p.server, &up).unwrap();
    give(&mut p.client, &down).unwrap();
    assert!(p.client.is_idle() && p.client.is_draining() && !p.client.is_reusable());
    assert_eq!(p.client.open(Open::default(), &mut Vec::new()), Err(Misuse("OPEN")));
}

#[test]
fn an_open_that_crosses_drain_can_be_refused() {
    let mut p = pair();
    let open = say(|out| p.client.open(Open::default(), out));
    let drain = say(|out| p.server.drain(out));
    assert_eq!(give(&mut p.server, &open).unwrap(), ["open"]);
    let refused = say(|out| p.server.refused(RefuseCode::Draining, out));
    assert_eq!(give(&mut p.client, &drain).unwrap(), ["drain"]);
    assert_eq!(give(&mut p.client, &refused).unwrap(), ["refused Draining"]);
}

#[test]
fn what_the_peer_may_not_say_is_an_error() {
    let frame = |message: Control| {
        let mut out = Vec::new();
        message.encode(&mut out);
        out
    };
    let open = frame(Control::Open(Open::default()));
    let refused = frame(Control::Refused(RefuseCode::Limit));
    let cases: [(&str, Side, Phase, Vec<u8>, &str); 11] = [
        ("DATA to an idle server", Side::Server, Phase::Idle, vec![0, 1, 0], "DATA"),
        ("FIN to an idle client", Side::Client, Phase::Idle, vec![0x40, 0], "DATA"),
        ("DATA before the answer", Side::Client, Phase::Opening, vec![0, 1, 0], "DATA"),
        ("OPEN to a client", Side::Client, Phase::Idle, open.clone(), "OPEN"),
        ("OPEN in a stream", Side::Server, Phase::Open, open.clone(), "OPEN"),
        ("OPEN twice", Side::Server, Phase::Opening, open, "OPEN"),
        ("OPENED to a server", Side::Server, Phase::Opening, frame(Control::Opened), "OPENED"),
        ("OPENED twice", Side::Client, Phase::Open, frame(Control::Opened), "OPENED"),
        ("OPENED while idle", Side::Client, Phase::Idle, frame(Control::Opened), "OPENED"),
        ("REFUSED after OPENED", Side::Client, Phase::Open, refused, "REFUSED"),
        ("DRAIN to a server", Side::Server, Phase::Idle, frame(Control::Drain), "DRAIN"),
    ];
    for (name, side, phase, bytes, what) in cases {
        let mut session = Session::new(side);
        if phase != Phase::Idle {
            session.begin();
            session.phase = phase;
        }
        assert_eq!(give(&mut session, &bytes), Err(OutOfPlace(what)), "{name}");
    }
}

#[test]
fn nothing_comes_after_the_end_of_a_direction() {
    let mut p = opened();
    let fin = data(&mut p.client, 1, true);
    give(&mut p.server, &fin).unwrap();
    assert_eq!(give(&mut p.server, &[0, 1, 7]), Err(OutOfPlace("DATA")));
    let mut p = opened();
    let reset = say(|out| p.client.reset(ResetCode::App, out));
    give(&mut p.server, &reset).unwrap();
    assert_eq!(give(&mut p.server, &[0x40, 0]), Err(OutOfPlace("DATA")));
}

#[test]
fn own_calls_at_the_wrong_time_are_refused_and_say_nothing() {
    let mut out = Vec::new();
    let mut p = pair();
    assert!(p.client.data(1, false).is_err());
    assert!(p.client.reset(ResetCode::App, &mut out).is_err());
    assert!(p.client.opened(&mut out).is_err());
    assert!(p.client.drain(&mut out).is_err());
    assert!(p.server.open(Open::default(), &mut out).is_err());
    assert!(p.server.refused(RefuseCode::Limit, &mut out).is_err());
    let mut p = opened();
    assert!(p.client.open(Open::default(), &mut out).is_err());
    assert!(p.client.data(0, false).is_err());
    assert!(p.client.data(crate::MAX_PAYLOAD + 1, false).is_err());
    assert!(p.client.data(1, true).is_ok());
    assert!(p.client.data(1, false).is_err());
    assert!(p.server.reset(ResetCode::App, &mut Vec::new()).is_ok());
    assert!(p.server.data(1, false).is_err());
    assert!(out.is_empty());
}
