//! The policies and the request of the benchmarks: every request is one that passes, so that all rules which refuse
//! have been looked at, and the rule that lets it pass is the last.

use crate::naive::{Case, HttpCase};
use cinch_policy::{MeshConfig, PolicyObject, Workload, WorkloadPolicies};
use serde_json::{Value, json};

/// What is measured.
pub const SETS: [&str; 12] = [
    "1 rule",
    "50 rules",
    "500 rules",
    "64 CIDRs",
    "200 principals",
    "100 templates",
    "500 DENY rules",
    "2000 principals",
    "2000 CIDRs",
    "2000 hosts",
    "2000 paths",
    "5 headers, 1 rule",
];

fn policy(name: &str, action: &str, rules: Vec<Value>) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"}, "spec": {"action": action, "rules": rules},
    })
}

fn principal(number: usize) -> String {
    format!("cluster.local/ns/ns{}/sa/client{number}", number % 10)
}

/// A rule of one of five shapes that does not match the request.
fn shape(number: usize) -> Value {
    match number % 5 {
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
    }
}

/// Rules of many shapes; only the last lets the request pass.
fn mixed(count: usize) -> Vec<Value> {
    let last = json!({
        "from": [{"source": {"principals": ["cluster.local/ns/shop/sa/web"]}}],
        "to": [{"operation": {"methods": ["GET"], "paths": ["/api/*"]}}],
    });
    (1..count).map(shape).chain([last]).collect()
}

/// The objects of a set.
pub fn policies(set: &str) -> Vec<Value> {
    let one = |rules| vec![policy("allow", "ALLOW", rules)];
    let web = "cluster.local/ns/shop/sa/web".to_owned();
    let values = |part: &str, inner: &str, field: &str, values: Vec<String>| {
        one(vec![json!({part: [{inner: {field: values}}]})])
    };
    match set {
        "1 rule" => one(mixed(1)),
        "50 rules" => one(mixed(50)),
        "500 rules" => one(mixed(500)),
        "500 DENY rules" => {
            let refusing = (0..500).map(shape).collect();
            vec![policy("deny", "DENY", refusing), policy("allow", "ALLOW", mixed(1))]
        }
        "64 CIDRs" | "2000 CIDRs" => {
            let count = if set == "64 CIDRs" { 63 } else { 1999 };
            let blocks = (0..count).map(|number| format!("10.{}.{}.0/24", number % 250, number / 250));
            values("from", "source", "ipBlocks", blocks.chain(["192.0.2.0/24".to_owned()]).collect())
        }
        "200 principals" | "2000 principals" => {
            let count = if set == "200 principals" { 199 } else { 1999 };
            values("from", "source", "principals", (0..count).map(principal).chain([web]).collect())
        }
        "100 templates" => {
            let templates = (0..99).map(|number| format!("/tenant{number}/{{*}}/orders/{{**}}"));
            values("to", "operation", "paths", templates.chain(["/api/{*}/orders/{**}".to_owned()]).collect())
        }
        "2000 hosts" => {
            let hosts = (0..1999).map(|number| format!("host{number}.example"));
            values("to", "operation", "hosts", hosts.chain(["api.shop.example".to_owned()]).collect())
        }
        "2000 paths" => {
            let paths = (0..1999).map(|number| format!("/service{number}/*"));
            values("to", "operation", "paths", paths.chain(["/api/*".to_owned()]).collect())
        }
        _ => {
            let mut rules = mixed(1);
            rules[0]["when"] = json!([{"key": "request.headers[x-tier]", "values": ["gold", "silver"]}]);
            one(rules)
        }
    }
}

/// The request.
pub fn case() -> Case {
    let headers = [
        ("accept", "*/*"),
        ("user-agent", "bench/1"),
        ("x-request-id", "3c5be0a4-6a5a-4c26-9d5a-0d5f6a1f5d11"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-tier", "gold"),
    ];
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
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            claims: None,
        }),
    }
}

/// The workload that they select.
pub fn workload() -> Workload {
    Workload { namespace: "shop".into(), ..Workload::default() }
}

/// A set made ready.
pub fn compiled(set: &str) -> WorkloadPolicies {
    let objects: Vec<_> = policies(set).iter().map(|object| PolicyObject::parse(object).unwrap()).collect();
    let compiled = WorkloadPolicies::compile(&MeshConfig::default(), &objects, &workload());
    assert_eq!(compiled.faults().count(), 0, "{set}");
    compiled
}
