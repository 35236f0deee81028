//! Objects as a hostile client could store them: read, validated, compiled, and asked about a connection and a
//! request. What admission accepts can be used, and what can't be used closes.
#![no_main]

use cinch_policy::{
    Connection, MeshConfig, PolicyObject, Request, Workload, WorkloadPolicies, no_providers, normalize,
    validate,
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Ok(object) = serde_json::from_slice::<Value>(data) else { return };
    let mesh = MeshConfig::default();
    let validation = validate(&object, &mesh);
    let Ok(parsed) = PolicyObject::parse(&object) else {
        assert!(!validation.is_valid());
        return;
    };
    let workload = Workload { namespace: "default".into(), ..Workload::default() };
    let policies = WorkloadPolicies::compile(&mesh, [&parsed], &workload);
    if validation.is_valid() {
        assert_eq!(policies.faults().count(), 0);
    }
    let peer = Some("spiffe://cluster.local/ns/default/sa/web");
    let connection = Connection::new(peer, [10, 0, 0, 1].into(), ([10, 0, 0, 2], 80).into());
    let early = policies.connection(&connection);
    let late = policies.tcp(&connection, &no_providers);
    match early {
        cinch_policy::Partial::Allow(_) => assert!(late.is_allowed()),
        cinch_policy::Partial::Deny(_) => assert!(!late.is_allowed()),
        cinch_policy::Partial::NeedsHttp => {}
    }
    let Ok(paths) = normalize(mesh.path_normalization, "/a%20b;c//d?e") else { return };
    let headers: [(&str, &[u8]); 2] = [("x-a", b"1"), ("X-A", b"2")];
    let request = Request {
        connection,
        method: "GET",
        paths: &paths,
        host: Some("Host.example"),
        headers: &headers,
        token: None,
    };
    std::hint::black_box(policies.request(&request, &no_providers));
    std::hint::black_box(policies.report(&request, &no_providers));
    std::hint::black_box(policies.misses(&request));
});
