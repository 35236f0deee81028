//! The handshake of either side, without I/O: rustls does it, record by record, so that nothing behind its end
//! gets into rustls and the records after it are all ours.

use crate::{HEADER, MAX_RECORD, RecordError, Records};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, ServerConfig};
use std::fmt;
use std::sync::Arc;

/// The most that waits for the rest of a handshake message: the longest that rustls takes, and a record. It counts
/// the content of records only, so that padding without bound could wait with it.
const MAX_WAITING: usize = (1 << 16) + MAX_RECORD;

/// A handshake under way.
pub struct Handshake {
    side: Side,
    /// Bytes at the head of the input that rustls has seen and wants to see again: pieces of a message.
    fed: usize,
}

enum Side {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// How far [`Handshake::advance`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes to remove from the front of the input. The rest must stand at its front in the next call.
    pub used: usize,
    /// The handshake is over: call [`Handshake::into_records`] once the output is sent. What is left of the
    /// input belongs to the records after it.
    pub done: bool,
}

enum Turn {
    Again,
    More,
    Done,
}

impl Handshake {
    /// The client's side. `config` must allow the extraction of secrets.
    ///
    /// # Errors
    /// When rustls refuses the configuration.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Handshake, RecordError> {
        let connection = UnbufferedClientConnection::new(config, name)?;
        Ok(Handshake { side: Side::Client(Box::new(connection)), fed: 0 })
    }

    /// The server's side. `config` must allow the extraction of secrets.
    ///
    /// # Errors
    /// When rustls refuses the configuration.
    pub fn server(config: Arc<ServerConfig>) -> Result<Handshake, RecordError> {
        let connection = UnbufferedServerConnection::new(config)?;
        Ok(Handshake { side: Side::Server(Box::new(connection)), fed: 0 })
    }

    /// What rustls knows of the connection: the peer's certificates, the protocol agreed.
    #[must_use]
    pub fn state(&self) -> &CommonState {
        match &self.side {
            Side::Client(connection) => connection,
            Side::Server(connection) => connection,
        }
    }

    /// Takes what has come, as far as it is of the handshake, and appends what is to be sent to `out`. A client
    /// begins with an empty input. After an error `out` may hold an alert for the peer.
    ///
    /// # Errors
    /// When the handshake has failed.
    pub fn advance(&mut self, input: &mut [u8], out: &mut Vec<u8>) -> Result<Progress, RecordError> {
        let mut used = 0;
        loop {
            let window = input.get_mut(used..used + self.fed).unwrap_or_default();
            let (discard, turn) = match &mut self.side {
                Side::Client(connection) => turn(connection.process_tls_records(window), out),
                Side::Server(connection) => turn(connection.process_tls_records(window), out),
            };
            let discard = discard.min(self.fed);
            used += discard;
            self.fed -= discard;
            let turn = match turn {
                Ok(turn) => turn,
                Err(error) => {
                    // rustls counts on seeing again what it has not discarded.
                    self.say_why(input.get_mut(used..used + self.fed).unwrap_or_default(), out);
                    return Err(error);
                }
            };
            match turn {
                Turn::Again => {}
                Turn::Done => {
                    // All that was fed is taken in; the middlebox record of compatibility mode is reported late.
                    let used = used + std::mem::take(&mut self.fed);
                    return Ok(Progress { used, done: true });
                }
                Turn::More => match whole_record(input.get(used + self.fed..).unwrap_or_default())? {
                    Some(length) if self.fed + length > MAX_WAITING => {
                        return Err(RecordError::TooLong(self.fed + length));
                    }
                    Some(length) => self.fed += length,
                    None => return Ok(Progress { used, done: false }),
                },
            }
        }
    }

    /// The alert that rustls has ready after a fault. `window`: what it was fed and has not discarded.
    fn say_why(&mut self, window: &mut [u8], out: &mut Vec<u8>) {
        // It answers with the alert first and with the fault again after it.
        let _ = match &mut self.side {
            Side::Client(connection) => turn(connection.process_tls_records(window), out).1,
            Side::Server(connection) => turn(connection.process_tls_records(window), out).1,
        };
    }

    /// The connection after the handshake.
    ///
    /// # Errors
    /// When it is not over, or the configuration does not allow it.
    pub fn into_records(self) -> Result<Records, RecordError> {
        match self.side {
            Side::Client(connection) => {
                let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
                Records::new(secrets, kernel)
            }
            Side::Server(connection) => {
                let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
                Records::new(secrets, kernel)
            }
        }
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("fed", &self.fed).finish_non_exhaustive()
    }
}

/// The length of the record at the head of `input`, when it is there whole.
fn whole_record(input: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some([_, _, _, high, low]) = input.first_chunk::<HEADER>() else { return Ok(None) };
    let length = HEADER + usize::from(u16::from_be_bytes([*high, *low]));
    if length > MAX_RECORD {
        return Err(RecordError::TooLong(length));
    }
    Ok((input.len() >= length).then_some(length))
}

fn turn<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    out: &mut Vec<u8>,
) -> (usize, Result<Turn, RecordError>) {
    let UnbufferedStatus { discard, state } = status;
    let turn = match state {
        Ok(ConnectionState::EncodeTlsData(data)) => encode(data, out).map(|()| Turn::Again),
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Turn::Again)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Turn::More),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Turn::Done),
        Ok(_) => Err(Error::General("the peer did not keep to the handshake".into()).into()),
        Err(error) => Err(error.into()),
    };
    (discard, turn)
}

fn encode<Data>(mut data: EncodeTlsData<'_, Data>, out: &mut Vec<u8>) -> Result<(), RecordError> {
    let needed = match data.encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Err(error) => return Err(Error::General(error.to_string()).into()),
    };
    let start = out.len();
    out.resize(start + needed, 0);
    let room = out.get_mut(start..).unwrap_or_default();
    data.encode(room).map(|_| ()).map_err(|error| Error::General(error.to_string()).into())
}
