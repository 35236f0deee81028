//! Each way round the redirect that a pod's author may think of, tried with real processes: none gets an exemption,
//! and each is refused with its reason.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unsafe_code)]

mod node;

use node::{APP, Container, Node, OTHER, POD, PROXY, Running, pair, serve, support};
use support::Pair;

/// Not a test of its own: what the containers of the others run.
#[test]
fn a_container_of_this_test() {
    node::run_as_container();
}

/// A pod whose proxy has its redirect.
fn redirected(node: &Node, pair: &Pair) -> (Running, String) {
    let mut proxy = node.start(&PROXY, Some(&pair.pod));
    proxy.order("listen");
    let done = proxy.order("ask");
    assert!(done.starts_with("done "), "{done}");
    (proxy, done)
}

/// It asks and gets no exemption, and neither does it harm that of the proxy.
fn refused(node: &Node, pair: &Pair, case: &str, container: &Container<'_>, want: &str) {
    let mut running = node.start(container, Some(&pair.pod));
    let answer = running.order("ask");
    assert!(answer.starts_with(want), "{case}: {answer}");
    assert_eq!(running.order("dial"), "captured", "{case}");
}

#[test]
fn mounts_that_look_like_the_proxys_are_not_taken_for_them() {
    let node = need_node!("mounts_that_look_like_the_proxys_are_not_taken_for_them");
    let (pair, _agent) = (pair(), serve(&node));
    let (mut proxy, done) = redirected(&node, &pair);
    let kubelet = node.files.path().join("kubelet").display().to_string();
    let log = format!("pods/{POD}/containers/cinch-proxy/ab12");
    let real = format!("{kubelet}/{log}");
    let empty_dir = format!("{kubelet}/pods/{POD}/volumes/kubernetes.io~empty-dir/x");
    // The same path on a file system of its own, mounted over a directory, and a file of it where the log is.
    let on_tmpfs = format!(
        "mount -t tmpfs none /mnt && mkdir -p /mnt{kubelet}/pods/{POD}/containers/cinch-proxy && \
         touch /mnt{kubelet}/{log} && mount --bind /mnt{kubelet}/{log} /etc/hostname;"
    );
    let in_volume = format!(
        "mkdir -p {empty_dir}{kubelet}/pods/{POD}/containers/cinch-proxy && touch {empty_dir}{kubelet}/{log} && \
         umount /etc/hostname && mount --bind {empty_dir}{kubelet}/{log} /etc/hostname;"
    );
    let both = format!("mount --bind {real} /etc/hosts;");
    for (case, also, want) in [
        ("a tmpfs", on_tmpfs, "NotTheSidecar the container \"app\" asks"),
        (
            "an emptyDir, the own log gone",
            in_volume,
            "NotTheSidecar the process that asks: it has no termination log",
        ),
        (
            "the proxy's log beside the own one",
            both,
            "NotTheSidecar the process that asks: it has the termination logs of several",
        ),
        (
            "no log at all",
            "umount /etc/hostname;".to_owned(),
            "NotTheSidecar the process that asks: it has no",
        ),
    ] {
        refused(&node, &pair, case, &Container { also: &also, ..APP }, want);
    }
    assert_eq!(proxy.order("ask"), done, "the proxy is exempt as before");
    assert_eq!(proxy.order("dial"), "outside");
}

#[test]
fn neither_the_proxys_user_nor_its_image_in_another_container_is_exempt() {
    let node = need_node!("neither_the_proxys_user_nor_its_image_in_another_container_is_exempt");
    let (pair, _agent) = (pair(), serve(&node));
    let (_proxy, _) = redirected(&node, &pair);
    for name in ["app", "cinch-proxy2", "x-cinch-proxy", "cinch-init", "Cinch-Proxy"] {
        let want = format!("NotTheSidecar the container {name:?} asks");
        refused(&node, &pair, name, &Container { name, ..APP }, &want);
    }
    refused(&node, &pair, "root", &Container { user: 0, ..APP }, "NotTheSidecar the user 0 asks");
}

#[test]
fn a_debug_container_beside_the_proxy_is_neither_exempt_nor_answered() {
    let node = need_node!("a_debug_container_beside_the_proxy_is_neither_exempt_nor_answered");
    let (pair, _agent) = (pair(), serve(&node));
    let (mut proxy, done) = redirected(&node, &pair);
    // `kubectl debug --target=cinch-proxy`: a container of its own in the proxy's PID namespace, with its user. It has
    // no mount of the volume, but the proxy's files by way of /proc.
    let debugger = Container { name: "debugger-x7k2p", ..APP };
    let mut debugger = node.start(&debugger, Some(&pair.pod));
    let answer = debugger.order(&format!("ask through the files of: {}", proxy.child.id()));
    assert!(
        answer.starts_with("NotTheSidecar the container \"debugger-x7k2p\" asks")
            || answer == "no connection: PermissionDenied",
        "{answer}"
    );
    assert_eq!(debugger.order("dial"), "captured");
    assert_eq!(proxy.order("ask"), done);
}

#[test]
fn a_pod_of_another_namespace_and_the_node_itself_change_nothing() {
    let node = need_node!("a_pod_of_another_namespace_and_the_node_itself_change_nothing");
    let (pair, elsewhere, _agent) = (pair(), node::pair(), serve(&node));
    let (mut proxy, done) = redirected(&node, &pair);
    let stranger = Container { pod_of_log: OTHER, pod_of_cgroup: Some(OTHER), ..PROXY };
    let mut stranger = node.start(&stranger, Some(&elsewhere.pod));
    stranger.order("listen");
    assert!(stranger.order("ask").starts_with("PeerOfAnotherPod "));
    assert_eq!(stranger.order("dial"), "outside", "no redirect was set there, so none can be believed");
    let mut on_host = node.start(&PROXY, None);
    assert!(on_host.order("ask").starts_with("HostNetwork "));
    assert_eq!(proxy.order("ask"), done);
}

/// How many of so many questions in a loop are refused for being too many; the others for who asks.
fn limited(asker: &mut Running, times: usize) -> usize {
    let answers: Vec<String> = (0..times).map(|_| asker.order("ask")).collect();
    let of = |reason: &str| answers.iter().filter(|answer| answer.starts_with(reason)).count();
    let (limited, refused) = (of("AskedTooOften "), of("NotTheSidecar "));
    assert!(limited + refused == times, "{answers:?}");
    limited
}

#[test]
fn a_pod_that_asks_in_a_loop_waits_for_itself_alone() {
    let node = need_node!("a_pod_that_asks_in_a_loop_waits_for_itself_alone");
    let (pair, _agent) = (pair(), serve(&node));
    let (mut proxy, _) = redirected(&node, &pair);
    let mut flood = node.start(&APP, Some(&pair.pod));
    assert!(limited(&mut flood, 60) > 0);
    assert_eq!(proxy.order("dial"), "outside", "what is in force stays in force");
    assert_eq!(flood.order("dial"), "captured");
}

#[test]
fn other_users_that_ask_in_a_loop_are_limited_and_take_nothing_from_the_sidecar() {
    let node = need_node!("other_users_that_ask_in_a_loop_are_limited_and_take_nothing_from_the_sidecar");
    let (pair, _agent) = (pair(), serve(&node));
    let (mut proxy, done) = redirected(&node, &pair);
    for user in [0, 1000] {
        let mut flood = node.start(&Container { user, ..APP }, Some(&pair.pod));
        assert!(limited(&mut flood, 60) > 0, "the user {user}");
        assert_eq!(proxy.order("ask"), done, "after the user {user}");
    }
}
