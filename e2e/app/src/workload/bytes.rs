//! Bytes that can be told apart by their place, and their checksum.

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Bytes, BytesMut};
use std::fmt::Write;

/// The length of one block.
const BLOCK: usize = 64 * 1024;
/// Every block begins with its number.
const NUMBER: usize = size_of::<u64>();

/// A run of bytes: noise in blocks, each with its number, so that none can be taken for another.
pub struct Run {
    noise: Bytes,
    number: u64,
    left: u64,
}

impl Run {
    /// `length` bytes; another `seed` gives others.
    pub fn new(seed: u64, length: u64) -> Self {
        let mut state = seed | 1;
        let mut noise = BytesMut::with_capacity(BLOCK);
        while noise.len() < BLOCK {
            // Marsaglia's xorshift64.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            noise.extend_from_slice(&state.to_le_bytes());
        }
        Self { noise: noise.freeze(), number: 0, left: length }
    }

    /// All of them at once.
    pub fn whole(self) -> Vec<u8> {
        self.flatten().collect()
    }
}

impl Iterator for Run {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let length = usize::try_from(self.left).unwrap_or(BLOCK).min(BLOCK);
        if length == 0 {
            return None;
        }
        let mut block = BytesMut::with_capacity(BLOCK);
        block.extend_from_slice(&self.number.to_le_bytes());
        block.extend_from_slice(self.noise.get(NUMBER..).unwrap_or_default());
        block.truncate(length);
        self.number += 1;
        self.left -= length as u64;
        Some(block.freeze())
    }
}

/// Length and SHA-256 of what has been added.
pub struct Sum {
    context: Context,
    length: u64,
}

impl Sum {
    pub fn new() -> Self {
        Self { context: Context::new(&SHA256), length: 0 }
    }

    pub fn add(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.length += bytes.len() as u64;
    }

    /// The length and the checksum in small hexadecimal digits.
    pub fn told(self) -> String {
        let mut text = format!("{} ", self.length);
        for byte in self.context.finish().as_ref() {
            // Writing to a String can't fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_its_length_and_no_two_blocks_alike() {
        for length in [0, 1, 65_536, 65_537, 1_000_000] {
            assert_eq!(Run::new(7, length).whole().len() as u64, length);
        }
        let blocks: Vec<Bytes> = Run::new(7, 200_000).collect();
        assert!(blocks.windows(2).all(|pair| pair[0] != pair[1]));
        assert_ne!(Run::new(9, 100).whole(), Run::new(7, 100).whole());
    }

    #[test]
    fn the_sum_is_sha_256_over_all_pieces() {
        let mut sum = Sum::new();
        sum.add(b"a");
        sum.add(b"bc");
        // FIPS 180-2, appendix B.1.
        assert_eq!(sum.told(), "3 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
