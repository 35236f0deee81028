//! The Huffman code of RFC 7541, appendix B: coded octets in, text out.
//!
//! The code is canonical (codes of one length follow each other in the order of their symbols), so the lengths
//! are the whole table; everything else is worked out from them at compile time.

use super::HpackError;

/// The bits of each symbol's code; the last symbol is EOS.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26, 30,
];

const EOS: usize = 256;
const SHORTEST: u32 = 5;
const LONGEST: u32 = 30;

struct Code {
    /// For the next eight bits: the symbol whose code they begin with, and its length; 0 when it is longer.
    short: [(u8, u8); 256],
    /// For each length, the first code of the *next longer* lengths, left-aligned in 32 bits: what is below it
    /// has at most this length.
    limit: [u32; LONGEST as usize + 1],
    /// For each length, what to add to a code to find its place in `symbols`.
    offset: [u32; LONGEST as usize + 1],
    /// The symbols in the order of their codes.
    symbols: [u16; 257],
}

static CODE: Code = build();

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler, which would refuse a wrong index")]
const fn build() -> Code {
    let mut code = Code { short: [(0, 0); 256], limit: [0; 31], offset: [0; 31], symbols: [0; 257] };
    let (mut next, mut place, mut length) = (0u32, 0u32, SHORTEST);
    while length <= LONGEST {
        code.offset[length as usize] = place.wrapping_sub(next);
        let mut symbol = 0;
        while symbol <= EOS {
            if LENGTHS[symbol] as u32 == length {
                code.symbols[place as usize] = symbol as u16;
                if length <= 8 {
                    let first = (next << (8 - length)) as usize;
                    let mut i = 0;
                    while i < 1usize << (8 - length) {
                        code.short[first + i] = (symbol as u8, length as u8);
                        i += 1;
                    }
                }
                next += 1;
                place += 1;
            }
            symbol += 1;
        }
        // The last length's limit would be 2^32; every code is below it.
        code.limit[length as usize] = if length == LONGEST { u32::MAX } else { next << (32 - length) };
        next <<= 1;
        length += 1;
    }
    code
}

/// Appends the text that `coded` stands for to `out`, which may grow to `room` bytes.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>, room: usize) -> Result<(), HpackError> {
    let mut input = coded;
    // The bits not yet used, left-aligned, and how many they are.
    let (mut bits, mut held) = (0u64, 0u32);
    loop {
        if held <= 32 {
            // Four bytes at a time; the last ones each by itself.
            if let Some((four, rest)) = input.split_first_chunk::<4>() {
                bits |= u64::from(u32::from_be_bytes(*four)) << (32 - held);
                held += 32;
                input = rest;
            } else {
                for byte in std::mem::take(&mut input) {
                    bits |= u64::from(*byte) << (56 - held);
                    held += 8;
                }
            }
        }
        if held == 0 {
            return Ok(());
        }
        let (symbol, length) = next_symbol(bits)?;
        if length > held {
            return padding(bits, held);
        }
        let Ok(symbol) = u8::try_from(symbol) else { return Err(HpackError::Huffman) };
        if out.len() >= room {
            return Err(HpackError::TooLarge);
        }
        out.push(symbol);
        bits <<= length;
        held -= length;
    }
}

/// The symbol that left-aligned bits begin with, and the length of its code.
fn next_symbol(bits: u64) -> Result<(u16, u32), HpackError> {
    if let Some((symbol, length @ 1..)) = CODE.short.get((bits >> 56) as usize) {
        return Ok((u16::from(*symbol), u32::from(*length)));
    }
    let window = (bits >> 32) as u32;
    for length in 9..=LONGEST {
        let (Some(limit), Some(offset)) = (CODE.limit.get(length as usize), CODE.offset.get(length as usize))
        else {
            break;
        };
        if window < *limit || length == LONGEST {
            let place = (window >> (32 - length)).wrapping_add(*offset);
            let symbol = CODE.symbols.get(place as usize).ok_or(HpackError::Huffman)?;
            return Ok((*symbol, length));
        }
    }
    Err(HpackError::Huffman)
}

/// What is left at the end must be the beginning of EOS, shorter than a byte (RFC 7541, 5.2).
fn padding(bits: u64, held: u32) -> Result<(), HpackError> {
    let ones = u64::MAX << (64 - held);
    if held < 8 && bits & ones == ones { Ok(()) } else { Err(HpackError::Huffman) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code of each symbol, as a writer would make it.
    fn codes() -> Vec<(u32, u32)> {
        let mut order: Vec<usize> = (0..=EOS).collect();
        order.sort_by_key(|symbol| (LENGTHS[*symbol], *symbol));
        let mut codes = vec![(0, 0); 257];
        let (mut code, mut previous) = (0u32, LENGTHS[order[0]]);
        for symbol in order {
            code <<= LENGTHS[symbol] - previous;
            previous = LENGTHS[symbol];
            codes[symbol] = (code, u32::from(previous));
            code += 1;
        }
        codes
    }

    fn encode(text: impl IntoIterator<Item = usize>) -> Vec<u8> {
        let codes = codes();
        let mut bits: Vec<bool> = Vec::new();
        for symbol in text {
            let (code, length) = codes[symbol];
            bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push(true);
        }
        bits.chunks(8).map(|byte| byte.iter().fold(0, |all, bit| all << 1 | u8::from(*bit))).collect()
    }

    fn decoded(coded: &[u8]) -> Result<Vec<u8>, HpackError> {
        let mut out = Vec::new();
        decode(coded, &mut out, 1 << 16)?;
        Ok(out)
    }

    #[test]
    fn the_code_ends_with_eos_as_thirty_ones() {
        assert_eq!(codes()[EOS], (0x3fff_ffff, 30));
        assert_eq!(codes()[usize::from(b'0')], (0, 5));
        assert_eq!(codes()[22], (0x3fff_fffe, 30));
    }

    #[test]
    fn every_byte_survives_in_every_neighbourhood() {
        for first in 0..256usize {
            for second in [0usize, 10, 48, 97, 255] {
                let text = [first, second, first];
                let bytes: Vec<u8> = text.iter().map(|symbol| *symbol as u8).collect();
                assert_eq!(decoded(&encode(text)).unwrap(), bytes);
            }
        }
    }

    #[test]
    fn eos_in_a_text_is_refused() {
        assert_eq!(decoded(&encode([EOS])), Err(HpackError::Huffman));
        assert_eq!(decoded(&encode([97, EOS, 97])), Err(HpackError::Huffman));
    }

    #[test]
    fn padding_is_ones_and_shorter_than_a_byte() {
        let good = encode([97]);
        assert_eq!(decoded(&good).unwrap(), b"a");
        assert_eq!(decoded(&[good[0] & 0xfe]), Err(HpackError::Huffman));
        assert_eq!(decoded(&[good[0], 0xff]), Err(HpackError::Huffman));
        assert_eq!(decoded(&[0xff]), Err(HpackError::Huffman));
        assert_eq!(decoded(&[]).unwrap(), b"");
    }

    #[test]
    fn text_larger_than_the_room_is_refused() {
        let mut out = Vec::new();
        assert_eq!(decode(&encode([97; 9]), &mut out, 8), Err(HpackError::TooLarge));
        assert_eq!(out.len(), 8);
    }
}
