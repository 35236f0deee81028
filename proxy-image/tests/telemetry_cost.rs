//! What telemetry costs a request: no memory, and no more than it says with `--nocapture`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(missing_docs, unsafe_code)]

use cinch_identity::SpiffeId;
use cinch_proxy::access_log::{AccessLog, AccessLogSettings, Entry, Head};
use cinch_proxy::telemetry::{Handles, Telemetry, Told};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting for each thread.
struct Counting;

// SAFETY: every call is handed to the system's allocator as it came; counting touches no memory that it manages.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const REQUESTS: u32 = 200_000;

fn telemetry(settings: &AccessLogSettings) -> Telemetry {
    let telemetry = Telemetry::with_log(AccessLog::start_to(settings, std::io::sink()).unwrap());
    telemetry.set_own(SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/api").unwrap());
    telemetry
}

/// Nanoseconds and allocations of one request that passed.
fn cost(settings: &AccessLogSettings) -> (f64, f64) {
    let telemetry = telemetry(settings);
    let address = SocketAddr::from(([10, 0, 0, 1], 80));
    let head = Head {
        method: b"GET",
        path: b"/api/v1/items/4711",
        protocol: "HTTP/1.1",
        authority: b"shop.example",
        user_agent: b"curl/8.0",
        request_id: b"",
    };
    let mut handles = Handles::default();
    let mut once = || {
        let entry = Entry {
            ends: telemetry.inbound(address, address, Some(WEB)),
            head: Some(head),
            code: 200,
            grpc: None,
            flags: "-",
            ruling: None,
            received: 0,
            sent: 1024,
            duration: Duration::from_micros(300),
        };
        let is_sampled = telemetry.log().samples();
        handles.record(&telemetry, &Told { entry, is_grpc: false, is_sampled });
    };
    once();
    let (before, begun) = (ALLOCATIONS.get(), Instant::now());
    for _ in 0..REQUESTS {
        once();
    }
    let (elapsed, allocated) = (begun.elapsed(), ALLOCATIONS.get() - before);
    (elapsed.as_nanos() as f64 / f64::from(REQUESTS), allocated as f64 / f64::from(REQUESTS))
}

#[test]
fn a_request_that_is_not_told_costs_no_memory_and_one_that_is_costs_its_line() {
    let usual = AccessLogSettings { lines_per_second: 1_000_000, ..AccessLogSettings::default() };
    for (name, settings, allocations) in [
        ("off", AccessLogSettings { enabled: false, ..usual.clone() }, 0.0),
        ("denials and errors", usual.clone(), 0.0),
        ("one of a hundred", AccessLogSettings { sampling: 0.01, ..usual.clone() }, 0.01),
        ("all", AccessLogSettings { sampling: 1.0, ..usual }, 0.01),
    ] {
        let (nanoseconds, allocated) = cost(&settings);
        println!("{name}: {nanoseconds:.0} ns, {allocated:.4} allocations a request");
        assert!(allocated <= allocations, "{name}: {allocated}");
    }
}
