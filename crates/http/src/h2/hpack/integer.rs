//! Integers of RFC 7541, 5.1.

use super::HpackError;

/// Larger values than this mean nothing in a header block of at most 64 KiB.
const MAX: u32 = 1 << 24;

/// Reads an integer whose first byte holds `prefix` bits of it; returns it and what follows.
pub(super) fn decode(input: &[u8], prefix: u32) -> Result<(usize, &[u8]), HpackError> {
    let (first, mut rest) = input.split_first().ok_or(HpackError::Truncated)?;
    let mask = (1u32 << prefix) - 1;
    let mut value = u32::from(*first) & mask;
    if value < mask {
        return Ok((value as usize, rest));
    }
    // Four bytes carry 28 bits: more than `MAX`, and too few to overflow.
    for shift in [0, 7, 14, 21] {
        let (byte, after) = rest.split_first().ok_or(HpackError::Truncated)?;
        rest = after;
        value += u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return if value <= MAX { Ok((value as usize, rest)) } else { Err(HpackError::Integer) };
        }
    }
    Err(HpackError::Integer)
}

/// Appends `value` with `prefix` bits of it in a first byte that begins with `flags`.
pub(super) fn encode(value: usize, prefix: u32, flags: u8, out: &mut Vec<u8>) {
    let mask = (1usize << prefix) - 1;
    if value < mask {
        out.push(flags | value as u8);
        return;
    }
    out.push(flags | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_7541_c_1_integers() {
        for (value, prefix, bytes) in [(10, 5, &[0x0a][..]), (1337, 5, &[0x1f, 0x9a, 0x0a]), (42, 8, &[0x2a])]
        {
            let mut out = Vec::new();
            encode(value, prefix, 0, &mut out);
            assert_eq!(out, bytes);
            assert_eq!(decode(bytes, prefix), Ok((value, &[][..])));
        }
    }

    #[test]
    fn what_would_overflow_is_refused() {
        assert_eq!(decode(&[0x7f, 0xff, 0xff, 0xff, 0xff, 0x0f], 7), Err(HpackError::Integer));
        assert_eq!(decode(&[0x7f, 0x80, 0x80, 0x80, 0x80, 0x00], 7), Err(HpackError::Integer));
        assert_eq!(decode(&[0x7f, 0xff, 0xff, 0xff, 0x7f], 7), Err(HpackError::Integer));
        assert_eq!(decode(&[0x7f, 0xff], 7), Err(HpackError::Truncated));
        assert_eq!(decode(&[], 7), Err(HpackError::Truncated));
    }

    #[test]
    fn any_size_survives() {
        for value in (0..70_000).chain([1 << 20, 1 << 24]) {
            for prefix in [4, 5, 6, 7] {
                let mut out = Vec::new();
                encode(value, prefix, 0, &mut out);
                assert_eq!(decode(&out, prefix), Ok((value, &[][..])));
            }
        }
    }
}
