//! What a request costs in memory: on the way that is allowed, nothing is allocated.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, unsafe_code)]

use cinch_http::h1::Connection;
use cinch_http::{Authorizer, Filter, Limits, Output, Patch, RequestHead, RequestId, Turn, Verdict};
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
        assert_eq!(head.headers.len(), 6);
        if self.patches {
            patch.set("x-forwarded-client-cert", b"By=spiffe://cluster.local/ns/a/sa/b").unwrap();
        }
        Verdict::Forward
    }

    fn is_guarded(&self, name: &str) -> bool {
        name == "x-role"
    }
}

const REQUEST: &[u8] = b"POST /cart/items?id=1 HTTP/1.1\r\nHost: shop.default.svc.cluster.local:8080\r\n\
    User-Agent: some client/1.0\r\nAccept: */*\r\nAccept-Encoding: gzip\r\nx_request_id: 8c1f\r\nContent-Length: 5\r\n\r\nhello";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";

/// Exchanges `count` requests; how often memory was allocated.
fn exchange(filter: &mut Connection, authorizer: &mut Allow, out: &mut Output, count: usize) -> usize {
    let now = Instant::now();
    let before = COUNT.get();
    for _ in 0..count {
        filter.client_data(REQUEST, &mut Turn { now, authorizer, out });
        assert!(out.to_app.len() >= REQUEST.len());
        out.clear();
        filter.app_data(ANSWER, &mut Turn { now, authorizer, out });
        assert_eq!(out.to_client.len(), ANSWER.len());
        out.clear();
    }
    COUNT.get() - before
}

#[test]
fn an_allowed_request_allocates_nothing_patched_or_not() {
    let mut out = Output::default();
    for patches in [false, true] {
        let mut authorizer = Allow { patches };
        let mut filter = Connection::new(Arc::new(Limits::default()), Instant::now());
        let first = exchange(&mut filter, &mut authorizer, &mut out, 1);
        assert!(first > 0, "the counter counts");
        assert_eq!(exchange(&mut filter, &mut authorizer, &mut out, 1000), 0, "patches: {patches}");
    }
}

#[test]
fn a_new_connection_allocates_twice_for_its_first_request() {
    let mut out = Output::default();
    let mut authorizer = Allow { patches: false };
    let limits = Arc::new(Limits::default());
    exchange(&mut Connection::new(limits.clone(), Instant::now()), &mut authorizer, &mut out, 1);
    let mut filter = Connection::new(limits, Instant::now());
    assert_eq!(exchange(&mut filter, &mut authorizer, &mut out, 1), 2, "the queue and the head in flight");
    assert!(std::mem::size_of::<Connection>() <= 512, "{}", std::mem::size_of::<Connection>());
}
