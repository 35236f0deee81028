//! What a call costs in memory on the way that is allowed: nothing.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs, unsafe_code)]

#[path = "h2_filter/codec.rs"]
#[allow(dead_code)]
mod codec;
#[path = "h2_filter/raw.rs"]
#[allow(dead_code)]
mod raw;

use cinch_http::h2::Connection;
use cinch_http::{Authorizer, Filter, Limits, Output, Patch, RequestHead, RequestId, Turn, Verdict};
use raw::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: all is handed to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allows everything; patches what it is told to.
struct Allow {
    patches: bool,
}

impl Authorizer for Allow {
    fn decide(&mut self, _: RequestId, head: &RequestHead<'_>, patch: &mut Patch) -> Verdict {
        assert!(head.headers.len() == 7 && head.target == "/shop.v1.Cart/Add");
        if self.patches {
            patch.set("x-forwarded-client-cert", b"By=spiffe://cluster.local/ns/a/sa/b").unwrap();
        }
        Verdict::Forward
    }

    fn is_guarded(&self, name: &str) -> bool {
        name == "x-role"
    }
}

const FIELDS: [(&str, &str); 8] = [
    (":path", "/shop.v1.Cart/Add"),
    (":authority", "cart.default.svc.cluster.local:8080"),
    ("content-type", "application/grpc"),
    ("user-agent", "grpc-go/1.70.0"),
    ("te", "trailers"),
    ("x_request_id", "0af7651916cd43dd8448eb211c80319c"),
    ("cookie", "a=1"),
    ("cookie", "b=2"),
];

/// A block that puts all fields into the table, and one that only names their places.
fn blocks(fields: &[(&str, &str)], beginning: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut first, mut later) = (beginning.to_vec(), beginning.to_vec());
    for (at, (name, value)) in fields.iter().enumerate() {
        first.push(0x40);
        codec::text(name.as_bytes(), &mut first);
        codec::text(value.as_bytes(), &mut first);
        later.push(0x80 | (61 + fields.len() - at) as u8);
    }
    // What a call has of its own: a literal that goes into no table.
    for block in [&mut first, &mut later] {
        block.extend([0, 12]);
        block.extend(b"grpc-timeout\x0419Su");
    }
    (first, later)
}

/// Calls of gRPC, sixteen at once, each over and over with ids that rise.
struct Calls {
    filter: Connection,
    out: Output,
    next: u32,
    request: Vec<u8>,
    answer: Vec<u8>,
    answer_end: Vec<u8>,
    client: Vec<u8>,
    app: Vec<u8>,
    sent: usize,
}

impl Calls {
    fn new(authorizer: &mut Allow) -> Calls {
        let now = Instant::now();
        let (first, request) = blocks(&FIELDS, &[0x83, 0x86]);
        let answer = [&[0x88, 0x0f, 16, 16][..], b"application/grpc"].concat();
        let mut calls = Calls {
            filter: Connection::new(Arc::new(Limits::default()), now),
            out: Output::default(),
            next: 1,
            request,
            answer,
            answer_end: [&[0, 11][..], b"grpc-status\x010"].concat(),
            client: [PREFACE, &settings(&[]), &frame(HEADERS, END_HEADERS | END_STREAM, 1, &first)].concat(),
            app: [settings(&[]), reset(1, 0)].concat(),
            sent: 0,
        };
        calls.feed(authorizer);
        calls.next = 3;
        calls
    }

    fn feed(&mut self, authorizer: &mut Allow) {
        let now = Instant::now();
        self.filter.client_data(&self.client, &mut Turn { now, authorizer, out: &mut self.out });
        self.sent += self.out.to_app.len();
        self.out.clear();
        self.filter.app_data(&self.app, &mut Turn { now, authorizer, out: &mut self.out });
        self.sent += self.out.to_client.len();
        self.out.clear();
        assert!(self.filter.end().is_none());
    }

    /// Makes the bytes of the next sixteen calls.
    fn prepare(&mut self) {
        self.client.clear();
        self.app.clear();
        for stream in (self.next..).step_by(2).take(16) {
            self.client.extend(frame(HEADERS, END_HEADERS, stream, &self.request));
            self.client.extend(data(stream, END_STREAM, &[7; 100]));
            self.app.extend(frame(HEADERS, END_HEADERS, stream, &self.answer));
            self.app.extend(data(stream, 0, &[7; 100]));
            self.app.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &self.answer_end));
        }
        self.next += 32;
    }
}

#[test]
fn an_allowed_call_allocates_nothing_patched_or_not() {
    for patches in [false, true] {
        let mut authorizer = Allow { patches };
        let before = COUNT.get();
        let mut calls = Calls::new(&mut authorizer);
        assert!(COUNT.get() > before, "the counter counts");
        for round in 0..200 {
            calls.prepare();
            let (before, sent) = (COUNT.get(), calls.sent);
            calls.feed(&mut authorizer);
            assert!(calls.sent - sent > 16 * 400);
            // The table of streams and the buffers have found their size after the first rounds.
            assert!(round < 2 || COUNT.get() == before, "round {round}, patches: {patches}");
        }
    }
}
