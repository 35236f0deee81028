//! TLS connections that carry one connection after the other: frames of two bytes of length and as many bytes; length
//! zero ends a direction. When both directions have ended, the TLS connection waits for the next.

use super::{BUFFER, dial, dial_app, tls, wanted};
use anyhow::Result;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf,
    split,
};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf as TcpReadHalf, WriteHalf as TcpWriteHalf};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

/// A TLS connection in its two directions.
pub(super) struct Tunnel<S> {
    read: BufReader<ReadHalf<S>>,
    write: WriteHalf<S>,
}

/// Idle ones, by where they lead; the last used is the first to be used again.
#[derive(Default)]
pub(super) struct Pool(RefCell<HashMap<SocketAddr, Vec<Tunnel<client::TlsStream<TcpStream>>>>>);

impl Pool {
    fn take(&self, to: SocketAddr) -> Option<Tunnel<client::TlsStream<TcpStream>>> {
        self.0.borrow_mut().get_mut(&to)?.pop()
    }

    fn give_back(&self, to: SocketAddr, tunnel: Tunnel<client::TlsStream<TcpStream>>) {
        self.0.borrow_mut().entry(to).or_default().push(tunnel);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Tunnel<S> {
    fn over(stream: S) -> Self {
        let (read, write) = split(stream);
        Self { read: BufReader::with_capacity(BUFFER + 2, read), write }
    }

    /// Carries one connection, until both directions have ended.
    async fn carry(&mut self, mut app: TcpStream) -> Result<()> {
        let (from_app, to_app) = app.split();
        tokio::try_join!(send(from_app, &mut self.write), receive(&mut self.read, to_app))?;
        Ok(())
    }
}

/// From the app into frames.
async fn send<S: AsyncWrite>(mut app: TcpReadHalf<'_>, tunnel: &mut WriteHalf<S>) -> Result<()> {
    let mut frame = vec![0; BUFFER];
    loop {
        let (head, payload) = frame.split_at_mut(2);
        let read = app.read(payload).await?;
        head.copy_from_slice(&u16::try_from(read)?.to_be_bytes());
        tunnel.write_all(frame.get(..read + 2).unwrap_or_default()).await?;
        tunnel.flush().await?;
        if read == 0 {
            return Ok(());
        }
    }
}

/// From frames to the app.
async fn receive<S: AsyncRead>(tunnel: &mut BufReader<ReadHalf<S>>, mut app: TcpWriteHalf<'_>) -> Result<()> {
    loop {
        let mut left = usize::from(tunnel.read_u16().await?);
        if left == 0 {
            app.shutdown().await?;
            return Ok(());
        }
        while left > 0 {
            let some = tunnel.fill_buf().await?;
            anyhow::ensure!(!some.is_empty(), "the tunnel ended within a frame");
            let some = some.get(..left.min(some.len())).unwrap_or_default();
            app.write_all(some).await?;
            let used = some.len();
            tunnel.consume(used);
            left -= used;
        }
    }
}

/// Carries one connection of the client, over an idle TLS connection if there is one.
pub(super) async fn client(app: TcpStream, connector: &TlsConnector, pool: &Pool) -> Result<()> {
    let to = wanted(&app)?;
    let mut tunnel = match pool.take(to) {
        Some(idle) => idle,
        None => Tunnel::over(connector.connect(tls::peer_name()?, dial(to).await?).await?),
    };
    tunnel.carry(app).await?;
    pool.give_back(to, tunnel);
    Ok(())
}

/// Serves what comes over one TLS connection.
pub(super) async fn server(peer: TcpStream, acceptor: &TlsAcceptor) -> Result<()> {
    let to = wanted(&peer)?;
    let mut tunnel = Tunnel::over(acceptor.accept(peer).await?);
    // The first byte of a frame stays in the buffer until the app is there.
    while !tunnel.read.fill_buf().await?.is_empty() {
        tunnel.carry(dial_app(to).await?).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// Both ends of a connection on loopback.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn one_tunnel_carries_connections_one_after_the_other_each_with_both_ends() {
        let (near, far) = tokio::io::duplex(1000);
        let (mut near, mut far) = (Tunnel::over(near), Tunnel::over(far));
        for round in 0..3_u8 {
            let ((mut client, behind_client), (behind_server, mut server)) = (pair().await, pair().await);
            let sent = vec![round; 40_000];
            let apps = async {
                client.write_all(&sent).await.unwrap();
                client.shutdown().await.unwrap();
                let mut got = Vec::new();
                server.read_to_end(&mut got).await.unwrap();
                assert_eq!(got, sent);
                server.write_all(b"answer").await.unwrap();
                server.shutdown().await.unwrap();
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).await.unwrap();
                assert_eq!(answer, b"answer");
            };
            let (near, far, ()) = tokio::join!(near.carry(behind_client), far.carry(behind_server), apps);
            near.unwrap();
            far.unwrap();
        }
    }
}
