//! Decisions allocate nothing: every kind of decision on many generated sets of policies, under an allocator that
//! counts.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]
// The allocator's interface is unsafe; it only counts and hands on.
#![allow(unsafe_code)]

#[allow(dead_code)]
#[path = "engine/generate.rs"]
mod generate;
#[allow(dead_code)]
#[path = "engine/naive.rs"]
mod naive;
#[allow(dead_code)]
#[path = "engine/setup.rs"]
mod setup;

use cinch_policy::{PathNormalization, normalize};
use generate::Dice;
use serde_json::json;
use setup::{answer, compile, connection, object, with_request};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from `alloc` or `realloc`, hence from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `act` says, and how often it allocated on the way.
fn counted<T>(act: impl FnOnce() -> T) -> (T, u64) {
    let before = COUNT.get();
    let said = act();
    (said, COUNT.get() - before)
}

#[test]
fn the_allocator_counts() {
    assert_eq!(counted(|| vec![1_u8; 10]).1, 1);
    assert_eq!(counted(|| 1).1, 0);
}

#[test]
fn no_decision_allocates() {
    // Requests allowed and denied, connections allowed and denied.
    let mut seen = [0_u32; 4];
    for set in 0..400 {
        let mut dice = Dice(set * 7919);
        let objects = generate::policies(&mut dice, if set % 10 == 0 { 60 } else { 6 });
        let policies = compile(&objects);
        for _ in 0..50 {
            let case = generate::case(&mut dice);
            let (allowed, allocations) = match &case.http {
                Some(http) if http.target.contains(['%', ';', '\\']) => continue,
                Some(_) => with_request(&case, |request| {
                    counted(|| {
                        let early = policies.custom(request, &answer);
                        let late = policies.authorize(request);
                        assert_eq!(early.unwrap_or(late), policies.request(request, &answer));
                        early.unwrap_or(late).is_allowed()
                    })
                }),
                None => {
                    let connection = connection(&case);
                    counted(|| {
                        std::hint::black_box(policies.connection(&connection));
                        policies.tcp(&connection, &answer).is_allowed()
                    })
                }
            };
            assert_eq!(allocations, 0, "{case:#?} {}", json!(objects));
            seen[usize::from(case.http.is_none()) * 2 + usize::from(!allowed)] += 1;
        }
    }
    println!("requests allowed, denied; connections allowed, denied: {seen:?}");
    assert!(seen.iter().all(|count| *count > 500), "{seen:?}");
}

#[test]
fn a_path_with_several_readings_costs_the_decision_nothing() {
    let policies = compile(&[
        object(
            "deny",
            json!({"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/admin*", "/x/{*}"]}}]}]}),
        ),
        object("allow", json!({"rules": [{"to": [{"operation": {"paths": ["/api/*", "/a%20b"]}}]}]})),
    ]);
    for (target, allowed) in [("/api//%40me;v=1/%2Fx", true), ("/api/..%2fadmin", false), ("/a%20b", true)] {
        let mut case = generate::connection(&mut Dice(1));
        case.http = Some(naive::HttpCase { target: target.into(), ..generate::http(&mut Dice(1)) });
        with_request(&case, |request| {
            assert_eq!(counted(|| policies.authorize(request).is_allowed()), (allowed, 0), "{target}");
        });
    }
}

/// Hosts longer than DNS holds, headers repeated to great length: what does not fit on the stack is compared piece
/// by piece.
#[test]
fn overlong_hosts_and_headers_allocate_nothing() {
    let host = format!("Shop.{}.Example", "A".repeat(5000));
    let header = "v".repeat(3000);
    let rule = json!({
        "to": [{"operation": {"hosts": [host.to_lowercase()]}}],
        "when": [{"key": "request.headers[x-long]", "values": [format!("{header},{header}")]}],
    });
    let many: Vec<_> = (0..20)
        .map(|number| json!({"to": [{"operation": {"hosts": [format!("host{number}.example")]}}]}))
        .chain([rule])
        .collect();
    let policies = compile(&[object("p", json!({"rules": many}))]);
    for (host, allowed) in [(host.as_str(), true), ("Shop.Example", false)] {
        let mut case = generate::connection(&mut Dice(1));
        let headers = vec![("X-Long".into(), header.clone()), ("x-long".into(), header.clone())];
        case.http = Some(naive::HttpCase {
            target: "/".into(),
            host: Some(host.into()),
            headers,
            ..generate::http(&mut Dice(1))
        });
        with_request(&case, |request| {
            assert_eq!(counted(|| policies.authorize(request).is_allowed()), (allowed, 0), "{host}");
        });
    }
}

#[test]
fn a_path_in_its_normal_form_is_read_without_an_allocation() {
    for target in ["/", "/api/v1/orders/17?x=%20", "/.well-known/x#y", "*"] {
        let (readings, allocations) = counted(|| normalize(PathNormalization::Safe, target).unwrap());
        assert!(readings.is_single() && allocations == 0, "{target}");
    }
}
