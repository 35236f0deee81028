//! What can go wrong with records; after any of these the connection is of no further use.

/// Why a record can't be taken or made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RecordError {
    /// Its head promises more than TLS allows (record_overflow).
    #[error("a record of {0} bytes is longer than TLS allows")]
    TooLong(usize),
    /// After the handshake only application_data stands outside (§5.2).
    #[error("a record of type {0} came where only encrypted ones may")]
    UnexpectedType(u8),
    /// Its tag is wrong: forged, cut, reordered, or sealed under another key (bad_record_mac).
    #[error("a record could not be verified")]
    BadRecord,
    /// Encrypted and verified, but nothing but padding (§5.4), or of a type that may not come now.
    #[error("a record's content is not allowed here: {0}")]
    UnexpectedContent(&'static str),
    /// The peer ended the connection with an alert other than close_notify.
    #[error("the peer sent the alert {0}")]
    Alert(u8),
    /// More records without data, one after another, than an honest peer sends.
    #[error("the peer sends nothing but control records")]
    TooMuchControl,
    /// The peer has used its key for longer than is safe without an update (§5.5).
    #[error("the peer has used its key for too long")]
    KeyExhausted,
    /// More plaintext at once than a record carries.
    #[error("{0} bytes do not fit into a record")]
    DoesNotFit(usize),
    /// Something was to be sent after close_notify.
    #[error("the connection was closed by us")]
    Closed,
    /// rustls or the cryptography under it refused.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

impl RecordError {
    /// The alert that tells the peer (RFC 8446 §6.2); `None` where the fault is not the peer's.
    #[must_use]
    pub fn alert(&self) -> Option<u8> {
        match self {
            RecordError::TooLong(_) => Some(22),
            RecordError::UnexpectedType(_)
            | RecordError::UnexpectedContent(_)
            | RecordError::TooMuchControl
            | RecordError::KeyExhausted => Some(10),
            RecordError::BadRecord => Some(20),
            RecordError::Alert(_)
            | RecordError::DoesNotFit(_)
            | RecordError::Closed
            | RecordError::Tls(_) => None,
        }
    }
}
