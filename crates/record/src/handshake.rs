//! The handshake of either side, without I/O: rustls does it, record by record, so that nothing behind its end
//! gets into rustls and the records after it are all ours.

use crate::key::Key;
use crate::secrets::Captured;
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
    /// What rustls tells of this handshake's secrets.
    captured: Arc<Captured>,
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
    /// The client's side. `config` must allow the extraction of secrets; its key log is not used.
    ///
    /// # Errors
    /// When rustls refuses the configuration.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Handshake, RecordError> {
        let captured = Arc::new(Captured::default());
        let mut config = Arc::unwrap_or_clone(config);
        config.key_log = captured.clone();
        let connection = UnbufferedClientConnection::new(Arc::new(config), name)?;
        Ok(Handshake { side: Side::Client(Box::new(connection)), captured, fed: 0 })
    }

    /// The server's side. `config` must allow the extraction of secrets; its key log is not used.
    ///
    /// # Errors
    /// When rustls refuses the configuration.
    pub fn server(config: Arc<ServerConfig>) -> Result<Handshake, RecordError> {
        let captured = Arc::new(Captured::default());
        let mut config = Arc::unwrap_or_clone(config);
        config.key_log = captured.clone();
        let connection = UnbufferedServerConnection::new(Arc::new(config))?;
        Ok(Handshake { side: Side::Server(Box::new(connection)), captured, fed: 0 })
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

    /// The connection after the handshake. Nothing of rustls stays.
    ///
    /// # Errors
    /// When it is not over, the configuration does not allow it, or rustls has not told the two secrets that its keys
    /// are made of, each once and to us alone.
    pub fn into_records(self) -> Result<Records, RecordError> {
        let suite = self.state().negotiated_cipher_suite().and_then(|suite| suite.tls13());
        let Handshake { side, captured, .. } = self;
        let is_client = matches!(side, Side::Client(_));
        let keys = match side {
            Side::Client(connection) => {
                connection.dangerous_into_kernel_connection().map(|(keys, _)| keys)?
            }
            Side::Server(connection) => {
                connection.dangerous_into_kernel_connection().map(|(keys, _)| keys)?
            }
        };
        // With its state rustls has let go of its key log: who else has it could know the secrets.
        let secrets =
            Arc::into_inner(captured).zip(suite).and_then(|(captured, suite)| captured.secrets(suite));
        let Some([client, server]) = secrets else {
            return Err(Error::General("the traffic secrets of the connection are not known".into()).into());
        };
        let (tx, rx) = if is_client { (client, server) } else { (server, client) };
        Ok(Records::new(Key::new(keys.tx, tx)?, Key::new(keys.rx, rx)?))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{SUITES, configs, shaken};
    use crate::secrets::{CLIENT, SERVER, Secret};
    use rustls::kernel::KernelConnection;
    use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, HandshakeKind, KeyLog};

    fn assert_made_of(secret: &Secret, keys: &ConnectionTrafficSecrets) {
        let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = keys
        else {
            panic!("an unknown suite")
        };
        let (made, nonce) = secret.key(key.as_ref().len());
        assert_eq!((&made.as_ref()[..key.as_ref().len()], &nonce[..]), (key.as_ref(), iv.as_ref()));
    }

    /// Follows rustls's own keys through three updates each way.
    fn follow<Data>(
        (keys, mut kernel): (ExtractedSecrets, KernelConnection<Data>),
        [mut tx, mut rx]: [Secret; 2],
    ) {
        assert_made_of(&tx, &keys.tx.1);
        assert_made_of(&rx, &keys.rx.1);
        for _ in 0..3 {
            (tx, rx) = (tx.next(), rx.next());
            assert_made_of(&tx, &kernel.update_tx_secret().unwrap().1);
            assert_made_of(&rx, &kernel.update_rx_secret().unwrap().1);
        }
    }

    #[test]
    fn the_keys_that_follow_are_those_that_rustls_would_come_to() {
        for suite in SUITES {
            for retried in [false, true] {
                let (client, server, _) = shaken(configs(suite, retried));
                let kind =
                    if retried { HandshakeKind::FullWithHelloRetryRequest } else { HandshakeKind::Full };
                assert_eq!(client.state().handshake_kind(), Some(kind));
                for Handshake { side, captured, .. } in [client, server] {
                    let [client, server] = captured.secrets(suite.tls13().unwrap()).unwrap();
                    match side {
                        Side::Client(connection) => {
                            follow(connection.dangerous_into_kernel_connection().unwrap(), [client, server]);
                        }
                        Side::Server(connection) => {
                            follow(connection.dangerous_into_kernel_connection().unwrap(), [server, client]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn without_its_own_two_secrets_there_is_no_connection() {
        let whole = |change: &dyn Fn(&mut Handshake)| {
            let (mut client, mut server, _) = shaken(configs(SUITES[0], false));
            change(&mut client);
            change(&mut server);
            [client.into_records().is_ok(), server.into_records().is_ok()]
        };
        assert_eq!(whole(&|_| {}), [true, true]);
        assert_eq!(whole(&|handshake| handshake.captured = Arc::default()), [false, false], "none");
        let again = |handshake: &mut Handshake| handshake.captured.log(SERVER, &[0; 32], &[1; 32]);
        assert_eq!(whole(&again), [false, false], "one of them twice");
        let others = |handshake: &mut Handshake| {
            let (other, ..) = shaken(configs(SUITES[0], false));
            let captured = other.captured.clone();
            drop(other);
            handshake.captured = captured;
        };
        assert_eq!(whole(&others), [false, false], "those of another connection");
        let made_up = |handshake: &mut Handshake| {
            handshake.captured = Arc::default();
            handshake.captured.log(CLIENT, &[0; 32], &[1; 32]);
            handshake.captured.log(SERVER, &[0; 32], &[2; 32]);
        };
        assert_eq!(whole(&made_up), [false, false], "two that are of none");
    }

    #[test]
    fn who_else_holds_the_secrets_ends_the_connection() {
        let (client, server, _) = shaken(configs(SUITES[0], false));
        let held = client.captured.clone();
        assert!(client.into_records().is_err());
        drop(held);
        assert!(server.into_records().is_ok());
    }

    /// A key log as a configuration may have it.
    #[derive(Debug)]
    struct Curious;

    impl KeyLog for Curious {
        fn log(&self, label: &str, _: &[u8], _: &[u8]) {
            panic!("{label} was told");
        }
    }

    #[test]
    fn secrets_are_told_to_nobody_else_and_are_not_shown() {
        let (mut client, mut server) = configs(SUITES[0], false);
        (client.key_log, server.key_log) = (Arc::new(Curious), Arc::new(Curious));
        let (client, server, _) = shaken((client, server));
        for handshake in [client, server] {
            assert_eq!(format!("{:?}", handshake.captured), "Captured { .. }");
            assert!(handshake.into_records().is_ok());
        }
    }
}
