//! A process of the node, held by a pidfd, so that its number can't come to mean another one unnoticed.

#![allow(unsafe_code)]

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, getuid, pidfd_open};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// asm-generic/socket.h; Linux 6.5.
const SO_PEERPIDFD: i32 = 77;

/// A process that may end but can't be mistaken.
#[derive(Debug)]
pub struct ProcessHandle {
    id: i32,
    handle: OwnedFd,
}

/// Who is at the other end of a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Number of the process in our PID namespace; 0 when it is not visible from there.
    pub process: i32,
    /// Its user at the time of connecting.
    pub user: u32,
}

impl ProcessHandle {
    /// The process that connected `socket`.
    ///
    /// # Errors
    /// The system's error; `NotFound` when the process is not visible here or has ended.
    pub fn of_peer(socket: &impl AsFd, credentials: Credentials) -> io::Result<Self> {
        let id = credentials.process;
        let pid = Pid::from_raw(id).ok_or(io::ErrorKind::NotFound)?;
        let handle = match peer_handle(socket) {
            Ok(handle) => handle,
            // Before 6.5. The number may have been given to another process since it connected; the answer is
            // about whichever process is examined, so that gains nothing.
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                pidfd_open(pid, PidfdFlags::empty())?
            }
            Err(error) => return Err(error),
        };
        Ok(Self { id, handle })
    }

    /// This process.
    ///
    /// # Errors
    /// The system's error, before Linux 5.3.
    pub fn own() -> io::Result<Self> {
        let pid = rustix::process::getpid();
        Ok(Self { id: pid.as_raw_nonzero().get(), handle: pidfd_open(pid, PidfdFlags::empty())? })
    }

    /// Its number in our PID namespace.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.id
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        // A pidfd becomes readable when its process ends (pidfd_open(2)).
        let mut wait = [PollFd::new(&self.handle, PollFlags::IN)];
        matches!(poll(&mut wait, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
    }
}

/// Whether this process is root, without which nothing here works.
#[must_use]
pub fn is_root() -> bool {
    getuid().is_root()
}

fn peer_handle(socket: &impl AsFd) -> io::Result<OwnedFd> {
    let mut handle: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `handle` is valid for writes of `length` bytes, and the kernel writes no more than that.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut handle).cast(),
            &raw mut length,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    if handle < 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    // SAFETY: the kernel just made this descriptor for us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(handle) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_peer_of_a_socket_is_held_and_its_end_is_seen() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let own = ProcessHandle::own().unwrap();
        let credentials = Credentials { process: own.id(), user: 0 };
        assert!(ProcessHandle::of_peer(&ours, credentials).unwrap().is_alive());
        drop(theirs);

        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let handle = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let held = ProcessHandle { id: pid.as_raw_nonzero().get(), handle };
        assert!(held.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!held.is_alive());
    }

    #[test]
    fn a_peer_that_is_not_visible_is_none() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let error = ProcessHandle::of_peer(&ours, Credentials { process: 0, user: 0 }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
