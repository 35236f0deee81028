//! Pods that are injected, and pods that only look so.

use super::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const IMAGE: &str = "example.test/cinch-proxy:0.1.0";

fn with(init: &Value) -> PodSpec {
    serde_json::from_value(json!({"containers": [], "initContainers": init})).unwrap()
}

/// Containers that do what ours do by their names.
fn spec(init: &[(&str, &str, Option<&str>)]) -> PodSpec {
    let ours = containers(IMAGE);
    let of = |(name, image, policy): &(&str, &str, Option<&str>)| {
        let mut container = ours[usize::from(*name == PROXY)].clone();
        container["name"] = json!(name);
        container["image"] = json!(image);
        container["restartPolicy"] = json!(policy);
        container
    };
    with(&init.iter().map(of).collect())
}

#[test]
fn containers_that_only_look_like_ours_do_not_count() {
    let ours = ours(IMAGE);
    assert!(is_injected(&with(&containers(IMAGE)), &ours));
    let cases = [
        ("/0/command", json!(["/bin/true"])),
        ("/1/command", json!(["/cinch-proxy"])),
        ("/0/args", json!(["run"])),
        ("/0/args", Value::Null),
        ("/1/args", json!(["run", "--config", "/x"])),
        ("/1/args", json!([])),
        ("/0/envFrom", json!([{"configMapRef": {"name": "x"}}])),
        ("/1/envFrom", json!([{"configMapRef": {"name": "x"}}])),
        ("/0/securityContext", Value::Null),
        ("/0/securityContext", json!({"capabilities": {"add": ["NET_RAW"]}})),
        ("/1/securityContext", Value::Null),
        ("/1/securityContext", json!({"runAsUser": 0})),
        ("/1/volumeMounts", json!([{"name": "x", "mountPath": "/cinch-proxy"}])),
        ("/1/volumeMounts", json!([{"name": "x", "mountPath": "/var/run/cinch/trust"}])),
        ("/1/volumeMounts", json!([{"name": "cinch-token", "mountPath": "/var/run/cinch/trust"}])),
        ("/1/volumeMounts/0/subPath", json!("x")),
        ("/0/volumeMounts", json!([{"name": "cinch-token", "mountPath": "/var/run/cinch/token"}])),
        ("/1/volumeDevices", json!([{"name": "x", "devicePath": "/dev/x"}])),
        ("/1/securityContext/privileged", json!(true)),
        ("/0/securityContext/privileged", json!(true)),
        ("/0/securityContext/runAsUser", json!(1507)),
        ("/1/securityContext/capabilities", json!({"add": ["NET_ADMIN"]})),
        ("/0/securityContext/capabilities/add", json!(["NET_ADMIN", "SYS_ADMIN"])),
        ("/1/lifecycle", json!({"postStart": {"exec": {"command": ["/x"]}}})),
        ("/1/livenessProbe", json!({"tcpSocket": {"port": 80}})),
        ("/1/readinessProbe", json!({"tcpSocket": {"port": 80}})),
        ("/1/workingDir", json!("/x")),
        ("/1/env", json!([{"name": "LD_PRELOAD", "value": "/x"}])),
        ("/1/env", json!([{"name": "CINCH_TRUST_DOMAIN", "value": "evil.example"}])),
        (
            "/1/env",
            json!([{"name": "CINCH_OPERATOR_ID", "value": "spiffe://cluster.local/ns/evil/sa/operator"}]),
        ),
        (
            "/1/env",
            json!([{"name": "CINCH_LOG", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y"}}}]),
        ),
        ("/1/env", json!([{"name": "CINCH_POD_UID", "value": "another"}])),
        (
            "/1/env",
            json!([{"name": "CINCH_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
        ),
        ("/0/restartPolicy", json!("Always")),
        ("/1/env", json!([{"name": "CINCH_REDIRECT", "value": "agent"}])),
        ("/1/startupProbe", Value::Null),
        ("/1/startupProbe", json!({"exec": {"command": ["/cinch-proxy", "version"]}})),
        ("/1/startupProbe", json!({"tcpSocket": {"port": 15006}})),
        ("/1/startupProbe", json!({"httpGet": {"path": "/ready", "port": 15021, "host": "192.0.2.1"}})),
        ("/1/startupProbe", json!({"httpGet": {"path": "/ready", "port": 15021, "scheme": "HTTPS"}})),
        ("/1/startupProbe", json!({"httpGet": {"path": "/ready", "port": 8080}})),
        ("/1/startupProbe", json!({"httpGet": {"path": "/", "port": 15021}})),
    ];
    for (at, value) in cases {
        let mut init = containers(IMAGE);
        let (parent, key) = at.rsplit_once('/').unwrap();
        init.pointer_mut(parent).unwrap()[key] = value.clone();
        assert!(!is_injected(&with(&init), &ours), "{at}: {value}");
    }
}

#[test]
fn the_proxy_alone_counts_with_the_volume_of_the_node_agent() {
    let ours = ours(IMAGE);
    let pod = || {
        let mut proxy = containers(IMAGE)[1].clone();
        let mount = json!({"name": "cinch-agent", "mountPath": AGENT_MOUNT, "readOnly": true});
        proxy["volumeMounts"].as_array_mut().unwrap().push(mount);
        proxy["env"] = json!([{"name": "CINCH_LOG", "value": "info"}, {"name": REDIRECT, "value": "agent"}]);
        let volume = json!({"name": "cinch-agent", "csi": {"driver": AGENT_DRIVER, "readOnly": true}});
        json!({"containers": [], "initContainers": [proxy, {"name": "x", "image": "y"}], "volumes": [volume]})
    };
    let counts = |pod: Value| is_injected(&serde_json::from_value(pod).unwrap(), &ours);
    assert!(counts(pod()));
    let cases = [
        ("/volumes/0/csi/driver", json!("csi.example.com")),
        ("/volumes/0/name", json!("other")),
        ("/volumes", json!([{"name": "cinch-agent", "emptyDir": {}}])),
        ("/initContainers/0/volumeMounts/3/mountPath", json!("/elsewhere")),
        ("/initContainers/0/volumeMounts/3/name", json!("other")),
        ("/initContainers/0/name", json!("proxy")),
        ("/initContainers/0/args", json!(["run", "--config", "/x"])),
        ("/initContainers/0/restartPolicy", Value::Null),
        ("/initContainers/0/image", json!("evil/cinch-proxy:1")),
        ("/initContainers/0/env", Value::Null),
        ("/initContainers/0/env/1/name", json!("CINCH_X")),
        ("/initContainers/0/env/1/value", json!("")),
        ("/initContainers/0/env/1/value", Value::Null),
        ("/initContainers/0/startupProbe", Value::Null),
        ("/initContainers/0/startupProbe/httpGet", Value::Null),
        ("/initContainers/0/startupProbe", json!({"tcpSocket": {"port": 15006}})),
    ];
    for (at, value) in cases {
        let mut changed = pod();
        *changed.pointer_mut(at).unwrap() = value.clone();
        assert!(!counts(changed), "{at}: {value}");
    }
    let mut taken_back = pod();
    let again = json!({"name": REDIRECT, "value": ""});
    taken_back["initContainers"][0]["env"].as_array_mut().unwrap().push(again);
    assert!(!counts(taken_back), "the last value holds");
    let mut behind = pod();
    behind["initContainers"].as_array_mut().unwrap().swap(0, 1);
    assert!(!counts(behind));
}

#[test]
fn only_the_two_containers_in_first_place_with_our_image_count() {
    let always = Some("Always");
    let digest = format!("{IMAGE}@sha256:{}", "a".repeat(64));
    let cases = [
        ("as injected", vec![(INIT, IMAGE, None), (PROXY, IMAGE, always)], true),
        ("with a digest", vec![(INIT, digest.as_str(), None), (PROXY, digest.as_str(), always)], true),
        ("others behind", vec![(INIT, IMAGE, None), (PROXY, IMAGE, always), ("x", "y", None)], true),
        ("another in front", vec![("x", "y", None), (INIT, IMAGE, None), (PROXY, IMAGE, always)], false),
        ("wrong order", vec![(PROXY, IMAGE, always), (INIT, IMAGE, None)], false),
        ("not a sidecar", vec![(INIT, IMAGE, None), (PROXY, IMAGE, None)], false),
        ("foreign proxy", vec![(INIT, IMAGE, None), (PROXY, "evil/cinch-proxy:1", always)], false),
        ("foreign init", vec![(INIT, "evil/x", None), (PROXY, IMAGE, always)], false),
        ("longer name", vec![(INIT, IMAGE, None), (PROXY, "example.test/cinch-proxy2:0.1.0", always)], false),
        ("shorter name", vec![(INIT, IMAGE, None), (PROXY, "cinch-proxy:0.1.0", always)], false),
        ("proxy missing", vec![(INIT, IMAGE, None)], false),
        ("nothing", vec![], false),
    ];
    for (case, init, want) in cases {
        assert_eq!(is_injected(&spec(&init), &ours(IMAGE)), want, "{case}");
    }
}

#[test]
fn pods_that_run_another_version_of_our_image_count_whatever_their_upgrade_named() {
    let images = ["registry.test:5000/mesh/cinch-proxy:0.2.0", "mirror.test/cinch-proxy"];
    let ours = Ours { images: images.map(str::to_owned).to_vec(), ..ours(IMAGE) };
    let digest = "a".repeat(64);
    let cases = [
        ("registry.test:5000/mesh/cinch-proxy:0.1.0".to_owned(), true),
        (format!("registry.test:5000/mesh/cinch-proxy:0.1.0@sha256:{digest}"), true),
        (format!("registry.test:5000/mesh/cinch-proxy@sha256:{digest}"), true),
        ("registry.test:5000/mesh/cinch-proxy".to_owned(), true),
        ("mirror.test/cinch-proxy:0.0.9".to_owned(), true),
        ("registry.test:5001/mesh/cinch-proxy:0.2.0".to_owned(), false),
        ("registry.test:5000/cinch-proxy:0.2.0".to_owned(), false),
        ("registry.test:5000/mesh/cinch-proxy/x:0.2.0".to_owned(), false),
        ("registry.test".to_owned(), false),
        (String::new(), false),
    ];
    for (image, want) in cases {
        assert_eq!(is_injected(&with(&containers(&image)), &ours), want, "{image}");
    }
}

/// A pod as the webhook makes it, `by_agent` or with `cinch-init`, and as the API server completes it.
fn injected(by_agent: bool) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    let mut containers = containers(IMAGE);
    let proxy = &mut containers[1];
    let mut env: Vec<Value> = FIELDS.iter().map(|(name, path)| field(name, path)).collect();
    env.extend([
        json!({"name": "CINCH_TRUST_DOMAIN", "value": "cluster.local"}),
        json!({"name": "CINCH_OPERATOR_ID", "value": "spiffe://cluster.local/ns/cinch-system/sa/cinch-operator"}),
        json!({"name": "CINCH_PROBES", "value": "{}"}),
        json!({"name": "CINCH_PROXY_SETTINGS", "value": "{\"accessLog\":{}}"}),
    ]);
    proxy["readinessProbe"] = proxy["startupProbe"].clone();
    let token = json!({"audience": "cinch.dev", "expirationSeconds": 3600, "path": "token"});
    let account = json!([{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt"}}]);
    let mut volumes = vec![
        json!({"name": "kube-api-access-x", "projected": {"sources": account}}),
        json!({"name": "cinch-token", "projected": {"sources": [{"serviceAccountToken": token}]}}),
        json!({"name": "cinch-trust", "configMap": {"name": "cinch-trust", "optional": true}}),
    ];
    if by_agent {
        env.push(json!({"name": REDIRECT, "value": BY_AGENT}));
        let mounts = proxy["volumeMounts"].as_array_mut().unwrap();
        mounts.insert(2, json!({"name": "cinch-agent", "mountPath": AGENT_MOUNT, "readOnly": true}));
        volumes.push(json!({"name": "cinch-agent", "csi": {"driver": AGENT_DRIVER, "readOnly": true}}));
    }
    proxy["env"] = json!(env);
    let mounted = json!([{"name": "kube-api-access-x", "mountPath": OF_ACCOUNT}]);
    let inits = if by_agent { json!([containers[1], {"name": "warm-up", "image": "y"}]) } else { containers };
    json!({"containers": [{"name": "app", "image": "x", "volumeMounts": mounted}], "initContainers": inits,
        "volumes": volumes})
}

#[test]
fn what_a_later_version_may_add_leaves_a_pod_meshed_after_a_roll_back() {
    let counts = |pod: Value| is_injected(&serde_json::from_value(pod).unwrap(), &ours(IMAGE));
    let with = |list: &str, value: &Value| {
        let mut pod = injected(true);
        match pod.pointer_mut(&format!("/initContainers/0/{list}")) {
            Some(Value::Array(values)) => values.push(value.clone()),
            Some(other) => *other = value.clone(),
            None => pod["initContainers"][0][list] = value.clone(),
        }
        pod
    };
    let http = |path: &str, port: u16| json!({"httpGet": {"path": path, "port": port}});
    let field = json!({"fieldRef": {"fieldPath": "metadata.labels['app']"}});
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
    let later = [
        ("env", json!({"name": "CINCH_LATER", "value": "1"})),
        ("env", json!({"name": "CINCH_LATER", "valueFrom": field})),
        ("volumeMounts", mount("cinch-later", "/var/run/cinch/later")),
        ("livenessProbe", http("/live", 15021)),
        ("readinessProbe", http("/readyz", 15020)),
    ];
    for (list, value) in later {
        assert!(counts(with(list, &value)), "{list}: {value}");
    }
    let secret = json!({"secretKeyRef": {"name": "x", "key": "y"}});
    let foreign = [
        ("env", json!({"name": "LATER", "value": "1"})),
        ("env", json!({"name": "CINCH_LATER", "valueFrom": secret})),
        ("env", json!({"name": "CINCH_TRUST_DOMAIN", "value": "evil.example"})),
        ("env", json!({"name": "CINCH_POD_UID", "value": "another"})),
        ("volumeMounts", mount("later", "/var/run/cinch/later")),
        ("volumeMounts", mount("cinch-later", "/var/run/cinch")),
        ("volumeMounts", mount("cinch-later", "/var/run/cinch/")),
        ("volumeMounts", mount("cinch-later", "/var/run/cinch/trust")),
        ("volumeMounts", mount("cinch-later", "/var/run/cinch/trust/bundle.pem")),
        ("volumeMounts", mount("cinch-later", "/var/run/cinch/later/../trust")),
        ("volumeMounts", mount("cinch-later", "/usr/lib")),
        ("volumeMounts", mount("cinch-trust", "/var/run/cinch/later")),
        ("livenessProbe", json!({"exec": {"command": ["/cinch-proxy"]}})),
        ("readinessProbe", json!({"httpGet": {"path": "/", "port": 80, "host": "192.0.2.1"}})),
    ];
    for (list, value) in foreign {
        assert!(!counts(with(list, &value)), "{list}: {value}");
    }
}

/// A variable that the proxy reads and that is not judged would pass as one of a later version.
#[test]
fn every_variable_that_the_proxy_reads_is_judged() {
    let source = include_str!("../../../../proxy-image/src/settings.rs");
    let read = source.split("#[cfg(test)]").next().unwrap_or_default();
    let of_name = |letter: char| letter.is_ascii_uppercase() || letter == '_';
    let words = read.split(|letter| !of_name(letter)).filter(|word| word.starts_with(PREFIX));
    let names: BTreeSet<&str> = words.collect();
    assert!(names.contains("CINCH_POD_UID") && names.contains(REDIRECT), "{names:?}");
    for name in names {
        let secret =
            json!({"name": name, "value": "x", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y"}}});
        let free = json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['x']"}}});
        for variable in [secret, free] {
            let judged = serde_json::from_value(variable.clone()).unwrap();
            assert!(!is_given_variable(&judged, &ours(IMAGE)), "{variable}");
        }
    }
}

#[test]
fn what_is_the_sidecars_alone_is_nobody_elses() {
    let counts = |pod: Value| is_injected(&serde_json::from_value(pod).unwrap(), &ours(IMAGE));
    let foreign = |audience: &str| {
        let token = json!({"audience": audience, "path": "token"});
        json!({"name": "x", "projected": {"sources": [{"serviceAccountToken": token}]}})
    };
    let ours_too = json!([{"name": "cinch-token", "mountPath": "/x"}]);
    for by_agent in [false, true] {
        assert!(counts(injected(by_agent)), "{by_agent}");
        let mut with_another = injected(by_agent);
        with_another["volumes"].as_array_mut().unwrap().push(foreign("vault"));
        assert!(counts(with_another), "a token for somebody else");
        let debug = json!([{"name": "debug", "image": "x", "volumeMounts": ours_too}]);
        let trust_of_others = json!({"name": "cinch-trust", "configMap": {"name": "other"}});
        let cases = [
            ("/containers/0/volumeMounts", ours_too.clone()),
            ("/containers/0/name", json!(PROXY)),
            ("/containers/0/name", json!(INIT)),
            ("/ephemeralContainers", debug),
            ("/volumes/0", foreign("cinch.dev")),
            ("/volumes/0", json!({"name": "x", "csi": {"driver": AGENT_DRIVER}})),
            ("/volumes/1/projected/sources/0/serviceAccountToken/audience", json!("other")),
            ("/volumes/1/projected/sources/0/serviceAccountToken/path", json!("other")),
            ("/volumes/1", json!({"name": "cinch-token", "secret": {"secretName": "x"}})),
            ("/volumes/2", trust_of_others),
            ("/volumes/2", json!({"name": "cinch-trust", "emptyDir": {}})),
        ];
        for (at, value) in cases {
            let mut changed = injected(by_agent);
            let (parent, key) = at.rsplit_once('/').unwrap();
            let parent = changed.pointer_mut(parent).unwrap();
            match key.parse::<usize>() {
                Ok(index) => parent[index] = value.clone(),
                Err(_) => parent[key] = value.clone(),
            }
            assert!(!counts(changed), "{by_agent} {at}: {value}");
        }
    }
}
