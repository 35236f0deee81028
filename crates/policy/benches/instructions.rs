//! Instructions per decision: `cargo bench -p cinch-policy --bench instructions`. Unlike times they are the same on a
//! busy machine. The program runs itself under valgrind's callgrind, for each set with few and with many decisions;
//! the difference is what the decisions cost. Without valgrind it says so and measures nothing.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../tests/engine/naive.rs"]
mod naive;
mod sets;

use cinch_policy::{Connection, PathNormalization, Request, WorkloadPolicies, no_providers, normalize};
use sets::{SETS, case, compiled};
use std::hint::black_box;
use std::process::Command;

const FEW: u64 = 100;
const MANY: u64 = 1100;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, kind, set, count] = arguments.as_slice()
        && word == "decide"
    {
        return decide(kind, &compiled(set), count.parse().unwrap());
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: valgrind is not installed");
        return;
    }
    println!("{:20} {:>10} {:>12}", "instructions for", "a request", "a connection");
    for set in SETS {
        let of = |kind| (instructions(kind, set, MANY) - instructions(kind, set, FEW)) / (MANY - FEW);
        println!("{set:20} {:>10} {:>12}", of("request"), of("connection"));
    }
}

/// All instructions of a run with `count` decisions.
fn instructions(kind: &str, set: &str, count: u64) -> u64 {
    let this = std::env::current_exe().unwrap();
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(this)
        .args(["decide", kind, set, &count.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let total = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    total.unwrap_or_else(|| panic!("valgrind says: {said}"))
}

fn decide(kind: &str, policies: &WorkloadPolicies, count: u64) {
    let case = case();
    let http = case.http.as_ref().unwrap();
    let connection = Connection::new(case.peer.as_deref(), case.source, case.destination);
    let headers: Vec<(&str, &[u8])> =
        http.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    for _ in 0..count {
        if kind == "connection" {
            black_box(policies.connection(black_box(&connection)));
            continue;
        }
        let paths = normalize(PathNormalization::Safe, black_box(&http.target)).unwrap();
        let request = Request {
            connection: black_box(connection),
            method: &http.method,
            paths: &paths,
            host: http.host.as_deref(),
            headers: &headers,
            token: None,
        };
        assert!(policies.request(&request, &no_providers).is_allowed());
    }
}
