//! Instructions of the HTTP/2 filter for each call: `cargo bench -p cinch-http --bench instructions`. Unlike times they
//! are the same on a busy machine. The program runs itself under valgrind's callgrind, for each kind of call with few
//! and with many of them; the difference is what the calls cost. Without valgrind it says so and measures nothing.
//!
//! A call is what gRPC makes of one: HEADERS and a message up, HEADERS, a message and trailers down. Who decides about
//! it costs nothing here; what that costs, `cinch-policy` measures.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

#[path = "../tests/h2_filter/codec.rs"]
#[allow(dead_code)]
mod codec;
#[path = "../tests/h2_filter/raw.rs"]
#[allow(dead_code)]
mod raw;

use cinch_http::h2::Connection;
use cinch_http::{Authorizer, Filter, Limits, Output, Patch, Refusal, RequestHead, RequestId, Turn, Verdict};
use cinch_reason::Reason;
use raw::*;
use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

const FEW: u32 = 160;
const MANY: u32 = 1760;

/// Kinds of calls.
const KINDS: [(&str, &str); 5] = [
    ("usual", "fields in the table, the path by Huffman"),
    ("traced", "the same, with an id of its own in each request"),
    ("patched", "as usual, with a field of ours"),
    ("refused", "as usual, and refused"),
    ("reset", "as usual, and the app resets it instead of an answer"),
];

/// The most calls that are read at a time.
const BATCH: usize = 16;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, kind, batch, count] = arguments.as_slice()
        && word == "calls"
    {
        return calls(kind, batch.parse().unwrap(), count.parse().unwrap());
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: valgrind is not installed");
        return;
    }
    println!("{:10} {:>9} {:>9}", "a call", "1 a read", "16 a read");
    for (kind, what) in KINDS {
        let of = |batch| {
            (instructions(kind, batch, MANY) - instructions(kind, batch, FEW)) / u64::from(MANY - FEW)
        };
        println!("{kind:10} {:>9} {:>9}  {what}", of(1), of(BATCH));
    }
}

/// All instructions of a run with `count` calls.
fn instructions(kind: &str, batch: usize, count: u32) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["calls", kind, &batch.to_string(), &count.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let total = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    total.unwrap_or_else(|| panic!("valgrind says: {said}"))
}

/// Decides without a look.
struct Decided {
    patches: bool,
    refuses: bool,
    /// What it heard: decisions, and calls that are over.
    decided: u32,
    finished: u32,
}

impl Authorizer for Decided {
    fn decide(&mut self, _: RequestId, head: &RequestHead<'_>, patch: &mut Patch) -> Verdict {
        black_box(head);
        self.decided += 1;
        if self.patches {
            patch.set("x-forwarded-client-cert", b"By=spiffe://cluster.local/ns/a/sa/b").unwrap();
        }
        match self.refuses {
            true => Verdict::Refuse(Refusal::forbidden(Reason::DeniedByPolicy)),
            false => Verdict::Forward,
        }
    }

    fn is_guarded(&self, name: &str) -> bool {
        name == "x-role"
    }

    fn finished(&mut self, _: RequestId) {
        self.finished += 1;
    }
}

/// `/shop.v1.Cart/Add`, and an id, by Huffman.
const PATH: &str = "61139eb5fb857bc3b12c43249f";
const ID: &str = "00e575c6c2f85c248d33248f34d3c58c41091e03217c9f";

const FIELDS: [(&str, &str); 4] = [
    (":authority", "cart.default.svc.cluster.local:8080"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("user-agent", "grpc-go/1.70.0"),
];

fn huffman(text: &str, block: &mut Vec<u8>) {
    let bytes = text.as_bytes().chunks(2);
    let bytes: Vec<u8> =
        bytes.map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect();
    block.push(0x80 | bytes.len() as u8);
    block.extend(bytes);
}

/// The first block of a connection, which fills the table with names of the static table where they are there, and all
/// further ones.
fn blocks(fields: &[(&str, &str)], beginning: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut first, mut later) = (beginning.to_vec(), beginning.to_vec());
    for (at, (name, value)) in fields.iter().enumerate() {
        let index = [(":authority", 1), ("content-type", 31), ("user-agent", 58)];
        match index.iter().find(|(of, _)| of == name) {
            Some((_, index)) => first.push(0x40 | index),
            None => {
                first.push(0x40);
                codec::text(name.as_bytes(), &mut first);
            }
        }
        codec::text(value.as_bytes(), &mut first);
        later.push(0x80 | (61 + fields.len() - at) as u8);
    }
    (first, later)
}

/// Frames, and where each says its stream.
#[derive(Default)]
struct Frames {
    bytes: Vec<u8>,
    streams: Vec<(usize, u32)>,
}

impl Frames {
    fn add(&mut self, place: u32, frame: &[u8]) {
        self.streams.push((self.bytes.len() + 5, 2 * place));
        self.bytes.extend(frame);
    }

    fn number(&mut self, first: u32) {
        for (at, more) in &self.streams {
            self.bytes[*at..at + 4].copy_from_slice(&(first + more).to_be_bytes());
        }
    }
}

/// Both sides' bytes of some calls.
fn frames_of(kind: &str, batch: usize) -> (Frames, Frames, Vec<u8>) {
    let mut beginning = vec![0x83, 0x86, 0x04];
    huffman(PATH, &mut beginning);
    let (mut first, mut request) = blocks(&FIELDS, &beginning);
    for block in [&mut first, &mut request] {
        if kind == "traced" {
            block.push(0);
            codec::text(b"x-request-id", block);
            huffman(ID, block);
        }
    }
    let (mut client, mut app) = (Frames::default(), Frames::default());
    for place in 0..batch as u32 {
        client.add(place, &frame(HEADERS, END_HEADERS, 1, &request));
        client.add(place, &data(1, END_STREAM, &[7; 105]));
        match kind {
            "refused" => {}
            "reset" => app.add(place, &reset(1, 8)),
            _ => {
                app.add(place, &frame(HEADERS, END_HEADERS, 1, &[0x88, 0xbf]));
                app.add(place, &data(1, 0, &[7; 105]));
                app.add(place, &frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xbe]));
            }
        }
    }
    (client, app, first)
}

fn calls(kind: &str, batch: usize, count: u32) {
    let (patches, refuses) = (kind == "patched", kind == "refused");
    let authorizer = &mut Decided { patches, refuses, decided: 0, finished: 0 };
    let (mut client, mut app, first) = frames_of(kind, batch);
    let mut filter = Connection::new(Arc::new(Limits::default()), Instant::now());
    let mut out = Output::default();
    let mut feed = |from_client: &[u8], from_app: &[u8]| {
        let now = Instant::now();
        filter.client_data(from_client, &mut Turn { now, authorizer: &mut *authorizer, out: &mut out });
        black_box(out.to_app.slices(from_client).count());
        out.clear();
        filter.app_data(from_app, &mut Turn { now, authorizer: &mut *authorizer, out: &mut out });
        black_box(out.to_client.slices(from_app).count());
        out.clear();
        assert!(filter.end().is_none() && !filter.wants_turn());
        black_box((filter.held(), filter.deadline()));
    };
    let answer = [&[0x88, 0x5f, 16][..], b"application/grpc"].concat();
    let end = [&[0x40, 11][..], b"grpc-status\x010"].concat();
    let mut begin_client = [PREFACE, &settings(&[]), &frame(HEADERS, END_HEADERS, 1, &first)].concat();
    begin_client.extend(data(1, END_STREAM, b""));
    let mut begin_app = settings(&[]);
    if kind != "refused" {
        begin_app.extend(frame(HEADERS, END_HEADERS, 1, &answer));
        begin_app.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &end));
    }
    feed(&begin_client, &begin_app);
    let mut next = 3;
    for _ in 0..count as usize / batch {
        client.number(next);
        app.number(next);
        feed(&client.bytes, &app.bytes);
        next += 2 * batch as u32;
    }
    assert_eq!((authorizer.decided, authorizer.finished), (count + 1, count + 1));
}
