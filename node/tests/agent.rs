//! The agent against real processes in real network namespaces and cgroups, with a kubelet's tree made by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unsafe_code)]

#[path = "../../crates/redirect/tests/support/mod.rs"]
mod support;

use cinch_node::agent::{Agent, Memory};
use cinch_node::host::Host;
use cinch_node::metrics::Metrics;
use cinch_node::mounts::PodsDirectory;
use cinch_redirect::request::{Answer, Request};
use cinch_redirect::{RedirectConfig, original_destination, remove};
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;
use support::{Namespace, Pair};
use tokio::net::UnixListener;

const POD: &str = "0b1f7c52-6f0e-4a7e-9d43-5a3c2f7a9e11";
const OTHER: &str = "99999999-6f0e-4a7e-9d43-5a3c2f7a9e11";
/// Tells a run of this test's own program that it is to be a container.
const ROLE: &str = "CINCH_TEST_CONTAINER";
const NONCE: u64 = 0x1122_3344_5566_7788;

/// Where cgroup v2 is mounted, if this test may make groups there.
fn hierarchy() -> Option<PathBuf> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let root = roots.into_iter().find(|root| root.join("cgroup.controllers").exists())?;
    let probe = root.join(format!("cinch-probe-{}", std::process::id()));
    fs::create_dir(&probe).ok()?;
    fs::remove_dir(&probe).ok()?;
    Some(root)
}

macro_rules! need_node {
    ($test:literal) => {{
        need_namespaces!($test);
        let Some(root) = hierarchy() else {
            let why = "needs a writable cgroup v2 hierarchy";
            let _ = std::io::stderr().write_all(format!("SKIPPED {}: {why}\n", $test).as_bytes());
            return;
        };
        Node::new(root)
    }};
}

/// A program that is being written can't be started, and a process that is forked meanwhile keeps it open for a
/// moment longer: copies of this program and new processes exclude each other.
static FORKS: RwLock<()> = RwLock::new(());

/// A node: the tree of a kubelet, a place in the cgroups, a program for containers.
struct Node {
    files: tempfile::TempDir,
    cgroup_root: PathBuf,
    group: PathBuf,
    pods_directory: PodsDirectory,
}

impl Node {
    fn new(cgroup_root: PathBuf) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let files = tempfile::tempdir().unwrap();
        open_to_all(files.path());
        let program = files.path().join("container");
        {
            let _nobody_forks = FORKS.write().unwrap();
            fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        }
        open_to_all(&program);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let group = cgroup_root.join(format!("cinch-node-test-{}-{number}", std::process::id()));
        let mut node = Self { files, cgroup_root, group, pods_directory: learned("254:0", "/k") };
        // As an agent learns it: from the mount of its own termination log.
        let own = node.log_of(OTHER, "cinch-node");
        let mounts = {
            let _copies_wait = FORKS.read().unwrap();
            node.command(&own, &["cat", "/proc/self/mountinfo"]).output().unwrap()
        };
        let mounts =
            String::from_utf8(mounts.stdout).unwrap().replace(" /etc/hostname ", " /dev/termination-log ");
        node.pods_directory = PodsDirectory::learn(&mounts).unwrap();
        node
    }

    /// The termination log of a container, made if it is not there.
    fn log_of(&self, pod: &str, container: &str) -> PathBuf {
        let file =
            self.files.path().join("kubelet/pods").join(pod).join("containers").join(container).join("ab12");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        file
    }

    /// A program with `log` mounted, in a mount namespace of its own.
    fn command(&self, log: &Path, program: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command
            .arg(format!("mount --bind {} /etc/hostname && exec \"$0\" \"$@\"", log.display()))
            .args(program);
        command
    }

    fn agent(&self) -> Agent {
        let host = Host {
            proc: "/proc".into(),
            cgroup_root: self.cgroup_root.clone(),
            pods_directory: self.pods_directory.clone(),
            network_namespace: fs::metadata("/proc/self/ns/net").unwrap(),
        };
        Agent::new(Ok(host), Metrics::default())
    }

    /// Starts a container's process, which waits for its orders.
    fn start(&self, container: &Container<'_>, namespace: Option<&Namespace>) -> Running {
        let log = self.log_of(container.pod_of_log, container.name);
        let program = self.files.path().join("container").display().to_string();
        let user = container.user.to_string();
        let socket = self.files.path().join("agent.sock");
        let mut command = self.command(
            &log,
            &[
                "setpriv",
                "--reuid",
                &user,
                "--regid",
                &user,
                "--clear-groups",
                &program,
                "--exact",
                "a_container_of_this_test",
                "--nocapture",
                "--test-threads",
                "1",
            ],
        );
        command.env(ROLE, &socket).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let copies_wait = FORKS.read().unwrap();
        let mut child = match namespace {
            Some(namespace) => namespace.run(move || command.spawn().unwrap()),
            None => command.spawn().unwrap(),
        };
        drop(copies_wait);
        if let Some(pod) = container.pod_of_cgroup {
            let group = self.group.join(format!("pod{pod}")).join("ab".repeat(32));
            fs::create_dir_all(&group).unwrap();
            fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        let (orders, words) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Running { child, orders, words }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for pod in [POD, OTHER] {
            let pod = self.group.join(format!("pod{pod}"));
            for path in [pod.join("ab".repeat(32)), pod] {
                let _ = fs::remove_dir(path);
            }
        }
        let _ = fs::remove_dir(&self.group);
    }
}

fn learned(device: &str, kubelet: &str) -> PodsDirectory {
    let root = format!("{kubelet}/pods/{OTHER}/containers/cinch-node/ab12");
    PodsDirectory::learn(&format!("1 2 {device} {root} /dev/termination-log rw - ext4 x rw")).unwrap()
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

/// Which container a process pretends to be, and by what.
struct Container<'a> {
    name: &'a str,
    pod_of_log: &'a str,
    pod_of_cgroup: Option<&'a str>,
    user: u32,
}

const PROXY: Container<'static> =
    Container { name: "cinch-proxy", pod_of_log: POD, pod_of_cgroup: Some(POD), user: 1507 };

struct Running {
    child: Child,
    orders: ChildStdin,
    words: BufReader<ChildStdout>,
}

impl Running {
    /// Gives an order and returns the line that answers it.
    fn order(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.words.read_line(&mut line).unwrap(), 0, "the container ended at {order:?}");
            // The test harness speaks too.
            if let Some((_, word)) = line.trim_end().split_once("said: ") {
                return word.to_owned();
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test of its own: what the containers of the others run.
#[test]
fn a_container_of_this_test() {
    let Some(socket) = std::env::var_os(ROLE) else { return };
    for line in std::io::stdin().lines() {
        let answer = match line.unwrap().as_str() {
            "listen" => {
                answer_dials(NONCE);
                "listening".to_owned()
            }
            "listen wrongly" => {
                answer_dials(NONCE + 1);
                "listening".to_owned()
            }
            "ask" => ask(Path::new(&socket), &Request { nonce: NONCE }.encode()),
            "ask nonsense" => ask(Path::new(&socket), b"GET / HTTP/1.1\r\n\r\n"),
            "ask too little" => ask(Path::new(&socket), b"cnch"),
            "dial" => dial("10.9.0.1:8080"),
            "dial v6" => dial("[fd00:9::1]:8080"),
            other => panic!("{other}"),
        };
        println!("said: {answer}");
    }
}

/// The outbound side of a proxy: a number to the agent, a word to all others.
fn answer_dials(nonce: u64) {
    for at in ["127.0.0.1:15001", "[::1]:15001"] {
        let listener = TcpListener::bind(at).unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let agent = original_destination(&stream).is_ok_and(|to| to.to_string() == "192.0.2.2:9");
                let word = if agent { nonce.to_be_bytes().to_vec() } else { b"captured".to_vec() };
                let _ = stream.write_all(&word);
            }
        });
    }
}

fn ask(socket: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    match Answer::decode(&bytes) {
        Ok(Some(Answer::Done { cgroup, level })) => format!("done {cgroup} {level}"),
        Ok(Some(Answer::Refused { reason, sentence })) => format!("{reason} {sentence}"),
        other => format!("{other:?}"),
    }
}

fn dial(to: &str) -> String {
    let mut word = String::new();
    match TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(5)) {
        Ok(mut stream) => stream.read_to_string(&mut word).map(|_| word).unwrap_or_default(),
        Err(error) => error.kind().to_string(),
    }
}

/// A place outside that says `outside`, at both families.
fn pair() -> Pair {
    let pair = Pair::new();
    for at in ["10.9.0.1:8080", "[fd00:9::1]:8080"] {
        let listener = pair.outside.run(move || TcpListener::bind(at).unwrap());
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(b"outside");
            }
        });
    }
    pair
}

/// Serves the socket of `POD` until the end of the test's process.
fn serve(node: &Node) -> Arc<Agent> {
    let agent = Arc::new(node.agent());
    let path = node.files.path().join("agent.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let serving = agent.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = UnixListener::from_std(listener).unwrap();
            let mut memory = Memory::default();
            while let Ok((stream, _)) = listener.accept().await {
                serving.serve(stream, POD, &mut memory).await;
            }
        });
    });
    agent
}

#[test]
fn the_sidecar_that_asks_is_exempt_and_nobody_else_of_its_pod() {
    let node = need_node!("the_sidecar_that_asks_is_exempt_and_nobody_else_of_its_pod");
    let (pair, _agent) = (pair(), serve(&node));
    let mut proxy = node.start(&PROXY, Some(&pair.pod));
    let mut app = node.start(&Container { name: "app", pod_of_cgroup: None, ..PROXY }, Some(&pair.pod));
    assert_eq!(proxy.order("listen"), "listening");
    assert_eq!(app.order("dial"), "outside", "before the redirect");
    let group = node.group.join(format!("pod{POD}")).join("ab".repeat(32));
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
    let mut app = node.start(&Container { name: "app", pod_of_cgroup: None, ..PROXY }, Some(&pair.pod));
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
