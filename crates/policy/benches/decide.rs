//! How long a decision takes, and how that grows: `cargo bench -p cinch-policy`. Beside each compiled set stands
//! the naive evaluator of the tests on the same policies and request. Every request is one that passes, so that
//! all rules which refuse have been looked at.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../tests/engine/naive.rs"]
mod naive;

use cinch_policy::{
    Connection, MeshConfig, PolicyObject, Request, Workload, WorkloadPolicies, no_providers, normalize,
};
use divan::{AllocProfiler, Bencher, black_box};
use naive::{Case, HttpCase, Naive};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Shows allocations beside times: decisions must have none.
#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

const SETS: [&str; 8] = [
    "1 rule",
    "50 rules",
    "500 rules",
    "500 principals",
    "64 CIDRs",
    "200 principals",
    "100 templates",
    "500 hosts",
];

fn main() {
    divan::main();
}

fn policy(name: &str, action: &str, rules: Vec<Value>) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"}, "spec": {"action": action, "rules": rules},
    })
}

fn principal(number: usize) -> String {
    format!("cluster.local/ns/ns{}/sa/client{number}", number % 10)
}

/// Rules of many shapes; the last but few let the request pass.
fn mixed(count: usize) -> Vec<Value> {
    let rule = |number: usize| match number % 5 {
        0 => json!({"from": [{"source": {"principals": [principal(number)]}}]}),
        1 => {
            json!({"to": [{"operation": {"methods": ["GET", "POST"], "paths": [format!("/service{number}/*")]}}]})
        }
        2 => {
            json!({"from": [{"source": {"ipBlocks": [format!("10.{}.0.0/16", number % 250)]}}], "to": [{"operation": {"ports": ["8080"]}}]})
        }
        3 => {
            json!({"to": [{"operation": {"hosts": [format!("host{number}.example")], "notPaths": ["/healthz"]}}]})
        }
        _ => {
            json!({"to": [{"operation": {"paths": [format!("/shop{number}/{{*}}/cart")]}}], "when": [{"key": "request.headers[x-tier]", "values": ["gold"]}]})
        }
    };
    let mut rules: Vec<_> = (1..count).map(rule).collect();
    rules.push(json!({
        "from": [{"source": {"principals": ["cluster.local/ns/shop/sa/web"]}}],
        "to": [{"operation": {"methods": ["GET"], "paths": ["/api/*"]}}],
    }));
    rules
}

fn policies(set: &str) -> Vec<Value> {
    let one = |rules| vec![policy("allow", "ALLOW", rules)];
    let source = |field: &str, values: Vec<String>| one(vec![json!({"from": [{"source": {field: values}}]})]);
    let each = |rule: &dyn Fn(usize) -> Value, count: usize, last: Value| {
        one((0..count).map(rule).chain([last]).collect())
    };
    match set {
        "1 rule" => one(mixed(1)),
        "50 rules" => one(mixed(50)),
        "500 rules" => one(mixed(500)),
        "500 principals" => each(
            &|number| json!({"from": [{"source": {"principals": [principal(number)]}}]}),
            499,
            json!({"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/web"]}}]}),
        ),
        "64 CIDRs" => {
            let blocks = (0..63).map(|number| format!("10.{number}.0.0/16"));
            source("ipBlocks", blocks.chain(["192.0.2.0/24".to_owned()]).collect())
        }
        "200 principals" => source(
            "principals",
            (0..199).map(principal).chain(["cluster.local/ns/shop/sa/web".to_owned()]).collect(),
        ),
        "100 templates" => each(
            &|number| json!({"to": [{"operation": {"paths": [format!("/tenant{number}/{{*}}/orders/{{**}}")]}}]}),
            99,
            json!({"to": [{"operation": {"paths": ["/api/{*}/orders/{**}"]}}]}),
        ),
        _ => each(
            &|number| json!({"to": [{"operation": {"hosts": [format!("host{number}.example")]}}]}),
            499,
            json!({"to": [{"operation": {"hosts": ["api.shop.example"]}}]}),
        ),
    }
}

fn case() -> Case {
    Case {
        peer: Some("spiffe://cluster.local/ns/shop/sa/web".into()),
        source: "192.0.2.7".parse().unwrap(),
        remote: None,
        destination: "10.9.9.9:8080".parse().unwrap(),
        sni: None,
        http: Some(HttpCase {
            method: "GET".into(),
            target: "/api/v1/orders/17/items?expand=yes".into(),
            host: Some("api.shop.example".into()),
            headers: vec![("accept".into(), "*/*".into()), ("user-agent".into(), "bench/1".into())],
            claims: None,
        }),
    }
}

fn workload() -> Workload {
    Workload { namespace: "shop".into(), ..Workload::default() }
}

/// The path is read and the decision made, as for each request.
#[divan::bench(args = SETS)]
fn compiled(bencher: Bencher<'_, '_>, set: &str) {
    let objects: Vec<_> = policies(set).iter().map(|object| PolicyObject::parse(object).unwrap()).collect();
    let mesh = MeshConfig::default();
    let policies = WorkloadPolicies::compile(&mesh, &objects, &workload());
    let case = case();
    let http = case.http.as_ref().unwrap();
    let connection = Connection::new(case.peer.as_deref(), case.source, case.destination);
    let headers: Vec<(&str, &[u8])> =
        http.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    bencher.bench(|| {
        let paths = normalize(mesh.path_normalization, black_box(&http.target)).unwrap();
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

#[divan::bench(args = SETS)]
fn naive_evaluator(bencher: Bencher<'_, '_>, set: &str) {
    let objects = policies(set);
    let (mesh, workload, providers) = (MeshConfig::default(), workload(), BTreeMap::new());
    let naive = Naive { mesh: &mesh, workload: &workload, objects: &objects, providers: &providers };
    let case = case();
    let readings = vec!["/api/v1/orders/17/items".to_owned()];
    bencher.bench(|| {
        let verdict = naive.decide(black_box(&case), &readings);
        assert!(verdict.0);
        verdict
    });
}

/// What a connection's open costs.
#[divan::bench(args = SETS)]
fn at_the_open(bencher: Bencher<'_, '_>, set: &str) {
    let objects: Vec<_> = policies(set).iter().map(|object| PolicyObject::parse(object).unwrap()).collect();
    let policies = WorkloadPolicies::compile(&MeshConfig::default(), &objects, &workload());
    let case = case();
    let connection = Connection::new(case.peer.as_deref(), case.source, case.destination);
    bencher.bench(|| policies.connection(black_box(&connection)));
}

#[divan::bench(args = SETS)]
fn compile(bencher: Bencher<'_, '_>, set: &str) {
    let objects: Vec<_> = policies(set).iter().map(|object| PolicyObject::parse(object).unwrap()).collect();
    let (mesh, workload) = (MeshConfig::default(), workload());
    bencher.bench(|| WorkloadPolicies::compile(&mesh, black_box(&objects), &workload));
}
