//! What can be wrong: the peer's bytes, or a call of our own.

/// The peer broke the protocol; the tunnel must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The frame type is reserved.
    #[error("a frame of the reserved type")]
    ReservedType,
    /// Head and payload are longer than one TLS record may be.
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    /// A frame that says nothing: DATA without bytes, CONTROL without a code.
    #[error("an empty frame")]
    Empty,
    /// A control message of a code that must be understood and is not.
    #[error("the control code {0:#04x} is unknown")]
    UnknownCode(u8),
    /// A control message that ends before its fields do, or goes on after them.
    #[error("a control message of the code {0:#04x} is malformed")]
    Malformed(u8),
    /// A field of a control message that must be understood and is not.
    #[error("the field {0:#06x} is unknown")]
    UnknownField(u16),
    /// A frame that is well formed and comes at the wrong time.
    #[error("{0} at the wrong time")]
    OutOfPlace(&'static str),
}

/// The local side asked for something that its state does not permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not permitted in this state")]
pub struct Misuse(pub &'static str);
