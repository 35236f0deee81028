//! Cases, each named: which pods are left alone, refused, given an account; which containers are look-alikes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use cinch_injection::{AccountState, DefaultAccount, JobOrigin, Op, Outcome};
use cinch_reason::Reason;
use serde_json::{Value, json};
use support::{IMAGE, MIRROR, Namespace, apply, defaulted, web_pod, web_pod_with};

fn skipped(outcome: &Outcome) -> Option<Reason> {
    match outcome {
        Outcome::Skip { reason, .. } => Some(*reason),
        _ => None,
    }
}

fn refused(outcome: &Outcome) -> Option<Reason> {
    match outcome {
        Outcome::Refuse { reason, .. } => Some(*reason),
        _ => None,
    }
}

type Change = fn(&mut Value);

#[test]
fn pods_that_are_left_alone_say_why() {
    let cases: &[(&str, Reason, Change)] = &[
        ("opt-out", Reason::OptedOut, |p| p["metadata"]["labels"]["cinch.dev/inject"] = json!("disabled")),
        ("host network", Reason::HostNetwork, |p| p["spec"]["hostNetwork"] = json!(true)),
        ("windows", Reason::WindowsPod, |p| p["spec"]["os"] = json!({"name": "windows"})),
        ("windows by node", Reason::WindowsPod, |p| {
            p["spec"]["nodeSelector"] = json!({"kubernetes.io/os": "windows"})
        }),
        ("user namespace", Reason::HostUsersDisabled, |p| p["spec"]["hostUsers"] = json!(false)),
        ("istio container", Reason::OtherMesh, |p| {
            p["spec"]["initContainers"] = json!([{"name": "istio-proxy", "image": "i"}]);
        }),
        ("linkerd annotation", Reason::OtherMesh, |p| {
            p["metadata"]["annotations"] = json!({"linkerd.io/inject": "enabled"});
        }),
        ("grpc probe", Reason::ProbeNotSupported, |p| {
            p["spec"]["containers"][0]["livenessProbe"] = json!({"grpc": {"port": 9}});
        }),
        ("https probe", Reason::ProbeNotSupported, |p| {
            p["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"port": 9, "scheme": "HTTPS"}});
        }),
        ("unknown port name", Reason::ProbeNotSupported, |p| {
            p["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"port": "nope"}});
        }),
        ("port out of range", Reason::ProbeNotSupported, |p| {
            p["spec"]["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"port": 70000}});
        }),
        ("http hook", Reason::ProbeNotSupported, |p| {
            p["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"httpGet": {"port": 9}}});
        }),
        ("our port declared", Reason::PortConflict, |p| {
            p["spec"]["containers"][0]["ports"] = json!([{"containerPort": 15006}]);
        }),
        ("our port probed", Reason::PortConflict, |p| {
            p["spec"]["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"port": 15020}});
        }),
    ];
    let namespace = Namespace::new();
    for (case, reason, change) in cases {
        let pod = web_pod_with(change);
        let outcome = namespace.decide(&pod);
        assert_eq!(skipped(&outcome), Some(*reason), "{case}");
        let Outcome::Skip { operations, .. } = outcome else { unreachable!() };
        let after = apply(&pod, &operations);
        assert_eq!(after["metadata"]["annotations"]["cinch.dev/injected"], reason.as_str(), "{case}");
        let Outcome::Skip { operations, .. } = namespace.decide(&after) else { panic!("{case}") };
        assert_eq!(operations, Vec::new(), "{case}: the second pass is empty");
    }
}

#[test]
fn a_container_of_our_name_does_not_stay_in_a_pod_that_is_left_alone() {
    let cases: &[(&str, Change)] = &[
        ("opt-out", |p| p["metadata"]["labels"]["cinch.dev/inject"] = json!("disabled")),
        ("host network", |p| p["spec"]["hostNetwork"] = json!(true)),
        ("another mesh", |p| p["metadata"]["annotations"] = json!({"linkerd.io/inject": "enabled"})),
        ("a mirror", |p| p["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"})),
        ("http hook", |p| {
            p["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"httpGet": {"port": 9}}});
        }),
        ("our port declared", |p| {
            p["spec"]["containers"][0]["ports"] = json!([{"containerPort": 15000}]);
        }),
        ("grpc probe", |p| p["spec"]["containers"][0]["livenessProbe"] = json!({"grpc": {"port": 9}})),
    ];
    for namespace in [Namespace::with_agent(), Namespace::new()] {
        let injected = namespace.injected(&web_pod());
        for (case, change) in cases {
            let plain = web_pod_with(change);
            assert!(skipped(&namespace.decide(&plain)).is_some(), "{case}: as it is, the pod is left alone");
            for name in ["cinch-init", "cinch-proxy"] {
                let mut pod = plain.clone();
                pod["spec"]["initContainers"] = json!([{"name": "x"}, {"name": name, "image": IMAGE}]);
                assert_eq!(refused(&namespace.decide(&pod)), Some(Reason::ReservedName), "{case}: {name}");
            }
            let mut app = plain.clone();
            app["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "cinch-proxy"}));
            assert_eq!(refused(&namespace.decide(&app)), Some(Reason::ReservedName), "{case}: in the app");
            let mut ours = plain;
            ours["spec"]["initContainers"] = injected["spec"]["initContainers"].clone();
            let outcome = namespace.decide(&ours);
            assert_eq!(refused(&outcome), Some(Reason::ReservedName), "{case}: just as ours");
        }
    }
}

#[test]
fn the_installations_settings_of_the_proxy_hold_over_the_pods() {
    let said = |pod: &Value| {
        let environment = pod["spec"]["initContainers"][1]["env"].as_array().unwrap().clone();
        environment.into_iter().filter(|e| e["name"] == "CINCH_PROXY_SETTINGS").collect::<Vec<_>>()
    };
    let look_alike = web_pod_with(|pod| {
        pod["spec"]["initContainers"] = json!([{"name": "cinch-proxy", "image": "evil:1",
            "env": [{"name": "CINCH_PROXY_SETTINGS", "value": "{\"limits\":{\"connections\":1}}"}]}]);
    });
    let mut namespace = Namespace::new();
    assert_eq!(said(&namespace.injected(&look_alike)), Vec::<Value>::new(), "the installation says nothing");
    namespace.sidecar.settings = Some(r#"{"limits":{"connections":9}}"#.to_owned());
    let injected = namespace.injected(&look_alike);
    let expected = json!({"name": "CINCH_PROXY_SETTINGS", "value": r#"{"limits":{"connections":9}}"#});
    assert_eq!(said(&injected), [expected]);
    assert_eq!(namespace.operations(&defaulted(injected)), Vec::new(), "the second pass is empty");
}

#[test]
fn namespaces_can_forbid_injection() {
    let cases = [
        ("pod-security.kubernetes.io/enforce", "baseline", Some(Reason::PodSecurityForbidsInit)),
        ("pod-security.kubernetes.io/enforce", "restricted", Some(Reason::PodSecurityForbidsInit)),
        ("pod-security.kubernetes.io/enforce", "privileged", None),
        ("istio-injection", "enabled", Some(Reason::OtherMesh)),
        ("istio-injection", "disabled", None),
        ("istio.io/rev", "default", Some(Reason::OtherMesh)),
    ];
    for (key, value, want) in cases {
        let mut namespace = Namespace::new();
        namespace.labels.insert(key.into(), value.into());
        assert_eq!(skipped(&namespace.decide(&web_pod())), want, "{key}: {value}");
    }
}

#[test]
fn with_a_node_agent_pod_security_forbids_nothing() {
    for level in ["baseline", "restricted"] {
        let mut namespace = Namespace::with_agent();
        namespace.labels.insert("pod-security.kubernetes.io/enforce".into(), level.into());
        let pod = namespace.injected(&web_pod());
        let init = pod["spec"]["initContainers"].as_array().unwrap();
        assert_eq!(init.len(), 1, "{level}: no container but the sidecar");
        // What `restricted` asks of a container (Pod Security Standards).
        let context = &init[0]["securityContext"];
        assert_eq!(context["runAsNonRoot"], true);
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}));
        assert_eq!(context["seccompProfile"], json!({"type": "RuntimeDefault"}));
        let allowed = ["name", "projected", "configMap", "csi"];
        for volume in pod["spec"]["volumes"].as_array().unwrap() {
            assert!(
                volume.as_object().unwrap().keys().all(|key| allowed.contains(&key.as_str())),
                "{volume}"
            );
        }
    }
}

#[test]
fn only_the_sidecar_gets_the_volume_of_the_node_agent() {
    let namespace = Namespace::with_agent();
    let mounts = |pod: &Value, container: &str| {
        let text = pod["spec"].pointer(container).unwrap()["volumeMounts"].to_string();
        text.contains("cinch-agent")
    };
    let pod = namespace.injected(&web_pod());
    assert!(mounts(&pod, "/initContainers/0") && !mounts(&pod, "/containers/0"));
    let cases: &[(&str, Reason, Change)] = &[
        ("the app mounts it", Reason::SidecarMount, |p| {
            p["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "cinch-agent", "mountPath": "/a"}]);
        }),
        ("the driver under another name", Reason::ReservedName, |p| {
            p["spec"]["volumes"] = json!([{"name": "mine", "csi": {"driver": "node.cinch.dev"}}]);
        }),
    ];
    for namespace in [Namespace::with_agent(), Namespace::new()] {
        for (case, reason, change) in cases {
            assert_eq!(refused(&namespace.decide(&web_pod_with(change))), Some(*reason), "{case}");
        }
    }
    let other = web_pod_with(|p| {
        p["spec"]["volumes"] = json!([{"name": "mine", "csi": {"driver": "csi.example.com"}}]);
    });
    assert_eq!(refused(&namespace.decide(&other)), None);
}

#[test]
fn a_template_with_cinch_init_loses_it_where_a_node_agent_is() {
    let before = Namespace::new().injected(&web_pod());
    let after = Namespace::with_agent().injected(&before);
    let names: Vec<&Value> =
        after["spec"]["initContainers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["cinch-proxy"]);
    assert_eq!(Namespace::with_agent().operations(&defaulted(after.clone())), Vec::new());
    let back = Namespace::new().injected(&after);
    let names: Vec<&Value> =
        back["spec"]["initContainers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["cinch-init", "cinch-proxy"]);
}

#[test]
fn a_mirror_pod_is_not_touched() {
    let pod = web_pod_with(|p| p["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"}));
    let outcome = Namespace::new().decide(&pod);
    assert!(
        matches!(outcome, Outcome::Skip { reason: Reason::StaticPod, operations, .. } if operations.is_empty())
    );
}

#[test]
fn hooks_and_ports_that_do_no_harm_are_injected() {
    let cases: &[(&str, Change)] = &[
        ("exec hook", |p| {
            p["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["true"]}}});
        }),
        ("sleep hook", |p| {
            p["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 1}}})
        }),
        ("UDP on our port", |p| {
            p["spec"]["containers"][0]["ports"] = json!([{"containerPort": 15006, "protocol": "UDP"}]);
        }),
        ("https probe of another host", |p| {
            p["spec"]["containers"][0]["livenessProbe"] =
                json!({"httpGet": {"port": 443, "scheme": "HTTPS", "host": "192.0.2.1"}});
        }),
        ("nulls", |p| {
            p["spec"]["volumes"] = json!(null);
            p["spec"]["initContainers"] = json!(null);
            p["metadata"]["annotations"] = json!(null);
            p["spec"]["containers"][0]["livenessProbe"] = json!(null);
        }),
    ];
    for (case, change) in cases {
        let outcome = Namespace::new().decide(&web_pod_with(change));
        assert!(matches!(outcome, Outcome::Inject { .. }), "{case}: {outcome:?}");
    }
}

#[test]
fn pods_that_take_our_names_are_refused() {
    let cases: &[(&str, Reason, Change)] = &[
        ("app container", Reason::ReservedName, |p| {
            p["spec"]["containers"][0]["name"] = json!("cinch-proxy")
        }),
        ("mount", Reason::SidecarMount, |p| {
            p["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "cinch-token", "mountPath": "/t"}]);
        }),
        ("forged probe", Reason::SidecarShape, |p| {
            p["spec"]["containers"][0]["livenessProbe"] =
                json!({"httpGet": {"path": "/probe/app/liveness/00", "port": 15021}});
        }),
    ];
    for (case, reason, change) in cases {
        assert_eq!(refused(&Namespace::new().decide(&web_pod_with(change))), Some(*reason), "{case}");
    }
}

#[test]
fn what_is_no_pod_is_refused() {
    let cases: &[(&str, Value)] = &[
        ("null", json!(null)),
        ("text", json!("pod")),
        ("no spec", json!({"metadata": {}})),
        ("no containers", json!({"metadata": {}, "spec": {}})),
        ("containers as text", json!({"metadata": {}, "spec": {"containers": "x"}})),
        ("container without name", json!({"metadata": {}, "spec": {"containers": [{}]}})),
        ("container as number", json!({"metadata": {}, "spec": {"containers": [1]}})),
        (
            "volumes as object",
            json!({"metadata": {}, "spec": {"containers": [{"name": "a"}], "volumes": {}}}),
        ),
        (
            "annotations as list",
            json!({"metadata": {"annotations": []}, "spec": {"containers": [{"name": "a"}]}}),
        ),
        ("ports as text", json!({"metadata": {}, "spec": {"containers": [{"name": "a", "ports": "x"}]}})),
    ];
    for (case, pod) in cases {
        assert_eq!(refused(&Namespace::new().decide(pod)), Some(Reason::MalformedReview), "{case}");
    }
}

fn account_of(namespace: &Namespace, pod: &Value) -> String {
    namespace.injected(&defaulted(pod.clone()))["spec"]["serviceAccountName"].as_str().unwrap().to_owned()
}

#[test]
fn only_pods_that_asked_for_default_are_given_an_account() {
    let mut namespace = Namespace::new();
    assert_eq!(account_of(&namespace, &web_pod()), "web");
    let named = web_pod_with(|p| p["spec"]["serviceAccountName"] = json!("mine"));
    assert_eq!(account_of(&namespace, &named), "mine");
    let bare = web_pod_with(|p| p["metadata"]["ownerReferences"] = json!([]));
    assert_eq!(account_of(&namespace, &bare), "default");
    let vault = web_pod_with(|p| {
        p["spec"]["volumes"] = json!([{"name": "v", "projected": {"sources": [{"serviceAccountToken":
            {"audience": "vault", "path": "t"}}]}}]);
    });
    assert_eq!(account_of(&namespace, &vault), "default");
    namespace.default_account = DefaultAccount::Keep;
    assert_eq!(account_of(&namespace, &web_pod()), "default");
    namespace.default_account = DefaultAccount::Bound("RoleBinding edit".into());
    assert_eq!(account_of(&namespace, &web_pod()), "default");
}

#[test]
fn what_is_not_there_yet_is_waited_for_but_not_on_dry_run() {
    type Change = fn(&mut Namespace);
    let cases: &[(&str, Change)] =
        &[("account", |n| n.accounts.clear()), ("trust bundle", |n| n.trust = false)];
    for (case, change) in cases {
        let mut namespace = Namespace::new();
        change(&mut namespace);
        assert_eq!(refused(&namespace.decide(&web_pod())), Some(Reason::ServiceAccountPending), "{case}");
        namespace.dry_run = true;
        let Outcome::Inject { warnings, .. } = namespace.decide(&web_pod()) else { panic!("{case}") };
        assert!(warnings.iter().any(|w| w.starts_with("ServiceAccountPending: ")), "{case}: {warnings:?}");
    }
    let job = web_pod_with(|p| {
        p["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "x", "controller": true}]);
    });
    let mut namespace = Namespace::new();
    assert_eq!(
        refused(&namespace.decide(&job)),
        Some(Reason::ServiceAccountPending),
        "a Job that is not cached"
    );
    namespace.jobs.insert("x".into(), JobOrigin::Named);
    namespace.accounts.insert("x-job".into(), AccountState::Ours("Job/x".into()));
    assert_eq!(account_of(&namespace, &job), "x-job");
}

#[test]
fn a_container_that_differs_in_anything_is_overwritten() {
    let namespace = Namespace::new();
    let good = defaulted(namespace.injected(&web_pod()));
    let cases: &[(&str, Change)] = &[
        ("image", |c| c["image"] = json!("evil:1")),
        ("no digest", |c| c["image"] = json!(format!("{IMAGE}@sha256:00"))),
        ("earlier image", |c| c["image"] = json!("registry.example/cinch-proxy:0.0.9")),
        ("command", |c| c["command"] = json!(["/sh"])),
        ("args", |c| c["args"] = json!(["run", "--more"])),
        ("env value", |c| c["env"][0] = json!({"name": "CINCH_POD_NAME", "value": "x"})),
        ("env more", |c| c["env"] = json!([{"name": "LD_PRELOAD", "value": "x"}])),
        ("envFrom", |c| c["envFrom"] = json!([{"configMapRef": {"name": "x"}}])),
        ("mount", |c| {
            c["volumeMounts"].as_array_mut().unwrap().push(json!({"name": "x", "mountPath": "/x"}))
        }),
        ("lifecycle", |c| c["lifecycle"] = json!({"postStart": {"exec": {"command": ["x"]}}})),
        ("user", |c| c["securityContext"]["runAsUser"] = json!(1000)),
        ("capability", |c| c["securityContext"]["capabilities"]["add"] = json!(["SYS_ADMIN"])),
        ("restartPolicy", |c| c["restartPolicy"] = json!("OnFailure")),
        ("requests", |c| c["resources"]["requests"]["cpu"] = json!("11m")),
        ("claims", |c| c["resources"]["claims"] = json!([{"name": "gpu"}])),
        ("tty", |c| c["tty"] = json!(true)),
    ];
    for index in [0, 1] {
        for (case, change) in cases {
            if index == 0 && case.starts_with("env v") {
                continue;
            }
            let mut pod = good.clone();
            change(&mut pod["spec"]["initContainers"][index]);
            let operations = namespace.operations(&pod);
            let path = format!("/spec/initContainers/{index}");
            assert!(
                matches!(&operations[..], [Op::Replace { path: p, .. }] if *p == path),
                "{case}: {operations:?}"
            );
            assert_eq!(namespace.operations(&apply(&pod, &operations)), Vec::new(), "{case}");
        }
    }
    let mut missing = good.clone();
    missing["spec"]["initContainers"][1].as_object_mut().unwrap().remove("volumeMounts");
    assert_eq!(namespace.operations(&missing).len(), 1, "mounts taken away");
    let mut volume = good;
    volume["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["audience"] = json!("x");
    assert_eq!(namespace.operations(&volume).len(), 1, "volume");
}

#[test]
fn what_other_parts_of_the_cluster_add_is_left_as_it_is() {
    let namespace = Namespace::new();
    let good = defaulted(namespace.injected(&web_pod()));
    let cases: &[(&str, Change)] = &[
        ("mirror", |c| c["image"] = json!(MIRROR)),
        ("digest", |c| c["image"] = json!(format!("{IMAGE}@sha256:{}", "a".repeat(64)))),
        ("quantity", |c| c["resources"]["limits"]["cpu"] = json!("2000m")),
    ];
    for (case, change) in cases {
        let mut pod = good.clone();
        change(&mut pod["spec"]["initContainers"][1]);
        assert_eq!(namespace.operations(&pod), Vec::new(), "{case}");
    }
}

#[test]
fn rewritten_probes_are_good_for_their_own_pod_only() {
    let namespace = Namespace::new();
    let pod =
        web_pod_with(|p| p["spec"]["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"port": 8080}}));
    let injected = defaulted(namespace.injected(&pod));
    assert_eq!(namespace.operations(&injected), Vec::new());
    let other_account = {
        let mut pod = injected.clone();
        pod["spec"]["serviceAccountName"] = json!("other");
        namespace.decide(&pod)
    };
    assert_eq!(refused(&other_account), Some(Reason::SidecarShape));
    let mut elsewhere = Namespace::new();
    elsewhere.name = "billing".into();
    assert_eq!(refused(&elsewhere.decide(&injected)), Some(Reason::SidecarShape));
    let mut changed = injected.clone();
    let env = changed["spec"]["initContainers"][1]["env"].as_array_mut().unwrap();
    let probes = env.iter_mut().find(|v| v["name"] == "CINCH_PROBES").unwrap();
    probes["value"] = json!(probes["value"].as_str().unwrap().replace("8080", "9090"));
    assert_eq!(refused(&namespace.decide(&changed)), Some(Reason::SidecarShape));
}

#[test]
fn resources_of_the_pod_as_a_whole_are_respected() {
    let pod = web_pod_with(|p| p["spec"]["resources"] = json!({"limits": {"cpu": "1", "memory": "1Gi"}}));
    let after = Namespace::new().injected(&pod);
    let ours = &after["spec"]["initContainers"][1]["resources"];
    assert_eq!(
        *ours,
        json!({"requests": {"cpu": "0", "memory": "0"}, "limits": {"cpu": "1", "memory": "128Mi"}})
    );
    assert_eq!(Namespace::new().operations(&defaulted(after)), Vec::new());
}
