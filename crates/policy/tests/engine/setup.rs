//! Short ways to policies and decisions.

use super::naive::Case;
use cinch_policy::{
    Answer, Connection, Decision, MeshConfig, PathNormalization, PolicyObject, Readings, Request, Token,
    Workload, WorkloadPolicies, normalize,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub fn mesh() -> MeshConfig {
    MeshConfig {
        trust_domain: "mesh.example".into(),
        trust_domain_aliases: vec!["old.mesh".into()],
        root_namespace: "mesh".into(),
        path_normalization: PathNormalization::Safe,
    }
}

pub fn workload() -> Workload {
    Workload {
        namespace: "shop".into(),
        labels: [("app".to_owned(), "api".to_owned())].into(),
        service_account: "api".into(),
    }
}

pub fn providers() -> BTreeMap<String, bool> {
    [("yes".to_owned(), true), ("no".to_owned(), false)].into()
}

/// As [`providers`] say, without an allocation.
pub fn answer(name: &str) -> Answer {
    match name {
        "yes" => Answer::Allow,
        "no" => Answer::Deny,
        _ => Answer::Unreachable,
    }
}

pub fn compile(objects: &[Value]) -> WorkloadPolicies {
    let parsed: Vec<_> = objects.iter().map(|object| PolicyObject::parse(object).unwrap()).collect();
    WorkloadPolicies::compile(&mesh(), &parsed, &workload())
}

/// An AuthorizationPolicy; `name` may begin with a namespace.
pub fn object(name: &str, spec: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap_or(("shop", name));
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec
    })
}

pub fn connection(case: &Case) -> Connection<'_> {
    Connection {
        peer: case.peer.as_deref(),
        source: case.source,
        remote: case.remote,
        destination: case.destination,
        sni: case.sni.as_deref(),
    }
}

/// Lends the request, with its readings, to `judge`.
pub fn with_request<T>(case: &Case, judge: impl FnOnce(&Request<'_>) -> T) -> T {
    let http = case.http.as_ref().unwrap();
    let paths = readings(case).unwrap();
    let headers: Vec<(&str, &[u8])> =
        http.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    judge(&Request {
        connection: connection(case),
        method: &http.method,
        paths: &paths,
        host: http.host.as_deref(),
        headers: &headers,
        token: http.claims.as_ref().map(|claims| Token { claims, space_delimited: &[] }),
    })
}

/// `None`: no HTTP, or a path that is refused before any policy.
pub fn readings(case: &Case) -> Option<Readings<'_>> {
    normalize(mesh().path_normalization, &case.http.as_ref()?.target).ok()
}

pub fn decide<'p>(policies: &'p WorkloadPolicies, case: &Case) -> Decision<'p> {
    match case.http {
        Some(_) => with_request(case, |request| policies.request(request, &answer)),
        None => policies.tcp(&connection(case), &answer),
    }
}
