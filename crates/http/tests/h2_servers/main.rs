//! The HTTP/2 filter in front of real servers. Each row of the table of odd frames, in pieces of two sizes, is followed
//! by a request of which both must see the same; what the server says of every stream is what was authorised; and
//! nothing that the filter refuses or breaks off makes a server end the connection.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, dead_code, missing_docs)]

#[path = "../h1_servers/backends.rs"]
mod backends;
#[path = "../h2_filter/codec.rs"]
mod codec;
mod exchange;
#[path = "../h2_filter/raw.rs"]
mod raw;
#[path = "../h2_filter/rows.rs"]
mod rows;
#[path = "../h2_filter/scene.rs"]
mod scene;

use backends::Backend;
use exchange::{Exchange, MARKER, exchange};
use rows::Then;
use std::io::Write;

/// What the server says of each stream must be what was authorised of it, and a stream that was refused it does not
/// know.
fn agree(name: &str, exchange: &Exchange) {
    for (stream, seen) in &exchange.by_server {
        let authorised = exchange.authorised.iter().find(|authorised| authorised.stream == *stream);
        let authorised = authorised.unwrap_or_else(|| panic!("{name}: the server answers {stream}: {seen}"));
        let mut words = seen.split(' ');
        let (method, target, length) = (words.next(), words.next(), words.next().unwrap());
        assert_eq!((method, target), (Some(&*authorised.method), Some(&*authorised.target)), "{name}");
        let declared = authorised.header("content-length").and_then(|length| length.parse::<u64>().ok());
        if let (Ok(length), Some(declared)) = (length.parse::<u64>(), declared) {
            assert_eq!(length, declared, "{name}: the body of {method:?} {target:?}");
        }
    }
}

/// What comes behind the end of a stream: it is late, and dropped, once the server has answered.
const LATE: std::ops::RangeInclusive<u32> = 330..=331;

/// Plays the table; the numbers of the rows that pass the filter and that the server refused by itself.
async fn play_the_table(server: &Backend) -> Vec<u32> {
    let mut running = Vec::new();
    for (number, name, bytes, then) in rows::rows() {
        let (name, address) = (format!("row {number} {name}"), server.address);
        running.push(tokio::spawn(async move {
            let mut refused = false;
            for size in [usize::MAX, 5] {
                let awaited: &[u32] = if then == Then::Passed { &[1, MARKER] } else { &[MARKER] };
                let exchange = exchange(address, &bytes, size, awaited).await;
                agree(&name, &exchange);
                let answered =
                    awaited.iter().all(|stream| exchange.by_server.iter().any(|(of, _)| of == stream));
                match then {
                    // A flood may be too much for the server too, before it is for the filter.
                    Then::Goaway(_) => {
                        assert!(!answered || LATE.contains(&number), "{name}: the request behind it");
                    }
                    Then::Passed => refused |= !answered || exchange.app_left,
                    _ => assert!(answered && !exchange.app_left, "{name}: the connection goes on"),
                }
            }
            refused.then_some(number)
        }));
    }
    let mut refused = Vec::new();
    for one in running {
        refused.extend(one.await.unwrap());
    }
    refused
}

#[tokio::test]
async fn filter_and_the_h2_crate_agree_what_requests_are() {
    assert_eq!(play_the_table(&backends::h2().await).await, [0; 0]);
}

#[tokio::test]
async fn filter_and_go_agree_what_requests_are() {
    match backends::go() {
        Ok(server) => assert_eq!(play_the_table(&server).await, [0; 0]),
        Err(why) => skip("filter_and_go_agree_what_requests_are", &why),
    }
}

#[tokio::test]
async fn filter_and_nginx_agree_what_requests_are() {
    // It refuses OPTIONS *, and knows no trailers of requests.
    match backends::nginx(" http2") {
        Ok(server) => assert_eq!(play_the_table(&server).await, [231, 299]),
        Err(why) => skip("filter_and_nginx_agree_what_requests_are", &why),
    }
}

/// Past the test harness, which would keep it to itself.
fn skip(test: &str, why: &str) {
    let _ = std::io::stderr().write_all(format!("SKIPPED {test}: {why}\n").as_bytes());
}
