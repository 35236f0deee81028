//! The agent against real processes in real network namespaces and cgroups, with a kubelet's tree made by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unsafe_code)]

mod node;

use cinch_redirect::{RedirectConfig, remove};
use node::{APP, Container, OTHER, POD, PROXY, pair, serve, support};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// Not a test of its own: what the containers of the others run.
#[test]
fn a_container_of_this_test() {
    node::run_as_container();
}

#[test]
fn the_sidecar_that_asks_is_exempt_and_nobody_else_of_its_pod() {
    let node = need_node!("the_sidecar_that_asks_is_exempt_and_nobody_else_of_its_pod");
    let (pair, _agent) = (pair(), serve(&node));
    let mut proxy = node.start(&PROXY, Some(&pair.pod));
    let mut app = node.start(&APP, Some(&pair.pod));
    assert_eq!(proxy.order("listen"), "done");
    assert_eq!(app.order("dial"), "outside", "before the redirect");
    let group = node.group_of(POD, "cinch-proxy");
    let id = fs::metadata(group).unwrap().ino();
    assert_eq!(proxy.order("ask"), format!("done {id} 3"));
    for dial in ["dial", "dial v6"] {
        assert_eq!(proxy.order(dial), "outside", "{dial}");
        assert_eq!(app.order(dial), "captured", "the same user in another cgroup, {dial}");
    }
    assert_eq!(proxy.order("ask"), format!("done {id} 3"), "asked again");
    assert_eq!(app.order("dial"), "captured");
}

#[test]
fn a_flushed_table_is_set_again_at_the_next_question() {
    let node = need_node!("a_flushed_table_is_set_again_at_the_next_question");
    let (pair, _agent) = (pair(), serve(&node));
    let mut proxy = node.start(&PROXY, Some(&pair.pod));
    let mut app = node.start(&APP, Some(&pair.pod));
    proxy.order("listen");
    assert!(proxy.order("ask").starts_with("done "));
    // The exemption of a container that is gone, as a restarted sidecar finds it, and no table at all.
    let stale = cinch_redirect::Exempt::Cgroup { id: 1, level: 3 };
    let stale = RedirectConfig { exempt: stale, ..RedirectConfig::default() };
    pair.pod.run(move || cinch_redirect::install(&stale)).unwrap();
    assert_eq!((proxy.order("dial").as_str(), app.order("dial").as_str()), ("captured", "captured"));
    assert!(proxy.order("ask").starts_with("done "));
    assert_eq!((proxy.order("dial").as_str(), app.order("dial").as_str()), ("outside", "captured"));
    pair.pod.run(remove).unwrap();
    assert_eq!(app.order("dial"), "outside");
    assert!(proxy.order("ask").starts_with("done "));
    assert_eq!((proxy.order("dial").as_str(), app.order("dial").as_str()), ("outside", "captured"));
}

#[test]
fn a_redirect_that_was_gone_is_told_once_to_who_asks_and_counted() {
    let node = need_node!("a_redirect_that_was_gone_is_told_once_to_who_asks_and_counted");
    let (pair, agent) = (pair(), serve(&node));
    let mut proxy = node.start(&PROXY, Some(&pair.pod));
    proxy.order("listen");
    let told = |answer: &str| answer.ends_with(", it was gone");
    assert!(!told(&proxy.order("ask")), "a pod that starts has none");
    assert_eq!(proxy.order("look"), "seen []");
    pair.pod.run(remove).unwrap();
    assert_eq!(proxy.order("look"), "seen [], it was gone");
    assert_eq!(proxy.order("look"), "seen []");
    // Changed by somebody, and asked about without a look.
    let other = RedirectConfig { outbound_port: 1, ..RedirectConfig::default() };
    pair.pod.run(move || cinch_redirect::install(&other)).unwrap();
    let answer = proxy.order("ask");
    assert!(answer.starts_with("done ") && told(&answer), "{answer}");
    assert!(!told(&proxy.order("ask")));
    assert!(agent.metrics().text().contains("cinch_node_redirects_set_again_total 2\n"));
}

#[test]
fn a_redirect_that_was_gone_is_told_also_when_the_first_repair_is_not_proved_or_its_answer_lost() {
    let node = need_node!(
        "a_redirect_that_was_gone_is_told_also_when_the_first_repair_is_not_proved_or_its_answer_lost"
    );
    let (pair, agent) = (pair(), serve(&node));
    let mut before = node.start(&PROXY, Some(&pair.pod));
    before.order("listen");
    assert!(before.order("ask").starts_with("done "));
    // The same container to the agent, and deaf for now.
    let mut proxy = node.start(&PROXY, Some(&pair.pod));
    drop(before);
    pair.pod.run(remove).unwrap();
    let answer = proxy.order("look");
    assert!(answer.starts_with("RedirectMissing "), "{answer}");
    proxy.order("listen");
    assert_eq!(proxy.order("look and leave"), "left", "the table stands again by now");
    assert_eq!(proxy.order("look"), "seen [], it was gone");
    assert_eq!(proxy.order("look"), "seen []");
    assert!(agent.metrics().text().contains("cinch_node_redirects_set_again_total 1\n"));
}

#[test]
fn whoever_is_not_clearly_the_sidecar_of_the_pod_is_refused_and_changes_nothing() {
    let node = need_node!("whoever_is_not_clearly_the_sidecar_of_the_pod_is_refused_and_changes_nothing");
    let (pair, agent) = (pair(), serve(&node));
    let cases = [
        ("the app", Container { name: "app", ..PROXY }, "NotTheSidecar the container \"app\" asks"),
        ("another user", Container { user: 1000, ..PROXY }, "NotTheSidecar the user 1000 asks"),
        ("root", Container { user: 0, ..PROXY }, "NotTheSidecar the user 0 asks"),
        ("the cgroup of another pod", Container { pod_of_cgroup: Some(OTHER), ..PROXY }, "PeerOfAnotherPod "),
        ("no cgroup", Container { pod_of_cgroup: None, ..PROXY }, "NodeUnsupported "),
        ("the log of another pod", Container { pod_of_log: OTHER, ..PROXY }, "NotTheSidecar "),
    ];
    for (case, container, want) in cases {
        let mut running = node.start(&container, Some(&pair.pod));
        running.order("listen");
        let answer = running.order("ask");
        assert!(answer.starts_with(want), "{case}: {answer}");
        assert_eq!(running.order("dial"), "outside", "{case}: nothing was loaded");
    }
    let mut host = node.start(&PROXY, None);
    assert!(host.order("ask").starts_with("HostNetwork "));
    assert!(agent.fault().is_none());
}

#[test]
fn a_redirect_that_does_not_lead_to_the_proxy_that_asked_is_no_done() {
    let node = need_node!("a_redirect_that_does_not_lead_to_the_proxy_that_asked_is_no_done");
    let (pair, _agent) = (pair(), serve(&node));
    let mut deaf = node.start(&PROXY, Some(&pair.pod));
    let answer = deaf.order("ask");
    assert!(answer.starts_with("RedirectMissing ") && answer.contains("was not answered"), "{answer}");
    assert_eq!(deaf.order("dial"), "outside", "it is exempt all the same");
    drop(deaf);
    let mut liar = node.start(&PROXY, Some(&pair.pod));
    liar.order("listen wrongly");
    let answer = liar.order("ask");
    assert!(answer.starts_with("RedirectMissing ") && answer.contains("somebody else"), "{answer}");
    drop(liar);
    let mut slow = node.start(&PROXY, Some(&pair.pod));
    slow.order("listen slowly");
    let answer = slow.order("ask");
    assert!(answer.starts_with("RedirectMissing ") && answer.contains("was not answered"), "{answer}");
}

#[test]
fn nonsense_and_floods_are_answered_with_a_reason_and_the_sidecar_recovers() {
    let node = need_node!("nonsense_and_floods_are_answered_with_a_reason_and_the_sidecar_recovers");
    let (pair, _agent) = (pair(), serve(&node));
    let mut proxy = node.start(&PROXY, Some(&pair.pod));
    proxy.order("listen");
    for order in ["ask nonsense", "ask too little"] {
        assert!(proxy.order(order).starts_with("AgentRequestMalformed "), "{order}");
    }
    let answers: Vec<String> = (0..60).map(|_| proxy.order("ask")).collect();
    assert!(answers[0].starts_with("done "), "{}", answers[0]);
    let limited = answers.iter().filter(|answer| answer.starts_with("AskedTooOften ")).count();
    assert!(limited > 0 && answers.iter().all(|a| a.starts_with("done ") || a.starts_with("AskedTooOften ")));
    let again = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        proxy.order("ask").starts_with("done ")
    });
    assert!(again);
}

#[test]
fn this_kernel_takes_the_table_and_lets_root_join_a_cgroup_namespace() {
    need_namespaces!("this_kernel_takes_the_table_and_lets_root_join_a_cgroup_namespace");
    cinch_node::netns::try_table().unwrap();
    let proc = tempfile::tempdir().unwrap();
    assert!(cinch_node::netns::join_root_cgroups(proc.path()).is_err(), "nothing to join");
    fs::create_dir_all(proc.path().join("1/ns")).unwrap();
    std::os::unix::fs::symlink("/proc/thread-self/ns/cgroup", proc.path().join("1/ns/cgroup")).unwrap();
    cinch_node::netns::join_root_cgroups(proc.path()).unwrap();
}
