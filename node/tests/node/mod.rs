//! A node for tests: the tree of a kubelet made by hand, cgroups of its own, and processes that pretend to be
//! containers. Each is a run of the test's own program, which does as it is told over its standard input.
//!
//! A test program that uses it has a test `a_container_of_this_test` that calls [`run_as_container`].

#![allow(dead_code, unused_macros)]

#[path = "../../../crates/redirect/tests/support/mod.rs"]
pub mod support;

use cinch_node::agent::{Agent, Memory};
use cinch_node::host::Host;
use cinch_node::metrics::Metrics;
use cinch_node::mounts::PodsDirectory;
use cinch_redirect::original_destination;
use cinch_redirect::request::{Answer, Request};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};
use support::{Namespace, Pair};
use tokio::net::UnixListener;

pub const POD: &str = "0b1f7c52-6f0e-4a7e-9d43-5a3c2f7a9e11";
pub const OTHER: &str = "99999999-6f0e-4a7e-9d43-5a3c2f7a9e11";
/// Tells a run of this test's own program that it is to be a container.
const ROLE: &str = "CINCH_TEST_CONTAINER";
pub const NONCE: u64 = 0x1122_3344_5566_7788;

static PROBES: AtomicU32 = AtomicU32::new(0);

/// Where cgroup v2 is mounted, if this test may make groups there.
pub fn hierarchy() -> Option<PathBuf> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let root = roots.into_iter().find(|root| root.join("cgroup.controllers").exists())?;
    // One for each test: they run side by side.
    let one = PROBES.fetch_add(1, Ordering::Relaxed);
    let probe = root.join(format!("cinch-probe-{}-{one}", std::process::id()));
    fs::create_dir(&probe).ok()?;
    fs::remove_dir(&probe).ok()?;
    Some(root)
}

/// The node, or the test is left with a line that says why it can't run here.
#[macro_export]
macro_rules! need_node {
    ($test:literal) => {{
        $crate::need_namespaces!($test);
        let Some(root) = node::hierarchy() else {
            let why = "needs a writable cgroup v2 hierarchy";
            let line = format!("SKIPPED {}: {why}\n", $test);
            let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
            return;
        };
        node::Node::new(root)
    }};
}

/// A program that is being written can't be started, and a process that is forked meanwhile keeps it open for a
/// moment longer: copies of this program and new processes exclude each other.
static FORKS: RwLock<()> = RwLock::new(());

/// A node: the tree of a kubelet, a place in the cgroups, a program for containers.
pub struct Node {
    pub files: tempfile::TempDir,
    pub cgroup_root: PathBuf,
    pub group: PathBuf,
    pods_directory: PodsDirectory,
}

impl Node {
    pub fn new(cgroup_root: PathBuf) -> Self {
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
            node.command(&own, "", &["cat", "/proc/self/mountinfo"]).output().unwrap()
        };
        let mounts =
            String::from_utf8(mounts.stdout).unwrap().replace(" /etc/hostname ", " /dev/termination-log ");
        node.pods_directory = PodsDirectory::learn(&mounts).unwrap();
        node
    }

    /// The termination log of a container, made if it is not there.
    pub fn log_of(&self, pod: &str, container: &str) -> PathBuf {
        let file =
            self.files.path().join("kubelet/pods").join(pod).join("containers").join(container).join("ab12");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        file
    }

    /// A program with `log` mounted, in a mount namespace of its own.
    fn command(&self, log: &Path, also: &str, program: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command
            .arg(format!("mount --bind {} /etc/hostname && {also} exec \"$0\" \"$@\"", log.display()))
            .args(program);
        command
    }

    pub fn agent(&self) -> Agent {
        let host = Host {
            proc: "/proc".into(),
            cgroup_root: self.cgroup_root.clone(),
            pods_directory: self.pods_directory.clone(),
            network_namespace: fs::metadata("/proc/self/ns/net").unwrap(),
        };
        Agent::new(Ok(host), Metrics::default())
    }

    /// The cgroup of a container, as a flat driver makes it.
    pub fn group_of(&self, pod: &str, container: &str) -> PathBuf {
        // Ids are of 64 digits and differ by container.
        let id =
            if container == "cinch-proxy" { "ab".to_owned() } else { format!("{:02x}", container.len()) };
        self.group.join(format!("pod{pod}")).join(id.repeat(32))
    }

    /// Starts a container's process, which waits for its orders.
    pub fn start(&self, container: &Container<'_>, namespace: Option<&Namespace>) -> Running {
        self.start_at(container, namespace, &self.files.path().join("agent.sock"))
    }

    /// As [`Node::start`], with the volume's socket at a path of its own.
    pub fn start_at(
        &self,
        container: &Container<'_>,
        namespace: Option<&Namespace>,
        socket: &Path,
    ) -> Running {
        let log = self.log_of(container.pod_of_log, container.name);
        let program = self.files.path().join("container").display().to_string();
        let user = container.user.to_string();
        let mut command = self.command(
            &log,
            container.also,
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
        command.env(ROLE, socket).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let copies_wait = FORKS.read().unwrap();
        let mut child = match namespace {
            Some(namespace) => namespace.run(move || command.spawn().unwrap()),
            None => command.spawn().unwrap(),
        };
        drop(copies_wait);
        if let Some(pod) = container.pod_of_cgroup {
            let group = self.group_of(pod, container.name);
            fs::create_dir_all(&group).unwrap();
            fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        let (orders, words) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Running { child, orders, words }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let below = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
        let folders = |path: &Path| {
            below(path).map(|entry| entry.path()).filter(|path| path.is_dir()).collect::<Vec<_>>()
        };
        for pod in folders(&self.group) {
            for container in folders(&pod) {
                // A process that was just killed leaves its group a moment later.
                for _ in 0..100 {
                    if fs::remove_dir(&container).is_ok() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            let _ = fs::remove_dir(pod);
        }
        let _ = fs::remove_dir(&self.group);
    }
}

fn learned(device: &str, kubelet: &str) -> PodsDirectory {
    let root = format!("{kubelet}/pods/{OTHER}/containers/cinch-node/ab12");
    PodsDirectory::learn(&format!("1 2 {device} {root} /dev/termination-log rw - ext4 x rw")).unwrap()
}

pub fn open_to_all(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

/// Which container a process pretends to be, and by what.
#[derive(Clone, Copy)]
pub struct Container<'a> {
    pub name: &'a str,
    pub pod_of_log: &'a str,
    pub pod_of_cgroup: Option<&'a str>,
    pub user: u32,
    /// What else it does, as root, before its program starts: a shell's words that end with a semicolon.
    pub also: &'a str,
}

pub const PROXY: Container<'static> =
    Container { name: "cinch-proxy", pod_of_log: POD, pod_of_cgroup: Some(POD), user: 1507, also: "" };

/// An app of the same pod that took the proxy's user.
pub const APP: Container<'static> =
    Container { name: "app", pod_of_log: POD, pod_of_cgroup: Some(POD), user: 1507, also: "" };

pub struct Running {
    pub child: Child,
    orders: ChildStdin,
    words: BufReader<ChildStdout>,
}

impl Running {
    /// Gives an order and returns the line that answers it.
    pub fn order(&mut self, order: &str) -> String {
        self.tell(order);
        self.answer()
    }

    /// Gives an order, to be answered later.
    pub fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    /// The line that answers the last order.
    pub fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.words.read_line(&mut line).unwrap(), 0, "the container ended");
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

/// What the containers of a test run: orders in, a line for each out.
pub fn run_as_container() {
    let Some(socket) = std::env::var_os(ROLE) else { return };
    let mut held = Held::default();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        println!("said: {}", obey(&line, Path::new(&socket), &mut held));
    }
}

/// Sockets that a container keeps open.
#[derive(Default)]
struct Held {
    tcp: Vec<TcpStream>,
    listeners: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

fn obey(line: &str, socket: &Path, held: &mut Held) -> String {
    let request = Request { nonce: NONCE, look: false };
    let (order, about) = line.split_once(": ").unwrap_or((line, ""));
    match order {
        "listen" => answer_dials(NONCE, Then::Close),
        "listen wrongly" => answer_dials(NONCE + 1, Then::Close),
        "listen slowly" => answer_dials(NONCE, Then::Dawdle),
        "listen and hold" => answer_dials(NONCE, Then::Hold),
        "ask" => return ask(socket, &request.encode()),
        "look" => return ask(socket, &Request { look: true, ..request }.encode()),
        "ask through the files of" => {
            let path = format!("/proc/{about}/root{}", socket.display());
            return ask(Path::new(&path), &request.encode());
        }
        "time the question" => {
            let begin = Instant::now();
            let answer = ask(socket, &request.encode());
            return format!("{} {answer}", begin.elapsed().as_micros());
        }
        "look and leave" => {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.write_all(&Request { look: true, ..request }.encode()).unwrap();
            return "left".to_owned();
        }
        "ask nonsense" => return ask(socket, b"GET / HTTP/1.1\r\n\r\n"),
        "ask too little" => return ask(socket, b"cnch"),
        "flood" => return flood(socket, about.parse().unwrap()),
        "dial" => return dial("10.9.0.1:8080"),
        "dial v6" => return dial("[fd00:9::1]:8080"),
        "hold" => held.tcp.push(TcpStream::connect(about).unwrap()),
        "serve" => held.listeners.push(TcpListener::bind(about).unwrap()),
        "accept" => held.tcp.push(held.listeners.last().unwrap().accept().unwrap().0),
        "udp at" => held.udp.push(UdpSocket::bind(about).unwrap()),
        "udp to" => {
            let any = if about.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let udp = UdpSocket::bind(any).unwrap();
            udp.connect(about).unwrap();
            held.udp.push(udp);
        }
        "udp towards" => {
            let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            udp.send_to(b"x", about).unwrap();
            held.udp.push(udp);
        }
        "udp towards many" => {
            let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            for port in 10_000..10_000 + about.parse::<u16>().unwrap() {
                udp.send_to(b"x", ("10.9.0.1", port)).unwrap();
            }
            held.udp.push(udp);
        }
        "let go" => *held = Held::default(),
        other => panic!("{other}"),
    }
    "done".to_owned()
}

/// What becomes of a dial that was answered.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Close,
    Hold,
    /// It comes a byte at a time.
    Dawdle,
}

/// The outbound side of a proxy: a number to the agent, a word to all others.
fn answer_dials(nonce: u64, then: Then) {
    for at in ["127.0.0.1:15001", "[::1]:15001"] {
        let listener = TcpListener::bind(at).unwrap();
        std::thread::spawn(move || {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept() {
                let agent = original_destination(&stream).is_ok_and(|to| to.to_string() == "192.0.2.2:9");
                let word = if agent { nonce.to_be_bytes().to_vec() } else { b"captured".to_vec() };
                for bytes in word.chunks(if then == Then::Dawdle { 1 } else { word.len() }) {
                    let _ = stream.write_all(bytes);
                    if then == Then::Dawdle {
                        std::thread::sleep(Duration::from_millis(400));
                    }
                }
                if then == Then::Hold && !agent {
                    held.push(stream);
                }
            }
        });
    }
}

fn ask(socket: &Path, request: &[u8]) -> String {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) => return format!("no connection: {:?}", error.kind()),
    };
    // Who asks too often may be answered before he has spoken, and is then reset.
    let _ = stream.write_all(request);
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    match Answer::decode(&bytes) {
        Ok(Some(Answer::Done { cgroup, level, sightings: None, was_gone })) => {
            format!("done {cgroup} {level}{}", if was_gone { ", it was gone" } else { "" })
        }
        Ok(Some(Answer::Done { sightings: Some(found), was_gone, .. })) => {
            let seen = found.seen.iter().map(|seen| {
                let peer = seen.peer.map_or("-".to_owned(), |ip| ip.to_string());
                let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
                let (process, container) = (or_none(&seen.process), or_none(&seen.container));
                format!("{:?} {peer} {} {process} {container}", seen.way, seen.port)
            });
            let more = if found.more > 0 { format!(" and {} more", found.more) } else { String::new() };
            let cut = if found.is_cut { ", and TCP unseen" } else { "" };
            let gone = if was_gone { ", it was gone" } else { "" };
            format!("seen [{}]{more}{cut}{gone}", seen.collect::<Vec<_>>().join(", "))
        }
        Ok(Some(Answer::Refused { reason, sentence })) => format!("{reason} {sentence}"),
        other => format!("{other:?}"),
    }
}

/// Asks so many times, as fast as the agent answers: with looks, and with nonsense of all lengths.
fn flood(socket: &Path, times: usize) -> String {
    let look = Request { nonce: NONCE, look: true }.encode();
    let mut done = 0;
    for number in 0..times {
        if number % 2 == 0 {
            done += usize::from(ask(socket, &look).starts_with("seen "));
        } else if let Ok(mut stream) = UnixStream::connect(socket) {
            // The agent closes at the first byte that is wrong.
            let _ = stream.write_all(&vec![b'x'; number * 97 % 65_536]);
        }
    }
    done.to_string()
}

fn dial(to: &str) -> String {
    let mut word = String::new();
    match TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(5)) {
        Ok(mut stream) => stream.read_to_string(&mut word).map(|_| word).unwrap_or_default(),
        Err(error) => error.kind().to_string(),
    }
}

/// A place outside that says `outside`, at both families.
pub fn pair() -> Pair {
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

/// Leaves this thread, and those that it starts, the capabilities that the chart gives to an agent.
fn drop_capabilities() {
    let left = CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
    let sets = CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).unwrap();
}

/// Serves the socket of `POD` until the end of the test's process.
pub fn serve(node: &Node) -> Arc<Agent> {
    let agent = Arc::new(node.agent());
    let path = node.files.path().join("agent.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let serving = agent.clone();
    std::thread::spawn(move || {
        drop_capabilities();
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
