//! Traffic secrets (RFC 8446 §7). In go the two that rustls derives in a handshake, out come the keys of either
//! direction: those to begin with, and those that follow at key updates.
//!
//! What is left of rustls after a handshake could derive the next keys too, but comes as a whole, with the peer's
//! certificates, the configuration and secrets that nobody needs any more (of exporters and of resumption). A key log
//! is the other way by which rustls hands these two out. Every handshake has one of its own, so that no secret of
//! another connection can get into it; what it holds is checked against the keys that rustls itself has come to; and
//! it writes nothing anywhere.

use aws_lc_rs::aead::NONCE_LEN;
use rustls::crypto::cipher::AeadKey;
use rustls::crypto::tls13::{OkmBlock, expand};
use rustls::{KeyLog, Tls13CipherSuite};
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// rustls's names for the two.
pub(crate) const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
pub(crate) const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

/// The labels of HKDF-Expand-Label (§7.1), each with its length before it and an empty context behind it.
const KEY: &[u8] = b"\x09tls13 key\x00";
const IV: &[u8] = b"\x08tls13 iv\x00";
const NEXT: &[u8] = b"\x11tls13 traffic upd\x00";

/// The secret of one direction, of which its keys are made. Overwritten when dropped.
pub(crate) struct Secret {
    suite: &'static Tls13CipherSuite,
    block: OkmBlock,
}

impl Secret {
    /// The key, which is the first `length` bytes of what is returned, and the nonce that those of records are made
    /// of (§7.3).
    pub(crate) fn key(&self, length: usize) -> (AeadKey, [u8; NONCE_LEN]) {
        let expander = self.suite.hkdf_provider.expander_for_okm(&self.block);
        let key = expand::<AeadKey, 32>(expander.as_ref(), &[&number(length), KEY]);
        let iv = expand::<[u8; NONCE_LEN], NONCE_LEN>(expander.as_ref(), &[&number(NONCE_LEN), IV]);
        (key, iv)
    }

    /// The one after a key update (§7.2).
    pub(crate) fn next(&self) -> Secret {
        let expander = self.suite.hkdf_provider.expander_for_okm(&self.block);
        let block = expander.expand_block(&[&number(expander.hash_len()), NEXT]);
        Secret { suite: self.suite, block }
    }
}

/// A length, as HKDF-Expand-Label wants it. None here has more than 64.
fn number(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or_default().to_be_bytes()
}

/// The two secrets of one handshake, once rustls has come to them.
#[derive(Default)]
pub(crate) struct Captured {
    client: OnceLock<OkmBlock>,
    server: OnceLock<OkmBlock>,
    /// One of them came twice, or was none: which is the connection's nobody knows.
    spoiled: AtomicBool,
}

impl Captured {
    /// Those of client and server, in this order; `None` unless each came once.
    pub(crate) fn secrets(&self, suite: &'static Tls13CipherSuite) -> Option<[Secret; 2]> {
        if self.spoiled.load(Ordering::Acquire) {
            return None;
        }
        let secret = |place: &OnceLock<OkmBlock>| Some(Secret { suite, block: place.get()?.clone() });
        Some([secret(&self.client)?, secret(&self.server)?])
    }
}

impl KeyLog for Captured {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let place = match label {
            CLIENT => &self.client,
            SERVER => &self.server,
            _ => return,
        };
        let fits = (1..=OkmBlock::MAX_LEN).contains(&secret.len());
        if !fits || place.set(OkmBlock::new(secret)).is_err() {
            self.spoiled.store(true, Ordering::Release);
        }
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT | SERVER)
    }
}

/// Configurations can be shown, and their key logs with them.
impl fmt::Debug for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Captured").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;

    fn suite() -> &'static Tls13CipherSuite {
        TLS13_AES_128_GCM_SHA256.tls13().unwrap()
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let hex: Vec<char> = hex.chars().filter(|letter| *letter != ' ').collect();
        hex.chunks(2).map(|pair| u8::from_str_radix(&String::from_iter(pair), 16).unwrap()).collect()
    }

    #[test]
    fn keys_are_those_of_the_examples_in_rfc_8448() {
        // Section 3, a simple handshake: secret, key and nonce of client and server.
        for [secret, key, iv] in [
            [
                "9e40646ce79a7f9dc05af8889bce6552 875afa0b06df0087f792ebb7c17504a5",
                "17422dda596ed5d9acd890e3c63f5051",
                "5b78923dee08579033e523d9",
            ],
            [
                "a11af9f05531f856ad47116b45a95032 8204b4f44bfb6b3a4b4f1f3fcb631643",
                "9f02283b6c9c07efc26bb9f2ac92e356",
                "cf782b88dd83549aadf1e984",
            ],
        ] {
            let secret = Secret { suite: suite(), block: OkmBlock::new(&bytes(secret)) };
            let (derived, nonce) = secret.key(16);
            assert_eq!(derived.as_ref()[..16], bytes(key));
            assert_eq!(nonce, *bytes(iv));
        }
    }

    #[test]
    fn each_secret_is_taken_once_and_no_other_is() {
        let captured = Captured::default();
        for label in ["EXPORTER_SECRET", "CLIENT_HANDSHAKE_TRAFFIC_SECRET", "CLIENT_EARLY_TRAFFIC_SECRET"] {
            assert!(!captured.will_log(label));
            captured.log(label, &[0; 32], &[9; 32]);
        }
        captured.log(CLIENT, &[0; 32], &[1; 32]);
        assert!(captured.secrets(suite()).is_none(), "one is not both");
        captured.log(SERVER, &[0; 32], &[2; 32]);
        let [client, server] = captured.secrets(suite()).unwrap();
        assert_eq!((client.block.as_ref(), server.block.as_ref()), (&[1; 32][..], &[2; 32][..]));
        captured.log(SERVER, &[0; 32], &[2; 32]);
        assert!(captured.secrets(suite()).is_none(), "not even the same one may come again");
    }

    #[test]
    fn what_is_no_secret_spoils_it() {
        for bad in [0, 65] {
            let captured = Captured::default();
            captured.log(CLIENT, &[0; 32], &[1; 32]);
            captured.log(SERVER, &[0; 32], &[2; 32]);
            captured.log(CLIENT, &[0; 32], &vec![3; bad]);
            assert!(captured.secrets(suite()).is_none(), "{bad} bytes");
        }
    }
}
