//! Questions to the kernel about the network namespace of the calling thread: a request goes in, the messages of
//! its dump come out (netlink(7)).

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};
use std::io::{self, ErrorKind};
use std::time::Duration;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
/// Nested attributes and such in network order carry a flag in their kind.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// A kernel that doesn't answer must not hold a pod's other questions for ever.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The kernel fills dumps up to 32 KiB a read.
const RECEIVE_BUFFER: usize = 32 * 1024;

/// Asks the part of the kernel that `protocol` names (`None`: routing) and hands the payload of each message that
/// answers to `each`, in order, until it says that it has enough.
///
/// # Errors
/// The system's error; `NotFound` where this kernel has no such family, protocol or subsystem.
pub fn dump(
    protocol: Option<Protocol>,
    kind: u16,
    request: &[u8],
    mut each: impl FnMut(&[u8]) -> Wanted,
) -> io::Result<()> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    // Only the kernel, port 0, can answer a connected socket.
    connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    send(&socket, &encode(kind, request), SendFlags::empty())?;
    let mut buffer = vec![0; RECEIVE_BUFFER];
    loop {
        let (_, read) = match recv(&socket, &mut buffer, RecvFlags::empty()) {
            Err(rustix::io::Errno::INTR) => continue,
            received => received?,
        };
        let mut bytes = buffer.get(..read).ok_or(ErrorKind::InvalidData)?;
        while let Some((kind, payload)) = take(&mut bytes) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(error(payload)),
                _ => {
                    if each(payload) == Wanted::Enough {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Whether a dump goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It does.
    More,
    /// The rest is left.
    Enough,
}

fn encode(kind: u16, request: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + request.len()).unwrap_or(u32::MAX);
    let mut out = length.to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence number and port: one request for each socket.
    out.extend([0; 8]);
    out.extend(request);
    out
}

/// Takes the first message off `bytes`: its kind and what follows its header. `None` at the end.
fn take<'a>(bytes: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let message = bytes.get(..length)?;
    let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    let payload = message.get(HEADER..)?;
    *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, payload))
}

fn error(payload: &[u8]) -> io::Error {
    match payload.first_chunk().map(|number| i32::from_ne_bytes(*number).wrapping_neg()) {
        None | Some(0) => ErrorKind::InvalidData.into(),
        // What a kernel without the module says, by its age.
        Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => {
            ErrorKind::NotFound.into()
        }
        Some(number) => io::Error::from_raw_os_error(number),
    }
}

/// The first attribute of `kind` in `bytes`.
#[must_use]
pub fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let found = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_one_by_one_and_cut_ones_end_the_parse() {
        let wire = [encode(20, &[1, 2, 3, 4]), encode(21, &[])].concat();
        let mut bytes = &wire[..];
        assert_eq!(take(&mut bytes), Some((20, &[1, 2, 3, 4][..])));
        assert_eq!(take(&mut bytes), Some((21, &[][..])));
        assert_eq!(take(&mut bytes), None);
        for cut in 0..wire.len() {
            let mut bytes = &wire[..cut];
            while take(&mut bytes).is_some() {}
        }
        assert_eq!(take(&mut &[0; 64][..]), None, "a message of no length");
    }

    #[test]
    fn attributes_are_found_whatever_stands_before_them() {
        let bytes = [&[5, 0, 1, 0, 9, 0, 0, 0][..], &[8, 0, 2, 0x80, 1, 2, 3, 4]].concat();
        assert_eq!(attribute(&bytes, 1), Some(&[9][..]));
        assert_eq!(attribute(&bytes, 2), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attribute(&bytes, 3), None);
        assert_eq!(attribute(&[0; 16], 3), None);
        for cut in 0..bytes.len() {
            let _ = attribute(&bytes[..cut], 2);
        }
    }

    #[test]
    fn errors_of_kernels_without_the_module_are_told_from_others() {
        let of = |number: i32| error(&(-number).to_ne_bytes()).kind();
        assert_eq!(of(libc::ENOENT), ErrorKind::NotFound);
        assert_eq!(of(libc::EPERM), ErrorKind::PermissionDenied);
        assert_eq!(error(&[]).kind(), ErrorKind::InvalidData);
        assert_eq!(error(&i32::MIN.to_ne_bytes()).kind(), io::Error::from_raw_os_error(i32::MIN).kind());
    }
}
