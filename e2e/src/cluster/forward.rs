//! Forwards a loopback port of the machine to an address inside a cluster's network namespace. The listener
//! lives in the machine's namespace; each connection's thread enters the cluster's before it connects, because
//! a socket belongs to the namespace in which it was made.

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;

/// Listens on a free loopback port, writes its number to `port_file`, and forwards to `target` inside the
/// namespace of the process `pid`. Does not return unless it can't listen.
///
/// # Errors
/// When the namespace can't be opened or no port is free.
pub fn serve(pid: i32, target: SocketAddr, port_file: &Path) -> Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).context("the cluster's network is gone")?;
    let namespace = Arc::new(namespace);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    fs::write(port_file, listener.local_addr()?.port().to_string())?;
    for client in listener.incoming() {
        let (Ok(client), namespace) = (client, Arc::clone(&namespace)) else { continue };
        thread::spawn(move || {
            // A connection that can't be made is closed, which is all its client needs to know.
            let _ = forward(client, &namespace, target);
        });
    }
    Ok(())
}

fn forward(client: TcpStream, namespace: &File, target: SocketAddr) -> io::Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let server = TcpStream::connect(target)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    let upwards = thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (server, client);
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    let _ = upwards.join();
    Ok(())
}
