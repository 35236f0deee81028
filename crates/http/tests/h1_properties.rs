//! Properties of the HTTP/1 filter: pieces don't matter, what leaves is what was authorised, nothing panics.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod h1_rig;

use cinch_http::{Filter, Limits};
use h1_rig::{DENIED, Rig, Seen};
use proptest::prelude::*;

/// One event of either side.
#[derive(Debug, Clone)]
enum Event {
    Client(String),
    App(String),
    ClientEnd,
    AppEnd,
}

/// What can be seen of a run from outside.
type Outcome = (String, String, bool, bool, Vec<Seen>, Vec<(u64, u16)>);

/// One char for each byte.
fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// Feeds bytes in pieces of the next sizes.
fn feed(rig: &mut Rig, bytes: &str, sizes: &mut impl Iterator<Item = usize>, take: fn(&mut Rig, &[u8])) {
    let mut bytes = bytes.as_bytes();
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at(sizes.next().unwrap_or(bytes.len()).clamp(1, bytes.len()));
        take(rig, piece);
        bytes = rest;
    }
}

fn run(events: &[Event], sizes: &[usize], limits: &Limits) -> Outcome {
    let mut rig = Rig::with(limits.clone());
    let mut sizes = sizes.iter().copied().cycle();
    for event in events {
        match event {
            Event::Client(bytes) => feed(&mut rig, bytes, &mut sizes, |rig, piece| _ = rig.client(piece)),
            Event::App(bytes) => feed(&mut rig, bytes, &mut sizes, |rig, piece| _ = rig.app(piece)),
            Event::ClientEnd => _ = rig.client_eof(),
            Event::AppEnd => _ = rig.app_eof(),
        }
    }
    (text(&rig.app), text(&rig.client), rig.app_fin, rig.client_fin, rig.judge.seen, rig.judge.answered)
}

fn request() -> impl Strategy<Value = String> {
    let method = prop::sample::select(vec!["GET", "HEAD", "POST", "OPTIONS"]);
    let target =
        prop::sample::select(vec!["/a", "/a/../b?c=d", "/denied", "/patched", "/token", "http://app/x"]);
    let fields = prop::collection::vec(
        prop::sample::select(vec![
            "Accept: */*\r\n",
            "X-Forwarded-Client-Cert: me\r\n",
            "Connection: keep-alive\r\n",
            "Connection: upgrade\r\nUpgrade: h2c\r\n",
            "Expect: 100-continue\r\n",
            "Cookie: a=b; c=d\r\n",
        ]),
        0..3,
    );
    let body = prop::sample::select(vec![
        "\r\n",
        "\r\n",
        "Content-Length: 0\r\n\r\n",
        "Content-Length: 5\r\n\r\nhello",
        "Content-Length: 12\r\n\r\nGET / HTTP/1",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nX: y\r\n\r\n",
    ]);
    (method, target, fields, body).prop_map(|(method, target, fields, body)| {
        format!("{method} {target} HTTP/1.1\r\nHost: app\r\n{}{body}", fields.concat())
    })
}

fn answer() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ])
}

/// Mostly good bytes, some of them damaged.
fn client_bytes() -> impl Strategy<Value = String> {
    let damage = prop::option::weighted(
        0.3,
        (any::<prop::sample::Index>(), prop::sample::select(b"\r\n\0 :;0x".to_vec())),
    );
    (prop::collection::vec(request(), 1..5), damage).prop_map(|(requests, damage)| {
        let mut bytes = requests.concat().into_bytes();
        if let Some((at, byte)) = damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        text(&bytes)
    })
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        5 => client_bytes().prop_map(Event::Client),
        5 => answer().prop_map(|bytes| Event::App(bytes.to_owned())),
        1 => Just(Event::ClientEnd),
        1 => Just(Event::AppEnd),
    ];
    prop::collection::vec(event, 1..10)
}

/// Splits what the app got into requests, by an independent reader and the plain rules for bodies. `None`: it ends
/// within one.
fn read_requests(mut bytes: &[u8]) -> Result<Vec<(String, String, Vec<String>)>, String> {
    let mut requests = Vec::new();
    while !bytes.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut fields);
        let head = match request.parse(bytes).map_err(|error| error.to_string())? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial => return Err("half a head".into()),
        };
        let of = |name: &str| {
            let found: Vec<&[u8]> = request
                .headers
                .iter()
                .filter(|field| field.name.eq_ignore_ascii_case(name))
                .map(|field| field.value)
                .collect();
            assert!(found.len() <= 1, "{name} twice");
            found.first().map(|value| String::from_utf8_lossy(value).into_owned())
        };
        let mut names: Vec<String> = request.headers.iter().map(|field| field.name.to_lowercase()).collect();
        names.sort();
        assert!(
            !names.iter().any(|name| name == "upgrade" || name == "x-forwarded-client-cert"),
            "{names:?}"
        );
        requests.push((request.method.unwrap().to_owned(), request.path.unwrap().to_owned(), names));
        bytes = &bytes[head..];
        if of("transfer-encoding").is_some() {
            assert_eq!(of("content-length"), None);
            loop {
                let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(bytes) else {
                    return Ok(requests);
                };
                let Some(rest) = bytes.get(line + usize::try_from(size).unwrap()..) else {
                    return Ok(requests);
                };
                bytes = rest;
                if size == 0 {
                    let Some(end) = bytes.windows(2).position(|window| window == b"\r\n").map(|at| {
                        if at == 0 {
                            2
                        } else {
                            bytes
                                .windows(4)
                                .position(|window| window == b"\r\n\r\n")
                                .map_or(bytes.len(), |at| at + 4)
                        }
                    }) else {
                        return Ok(requests);
                    };
                    bytes = &bytes[end..];
                    break;
                }
                bytes = bytes.get(2..).unwrap_or_default();
            }
        } else if let Some(length) = of("content-length") {
            bytes = bytes.get(length.parse::<usize>().unwrap()..).unwrap_or_default();
        }
    }
    Ok(requests)
}

fn forwarded(target: &str) -> &str {
    if target == "/patched" { "/new?q" } else { target }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_pieces_that_bytes_come_in_never_matter(events in events(), sizes in prop::collection::vec(1..60_usize, 1..20)) {
        // Whether our answers were read between two pieces is not for the pieces to say.
        let answer_bytes = usize::MAX;
        let limits = Limits { pipelined: 2, head_bytes: 500, trailer_bytes: 100, answer_bytes, ..Limits::default() };
        let whole = run(&events, &[usize::MAX], &limits);
        prop_assert_eq!(&run(&events, &sizes, &limits), &whole);
        prop_assert_eq!(&run(&events, &[1], &limits), &whole);
    }

    #[test]
    fn an_independent_reader_finds_the_authorised_requests_and_no_others(bytes in client_bytes(), sizes in prop::collection::vec(1..60_usize, 1..20)) {
        let (app, _, _, _, seen, _) = run(&[Event::Client(bytes)], &sizes, &Limits::default());
        let allowed: Vec<_> = seen.iter().filter(|seen| seen.allowed).map(|seen| {
            let patched = seen.target == "/patched";
            let mut names: Vec<String> = seen.headers.iter().map(|(name, _)| name.to_lowercase()).collect();
            if patched {
                names.push("x-user".into());
            }
            names.sort();
            (seen.method.clone(), forwarded(&seen.target).to_owned(), names)
        }).collect();
        let read = read_requests(app.as_bytes());
        // A token of a Connection field that went with its upgrade is the only field that differs.
        let without = |list: Vec<(String, String, Vec<String>)>| -> Vec<_> {
            list.into_iter().map(|(method, target, names)| {
                (method, target, names.into_iter().filter(|name| name != "connection").collect::<Vec<_>>())
            }).collect()
        };
        prop_assert_eq!(read.map(without), Ok(without(allowed)));
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_never_grow(
        client in prop::collection::vec(any::<u8>(), 0..400),
        app in prop::collection::vec(any::<u8>(), 0..400),
        sizes in prop::collection::vec(1..60_usize, 1..20),
    ) {
        let limits = Limits { head_bytes: 100, ..Limits::default() };
        let mut rig = Rig::with(limits.clone());
        for piece in client.chunks(sizes[0]) {
            rig.client(piece).app(&app[..app.len().min(3)]);
            prop_assert!(rig.filter.held() <= 2 * 400);
        }
        let mut asked = Rig::with(limits);
        asked.client("GET / HTTP/1.1\r\nHost: a\r\n\r\n").client(&client);
        app.chunks(sizes[0]).for_each(|piece| _ = asked.app(piece));
        asked.client_eof().app_eof();
    }

    #[test]
    fn answers_reach_the_client_in_the_order_of_its_requests(kinds in prop::collection::vec(any::<bool>(), 1..40), size in 1..90_usize) {
        let mut rig = Rig::with(Limits { answer_bytes: 200, ..Limits::default() });
        let requests: String = kinds.iter().enumerate().map(|(number, allowed)| {
            format!("GET /{}{number} HTTP/1.1\r\nHost: app\r\n\r\n", if *allowed { "a" } else { "denied" })
        }).collect();
        for piece in requests.as_bytes().chunks(size) {
            rig.client(piece);
        }
        let mut expected = String::new();
        for (number, allowed) in kinds.iter().enumerate() {
            if *allowed {
                let answer = format!("HTTP/1.1 200 OK\r\nX: {number}\r\nContent-Length: 1\r\n\r\nx");
                rig.app(&answer);
                expected.push_str(&answer);
            } else {
                expected.push_str(DENIED);
            }
        }
        prop_assert_eq!(rig.client_got(), expected);
        prop_assert_eq!(rig.filter.held(), 0);
    }
}
