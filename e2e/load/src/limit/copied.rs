//! One TLS connection for each connection: as plain as it gets. Sessions are resumed.

use super::{BUFFER, dial, dial_app, tls, wanted};
use anyhow::Result;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Carries one connection of the client.
pub(super) async fn client(mut app: TcpStream, connector: &TlsConnector) -> Result<()> {
    let to = wanted(&app)?;
    let mut tunnel = connector.connect(tls::peer_name()?, dial(to).await?).await?;
    copy_bidirectional_with_sizes(&mut app, &mut tunnel, BUFFER, BUFFER).await?;
    Ok(())
}

/// Serves one connection of the other side.
pub(super) async fn server(peer: TcpStream, acceptor: &TlsAcceptor) -> Result<()> {
    let to = wanted(&peer)?;
    let mut tunnel = acceptor.accept(peer).await?;
    let mut app = dial_app(to).await?;
    copy_bidirectional_with_sizes(&mut tunnel, &mut app, BUFFER, BUFFER).await?;
    Ok(())
}
