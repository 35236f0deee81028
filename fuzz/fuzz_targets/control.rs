//! Bytes of the control connection's peer, on both ends: whole or in pieces they give the same messages, and what
//! is read can be written and read again.
#![no_main]

use bytes::BytesMut;
use cinch_control::v1::{OperatorMessage, ProxyMessage};
use cinch_control::{Decoder, MAX_MESSAGE, encode};
use libfuzzer_sys::fuzz_target;

/// All messages up to the first that is none, and whether there was one such.
macro_rules! read {
    ($message:ty, $pieces:expr) => {{
        let decoder = Decoder::<$message>::new(MAX_MESSAGE);
        let (mut buffer, mut messages, mut failed) = (BytesMut::new(), Vec::new(), false);
        'wire: for piece in $pieces {
            buffer.extend_from_slice(piece);
            loop {
                match decoder.next(&mut buffer) {
                    Ok(None) => break,
                    Ok(Some(message)) => messages.push(message),
                    Err(_) => {
                        failed = true;
                        break 'wire;
                    }
                }
            }
        }
        (messages, failed)
    }};
}

macro_rules! check {
    ($message:ty, $size:expr, $wire:expr) => {{
        let whole = read!($message, std::iter::once($wire));
        assert_eq!(whole, read!($message, $wire.chunks($size)));
        for message in &whole.0 {
            let mut out = BytesMut::new();
            encode(message, &mut out).expect("it was short enough to come");
            assert_eq!(read!($message, std::iter::once(&out[..])), (vec![message.clone()], false));
        }
    }};
}

fuzz_target!(|data: &[u8]| {
    let Some((split, wire)) = data.split_first() else { return };
    let size = usize::from(*split).max(1);
    check!(ProxyMessage, size, wire);
    check!(OperatorMessage, size, wire);
});
