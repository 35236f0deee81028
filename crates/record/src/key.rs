//! One direction's key: the nonce of each record follows from its number (RFC 8446 §5.3), no number is ever used
//! twice, and the next key follows from the secret of this one.

use crate::secrets::Secret;
use crate::{HEADER, RecordError, TAG};
use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use rustls::crypto::cipher::AeadKey;
use rustls::{ConnectionTrafficSecrets, Error};

/// Records under one AES-GCM key before the traffic key must change: 2^24 of the full length keep an attacker's
/// advantage below 2^-57 (RFC 8446 §5.5 gives 2^24.5). ChaCha20-Poly1305 has no such limit below 2^62.
const AES_GCM_RECORDS: u64 = 1 << 24;
const CHACHA_RECORDS: u64 = 1 << 36;

/// A key with its base nonce and the number of the next record.
pub(crate) struct Key {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
    limit: u64,
    /// What the key was made of.
    secret: Secret,
}

impl Key {
    /// The key that rustls has come to, with the number of the next record; `secret` is what it must have made it of.
    ///
    /// # Errors
    /// When it has not: an update would lead to another key than the peer's.
    pub(crate) fn new(
        (sequence, handed): (u64, ConnectionTrafficSecrets),
        secret: Secret,
    ) -> Result<Key, RecordError> {
        let (algorithm, key, iv): (&'static Algorithm, _, _) = match &handed {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("a cipher suite that is not known here".into()).into()),
        };
        let made = secret.key(algorithm.key_len());
        let is_same = verify_slices_are_equal(bytes(&made.0, algorithm), key.as_ref())
            .and_then(|()| verify_slices_are_equal(&made.1, iv.as_ref()));
        if is_same.is_err() {
            return Err(Error::General("a traffic secret that is not of this connection".into()).into());
        }
        Key::of(algorithm, sequence, secret, made)
    }

    fn of(
        algorithm: &'static Algorithm,
        sequence: u64,
        secret: Secret,
        (key, iv): (AeadKey, [u8; NONCE_LEN]),
    ) -> Result<Key, RecordError> {
        let key = UnboundKey::new(algorithm, bytes(&key, algorithm)).map_err(|_| RecordError::BadRecord)?;
        let limit = if *algorithm == CHACHA20_POLY1305 { CHACHA_RECORDS } else { AES_GCM_RECORDS };
        Ok(Key { key: LessSafeKey::new(key), iv, sequence, limit, secret })
    }

    /// Becomes the key after an update; its numbers begin again.
    pub(crate) fn update(&mut self) -> Result<(), RecordError> {
        let (algorithm, secret) = (self.key.algorithm(), self.secret.next());
        let made = secret.key(algorithm.key_len());
        *self = Key::of(algorithm, 0, secret, made)?;
        Ok(())
    }

    /// The key should not seal further records.
    pub(crate) fn is_worn(&self) -> bool {
        self.sequence >= self.limit
    }

    /// The peer's key is worn far beyond what an honest peer would do.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.sequence >= self.limit.saturating_mul(2)
    }

    /// Seals `body` (content and its type) in place; the tag is to stand behind it.
    pub(crate) fn seal(&mut self, head: [u8; HEADER], body: &mut [u8]) -> Result<[u8; TAG], RecordError> {
        let nonce = self.next()?;
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(head), body)
            .map_err(|_| RecordError::BadRecord)?;
        tag.as_ref().try_into().map_err(|_| RecordError::BadRecord)
    }

    /// Opens `body` (ciphertext and tag) in place.
    pub(crate) fn open<'b>(
        &mut self,
        head: [u8; HEADER],
        body: &'b mut [u8],
    ) -> Result<&'b mut [u8], RecordError> {
        let nonce = self.next()?;
        self.key.open_in_place(nonce, Aad::from(head), body).map_err(|_| RecordError::BadRecord)
    }

    fn next(&mut self) -> Result<Nonce, RecordError> {
        let mut nonce = self.iv;
        for (byte, number) in nonce.iter_mut().rev().zip(self.sequence.to_le_bytes()) {
            *byte ^= number;
        }
        // Never twice, come what may: a key that ends its numbers ends the connection.
        self.sequence = self.sequence.checked_add(1).ok_or(RecordError::KeyExhausted)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    #[cfg(test)]
    pub(crate) fn wear_out(&mut self) {
        self.limit = self.sequence;
    }
}

fn bytes<'k>(key: &'k AeadKey, algorithm: &Algorithm) -> &'k [u8] {
    key.as_ref().get(..algorithm.key_len()).unwrap_or_default()
}
