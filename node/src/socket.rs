//! Unix sockets at paths of any length, put in place whole.

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fchmod, openat, renameat, statat, unlinkat};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Callers wait in line: each is served within milliseconds.
const BACKLOG: i32 = 64;
/// A socket has the name under which it is made for milliseconds: one that has it for longer is of a process that ended
/// before it could give it another.
const STAGED_FOR: Duration = Duration::from_secs(60);
/// Sockets that this process has made.
static MADE: AtomicU64 = AtomicU64::new(0);

/// The file of a socket: its device and inode. No other file has the same while the socket is open.
pub type FileId = (u64, u64);

/// The file that has a name; nothing when none has. A link is not followed.
#[must_use]
pub fn file_at(path: &Path) -> Option<FileId> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino())).ok()
}

/// A socket that listens, and does not have its name yet. Dropped without it, it leaves nothing behind.
#[derive(Debug)]
pub struct Staged {
    socket: Option<Socket>,
    directory: OwnedFd,
    name: String,
    /// What it is called until then.
    made_as: String,
    file: FileId,
}

impl Staged {
    /// By which it is known again.
    #[must_use]
    pub fn file(&self) -> FileId {
        self.file
    }

    /// Gives it its name, in place of whatever has it.
    ///
    /// # Errors
    /// The system's error.
    pub fn put_in_place(mut self) -> io::Result<UnixListener> {
        let socket = self.socket.take().ok_or(io::ErrorKind::NotConnected)?;
        let renamed = renameat(&self.directory, &self.made_as, &self.directory, &self.name);
        if let Err(error) = renamed {
            self.socket = Some(socket);
            return Err(error.into());
        }
        Ok(UnixListener::from(OwnedFd::from(socket)))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.socket.is_some() {
            // Nobody could do anything about it.
            let _ = unlinkat(&self.directory, &self.made_as, AtFlags::empty());
        }
    }
}

/// Of its own for each socket: two agents may be about to take the same place.
fn staged(name: &str) -> String {
    let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    format!(".{name}.{process}-{number}{STAGED}")
}

/// Ends the name of a socket that has not got its own.
const STAGED: &str = ".new";

/// Removes what agents that were killed have left of sockets that would have become `name`.
pub fn sweep(directory: &Path, name: &str) {
    let begin = format!(".{name}.");
    let now = SystemTime::now();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let is_staged = entry
            .file_name()
            .to_str()
            .is_some_and(|found| found.strip_prefix(&begin).is_some_and(|rest| rest.ends_with(STAGED)));
        let made = entry.metadata().and_then(|found| found.modified());
        let is_old = made.is_ok_and(|made| now.duration_since(made).is_ok_and(|age| age > STAGED_FOR));
        if is_staged && is_old {
            // It is tried again by the next agent.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Makes a socket that will be `name` in `directory`, for those whom `mode` lets write.
///
/// The path of a Unix socket has at most 107 bytes (unix(7)), and those of volumes are longer: it is bound by way
/// of an open directory. A name put in place by renaming is never missing and never leads to a socket that nobody
/// listens on; the kubelet passes over names that begin with a dot.
///
/// # Errors
/// The system's error.
pub fn stage(directory: &Path, name: &str, mode: u32) -> io::Result<Staged> {
    let at = openat(CWD, directory, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let new = staged(name);
    // Of an earlier process with the same number.
    match unlinkat(&at, &new, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The permissions that the name will have: no later change of mode, which could be led elsewhere by a link.
    fchmod(&socket, Mode::from_raw_mode(mode))?;
    socket.bind(&SockAddr::unix(format!("/proc/self/fd/{}/{new}", at.as_raw_fd()))?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let found = statat(&at, &new, AtFlags::SYMLINK_NOFOLLOW)?;
    let file = (found.st_dev, found.st_ino);
    Ok(Staged { socket: Some(socket), directory: at, name: name.to_owned(), made_as: new, file })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixStream;

    fn listen(directory: &Path, name: &str, mode: u32) -> io::Result<UnixListener> {
        stage(directory, name, mode)?.put_in_place()
    }

    /// Connects as a pod does, whose own path is short.
    fn connect(directory: &Path, name: &str) -> io::Result<UnixStream> {
        let at = fs::File::open(directory)?;
        UnixStream::connect(format!("/proc/self/fd/{}/{name}", at.as_raw_fd()))
    }

    #[test]
    fn a_socket_at_a_long_path_answers_and_is_replaced() {
        let tree = tempfile::tempdir().unwrap();
        let directory = tree.path().join("x".repeat(200));
        fs::create_dir(&directory).unwrap();
        let first = listen(&directory, "agent.sock", 0o666).unwrap();
        let mode = fs::metadata(directory.join("agent.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o600, 0o600, "{mode:o}");
        connect(&directory, "agent.sock").unwrap();
        first.accept().unwrap();
        let second = listen(&directory, "agent.sock", 0o600).unwrap();
        connect(&directory, "agent.sock").unwrap();
        second.accept().unwrap();
        assert_eq!(first.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    }

    #[test]
    fn a_socket_has_no_name_until_it_is_put_in_place_and_is_known_by_its_file() {
        let tree = tempfile::tempdir().unwrap();
        let path = tree.path().join("agent.sock");
        let first = stage(tree.path(), "agent.sock", 0o600).unwrap();
        assert_eq!(file_at(&path), None);
        let file = first.file();
        let first = first.put_in_place().unwrap();
        assert_eq!(file_at(&path), Some(file));
        let second = stage(tree.path(), "agent.sock", 0o600).unwrap();
        assert_eq!(file_at(&path), Some(file), "the first has the name still");
        connect(tree.path(), "agent.sock").unwrap();
        first.accept().unwrap();
        let later = second.file();
        second.put_in_place().unwrap();
        assert_eq!(file_at(&path), Some(later));
        assert_ne!(later, file);
    }

    #[test]
    fn two_that_are_about_to_take_one_place_do_not_disturb_each_other() {
        let tree = tempfile::tempdir().unwrap();
        let first = stage(tree.path(), "agent.sock", 0o600).unwrap();
        let second = stage(tree.path(), "agent.sock", 0o600).unwrap();
        let third = stage(tree.path(), "agent.sock", 0o600).unwrap();
        let (earlier, later) = (first.file(), second.file());
        let earlier_socket = first.put_in_place().unwrap();
        assert_eq!(file_at(&tree.path().join("agent.sock")), Some(earlier));
        connect(tree.path(), "agent.sock").unwrap();
        earlier_socket.accept().unwrap();
        let later_socket = second.put_in_place().unwrap();
        assert_eq!(file_at(&tree.path().join("agent.sock")), Some(later));
        connect(tree.path(), "agent.sock").unwrap();
        later_socket.accept().unwrap();
        drop(third);
        assert_eq!(fs::read_dir(tree.path()).unwrap().count(), 1, "who was not put in place has gone");
    }

    #[test]
    fn what_a_killed_agent_has_left_is_swept_and_nothing_else() {
        let tree = tempfile::tempdir().unwrap();
        let long_ago = SystemTime::now() - 2 * STAGED_FOR;
        let make = |name: &str, made: SystemTime| {
            fs::File::create(tree.path().join(name)).unwrap().set_modified(made).unwrap();
        };
        make(".csi.sock.7-0.new", long_ago);
        make(".csi.sock.8-0.new", SystemTime::now());
        for kept in ["csi.sock", ".csi.sock.7-0", ".other.sock.7-0.new"] {
            make(kept, long_ago);
        }
        sweep(tree.path(), "csi.sock");
        let names = fs::read_dir(tree.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string());
        let mut names: Vec<String> = names.map(Result::unwrap).collect();
        names.sort_unstable();
        assert_eq!(names, [".csi.sock.7-0", ".csi.sock.8-0.new", ".other.sock.7-0.new", "csi.sock"]);
    }

    #[test]
    fn links_in_its_place_are_replaced_and_not_followed() {
        let tree = tempfile::tempdir().unwrap();
        let victim = tree.path().join("victim");
        fs::write(&victim, "kept").unwrap();
        let directory = tree.path().join("mount");
        fs::create_dir(&directory).unwrap();
        symlink(&victim, directory.join("agent.sock")).unwrap();
        listen(&directory, "agent.sock", 0o666).unwrap();
        let kind = fs::symlink_metadata(directory.join("agent.sock")).unwrap().file_type();
        assert!(kind.is_socket());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");

        let link = tree.path().join("link");
        symlink(&directory, &link).unwrap();
        assert!(listen(&link, "agent.sock", 0o666).is_err());
    }
}
