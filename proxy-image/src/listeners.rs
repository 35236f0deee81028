//! The listening sockets, and the thread of the data path that serves them.

use crate::context::Context;
use crate::{inbound, outbound};
use anyhow::{Context as _, Result};
use futures::future::{self, LocalBoxFuture};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// Open sockets that nobody serves yet.
#[derive(Debug)]
pub struct Listeners {
    inbound: Vec<StdListener>,
    outbound: Vec<StdListener>,
}

/// `backlog`: connections that wait to be accepted; the system may allow fewer (net.core.somaxconn).
fn open(at: SocketAddr, backlog: usize) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted proxy must not wait for connections of the last one to be forgotten.
    socket.set_reuse_address(true)?;
    if at.is_ipv6() {
        // The original destination is asked for by family, so each family has its own socket.
        socket.set_only_v6(true)?;
    }
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&at.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The system has no IPv6, or none in this network namespace.
fn is_without_family(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

impl Listeners {
    /// All addresses for inbound, loopback alone for outbound; IPv6 where the system has it. `backlog`: connections
    /// that the system keeps until they are accepted.
    ///
    /// # Errors
    /// The address that could not be opened.
    pub fn in_pod(inbound_port: u16, outbound_port: u16, backlog: usize) -> Result<Self> {
        let mut listeners = Self::at(
            (Ipv4Addr::UNSPECIFIED, inbound_port).into(),
            (Ipv4Addr::LOCALHOST, outbound_port).into(),
            backlog,
        )?;
        let v6 = [
            (&mut listeners.inbound, SocketAddr::from((Ipv6Addr::UNSPECIFIED, inbound_port))),
            (&mut listeners.outbound, SocketAddr::from((Ipv6Addr::LOCALHOST, outbound_port))),
        ];
        for (list, at) in v6 {
            match open(at, backlog) {
                Ok(listener) => list.push(listener),
                Err(error) if is_without_family(&error) => tracing::info!(%at, "no IPv6 here"),
                Err(error) => return Err(error).with_context(|| at.to_string()),
            }
        }
        Ok(listeners)
    }

    /// One address each; `backlog` as for [`Listeners::in_pod`].
    ///
    /// # Errors
    /// The address that could not be opened.
    pub fn at(inbound: SocketAddr, outbound: SocketAddr, backlog: usize) -> Result<Self> {
        let one =
            |at: SocketAddr| open(at, backlog).with_context(|| at.to_string()).map(|listener| vec![listener]);
        Ok(Self { inbound: one(inbound)?, outbound: one(outbound)? })
    }

    /// Serves in a thread of its own; the receiver is told (or dropped) when that ends.
    ///
    /// # Errors
    /// When the thread can't be made.
    pub fn serve(self, context: Arc<Context>) -> Result<oneshot::Receiver<()>> {
        let (done, ended) = oneshot::channel();
        let work = move || {
            let outcome = serve_here(self, context);
            if let Err(error) = outcome {
                tracing::error!(%error, "the data path could not be started");
            }
            // Nobody waits when the process ends.
            let _ = done.send(());
        };
        std::thread::Builder::new().name("data".to_owned()).spawn(work).context("the data thread")?;
        Ok(ended)
    }
}

fn serve_here(listeners: Listeners, context: Arc<Context>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    runtime.spawn(context.live.clone().follow(context.policy.clone()));
    runtime.spawn(context.proofs.clone().follow());
    let mut services: Vec<LocalBoxFuture<'static, ()>> = Vec::new();
    for listener in listeners.inbound {
        services.push(Box::pin(inbound::serve(TcpListener::from_std(listener)?, context.clone())));
    }
    for listener in listeners.outbound {
        services.push(Box::pin(outbound::serve(TcpListener::from_std(listener)?, context.clone())));
    }
    LocalSet::new().block_on(&runtime, future::join_all(services));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// Whether the system of `address` takes a connection that nobody accepts.
    fn is_kept(address: SocketAddr) -> Option<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&address.into());
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(500) {
            if socket.peer_addr().is_ok() {
                return Some(socket);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    #[test]
    fn the_system_keeps_as_many_connections_as_the_setting_says() {
        for backlog in [3, 11] {
            let listener = open((Ipv4Addr::LOCALHOST, 0).into(), backlog).unwrap();
            let address = listener.local_addr().unwrap();
            let kept: Vec<Socket> = std::iter::from_fn(|| is_kept(address)).take(30).collect();
            // Linux keeps one more.
            assert_eq!(kept.len(), backlog + 1);
        }
    }
}
