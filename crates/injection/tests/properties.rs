//! What holds for every pod: twice is once, and the user's parts stay as they were.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use cinch_injection::Outcome;
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{Namespace, apply, defaulted};

fn probe() -> impl Strategy<Value = Option<Value>> {
    let port = prop_oneof![(1u16..20000).prop_map(|p| json!(p)), Just(json!("http")), Just(json!("nope"))];
    let handler = (0u8..5, port, "[a-z/]{0,8}").prop_map(|(kind, port, path)| match kind {
        0 | 1 => json!({"httpGet": {"port": port, "path": path}}),
        2 => json!({"tcpSocket": {"port": port}}),
        3 => json!({"exec": {"command": ["x"]}}),
        _ => json!({"httpGet": {"port": port, "host": "192.0.2.1"}, "periodSeconds": 7}),
    });
    proptest::option::of(handler)
}

fn container(name: &'static str) -> impl Strategy<Value = Value> {
    (proptest::array::uniform3(probe()), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        move |(probes, ports, limits, mounts)| {
            let mut container = json!({"name": name, "image": "i", "futureField": {"kept": true}});
            for (kind, probe) in ["readinessProbe", "livenessProbe", "startupProbe"].iter().zip(probes) {
                if let Some(probe) = probe {
                    container[*kind] = probe;
                }
            }
            if ports {
                container["ports"] = json!([{"name": "http", "containerPort": 8080}]);
            }
            if limits {
                container["resources"] = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
            }
            if mounts {
                container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
            }
            container
        },
    )
}

fn init_containers() -> impl Strategy<Value = Option<Vec<Value>>> {
    let one = prop_oneof![
        container("setup"),
        container("cache").prop_map(|mut c| {
            c["restartPolicy"] = json!("Always");
            c
        }),
        container("cinch-init"),
        container("cinch-proxy"),
    ];
    proptest::option::of(proptest::collection::vec(one, 0..5)).prop_map(|list| {
        list.map(|list| {
            let mut seen = std::collections::HashSet::new();
            list.into_iter().filter(|c| seen.insert(c["name"].as_str().unwrap().to_owned())).collect()
        })
    })
}

fn pod() -> impl Strategy<Value = Value> {
    let owner = prop_oneof![
        Just(json!(null)),
        Just(json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "controller": true}])),
        Just(json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "controller": true}])),
    ];
    let volumes = prop_oneof![
        Just(json!(null)),
        Just(json!([{"name": "data", "emptyDir": {}}])),
        Just(json!([{"name": "cinch-trust", "emptyDir": {}}, {"name": "data", "emptyDir": {}}])),
    ];
    let app = prop_oneof![4 => container("app"), 1 => container("cinch-proxy")];
    (owner, volumes, app, init_containers(), any::<bool>(), any::<bool>()).prop_map(
        |(owner, volumes, app, init, annotated, labelled)| {
            let mut pod = json!({"metadata": {"future": 1}, "spec": {"containers": [app], "future": 2}});
            pod["metadata"]["ownerReferences"] = owner;
            pod["metadata"]["labels"] = json!({"pod-template-hash": "1"});
            if labelled {
                pod["metadata"]["labels"]["cinch.dev/inject"] = json!("enabled");
            }
            if annotated {
                pod["metadata"]["annotations"] = json!({"a/b~c": "d"});
            }
            if let Some(init) = init {
                pod["spec"]["initContainers"] = json!(init);
            }
            pod["spec"]["volumes"] = volumes;
            pod
        },
    )
}

/// The pod without everything that injection may write.
fn users_part(mut pod: Value) -> Value {
    if let Some(annotations) = pod["metadata"].get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.remove("cinch.dev/injected");
    }
    if pod["metadata"].get("annotations").is_none_or(|a| a.as_object().is_none_or(serde_json::Map::is_empty))
    {
        pod["metadata"].as_object_mut().unwrap().remove("annotations");
    }
    let spec = pod["spec"].as_object_mut().unwrap();
    spec.remove("serviceAccountName");
    spec.remove("serviceAccount");
    for (list, ours) in [
        ("initContainers", &["cinch-init", "cinch-proxy"][..]),
        ("volumes", &["cinch-token", "cinch-trust", "cinch-agent"]),
    ] {
        let kept: Vec<Value> =
            spec.get(list).and_then(Value::as_array).into_iter().flatten().cloned().collect();
        spec.insert(
            list.into(),
            kept.into_iter().filter(|v| !ours.contains(&v["name"].as_str().unwrap())).collect(),
        );
    }
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            for kind in ["readinessProbe", "livenessProbe", "startupProbe"] {
                if let Some(probe) = container.get_mut(kind).and_then(Value::as_object_mut)
                    && probe.get("httpGet").is_none_or(|http| http.get("host").is_none())
                {
                    probe.remove("httpGet");
                    probe.remove("tcpSocket");
                }
            }
        }
    }
    pod
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn injecting_twice_is_injecting_once(pod in pod(), agent in any::<bool>()) {
        let namespace = if agent { Namespace::with_agent() } else { Namespace::new() };
        let once = match namespace.decide(&pod) {
            Outcome::Refuse { .. } => return Ok(()),
            Outcome::Inject { operations, .. } | Outcome::Skip { operations, .. } => apply(&pod, &operations),
        };
        for again in [once.clone(), defaulted(once)] {
            match namespace.decide(&again) {
                Outcome::Inject { operations, .. } | Outcome::Skip { operations, .. } => prop_assert_eq!(operations, vec![]),
                refused @ Outcome::Refuse { .. } => prop_assert!(false, "{:?}", refused),
            }
        }
    }

    #[test]
    fn the_users_parts_stay_as_they_were(pod in pod(), agent in any::<bool>()) {
        let namespace = if agent { Namespace::with_agent() } else { Namespace::new() };
        if let Outcome::Inject { operations, .. } = namespace.decide(&pod) {
            let after = apply(&pod, &operations);
            let init = after["spec"]["initContainers"].as_array().unwrap();
            let wanted: &[&str] = if agent { &["cinch-proxy"] } else { &["cinch-init", "cinch-proxy"] };
            for (index, name) in wanted.iter().enumerate() {
                prop_assert_eq!(&init[index]["name"], name);
            }
            prop_assert_eq!(users_part(after), users_part(pod));
        }
    }

    #[test]
    fn nothing_makes_the_decision_fail(text in "\\PC{0,64}", number in any::<i64>()) {
        let namespace = Namespace::new();
        for junk in [json!(text), json!(number), json!([text]), json!({"x": text})] {
            for place in ["/metadata/labels", "/metadata/ownerReferences", "/spec/containers/0/ports/0",
                "/spec/containers/0/readinessProbe", "/spec/containers/0/readinessProbe/httpGet",
                "/spec/volumes", "/spec/volumes/0", "/spec/resources", "/spec/containers/0/resources", "/spec/initContainers/0"] {
                let mut pod = json!({"metadata": {"labels": {}, "ownerReferences": []}, "spec": {
                    "containers": [{"name": "a", "ports": [{}], "resources": {}, "readinessProbe": {"httpGet": {}}}],
                    "volumes": [{}], "resources": {}, "initContainers": [{"name": "cinch-proxy"}]}});
                *pod.pointer_mut(place).unwrap() = junk.clone();
                if let Outcome::Inject { operations, .. } = namespace.decide(&pod) {
                    apply(&pod, &operations);
                }
            }
        }
    }
}
