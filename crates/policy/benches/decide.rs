//! How long a decision takes, and how that grows: `cargo bench -p cinch-policy --bench decide`. Beside each compiled
//! set stands the naive evaluator of the tests on the same policies and request.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../tests/engine/naive.rs"]
mod naive;
mod sets;

use cinch_policy::{
    Connection, MeshConfig, PathNormalization, PolicyObject, Request, WorkloadPolicies, no_providers,
    normalize,
};
use divan::{AllocProfiler, Bencher, black_box};
use naive::{Naive, Paths};
use sets::{SETS, case, compiled, policies, workload};
use std::collections::BTreeMap;

/// Shows allocations beside times: decisions must have none.
#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

/// The path is read and the decision made, as for each request.
#[divan::bench(name = "request", args = SETS)]
fn request(bencher: Bencher<'_, '_>, set: &str) {
    let policies = compiled(set);
    let case = case();
    let http = case.http.as_ref().unwrap();
    let connection = Connection::new(case.peer.as_deref(), case.source, case.destination);
    let headers: Vec<(&str, &[u8])> =
        http.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    bencher.bench(|| {
        let paths = normalize(PathNormalization::Safe, black_box(&http.target)).unwrap();
        let request = Request {
            connection: black_box(connection),
            method: &http.method,
            paths: &paths,
            host: http.host.as_deref(),
            headers: &headers,
            token: None,
        };
        let decision = policies.request(&request, &no_providers);
        assert!(decision.is_allowed());
        decision.rule
    });
}

#[divan::bench(name = "request, naive", args = SETS)]
fn naive_evaluator(bencher: Bencher<'_, '_>, set: &str) {
    let objects = policies(set);
    let (mesh, workload, providers) = (MeshConfig::default(), workload(), BTreeMap::new());
    let naive = Naive { mesh: &mesh, workload: &workload, objects: &objects, providers: &providers };
    let case = case();
    let paths = Paths { named: vec!["/api/v1/orders/17/items".to_owned()], further: Vec::new() };
    bencher.bench(|| {
        let verdict = naive.decide(black_box(&case), &paths);
        assert!(verdict.0);
        verdict
    });
}

/// What a connection's open costs.
#[divan::bench(name = "connection", args = SETS)]
fn connection(bencher: Bencher<'_, '_>, set: &str) {
    let policies = compiled(set);
    let case = case();
    let connection = Connection::new(case.peer.as_deref(), case.source, case.destination);
    bencher.bench(|| policies.connection(black_box(&connection)));
}

/// Paths as they come: plain, with an escape, with a parameter, with an encoded slash, hostile.
#[divan::bench(name = "normalize", args = [
    "/api/v1/orders/17/items?expand=yes", "/files/a%20b.txt", "/map;v=1/x", "/a%2Fb", "/..;%2f%5c%252f//x",
])]
fn path(bencher: Bencher<'_, '_>, target: &str) {
    bencher.bench(|| normalize(PathNormalization::Safe, black_box(target)).unwrap().is_single());
}

#[divan::bench(name = "compile", args = SETS)]
fn compile(bencher: Bencher<'_, '_>, set: &str) {
    let objects: Vec<_> = policies(set).iter().map(|object| PolicyObject::parse(object).unwrap()).collect();
    let (mesh, workload) = (MeshConfig::default(), workload());
    bencher.bench(|| WorkloadPolicies::compile(&mesh, black_box(&objects), &workload));
}
