//! What an agent costs, and how fast it is: the program itself over the volumes of 100 pods, each with network
//! namespace, cgroup and a process of its own. Prints figures and holds them to nothing but that all is done; run by
//! hand: `cargo test -p cinch-node --test figures -- --ignored --nocapture`. With `CINCH_NODE_PROGRAM` another build of
//! the agent is measured.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unsafe_code)]

mod node;

use cinch_redirect::remove;
use node::{Container, Node, OTHER, PROXY, Running, open_to_all, support};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::Pair;

/// Tells the test that it runs in a PID namespace of its own.
const INSIDE: &str = "CINCH_TEST_FIGURES_INSIDE";
const PODS: usize = 100;
/// For which the pods are left alone but for their questions.
const IDLE: Duration = Duration::from_secs(60);
/// Questions of each pod that floods its socket, all pods at once.
const FLOOD: usize = 200;
/// The agent's limit in the chart (`node.resources`).
const LIMIT_KIB: u64 = 64 * 1024;
/// Between a sidecar's questions.
const INTERVAL: Duration = Duration::from_secs(30);

/// Not a test of its own: what the pods of the other run.
#[test]
fn a_container_of_this_test() {
    node::run_as_container();
}

/// The agent as a process, as the kubelet would have it.
struct Agent {
    child: Child,
    port: u16,
}

impl Agent {
    /// Starts the program and waits until it answers for its health.
    fn start(node: &Node) -> Self {
        let program = std::env::var_os("CINCH_NODE_PROGRAM")
            .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_cinch-node")), PathBuf::from);
        let log = node.log_of(OTHER, "cinch-node");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let script = format!(
            "mount -t tmpfs none /dev && touch /dev/termination-log && mount --bind {} /dev/termination-log && \
             exec {} run --node figures --kubelet {} --cgroups /sys/fs/cgroup --health-port {port}",
            log.display(),
            program.display(),
            node.files.path().join("kubelet").display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let agent = Self { child, port };
        while agent.page("/metrics").is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        agent
    }

    fn page(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        Some(page)
    }

    fn metric(&self, name: &str) -> f64 {
        let page = self.page("/metrics").unwrap();
        let line = page.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    fn resident_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    /// The most that was ever resident.
    fn peak_kib(&self) -> u64 {
        self.memory_kib("VmHWM:")
    }

    fn memory_kib(&self, of: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with(of)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Processor time since its start, in milliseconds; the kernel counts in hundredths of a second.
    fn processor_ms(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = text.rsplit_once(") ").unwrap().1.split(' ').collect();
        (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One pod: its place in the network, and its sidecar.
struct Pod {
    pair: Pair,
    sidecar: Running,
}

fn uid(number: usize) -> String {
    format!("0b1f7c52-6f0e-4a7e-9d43-{number:012}")
}

/// The volume as a kubelet leaves it for an agent to find; a short way to it, for the pod.
fn make_volume(node: &Node, number: usize) -> PathBuf {
    let volume =
        node.files.path().join(format!("kubelet/pods/{}/volumes/kubernetes.io~csi/cinch-agent", uid(number)));
    fs::create_dir_all(volume.join("mount")).unwrap();
    fs::write(volume.join("vol_data.json"), r#"{"driverName":"node.cinch.dev"}"#).unwrap();
    let way = node.files.path().join(number.to_string());
    symlink(volume.join("mount"), &way).unwrap();
    way.join("agent.sock")
}

/// All ask at once, `rounds` times, each time without a table; microseconds of each question, sorted.
fn questions(pods: &mut [Pod], rounds: usize) -> Vec<u64> {
    let mut took = Vec::new();
    for _ in 0..rounds {
        for pod in pods.iter() {
            pod.pair.pod.run(remove).unwrap();
        }
        // So that no pod reaches the limit of its questions.
        std::thread::sleep(Duration::from_millis(600));
        pods.iter_mut().for_each(|pod| pod.sidecar.tell("time the question"));
        for pod in pods.iter_mut() {
            let said = pod.sidecar.answer();
            let (micros, answer) = said.split_once(' ').unwrap();
            assert!(answer.starts_with("done "), "{answer}");
            took.push(micros.parse().unwrap());
        }
    }
    took.sort_unstable();
    took
}

/// Runs the test in a PID namespace of its own: the agent looks at the first process of its node, and that of the
/// machine may be nobody's to look at.
fn in_own_processes(test: &str) {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]);
    command.arg(program).args(["--exact", test, "--ignored", "--nocapture"]).env(INSIDE, "1");
    assert!(command.status().unwrap().success());
}

fn say(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

#[test]
#[ignore = "prints figures, and takes two minutes"]
fn the_agent_with_a_hundred_pods() {
    if std::env::var_os(INSIDE).is_none() {
        return in_own_processes("the_agent_with_a_hundred_pods");
    }
    let node = need_node!("the_agent_with_a_hundred_pods");
    let sockets: Vec<PathBuf> = (0..PODS).map(|number| make_volume(&node, number)).collect();
    for folder in ["kubelet", "kubelet/pods"] {
        open_to_all(&node.files.path().join(folder));
    }
    let agent = Agent::start(&node);
    let mut pods: Vec<Pod> = Vec::new();
    for (number, socket) in sockets.iter().enumerate() {
        let pair = Pair::new();
        let uid = uid(number);
        let container = Container { pod_of_log: &uid, pod_of_cgroup: Some(&uid), ..PROXY };
        let mut sidecar = node.start_at(&container, Some(&pair.pod), socket);
        sidecar.order("listen");
        pods.push(Pod { pair, sidecar });
    }
    say(&format!("agent with {PODS} pods that have not asked: {} KiB resident", agent.resident_kib()));
    for (at_once, rounds) in [(1, 50), (50, 6), (PODS, 4)] {
        let took = questions(&mut pods[..at_once], rounds);
        let of = |share: usize| took[(took.len() - 1) * share / 100] as f64 / 1000.0;
        say(&format!(
            "{at_once} sidecars ask at once, {} questions: p50 {:.1} ms, p99 {:.1} ms",
            took.len(),
            of(50),
            of(99)
        ));
    }
    say(&format!("agent after the questions: {} KiB resident", agent.resident_kib()));
    let (begin, before) = (Instant::now(), agent.processor_ms());
    let looks = IDLE.as_millis() / INTERVAL.as_millis() * PODS as u128;
    for turn in 0..u32::try_from(looks).unwrap() {
        let at = INTERVAL / u32::try_from(PODS).unwrap() * turn;
        std::thread::sleep(at.saturating_sub(begin.elapsed()));
        let answer = pods[turn as usize % PODS].sidecar.order("look");
        assert!(answer.starts_with("seen "), "{answer}");
    }
    let spent = agent.processor_ms() - before;
    let looks = (agent.metric("cinch_node_look_seconds_sum"), agent.metric("cinch_node_look_seconds_count"));
    say(&format!(
        "{PODS} pods that ask every {} s: {:.2} % of a core, {} KiB resident; a look takes {:.2} ms",
        INTERVAL.as_secs(),
        spent as f64 / begin.elapsed().as_millis() as f64 * 100.0,
        agent.resident_kib(),
        looks.0 / looks.1 * 1000.0
    ));
    flooded(&agent, &mut pods);
}

/// Every pod asks without a pause, sense and nonsense: the agent serves on and stays within its limit of memory.
fn flooded(agent: &Agent, pods: &mut [Pod]) {
    let begin = Instant::now();
    pods.iter_mut().for_each(|pod| pod.sidecar.tell(&format!("flood: {FLOOD}")));
    let answered: usize = pods.iter_mut().map(|pod| pod.sidecar.answer().parse::<usize>().unwrap()).sum();
    let took = begin.elapsed();
    let peak = agent.peak_kib();
    say(&format!(
        "{PODS} pods that flood with {FLOOD} questions each: {answered} looks answered in {:.1} s, {peak} KiB at most",
        took.as_secs_f64()
    ));
    assert!(peak < LIMIT_KIB, "{peak} KiB");
    let heals = (0..40).any(|_| {
        std::thread::sleep(Duration::from_millis(600));
        pods[0].sidecar.order("look").starts_with("seen ")
    });
    assert!(heals, "the sidecar is still refused");
}
