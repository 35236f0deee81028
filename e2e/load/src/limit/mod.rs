//! A pair of bare proxies, to compare with: what a pair in user space costs at least when it does nothing but copy and
//! encrypt. No policy, no identities beyond the chain, no metrics, no limits, no HTTP.
//!
//! `client` takes connections that were redirected to it and dials where they wanted to go, over TLS; `server` ends
//! the TLS and dials the same port on loopback. With `--reuse`, TLS connections outlive those that they carry.

mod copied;
mod reused;
mod tls;

use anyhow::{Context, Result};
use cinch_redirect::original_destination;
use clap::{Args, ValueEnum};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::LocalSet;

/// A buffer of each direction of a connection: as much as a TLS record holds.
const BUFFER: usize = 16 * 1024;
/// Connections that wait to be accepted in a rush.
const BACKLOG: u32 = 4096;

/// Which of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// Beside the client.
    Client,
    /// Beside the server.
    Server,
}

/// The words after `limit`.
#[derive(Args)]
pub struct Options {
    #[arg(value_enum)]
    side: Side,
    /// Where redirected connections arrive.
    #[arg(long)]
    listen: SocketAddr,
    /// Own chain, PEM.
    #[arg(long)]
    certificate: PathBuf,
    /// Own key, PEM.
    #[arg(long)]
    key: PathBuf,
    /// The roots of the other side, PEM.
    #[arg(long)]
    authority: PathBuf,
    /// Keep TLS connections for the next connection that they can carry.
    #[arg(long)]
    reuse: bool,
}

/// Serves until it is killed.
///
/// # Errors
/// When files or the port can't be used.
pub fn run(options: Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let files = tls::Files::read(&options.certificate, &options.key, &options.authority)?;
    LocalSet::new().block_on(&runtime, async move {
        let listener =
            listen(options.listen).with_context(|| format!("{} can't be opened", options.listen))?;
        match options.side {
            Side::Client => client(listener, files, options.reuse).await,
            Side::Server => server(listener, files, options.reuse).await,
        }
    })
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket.listen(BACKLOG)?)
}

async fn client(listener: TcpListener, files: tls::Files, reuse: bool) -> Result<()> {
    let connector = Rc::new(files.connector()?);
    let pool = Rc::new(reused::Pool::default());
    loop {
        let (app, _) = listener.accept().await?;
        let (connector, pool) = (connector.clone(), pool.clone());
        tokio::task::spawn_local(async move {
            // Whatever fails closes both sides, which the load counts.
            let _ = if reuse {
                reused::client(app, &connector, &pool).await
            } else {
                copied::client(app, &connector).await
            };
        });
    }
}

async fn server(listener: TcpListener, files: tls::Files, reuse: bool) -> Result<()> {
    let acceptor = files.acceptor()?;
    loop {
        let (peer, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::task::spawn_local(async move {
            let _ = if reuse {
                reused::server(peer, &acceptor).await
            } else {
                copied::server(peer, &acceptor).await
            };
        });
    }
}

/// Where a redirected connection wanted to go.
fn wanted(stream: &TcpStream) -> Result<SocketAddr> {
    stream.set_nodelay(true)?;
    original_destination(stream).context("no original destination")
}

async fn dial(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The app behind the server's side.
async fn dial_app(wanted: SocketAddr) -> Result<TcpStream> {
    dial(SocketAddr::from((Ipv4Addr::LOCALHOST, wanted.port()))).await
}
