//! Whole pods, before and after, as a person would read them. `UPDATE_GOLDEN=1` writes the files anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use serde_json::{Value, json};
use std::path::Path;
use support::{Namespace, apply, defaulted, web_pod, web_pod_with};

fn golden(name: &str, pod: &Value) {
    golden_in(&Namespace::new(), name, pod);
}

fn golden_in(namespace: &Namespace, name: &str, pod: &Value) {
    let operations = namespace.operations(pod);
    let after = apply(pod, &operations);
    assert_eq!(
        namespace.operations(&defaulted(after.clone())),
        Vec::new(),
        "{name}: the second pass is empty"
    );
    let shown = json!({"patch": operations, "pod": after});
    let text = format!("{}\n", serde_json::to_string_pretty(&shown).unwrap());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.json"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(kept, text, "{} differs; UPDATE_GOLDEN=1 writes it anew", path.display());
}

fn owned(pod: &mut Value, api: &str, kind: &str, name: &str) {
    pod["metadata"]["ownerReferences"] =
        json!([{"apiVersion": api, "kind": kind, "name": name, "uid": "u", "controller": true}]);
}

#[test]
fn a_pod_of_a_deployment() {
    golden("deployment", &web_pod());
}

#[test]
fn a_pod_whose_redirect_the_node_agent_sets() {
    golden_in(&Namespace::with_agent(), "agent", &web_pod());
}

#[test]
fn probes_of_all_kinds() {
    golden(
        "probes",
        &web_pod_with(|pod| {
            let app = &mut pod["spec"]["containers"][0];
            app["readinessProbe"] = json!({"httpGet": {"path": "/ready?full=1", "port": "http",
                "httpHeaders": [{"name": "Host", "value": "web.example"}]}, "periodSeconds": 3, "timeoutSeconds": 2});
            app["livenessProbe"] = json!({"tcpSocket": {"port": 8080}, "failureThreshold": 5});
            app["startupProbe"] = json!({"exec": {"command": ["true"]}});
            pod["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "log", "image": "log:1",
                "startupProbe": {"httpGet": {"path": "live", "port": 9000, "scheme": "HTTP"}},
                "livenessProbe": {"httpGet": {"path": "/", "port": 80, "host": "192.0.2.7"}}}));
            pod["spec"]["initContainers"] = json!([
                {"name": "migrate", "image": "migrate:1"},
                {"name": "cache", "image": "cache:1", "restartPolicy": "Always",
                 "readinessProbe": {"tcpSocket": {"port": 6379}}}]);
        }),
    );
}

#[test]
fn a_pod_of_a_stateful_set_with_volumes_of_its_own() {
    golden(
        "statefulset",
        &web_pod_with(|pod| {
            owned(pod, "apps/v1", "StatefulSet", "db");
            pod["metadata"]["annotations"] = json!({"example.com/kept": "yes"});
            pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
            pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        }),
    );
}

#[test]
fn a_pod_of_a_cron_jobs_job() {
    golden(
        "job",
        &web_pod_with(|pod| {
            owned(pod, "batch/v1", "Job", "nightly-29");
            pod["spec"]["restartPolicy"] = json!("Never");
        }),
    );
}

#[test]
fn a_guaranteed_pod_stays_guaranteed() {
    golden(
        "guaranteed",
        &web_pod_with(|pod| {
            pod["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}});
        }),
    );
}

#[test]
fn look_alikes_are_overwritten_and_moved_to_the_front() {
    golden(
        "look-alike",
        &web_pod_with(|pod| {
            pod["spec"]["initContainers"] = json!([
                {"name": "migrate", "image": "migrate:1"},
                {"name": "cinch-proxy", "image": "evil:1", "command": ["/sh"], "restartPolicy": "Always"},
                {"name": "cinch-init", "image": "evil:1"}]);
            pod["spec"]["volumes"] = json!([{"name": "cinch-token", "emptyDir": {}}]);
        }),
    );
}
