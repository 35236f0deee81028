//! The asker: puts the sidecar's question to the node agent, as any container can that finds a way to its socket. In
//! goes that way, and what is done to be taken for the sidecar; out comes one line with the answer. It stays then, so
//! that its pod can be looked at; who asks in a loop ends.

#![allow(unsafe_code)]

use anyhow::{Context, Result, ensure};
use cinch_redirect::request::{Answer, Request};
use std::ffi::{CString, OsString, c_ulong};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// As long as the sidecar waits.
const LIMIT: Duration = Duration::from_secs(12);
/// Where the kubelet mounts the file by whose path a container's name is known.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// Where a file system in memory is mounted.
const MEMORY: &str = "/memory";

#[derive(clap::Args)]
pub struct Options {
    /// The agent's socket.
    #[arg(long)]
    socket: PathBuf,
    /// Mount a file that has this path, in a file system of its own, in the place of the own termination log; needs
    /// root with SYS_ADMIN.
    #[arg(long)]
    forge: Option<PathBuf>,
    /// Ask as this user; needs root.
    #[arg(long)]
    user: Option<u32>,
    /// Ask so often without a pause, and end then.
    #[arg(long)]
    times: Option<usize>,
}

/// A way to the socket that was open to whoever went it.
struct Way {
    directory: File,
    name: OsString,
}

pub async fn run(options: &Options) -> Result<()> {
    let way = way(options);
    for _ in 0..options.times.unwrap_or(1) {
        println!("asked: {}", told(&way).await);
    }
    if options.times.is_some() {
        return Ok(());
    }
    crate::terminated().await
}

async fn told(way: &Result<Way>) -> String {
    let way = match way {
        Ok(way) => way,
        Err(error) => return format!("no answer: {error:#}"),
    };
    match timeout(LIMIT, ask(way)).await {
        Ok(Ok(Answer::Done { cgroup, level, .. })) => format!("done: {cgroup} at level {level} is exempt"),
        Ok(Ok(Answer::Refused { reason, sentence })) => format!("{reason}: {sentence}"),
        Ok(Err(error)) => format!("no answer: {error:#}"),
        Err(_) => "no answer in time".to_owned(),
    }
}

/// Goes the way as whoever this is now, and then does what shall be done to be taken for the sidecar: to the user that
/// asks, the way may be closed.
fn way(options: &Options) -> Result<Way> {
    let (directory, name) = (options.socket.parent(), options.socket.file_name());
    let directory =
        File::open(directory.context("the socket has no directory")?).context("the way to the socket")?;
    let name = name.context("the socket has no name")?.to_owned();
    if let Some(path) = &options.forge {
        forge(path).context("the look-alike of a termination log")?;
    }
    if let Some(user) = options.user {
        become_user(user).context("the other user")?;
    }
    Ok(Way { directory, name })
}

async fn ask(way: &Way) -> Result<Answer> {
    let directory = Path::new("/proc/self/fd").join(way.directory.as_raw_fd().to_string());
    let mut stream = UnixStream::connect(directory.join(&way.name)).await?;
    stream.write_all(&Request { nonce: 0, look: false }.encode()).await?;
    let mut bytes = Vec::new();
    loop {
        if let Some(answer) = Answer::decode(&bytes)? {
            return Ok(answer);
        }
        ensure!(stream.read_buf(&mut bytes).await? > 0, "the connection has ended");
    }
}

/// Puts a file in memory, whose path there is `path`, in the place of this container's termination log.
fn forge(path: &Path) -> Result<()> {
    let (memory, log) = (Path::new(MEMORY), Path::new(TERMINATION_LOG));
    fs::create_dir_all(memory)?;
    mount(Path::new("tmpfs"), memory, "tmpfs", 0)?;
    let file = memory.join(path.strip_prefix("/")?);
    fs::create_dir_all(file.parent().context("a path without a directory")?)?;
    fs::write(&file, "")?;
    unmount(log)?;
    Ok(mount(&file, log, "", libc::MS_BIND)?)
}

fn mount(source: &Path, target: &Path, kind: &str, flags: c_ulong) -> io::Result<()> {
    let (source, target, kind) = (text(source)?, text(target)?, CString::new(kind)?);
    // SAFETY: all three are strings that end with NUL and live through the call; there is no data.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) })
}

fn unmount(target: &Path) -> io::Result<()> {
    let target = text(target)?;
    // SAFETY: it is a string that ends with NUL and lives through the call.
    check(unsafe { libc::umount2(target.as_ptr(), 0) })
}

fn become_user(user: u32) -> io::Result<()> {
    // SAFETY: setuid takes a plain number.
    check(unsafe { libc::setuid(user) })
}

fn text(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn check(done: libc::c_int) -> io::Result<()> {
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
