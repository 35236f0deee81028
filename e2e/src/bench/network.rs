//! Two pods' networks without a cluster: each a namespace, with a veth between them. Both end with this process,
//! however it ends, and everything that runs in them too.

use super::files::Files;
use crate::process::{Output, capture, succeed};
use crate::wait::wait_for;
use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// The address of the client's side.
const CLIENT: &str = "10.77.0.1";
/// The address of the server's side.
pub const SERVER: &str = "10.77.0.2";
const LIMIT: Duration = Duration::from_secs(20);

/// What the kernel's defaults would run out of: a new connection for each request uses up ports within seconds.
const SETTINGS: [(&str, &str); 3] = [
    ("net/ipv4/ip_local_port_range", "20000 65000"),
    ("net/ipv4/tcp_tw_reuse", "1"),
    ("net/core/somaxconn", "8192"),
];
/// Since Linux 6.14; by default a port rests for a second.
const REUSE_DELAY: (&str, &str) = ("net/ipv4/tcp_tw_reuse_delay", "100");

/// A network namespace, and a namespace of processes whose first one ends when our end of its pipe does.
pub struct Namespace {
    guard: Child,
    network: Arc<File>,
    processes: Arc<File>,
    /// The first process, as this machine numbers it.
    first: u32,
}

impl Namespace {
    fn new() -> Result<Self> {
        let mut guard = Command::new("unshare")
            .args(["--net", "--pid", "--fork", "--kill-child", "--", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("unshare (util-linux) can't be started")?;
        match Self::of(guard.id()) {
            Ok((first, network, processes)) => {
                Ok(Self { guard, network: Arc::new(network), processes: Arc::new(processes), first })
            }
            Err(error) => {
                let _ = guard.kill();
                let _ = guard.wait();
                Err(error)
            }
        }
    }

    /// The first process in the guard's namespaces, and these.
    fn of(guard: u32) -> Result<(u32, File, File)> {
        let first = wait_for("a namespace", LIMIT, || {
            let children = fs::read_to_string(format!("/proc/{guard}/task/{guard}/children"))?;
            Ok(children.split_whitespace().next().and_then(|pid| pid.parse::<u32>().ok()))
        })?;
        let open =
            |kind: &str| File::open(format!("/proc/{first}/ns/{kind}")).context("the namespace is gone");
        Ok((first, open("net")?, open("pid")?))
    }

    /// Does `work` on a thread in the network.
    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let network = Arc::clone(&self.network);
        let thread = thread::spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        thread.join().map_err(|_| anyhow!("a thread failed"))?
    }

    /// Runs a command to its end, in the network.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn run(&self, mut command: Command, limit: Duration) -> Result<Output> {
        self.inside(move || capture(&mut command, None, limit))
    }

    /// Starts a command that ends at the latest with the namespace.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&self, mut command: Command) -> Result<Child> {
        let processes = Arc::clone(&self.processes);
        self.inside(move || {
            // Only children of this thread from now on are in there; it starts no more threads itself.
            move_into_link_name_space(processes.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
            command.spawn().with_context(|| format!("{} can't be started", command.get_program().display()))
        })
    }

    fn ip(&self, line: &str) -> Result<()> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        self.inside(move || succeed(Command::new("ip").args(words), None, LIMIT).map(drop))
    }

    fn prepare(&self, address: &str, other: &str) -> Result<()> {
        self.ip("link set lo up")?;
        self.ip("link set eth0 up")?;
        self.ip(&format!("addr add {address}/24 dev eth0"))?;
        // The proof of the redirect dials an address that must at least have a route.
        self.ip(&format!("route add default via {other}"))?;
        self.inside(|| {
            for (name, value) in SETTINGS {
                fs::write(format!("/proc/sys/{name}"), value).with_context(|| name.to_owned())?;
            }
            // An older kernel has none.
            let _ = fs::write(format!("/proc/sys/{}", REUSE_DELAY.0), REUSE_DELAY.1);
            Ok(())
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// Client's and server's side.
pub struct Network {
    /// Where the load is.
    pub client: Namespace,
    /// Where the server is.
    pub server: Namespace,
    app: Child,
}

impl Network {
    /// A new one, with the server running in it and no redirect.
    ///
    /// # Errors
    /// When namespaces can't be made here.
    pub fn new(files: &Files) -> Result<Self> {
        let (client, server) = (Namespace::new()?, Namespace::new()?);
        let veth =
            format!("link add eth0 netns {} type veth peer name eth0 netns {}", client.first, server.first);
        succeed(Command::new("ip").args(veth.split_whitespace()), None, LIMIT).context("ip (iproute2)")?;
        client.prepare(CLIENT, SERVER)?;
        server.prepare(SERVER, CLIENT)?;
        let app = server.start(files.server())?;
        Ok(Self { client, server, app })
    }

    /// Sets on both sides the redirect that a pod has.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn redirect(&self, files: &Files) -> Result<()> {
        for side in [&self.client, &self.server] {
            let mut command = Command::new(files.proxy());
            command.arg("init");
            let output = side.run(command, LIMIT)?;
            ensure!(output.ok(), "cinch-proxy init: {}", output.text().trim());
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.app.kill();
        let _ = self.app.wait();
    }
}
