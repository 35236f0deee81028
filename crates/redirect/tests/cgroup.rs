//! The exemption by cgroup, with cgroups and network namespaces of this test's own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use cinch_redirect::{Exempt, RedirectConfig, install, is_installed};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use support::{Namespace, Pair};

static PROBES: AtomicU32 = AtomicU32::new(0);

/// Where cgroup v2 is mounted, if this test may make groups there.
fn hierarchy() -> Option<PathBuf> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let root = roots.into_iter().find(|root| root.join("cgroup.controllers").exists())?;
    // One for each test: they run side by side.
    let one = PROBES.fetch_add(1, Ordering::Relaxed);
    let probe = root.join(format!("cinch-probe-{}-{one}", std::process::id()));
    fs::create_dir(&probe).ok()?;
    fs::remove_dir(&probe).ok()?;
    Some(root)
}

macro_rules! need_cgroups {
    ($test:literal) => {{
        need_namespaces!($test);
        let Some(root) = hierarchy() else {
            let why = "needs a writable cgroup v2 hierarchy";
            let _ = std::io::stderr().write_all(format!("SKIPPED {}: {why}\n", $test).as_bytes());
            return;
        };
        root
    }};
}

/// A cgroup of this test, removed at its end.
struct Group(PathBuf);

impl Group {
    /// `pod/name` below the root: level 3, as far from it as a container is with a flat driver.
    fn new(root: &Path, pod: &str, name: &str) -> Self {
        let path = root.join(format!("cinch-test-{}", std::process::id())).join(pod).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn exempt(&self) -> RedirectConfig {
        let id = fs::metadata(&self.0).unwrap().ino();
        RedirectConfig { exempt: Exempt::Cgroup { id, level: 3 }, ..RedirectConfig::default() }
    }

    fn join(&self, process: u32) {
        fs::write(self.0.join("cgroup.procs"), process.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for path in self.0.ancestors().take(3) {
            // A parent stays as long as another group of the test is in it.
            let _ = fs::remove_dir(path);
        }
    }
}

/// Runs a process of `uid` in `group` and `namespace` that dials `host` and prints what it is told.
fn word_at(namespace: &Namespace, group: &Group, uid: u32, host: &'static str, port: u16) -> String {
    let script = format!("read go; exec 3<>/dev/tcp/{host}/{port} && cat <&3");
    let mut child = namespace.run(move || {
        let mut command = Command::new("bash");
        command.args(["-c", &script]).uid(uid).gid(uid);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    });
    // Joined before its first socket: a socket belongs to the group in which it was opened.
    group.join(child.id());
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut word = String::new();
    child.stdout.take().unwrap().read_to_string(&mut word).unwrap();
    child.wait().unwrap();
    word
}

fn answer(namespace: &Namespace, at: &'static str, word: &'static str) {
    let listener = namespace.run(move || TcpListener::bind(at).unwrap());
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(word.as_bytes());
        }
    });
}

/// A pod whose outbound port says `proxy`, beside a place that says `outside`.
fn pair() -> Pair {
    let pair = Pair::new();
    for (at, capture) in [("10.9.0.1:8080", "127.0.0.1:15001"), ("[fd00:9::1]:8080", "[::1]:15001")] {
        answer(&pair.outside, at, "outside");
        answer(&pair.pod, capture, "proxy");
    }
    pair
}

#[test]
fn only_sockets_of_the_exempt_cgroup_pass_whatever_their_uid() {
    let root = need_cgroups!("only_sockets_of_the_exempt_cgroup_pass_whatever_their_uid");
    let (proxy, app) = (Group::new(&root, "pod1", "proxy"), Group::new(&root, "pod1", "app"));
    let pair = pair();
    let config = proxy.exempt();
    pair.pod.run(move || install(&config)).unwrap();
    assert!(pair.pod.run(move || is_installed(&config)).unwrap());
    for host in ["10.9.0.1", "fd00:9::1"] {
        for uid in [0, 1507, 4000] {
            assert_eq!(word_at(&pair.pod, &proxy, uid, host, 8080), "outside", "proxy, uid {uid}, {host}");
            assert_eq!(word_at(&pair.pod, &app, uid, host, 8080), "proxy", "app, uid {uid}, {host}");
        }
    }
}

#[test]
fn a_cgroup_below_the_exempt_one_passes_too() {
    let root = need_cgroups!("a_cgroup_below_the_exempt_one_passes_too");
    let proxy = Group::new(&root, "pod2", "proxy");
    let below = Group(proxy.0.join("container"));
    fs::create_dir(&below.0).unwrap();
    let pair = pair();
    let config = proxy.exempt();
    pair.pod.run(move || install(&config)).unwrap();
    assert_eq!(word_at(&pair.pod, &below, 1507, "10.9.0.1", 8080), "outside");
}

#[test]
fn a_wrong_level_exempts_nobody() {
    let root = need_cgroups!("a_wrong_level_exempts_nobody");
    let proxy = Group::new(&root, "pod3", "proxy");
    let pair = pair();
    for level in [1, 2, 4] {
        let Exempt::Cgroup { id, .. } = proxy.exempt().exempt else { unreachable!() };
        let config = RedirectConfig { exempt: Exempt::Cgroup { id, level }, ..RedirectConfig::default() };
        pair.pod.run(move || install(&config)).unwrap();
        assert_eq!(word_at(&pair.pod, &proxy, 1507, "10.9.0.1", 8080), "proxy", "level {level}");
    }
}

#[test]
fn a_restarted_proxy_is_captured_until_its_new_cgroup_is_exempt() {
    let root = need_cgroups!("a_restarted_proxy_is_captured_until_its_new_cgroup_is_exempt");
    let (before, after) = (Group::new(&root, "pod4", "first"), Group::new(&root, "pod4", "second"));
    let pair = pair();
    let (old, new) = (before.exempt(), after.exempt());
    pair.pod.run(move || install(&old)).unwrap();
    assert_eq!(word_at(&pair.pod, &after, 1507, "10.9.0.1", 8080), "proxy");
    pair.pod.run(move || install(&new)).unwrap();
    assert_eq!(word_at(&pair.pod, &after, 1507, "10.9.0.1", 8080), "outside");
    assert_eq!(word_at(&pair.pod, &before, 1507, "10.9.0.1", 8080), "proxy");
}

#[test]
fn the_self_test_is_captured_from_the_exempt_cgroup_too() {
    let root = need_cgroups!("the_self_test_is_captured_from_the_exempt_cgroup_too");
    let proxy = Group::new(&root, "pod5", "proxy");
    let pair = pair();
    let config = proxy.exempt();
    pair.pod.run(move || install(&config)).unwrap();
    assert_eq!(word_at(&pair.pod, &proxy, 1507, "192.0.2.1", 9), "proxy");
}
