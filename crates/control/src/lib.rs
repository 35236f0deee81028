//! The operator-proxy protocol: prost messages and their length-prefixed framing, without I/O.
//!
//! Each message is preceded by its length as a big-endian `u32`. A length over [`MAX_MESSAGE`] or bytes that
//! don't decode are errors after which the connection must be closed.

use bytes::{Buf, BufMut, BytesMut};
use prost::Message;
use std::marker::PhantomData;

/// The generated messages; `proto/control.proto` documents each field.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/cinch.control.v1.rs"));
}

/// ALPN protocol of the control connection.
pub const ALPN: &[u8] = b"cinch-control/1";

/// Largest message, in bytes: room for 10,000 endpoints in one record, and a bound for what a hostile peer
/// can make us buffer.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// Largest message of a peer that has not shown a certificate: a token and a CSR are far below it.
pub const MAX_FIRST_MESSAGE: usize = 16 * 1024;

/// A frame that can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The announced length is over the bound.
    #[error("a message of {length} bytes is over the limit of {limit}")]
    TooLong {
        /// The announced length in bytes.
        length: usize,
        /// The bound in bytes.
        limit: usize,
    },
    /// The bytes are no such message.
    #[error("the message can not be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// Appends `message` with its length to `out`.
///
/// # Errors
/// [`FrameError::TooLong`] when the message is over [`MAX_MESSAGE`]; `out` is unchanged then.
pub fn encode<M: Message>(message: &M, out: &mut BytesMut) -> Result<(), FrameError> {
    let length = message.encoded_len();
    let prefix = u32::try_from(length).ok().filter(|_| length <= MAX_MESSAGE);
    let Some(prefix) = prefix else {
        return Err(FrameError::TooLong { length, limit: MAX_MESSAGE });
    };
    out.reserve(4 + length);
    out.put_u32(prefix);
    message.encode_raw(out);
    Ok(())
}

/// The bytes of `message` on the wire, without its length: what [`MAX_MESSAGE`] bounds.
#[must_use]
pub fn size<M: Message>(message: &M) -> usize {
    message.encoded_len()
}

/// Takes whole messages out of a growing buffer.
#[derive(Debug)]
pub struct Decoder<M> {
    limit: usize,
    message: PhantomData<fn() -> M>,
}

impl<M: Message + Default> Decoder<M> {
    /// A decoder that refuses messages of more than `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.min(MAX_MESSAGE), message: PhantomData }
    }

    /// Takes the next message from the front of `buffer`; `None` until it is complete.
    ///
    /// # Errors
    /// [`FrameError`]; the connection must be closed then.
    pub fn next(&self, buffer: &mut BytesMut) -> Result<Option<M>, FrameError> {
        let Some(prefix) = buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > self.limit {
            return Err(FrameError::TooLong { length, limit: self.limit });
        }
        if buffer.len() < 4 + length {
            buffer.reserve(4 + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(4);
        Ok(Some(M::decode(buffer.split_to(length).freeze())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Address, ProxyMessage, Subscribe, proxy_message::Kind};
    use proptest::prelude::*;

    fn subscribe(port: u32) -> ProxyMessage {
        let address = Address { ip: vec![10, 0, 0, 1].into(), port };
        ProxyMessage { kind: Some(Kind::Subscribe(Subscribe { addresses: vec![address] })) }
    }

    proptest! {
        #[test]
        fn messages_survive_any_split_of_the_stream(ports in proptest::collection::vec(0u32..65536, 1..8), cut in 1usize..7) {
            let mut wire = BytesMut::new();
            for port in &ports {
                encode(&subscribe(*port), &mut wire).unwrap();
            }
            let decoder = Decoder::<ProxyMessage>::new(MAX_MESSAGE);
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(message) = decoder.next(&mut buffer).unwrap() {
                    seen.push(message);
                }
            }
            prop_assert_eq!(seen, ports.iter().map(|p| subscribe(*p)).collect::<Vec<_>>());
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let decoder = Decoder::<ProxyMessage>::new(MAX_FIRST_MESSAGE);
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decoder.next(&mut buffer) {}
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_anything_is_buffered() {
        let decoder = Decoder::<ProxyMessage>::new(MAX_FIRST_MESSAGE);
        let mut buffer = BytesMut::from(&0x0040_0001u32.to_be_bytes()[..]);
        assert!(matches!(decoder.next(&mut buffer), Err(FrameError::TooLong { .. })));
    }
}
