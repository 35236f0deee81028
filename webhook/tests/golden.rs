//! Every message of policy admission as people read it, beside what they wrote.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use cinch_webhook::facts::{Caches, Event, Key, NamespaceFacts, around};
use cinch_webhook::metrics::Metrics;
use cinch_webhook::settings::Settings;
use cinch_webhook::state::State;
use cinch_webhook::validate::validate;
use serde_json::{Value, json};
use std::fmt::Write;
use std::sync::Arc;
use tokio::time::Instant;

const CASES: &str = include_str!("golden/cases.yaml");
/// What guides tell people to paste, and mistakes of theirs: the engine's tests decide by them too.
const PASTED: &str = include_str!("../../crates/policy/tests/engine/pasted.yaml");
const MISTAKEN: &str = include_str!("../../crates/policy/tests/engine/mistaken.yaml");
const SETTINGS: &str =
    "{trustDomain: cluster.local, namespace: cinch-system, images: {proxy: r/cinch-proxy:1}}";

fn state(caches: Caches) -> State {
    let settings = Settings::parse(SETTINGS).unwrap();
    State::new(Arc::new(caches), settings.sidecar(), settings.mesh(), Arc::new(Metrics::default()))
}

/// Two pods in `shop`, one of which an ALLOW policy selects, and the locked namespace `vault`.
fn among() -> State {
    let caches = Caches::default();
    for (name, label) in [("shop", ("cinch.dev/mesh", "enabled")), ("vault", ("cinch.dev/mode", "STRICT"))] {
        let labels = [(label.0.to_owned(), label.1.to_owned())].into();
        let facts = NamespaceFacts { labels, annotations: Default::default() };
        caches.namespaces.apply(Event::Upsert(Key::new("", name), Some(Arc::new(facts))));
    }
    for app in ["api", "guarded"] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": app, "labels": {"app": app}},
            "spec": {"containers": [{"name": "app", "ports": [
                {"containerPort": 8080, "name": "http"}, {"containerPort": 5432, "name": "tcp-db"}]}]}});
        let pod = around::pod(&serde_json::from_value(pod).unwrap());
        caches.pods.apply(Event::Upsert(Key::new("shop", app), pod));
    }
    let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"namespace": "shop", "name": "guard"}, "spec": {"selector": {"matchLabels": {"app": "guarded"}}}});
    let policy = around::policy(&serde_json::from_value(policy).unwrap());
    caches.policies.apply(Event::Upsert(Key::new("shop", "guard"), policy));
    caches.pods.assume_empty();
    caches.services.assume_empty();
    caches.policies.assume_empty();
    state(caches)
}

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

/// The answer to the creation of `object`: refused or accepted, and all that is said.
fn said(state: &State, object: &Value) -> String {
    let group = object["apiVersion"].as_str().unwrap().split('/').next().unwrap();
    let namespace = object["metadata"]["namespace"].as_str().unwrap();
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u", "kind": {"group": group, "version": "v1", "kind": object["kind"]},
        "operation": "CREATE", "namespace": namespace, "object": object}});
    let answer = validate(state, review.to_string().as_bytes(), Instant::now());
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    let response: Value = serde_json::from_slice(&answer.body).unwrap();
    let response = &response["response"];
    let mut text = String::new();
    match response["allowed"].as_bool().unwrap() {
        true => text.push_str("accepted\n"),
        false => {
            let message = response["status"]["message"].as_str().unwrap();
            writeln!(text, "refused\n  {}", message.replace("; spec.", ";\n  spec.")).unwrap();
        }
    }
    for warning in response["warnings"].as_array().into_iter().flatten() {
        writeln!(text, "  warning: {}", warning.as_str().unwrap()).unwrap();
    }
    text
}

#[test]
fn every_message_of_admission_reads_so() {
    let (alone, among) = (state(Caches::default()), among());
    let mut text = String::new();
    for case in documents(CASES) {
        let namespace = case["namespace"].as_str().unwrap_or("shop");
        let version = case["version"].as_str().unwrap_or("security.istio.io/v1");
        let object = json!({"apiVersion": version, "kind": case["kind"], "spec": case["spec"],
            "metadata": {"name": "p", "namespace": namespace, "annotations": case["annotations"]}});
        let state = if case["among"] == true { &among } else { &alone };
        writeln!(text, "# {}\n{}", case["case"].as_str().unwrap(), said(state, &object)).unwrap();
    }
    insta::with_settings!({snapshot_path => "golden", prepend_module_to_snapshot => false}, {
        insta::assert_snapshot!("admission", text);
    });
}

#[test]
fn what_guides_tell_people_to_paste_is_accepted_and_reads_so() {
    let state = state(Caches::default());
    let mut text = String::new();
    for object in documents(PASTED) {
        let answer = said(&state, &object);
        assert!(answer.starts_with("accepted\n"), "{object}: {answer}");
        writeln!(text, "# {}\n{answer}", object["metadata"]["name"].as_str().unwrap()).unwrap();
    }
    insta::with_settings!({snapshot_path => "golden", prepend_module_to_snapshot => false}, {
        insta::assert_snapshot!("pasted", text);
    });
}

#[test]
fn mistakes_of_guides_readers_are_refused_with_their_field() {
    let state = state(Caches::default());
    let answers: Vec<String> = documents(MISTAKEN).iter().map(|object| said(&state, object)).collect();
    let expected = include_str!("../../crates/policy/tests/engine/mistaken.txt");
    for (answer, sentence) in answers.iter().zip(expected.lines()) {
        assert_eq!(
            *answer,
            format!("refused\n  PolicyRefused: {sentence}\n").replace("; spec.", ";\n  spec.")
        );
    }
    assert_eq!(answers.len(), expected.lines().count());
}

/// The API server passes warnings on as HTTP headers; it cuts longer ones when there are many.
#[test]
fn no_warning_of_its_own_length_is_cut() {
    let among = among();
    for object in documents(PASTED) {
        for line in said(&among, &object).lines() {
            assert!(line.chars().count() <= 256 + "  warning: ".len(), "{line}");
        }
    }
}
