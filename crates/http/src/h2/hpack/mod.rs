//! HPACK (RFC 7541): header blocks in, fields out, and back.
//!
//! The decoder keeps the table that the peer's encoder fills; the encoder keeps none: its first block of a
//! connection tells the peer so, and all its fields are literals or entries of the static table. A block can
//! therefore be dropped, changed or made up on either side without the tables ever disagreeing. What is decoded is kept
//! as the encoder would write it: most fields pass as they are.

mod decode;
mod encode;
mod fields;
mod huffman;
mod integer;
mod table;
#[cfg(test)]
mod vectors;

pub(crate) use decode::Decoder;
pub(crate) use encode::Encoder;
pub(crate) use fields::{Field, Fields};

/// Why a block cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HpackError {
    /// It ends within a field.
    Truncated,
    /// An integer is larger than anything that it could mean here.
    Integer,
    /// An index beyond both tables, or 0.
    Index,
    /// A text that is not of the Huffman code.
    Huffman,
    /// A table size that we did not allow, or not at the beginning of the block.
    TableSize,
    /// More text than we take. The table is no longer in step with the peer's.
    TooLarge,
    /// More fields than we take, with the same consequence.
    TooMany,
}
