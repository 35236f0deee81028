//! What is asked of an API server, and what becomes of its answers.

use super::*;
use crate::policy::explain::story::told;
use crate::refusal;
use clap::Parser;
use kube::Client;
use kube::client::Body;
use serde_json::json;
use std::collections::BTreeMap;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    explain: Explain,
}

/// An API server that knows these paths; what it does not know is 404, and a number is an error of that status.
fn cluster(answers: &[(&str, Value)]) -> Cluster {
    let answers: BTreeMap<String, Value> =
        answers.iter().map(|(path, answer)| ((*path).to_owned(), answer.clone())).collect();
    let service = tower::service_fn(move |request: hyper::Request<Body>| {
        let answer = answers.get(request.uri().path()).cloned().unwrap_or(json!(404));
        let (status, body) = match answer.as_u64() {
            None => (200, answer),
            Some(code) => {
                let message = format!("{} is forbidden: User \"eve\" cannot", request.uri().path());
                (
                    u16::try_from(code).unwrap(),
                    json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
                        "status": "Failure", "reason": if code == 404 { "NotFound" } else { "Forbidden" }, "code": code, "message": message}),
                )
            }
        };
        let body = Body::from(serde_json::to_vec(&body).unwrap());
        std::future::ready(hyper::Response::builder().status(status).body(body))
    });
    Cluster { client: Client::new(service, "default"), cinch: "cinch-system".to_owned() }
}

const SETTINGS_PATH: &str = "/api/v1/namespaces/cinch-system/configmaps/cinch-settings";
const NAMESPACE_PATH: &str = "/api/v1/namespaces/orders";
const PODS: &str = "/api/v1/namespaces/orders/pods";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/orders/deployments/api";

fn policies_path(namespace: &str, plural: &str) -> String {
    format!("/apis/security.istio.io/v1/namespaces/{namespace}/{plural}")
}

fn settings() -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cinch-settings"}, "data": {"settings.yaml":
        "trustDomain: corp.example\nrootNamespace: mesh-root\nmesh: {cidrs: [], trustDomainAliases: [old.example]}\nother: 1\n"}})
}

fn namespace(labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "orders", "labels": labels}})
}

fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "api", "namespace": "orders"},
        "spec": {"template": {"metadata": {"labels": {"app": "api"}},
            "spec": {"serviceAccountName": "api-account", "containers": []}}}})
}

fn listed(items: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "List", "metadata": {}, "items": items})
}

fn object(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

async fn ask(cluster: &Cluster, line: &[&str]) -> Result<Found> {
    let line = Line::parse_from(["explain", "-n", "orders"].iter().chain(line));
    found(cluster, &line.explain).await
}

/// What the person at the terminal reads when it fails.
async fn refused(answers: &[(&str, Value)], line: &[&str]) -> String {
    refusal::words(&ask(&cluster(answers), line).await.unwrap_err())
}

#[tokio::test]
async fn a_workload_is_found_with_its_namespace_its_policies_and_those_of_the_root() {
    let own = policies_path("orders", "authorizationpolicies");
    let root = policies_path("mesh-root", "peerauthentications");
    let cluster = cluster(&[
        (SETTINGS_PATH, settings()),
        (NAMESPACE_PATH, namespace(json!({"cinch.dev/mode": "STRICT"}))),
        (DEPLOYMENT, deployment()),
        (&own, listed(json!([object("orders", "closed", json!({}))]))),
        (&root, listed(json!([object("mesh-root", "all", json!({"mtls": {"mode": "STRICT"}}))]))),
    ]);
    for name in ["api", "deployment/api", "Deploy/api"] {
        let found = ask(&cluster, &[name]).await.unwrap();
        assert_eq!(found.called, "Deployment orders/api");
        assert_eq!(found.workload.service_account, "api-account");
        assert_eq!(found.workload.labels, [("app".to_owned(), "api".to_owned())].into());
        assert_eq!((found.locked, found.notes.len()), (Some(true), 0), "{:?}", found.notes);
        assert_eq!(found.mesh.trust_domain, "corp.example");
        assert_eq!(found.mesh.root_namespace, "mesh-root");
        assert_eq!(found.mesh.trust_domain_aliases, ["old.example"]);
        let text = told(&found);
        for want in
            ["orders/closed: nothing (it has no rules)", "PeerAuthentication mesh-root/all", "is locked"]
        {
            assert!(text.contains(want), "{want}\n{text}");
        }
    }
    let other = ask(&cluster, &["--labels", "app=x", "--root-namespace", "none"]).await.unwrap();
    assert_eq!((other.workload.labels["app"].as_str(), other.mesh.root_namespace.as_str()), ("x", "none"));
}

#[tokio::test]
async fn what_may_not_be_read_is_named_with_what_lets_one() {
    let pods = format!("{PODS}/api");
    let own = policies_path("orders", "authorizationpolicies");
    let there = [(SETTINGS_PATH, settings()), (NAMESPACE_PATH, namespace(json!({})))];
    let with = |more: &[(&'static str, Value)]| [there.as_slice(), more].concat();

    let text = refused(&with(&[("/api/v1/namespaces/orders/pods/api", json!(403))]), &["api"]).await;
    assert_eq!(
        text,
        format!("pods of namespace orders can not be read: {pods} is forbidden: User \"eve\" cannot")
    );

    let path = "/apis/security.istio.io/v1/namespaces/orders/authorizationpolicies";
    let text = refused(&with(&[(path, json!(403))]), &[]).await;
    let want =
        "authorizationpolicies of namespace orders can not be read (the ClusterRole cinch-view lets one): ";
    assert_eq!(text, format!("{want}{own} is forbidden: User \"eve\" cannot"));

    let text = refused(&with(&[]), &["api"]).await;
    assert_eq!(text, "there is no pod or deployment or statefulset or daemonset api in namespace orders");
    let text = refused(&with(&[]), &["service/api"]).await;
    assert!(text.starts_with("\"service\" makes no pods; write one of pod, deployment, "), "{text}");
    let text = refused(&[(SETTINGS_PATH, settings())], &[]).await;
    assert_eq!(text, "there is no namespace orders");
    let text = refused(&[(SETTINGS_PATH, json!(500))], &[]).await;
    assert!(text.starts_with("the cluster can not be asked: "), "{text}");
}

#[tokio::test]
async fn what_only_makes_the_story_less_is_a_note() {
    let root = "/apis/security.istio.io/v1/namespaces/cinch-system/authorizationpolicies";
    let cluster = cluster(&[(SETTINGS_PATH, json!(403)), (NAMESPACE_PATH, json!(403)), (root, json!(403))]);
    let found = ask(&cluster, &[]).await.unwrap();
    assert_eq!(found.locked, None);
    assert_eq!(found.mesh, MeshConfig::default());
    let notes = found.notes.join("\n");
    for want in [
        "you may not read ConfigMap cinch-settings of cinch-system",
        "you may not read namespace orders",
        "authorizationpolicies of the root namespace cinch-system are left out",
    ] {
        assert!(notes.contains(want), "{want}\n{notes}");
    }
    assert!(told(&found).contains("! authorizationpolicies of the root namespace"));
}
