//! Where a redirected connection was meant to go.

#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// linux/netfilter_ipv4.h
const SO_ORIGINAL_DST: i32 = 80;
/// linux/netfilter_ipv6/ip6_tables.h
const IP6T_SO_ORIGINAL_DST: i32 = 80;

/// Reads `option` into a zeroed `T`.
///
/// # Safety
/// Every bit pattern of `T` must be valid, all-zero included.
unsafe fn read<T>(fd: BorrowedFd<'_>, level: i32, option: i32) -> io::Result<T> {
    // SAFETY: the caller promises that all-zero is a valid T.
    let mut value: T = unsafe { zeroed() };
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for writes of `length` bytes and the kernel writes no more than that.
    let done =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

fn family(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: an int has no invalid bit pattern.
    unsafe { read::<libc::c_int>(fd, libc::SOL_SOCKET, libc::SO_DOMAIN) }
}

fn original_v4(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    // SAFETY: sockaddr_in is plain integers.
    let address = unsafe { read::<libc::sockaddr_in>(fd, libc::SOL_IP, SO_ORIGINAL_DST) }?;
    let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
    Ok(SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into())
}

fn original_v6(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    // SAFETY: sockaddr_in6 is plain integers.
    let address = unsafe { read::<libc::sockaddr_in6>(fd, libc::SOL_IPV6, IP6T_SO_ORIGINAL_DST) }?;
    let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
    Ok(SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, address.sin6_scope_id).into())
}

/// Of which protocol a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6, and no IPv4 in its clothes.
    V6,
}

impl Family {
    /// That of connections that a listener on `address` accepts; one of IPv6 must be `V6ONLY`.
    #[must_use]
    pub fn of(address: SocketAddr) -> Family {
        if address.is_ipv6() { Family::V6 } else { Family::V4 }
    }
}

/// The address and port that the client of an accepted TCP connection dialled, before any redirect.
///
/// A connection that was not redirected answers its own local address when it is tracked; so compare the
/// result with what the caller serves. Listeners must be of one family each (IPv4, or IPv6 with `V6ONLY`).
///
/// # Errors
/// The system's error; `NotFound` when the connection is not tracked at all.
pub fn original_destination(socket: &impl AsFd) -> io::Result<SocketAddr> {
    let of = if family(socket.as_fd())? == libc::AF_INET6 { Family::V6 } else { Family::V4 };
    original_destination_in(of, socket)
}

/// As [`original_destination`], where it is known of which family the connection is: that saves a system call.
///
/// Only the question of the own family has an answer that is the connection's own. Linux takes that of IPv4 for a
/// socket of IPv6 too, and looks among connections from 127.0.0.6 to 127.0.0.6: every process of the pod can have one
/// with the same ports.
///
/// # Errors
/// As [`original_destination`].
pub fn original_destination_in(family: Family, socket: &impl AsFd) -> io::Result<SocketAddr> {
    match family {
        Family::V4 => original_v4(socket.as_fd()),
        Family::V6 => original_v6(socket.as_fd()),
    }
}
