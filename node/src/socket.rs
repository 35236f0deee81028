//! Unix sockets at paths of any length, put in place whole.

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fchmod, openat, renameat, statat, unlinkat};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// Callers wait in line: each is served within milliseconds.
const BACKLOG: i32 = 64;

/// The file of a socket: its device and inode. No other file has the same while the socket is open.
pub type FileId = (u64, u64);

/// The file that has a name; nothing when none has. A link is not followed.
#[must_use]
pub fn file_at(path: &Path) -> Option<FileId> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino())).ok()
}

/// A socket that listens, and does not have its name yet.
#[derive(Debug)]
pub struct Staged {
    socket: Socket,
    directory: OwnedFd,
    name: String,
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
    pub fn put_in_place(self) -> io::Result<UnixListener> {
        renameat(&self.directory, staged(&self.name), &self.directory, &self.name)?;
        Ok(UnixListener::from(OwnedFd::from(self.socket)))
    }
}

fn staged(name: &str) -> String {
    format!(".{name}.new")
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
    Ok(Staged { socket, directory: at, name: name.to_owned(), file: (found.st_dev, found.st_ino) })
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
    fn links_in_its_place_are_replaced_and_not_followed() {
        let tree = tempfile::tempdir().unwrap();
        let victim = tree.path().join("victim");
        fs::write(&victim, "kept").unwrap();
        let directory = tree.path().join("mount");
        fs::create_dir(&directory).unwrap();
        for name in ["agent.sock", ".agent.sock.new"] {
            symlink(&victim, directory.join(name)).unwrap();
        }
        listen(&directory, "agent.sock", 0o666).unwrap();
        let kind = fs::symlink_metadata(directory.join("agent.sock")).unwrap().file_type();
        assert!(kind.is_socket());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");

        let link = tree.path().join("link");
        symlink(&directory, &link).unwrap();
        assert!(listen(&link, "agent.sock", 0o666).is_err());
    }
}
