//! Netlink as nf_tables speaks it: requests in, acknowledgements and dumped messages out.
//!
//! Integers of the netlink header are in host order, those of nf_tables attributes big-endian
//! (linux/netlink.h, linux/netfilter/nfnetlink.h).

#![allow(unsafe_code)]

use crate::RedirectError;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// The acknowledgement carries attributes after the (capped) request.
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;
const SUBSYSTEM_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// A kernel that doesn't answer must not hold a pod's start for ever.
const ANSWER_TIMEOUT_SECONDS: libc::time_t = 5;
/// The kernel fills dumps up to 32 KiB a read.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// Attributes of a message, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // Attribute values here are names, ports and addresses: far below the 64 KiB of the length field.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn nested(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    /// Appends `other`'s attributes.
    pub(crate) fn and(mut self, other: Attributes) -> Self {
        self.0.extend_from_slice(&other.0);
        self
    }
}

/// One nf_tables request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) family: u8,
    pub(crate) attributes: Attributes,
    /// What an error message calls it.
    pub(crate) label: String,
}

fn put(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    attributes: &[u8],
) {
    let length = u32::try_from(HEADER + FAMILY_HEADER + attributes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
    out.extend_from_slice(attributes);
}

fn put_request(out: &mut Vec<u8>, request: &Request, flags: u16, sequence: u32) {
    let kind = SUBSYSTEM_NFTABLES << 8 | request.kind;
    put(out, kind, request.flags | flags, sequence, request.family, 0, &request.attributes.0);
}

/// A batch as it goes over the wire; request `n` has the sequence number `n + 1`, the begin has 0.
fn encode_batch(requests: &[Request]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 * 1024);
    put(&mut out, BATCH_BEGIN, 0, 0, 0, SUBSYSTEM_NFTABLES, &[]);
    let mut sequence = 0;
    for request in requests {
        sequence += 1;
        put_request(&mut out, request, NLM_F_ACK, sequence);
    }
    put(&mut out, BATCH_END, 0, sequence + 1, 0, SUBSYSTEM_NFTABLES, &[]);
    out
}

/// One message of the kernel.
#[derive(Debug)]
struct Answer<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// Takes the first message off `bytes`; `None` at the end or when the bytes are no message.
fn take_answer<'a>(bytes: &mut &'a [u8]) -> Option<Answer<'a>> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let message = bytes.get(..length)?;
    let answer = Answer {
        kind: u16::from_ne_bytes(*message.get(4..)?.first_chunk()?),
        flags: u16::from_ne_bytes(*message.get(6..)?.first_chunk()?),
        sequence: u32::from_ne_bytes(*message.get(8..)?.first_chunk()?),
        payload: message.get(HEADER..)?,
    };
    *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(answer)
}

/// The first attribute of `kind` in `bytes`.
pub(crate) fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
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

/// The error number of an acknowledgement (0: done) and the kernel's words.
fn acknowledgement(answer: &Answer<'_>) -> Option<(i32, String)> {
    let error = i32::from_ne_bytes(*answer.payload.first_chunk()?);
    let mut words = String::new();
    if answer.flags & NLM_F_ACK_TLVS != 0 {
        // The request's header is repeated without its body: NETLINK_CAP_ACK is set.
        let attributes = answer.payload.get(4 + HEADER..).unwrap_or_default();
        if let Some(text) = attribute(attributes, NLMSGERR_ATTR_MSG) {
            words = String::from_utf8_lossy(text).trim_end_matches('\0').to_owned();
        }
    }
    Some((-error, words))
}

/// A netlink socket in the network namespace of the thread that opened it.
pub(crate) struct Socket {
    fd: OwnedFd,
}

fn failed(action: &'static str) -> RedirectError {
    RedirectError::Socket { action, source: io::Error::last_os_error() }
}

impl Socket {
    pub(crate) fn open() -> Result<Self, RedirectError> {
        // SAFETY: socket() takes no pointers; the result is checked before use.
        let fd = unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER)
        };
        if fd < 0 {
            return Err(failed("socket"));
        }
        // SAFETY: `fd` was just returned by the kernel and nobody else owns it.
        let socket = Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } };
        socket.set(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, &1i32, "NETLINK_CAP_ACK")?;
        // Kernels before 4.12 have no words for errors; their numbers are enough then.
        let _ = socket.set(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, &1i32, "NETLINK_EXT_ACK");
        let timeout = libc::timeval { tv_sec: ANSWER_TIMEOUT_SECONDS, tv_usec: 0 };
        socket.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout, "SO_RCVTIMEO")?;
        socket.connect_to_kernel()?;
        Ok(socket)
    }

    fn set<T>(&self, level: i32, option: i32, value: &T, action: &'static str) -> Result<(), RedirectError> {
        let length = size_of::<T>() as libc::socklen_t;
        // SAFETY: `value` is valid for reads of `length` bytes for the whole call, and the descriptor is open.
        let done = unsafe {
            libc::setsockopt(self.fd.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), length)
        };
        if done < 0 { Err(failed(action)) } else { Ok(()) }
    }

    /// Only the kernel (port 0) can answer a connected socket.
    fn connect_to_kernel(&self) -> Result<(), RedirectError> {
        // SAFETY: all-zero is a valid sockaddr_nl.
        let mut kernel: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        kernel.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: `kernel` is a sockaddr_nl of `length` bytes that lives through the call.
        let done = unsafe { libc::connect(self.fd.as_raw_fd(), (&raw const kernel).cast(), length) };
        if done < 0 { Err(failed("connect")) } else { Ok(()) }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), RedirectError> {
        // SAFETY: `bytes` is valid for reads of its length; a netlink send takes the datagram as a whole.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(failed("send")) } else { Ok(()) }
    }

    fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a [u8], RedirectError> {
        loop {
            // SAFETY: `buffer` is valid for writes of its length and not aliased.
            let read =
                unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            if let Ok(read) = usize::try_from(read) {
                return buffer.get(..read).ok_or(RedirectError::Answer);
            }
            if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return Err(failed("receive"));
            }
        }
    }

    /// Does all of `requests` or nothing.
    pub(crate) fn batch(&self, requests: &[Request]) -> Result<(), RedirectError> {
        self.send(&encode_batch(requests))?;
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let mut done = 0;
        while done < requests.len() {
            let mut bytes = self.receive(&mut buffer)?;
            while let Some(answer) = take_answer(&mut bytes) {
                if answer.kind != NLMSG_ERROR {
                    continue;
                }
                let (error, detail) = acknowledgement(&answer).ok_or(RedirectError::Answer)?;
                if error != 0 {
                    let step = (answer.sequence as usize).checked_sub(1).and_then(|n| requests.get(n));
                    return Err(RedirectError::Refused {
                        step: step.map_or("the batch", |request| &request.label).to_owned(),
                        source: io::Error::from_raw_os_error(error),
                        detail,
                    });
                }
                done += 1;
            }
        }
        Ok(())
    }

    /// The attributes of every message that answers `request`; nothing there is an empty list.
    pub(crate) fn dump(&self, request: &Request) -> Result<Vec<Vec<u8>>, RedirectError> {
        let mut wire = Vec::new();
        put_request(&mut wire, request, NLM_F_DUMP, 1);
        self.send(&wire)?;
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let mut found = Vec::new();
        loop {
            let mut bytes = self.receive(&mut buffer)?;
            while let Some(answer) = take_answer(&mut bytes) {
                match answer.kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => {
                        let (error, detail) = acknowledgement(&answer).ok_or(RedirectError::Answer)?;
                        if error == libc::ENOENT {
                            return Ok(found);
                        }
                        let source = io::Error::from_raw_os_error(error);
                        return Err(RedirectError::Refused { step: request.label.clone(), source, detail });
                    }
                    _ => found.extend(answer.payload.get(FAMILY_HEADER..).map(<[u8]>::to_vec)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let inner = Attributes::new().text(1, "cinch").u32(2, 7);
        let outer = Attributes::new().bytes(9, &[1, 2, 3]).nested(4, inner);
        let nest = attribute(&outer.0, 4).unwrap();
        assert_eq!(attribute(nest, 1), Some(&b"cinch\0"[..]));
        assert_eq!(attribute(nest, 2), Some(&[0, 0, 0, 7][..]));
        assert_eq!(attribute(nest, 3), None);
        assert_eq!(attribute(&outer.0, 9), Some(&[1, 2, 3][..]));
    }

    #[test]
    fn answers_cut_anywhere_are_no_panic() {
        let mut wire = Vec::new();
        put(&mut wire, NLMSG_ERROR, NLM_F_ACK_TLVS, 3, 0, 0, &[0; 40]);
        for cut in 0..wire.len() {
            let mut bytes = &wire[..cut];
            while let Some(answer) = take_answer(&mut bytes) {
                let _ = acknowledgement(&answer);
            }
            let _ = attribute(&wire[..cut], 1);
        }
    }

    #[test]
    fn a_message_of_no_length_ends_the_parse() {
        let mut bytes = &[0u8; 64][..];
        assert!(take_answer(&mut bytes).is_none());
        assert!(attribute(&[0; 16], 5).is_none());
    }
}
