//! A pair of proxies in their places, from their start to their end, and load through them.

use super::files::Files;
use super::network::{Namespace, Network, SERVER};
use super::peers::{Peer, Proxies};
use super::workloads::Measured;
use crate::process::tail;
use crate::wait::{Seen, until};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Envoy takes a second or two.
const READY: Duration = Duration::from_secs(20);
/// From SIGTERM to SIGKILL.
const PATIENCE: Duration = Duration::from_secs(3);
/// The redirect's exempt user.
pub const PROXY_USER: u32 = 1507;

/// A started pair. Dropping it ends it.
pub struct Pair<'a> {
    network: &'a Network,
    files: &'a Files,
    proxies: Vec<Proxy>,
    token: Option<String>,
}

struct Proxy {
    child: Child,
    log: PathBuf,
}

impl<'a> Pair<'a> {
    /// Starts it and waits until bytes come through.
    ///
    /// # Errors
    /// When a proxy ends or nothing comes through: with the end of its log.
    pub fn start(network: &'a Network, files: &'a Files, peer: &Peer) -> Result<Self> {
        let mut pair = Self { network, files, proxies: Vec::new(), token: files.token_for(peer) };
        // The client's first: their processor time is reported in this order.
        for (side, name) in [(&network.client, "client"), (&network.server, "server")] {
            if let Some(command) = files.proxy_command(peer.proxies, name) {
                pair.proxies.push(Proxy::start(
                    side,
                    command,
                    files.log(peer.name, name),
                    logs_to_a_reader(peer.proxies),
                )?);
            }
        }
        let ready = until(&format!("{} to serve", peer.name), READY, || {
            pair.alive()?;
            let (protocol, port) = peer.probe();
            let probe = ["closed", protocol, "--connections=1", "--warm-up=0", "--seconds=0.1"];
            let words: Vec<String> = probe.iter().map(|word| (*word).to_owned()).collect();
            let measured = pair.load(&words, port, READY)?;
            let served = measured.done > 0 && measured.errors == 0;
            Ok(if served { Seen::Done(()) } else { Seen::Not(format!("{measured:?}")) })
        });
        ready.with_context(|| format!("the proxies' logs end so:{}", pair.ends_of_logs()))?;
        Ok(pair)
    }

    /// Puts load through the pair.
    ///
    /// # Errors
    /// When it can't be started, takes longer than `limit`, or gives up.
    pub fn load(&self, words: &[String], port: u16, limit: Duration) -> Result<Measured> {
        let mut command = Command::new(self.files.load());
        command.args(words).arg(format!("--to={SERVER}:{port}"));
        command.args(self.token.iter().flat_map(|token| ["--token", token]));
        let pids: Vec<String> = self.proxies.iter().map(|proxy| proxy.child.id().to_string()).collect();
        if !pids.is_empty() {
            command.arg(format!("--pids={}", pids.join(",")));
        }
        let output = self.network.client.run(command, limit)?;
        if !output.ok() {
            bail!("{}{}", output.stderr.trim(), self.ends_of_logs());
        }
        serde_json::from_str(output.stdout.trim())
            .with_context(|| format!("the load said {:?}", output.stdout))
    }

    fn alive(&mut self) -> Result<()> {
        for proxy in &mut self.proxies {
            if let Some(status) = proxy.child.try_wait()? {
                bail!("a proxy ended ({status}): {}", tail(&proxy.log, 10));
            }
        }
        Ok(())
    }

    fn ends_of_logs(&self) -> String {
        let logs = self.proxies.iter().map(|proxy| tail(&proxy.log, 3));
        logs.filter(|log| !log.is_empty()).map(|log| format!("\n{log}")).collect()
    }
}

/// Whose standard output is read as the kubelet's runtime would, and thrown away.
fn logs_to_a_reader(proxies: Proxies) -> bool {
    matches!(proxies, Proxies::Cinch(_))
}

impl Proxy {
    fn start(side: &Namespace, mut command: Command, log: PathBuf, read: bool) -> Result<Self> {
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        command.uid(PROXY_USER).gid(PROXY_USER).stdin(Stdio::null()).stderr(file.try_clone()?);
        command.stdout(if read { Stdio::piped() } else { Stdio::from(file) });
        let mut child = side.start(command)?;
        if let Some(mut output) = child.stdout.take() {
            thread::spawn(move || discard(&mut output));
        }
        Ok(Self { child, log })
    }
}

/// In large pieces: the reader shares the processor with those who are measured.
fn discard(from: &mut impl Read) {
    let mut piece = vec![0; 256 * 1024];
    while matches!(from.read(&mut piece), Ok(1..)) {}
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > PATIENCE {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Raises the limit of open files of this process, which all that it starts inherits.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_open_files() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}
