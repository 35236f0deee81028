//! One TLS connection to the operator that carries whole messages. Every wait is bounded.

use super::ControlError;
use bytes::BytesMut;
use cinch_control::v1::{OperatorMessage, ProxyMessage, operator_message, proxy_message};
use cinch_control::{ALPN, Decoder, MAX_MESSAGE, encode};
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The operator reads what we send, or it is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Unacknowledged bytes so old mean that the path is gone.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// The connection, with what was read of the next message.
pub(super) struct Connection {
    operator: SocketAddr,
    stream: TlsStream<TcpStream>,
    buffer: BytesMut,
    decoder: Decoder<OperatorMessage>,
}

impl Connection {
    /// Dials and shakes hands.
    pub(super) async fn open(
        operator: SocketAddr,
        config: Arc<rustls::ClientConfig>,
    ) -> Result<Self, ControlError> {
        let network = |source| ControlError::Network { operator, source };
        let tcp = timeout(CONNECT_TIMEOUT, TcpStream::connect(operator))
            .await
            .map_err(|_| network(io::ErrorKind::TimedOut.into()))?
            .map_err(network)?;
        tcp.set_nodelay(true).map_err(network)?;
        let socket = SockRef::from(&tcp);
        let keepalive = TcpKeepalive::new()
            .with_time(USER_TIMEOUT)
            .with_interval(Duration::from_secs(10))
            .with_retries(3);
        socket.set_tcp_keepalive(&keepalive).map_err(network)?;
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT)).map_err(network)?;
        let connector = TlsConnector::from(config);
        let stream = timeout(HANDSHAKE_TIMEOUT, connector.connect(cinch_identity::server_name(), tcp))
            .await
            .map_err(|_| network(io::ErrorKind::TimedOut.into()))?
            .map_err(|source| ControlError::of_connection(operator, source))?;
        cinch_identity::require_alpn(stream.get_ref().1, ALPN)?;
        let decoder = Decoder::new(MAX_MESSAGE);
        Ok(Self { operator, stream, buffer: BytesMut::new(), decoder })
    }

    /// Sends one message.
    pub(super) async fn send(&mut self, kind: proxy_message::Kind) -> Result<(), ControlError> {
        let mut wire = BytesMut::new();
        encode(&ProxyMessage { kind: Some(kind) }, &mut wire)?;
        let sent = async {
            self.stream.write_all(&wire).await?;
            self.stream.flush().await
        };
        timeout(SEND_TIMEOUT, sent)
            .await
            .map_err(|_| ControlError::Silent("what was sent"))?
            .map_err(|source| ControlError::of_connection(self.operator, source))
    }

    /// The next message that this version knows. Nothing is lost when the future is dropped.
    pub(super) async fn receive(&mut self) -> Result<operator_message::Kind, ControlError> {
        loop {
            while let Some(message) = self.decoder.next(&mut self.buffer)? {
                match message.kind {
                    Some(kind) => return Ok(kind),
                    None => tracing::debug!("the operator sent a message of a later version"),
                }
            }
            let read = self
                .stream
                .read_buf(&mut self.buffer)
                .await
                .map_err(|source| ControlError::of_connection(self.operator, source))?;
            if read == 0 {
                return Err(ControlError::Closed(self.operator));
            }
        }
    }

    /// Says goodbye, if the operator still listens.
    pub(super) async fn close(mut self) {
        let _ = timeout(Duration::from_millis(200), self.stream.shutdown()).await;
    }
}
