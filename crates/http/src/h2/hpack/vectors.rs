//! The examples of RFC 7541, appendix C, and blocks that must be refused.

use super::{Decoder, Encoder, Fields, HpackError};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn decoder() -> Decoder {
    Decoder::new(1 << 16, 256)
}

fn texts(fields: &Fields) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    fields.iter().map(|field| (text(field.name), text(field.value))).collect()
}

/// A block in hexadecimal, its fields, and the size of the table after it.
type Step<'a> = (&'a str, &'a [(&'a str, &'a str)], usize);

/// Decodes blocks one after the other; each comes with the fields to be seen and the table's size after it.
fn series(decoder: &mut Decoder, steps: &[Step<'_>]) {
    let mut fields = Fields::default();
    for (block, expected, size) in steps {
        decoder.decode(&hex(block), &mut fields).unwrap();
        let expected: Vec<_> =
            expected.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        assert_eq!(texts(&fields), expected);
        assert_eq!(decoder.table_size(), *size);
    }
}

const FIRST: &[(&str, &str)] =
    &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
const SECOND: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "www.example.com"),
    ("cache-control", "no-cache"),
];
const THIRD: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "https"),
    (":path", "/index.html"),
    (":authority", "www.example.com"),
    ("custom-key", "custom-value"),
];
const DATE: &str = "Mon, 21 Oct 2013 20:13:21 GMT";
const FOUND: &[(&str, &str)] = &[
    (":status", "302"),
    ("cache-control", "private"),
    ("date", DATE),
    ("location", "https://www.example.com"),
];
const TEMPORARY: &[(&str, &str)] = &[
    (":status", "307"),
    ("cache-control", "private"),
    ("date", DATE),
    ("location", "https://www.example.com"),
];
const OK: &[(&str, &str)] = &[
    (":status", "200"),
    ("cache-control", "private"),
    ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
    ("location", "https://www.example.com"),
    ("content-encoding", "gzip"),
    ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
];

#[test]
fn rfc_7541_c_2_each_representation() {
    let header: &[(&str, &str)] = &[("custom-key", "custom-header")];
    series(
        &mut decoder(),
        &[("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572", header, 55)],
    );
    series(&mut decoder(), &[("040c 2f73 616d 706c 652f 7061 7468", &[(":path", "/sample/path")], 0)]);
    series(&mut decoder(), &[("1008 7061 7373 776f 7264 0673 6563 7265 74", &[("password", "secret")], 0)]);
    series(&mut decoder(), &[("82", &[(":method", "GET")], 0)]);
}

#[test]
fn rfc_7541_c_3_requests_without_huffman() {
    series(
        &mut decoder(),
        &[
            ("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", FIRST, 57),
            ("8286 84be 5808 6e6f 2d63 6163 6865", SECOND, 110),
            ("8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65", THIRD, 164),
        ],
    );
}

#[test]
fn rfc_7541_c_4_requests_with_huffman() {
    series(
        &mut decoder(),
        &[
            ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", FIRST, 57),
            ("8286 84be 5886 a8eb 1064 9cbf", SECOND, 110),
            ("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", THIRD, 164),
        ],
    );
}

/// The examples have a table of 256 bytes: here the encoder says so itself, at the first block's begin.
const SMALL_TABLE: &str = "3fe101";

#[test]
fn rfc_7541_c_5_responses_without_huffman() {
    let first = format!(
        "{SMALL_TABLE} 4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133
         2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d"
    );
    let third = "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d
        54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049
        5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31";
    series(
        &mut decoder(),
        &[(&first, FOUND, 222), ("4803 3330 37c1 c0bf", TEMPORARY, 222), (third, OK, 215)],
    );
}

#[test]
fn rfc_7541_c_6_responses_with_huffman() {
    let first = format!(
        "{SMALL_TABLE} 4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
         2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3"
    );
    let third = "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
        77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f
        9587 3160 65c0 03ed 4ee5 b106 3d50 07";
    series(
        &mut decoder(),
        &[(&first, FOUND, 222), ("4883 640e ffc1 c0bf", TEMPORARY, 222), (third, OK, 215)],
    );
}

#[test]
fn blocks_that_mean_nothing_are_refused() {
    let cases = [
        ("index 0", "80", HpackError::Index),
        ("an index beyond the empty table", "be", HpackError::Index),
        ("a name's index beyond the empty table", "7f00 0161", HpackError::Index),
        ("an index of no bound", "ffff ffff ffff ff", HpackError::Integer),
        ("a literal cut in its name", "000a 61", HpackError::Truncated),
        ("a literal without value", "0001 61", HpackError::Truncated),
        ("a length of 4 GiB", "0001 617f 80ff ffff 0f", HpackError::Integer),
        ("a table size above ours", "3fe2 1f", HpackError::TableSize),
        ("a table size after a field", "8220", HpackError::TableSize),
        ("three table sizes", "2020 20", HpackError::TableSize),
        ("huffman with bad padding", "0001 6181 18", HpackError::Huffman),
    ];
    for (name, block, error) in cases {
        assert_eq!(decoder().decode(&hex(block), &mut Fields::default()), Err(error), "{name}");
    }
}

#[test]
fn a_bomb_of_indexes_ends_at_the_limit() {
    let mut bomb = decoder();
    let mut fields = Fields::default();
    let mut block = vec![0x40, 1, b'x', 0x7f, 0xa1, 0x1e];
    block.extend(vec![b'v'; 4000]);
    bomb.decode(&block, &mut fields).unwrap();
    assert_eq!(fields.len(), 1);
    assert_eq!(bomb.decode(&[0xbe; 17], &mut fields), Err(HpackError::TooLarge));
    assert!(fields.capacity() < 300_000, "{}", fields.capacity());
    assert_eq!(Decoder::new(1 << 16, 3).decode(&[0x82; 4], &mut fields), Err(HpackError::TooMany));
}

#[test]
fn what_the_encoder_writes_is_read_the_same_and_needs_no_table() {
    let fields: &[(&str, &str, u8)] = &[
        (":method", "POST", 2),
        (":method", "PUT", 2),
        (":path", "/", 5),
        (":path", "/a", 4),
        (":status", "503", 8),
        (":status", "404", 8),
        ("accept-encoding", "gzip, deflate", 16),
        ("user-agent", "x", 58),
        ("x-own", "", 0),
    ];
    let (mut encoder, mut decoder, mut seen) = (Encoder::default(), decoder(), Fields::default());
    for round in 0..2 {
        let mut block = Vec::new();
        encoder.begin(&mut block);
        assert_eq!(block, if round == 0 { vec![0x20] } else { Vec::new() });
        for (name, value, hint) in fields {
            encoder.field(name, value.as_bytes(), *hint, &mut block);
        }
        decoder.decode(&block, &mut seen).unwrap();
        let expected: Vec<_> =
            fields.iter().map(|(name, value, _)| (name.to_string(), value.to_string())).collect();
        assert_eq!(texts(&seen), expected);
        assert_eq!(decoder.table_size(), 0);
        assert_eq!(seen.coded(), &block[usize::from(round == 0)..], "what is read is kept as it is written");
    }
}

#[test]
fn a_field_that_must_never_be_indexed_stays_so() {
    let (mut decoder, mut fields) = (decoder(), Fields::default());
    let block = hex("1008 7061 7373 776f 7264 0673 6563 7265 74");
    decoder.decode(&block, &mut fields).unwrap();
    assert_eq!(fields.coded(), block);
    // Also where a static entry says the same.
    decoder.decode(&hex("1203 4745 54"), &mut fields).unwrap();
    assert_eq!(fields.coded(), hex("1203 4745 54"));
}

/// What `block` says, written anew; a peer without a table must read the same of it.
fn written(decoder: &mut Decoder, block: &[u8]) -> Vec<u8> {
    let (mut fields, mut again) = (Fields::default(), Fields::default());
    decoder.decode(block, &mut fields).unwrap();
    Decoder::new(1 << 17, 256).decode(fields.coded(), &mut again).unwrap();
    assert_eq!(texts(&fields), texts(&again));
    let classes = |fields: &Fields| fields.iter().map(|field| field.class).collect::<Vec<_>>();
    assert_eq!(classes(&fields), classes(&again), "a table keeps the class of what came in full");
    let size = texts(&fields).iter().map(|(name, value)| name.len() + value.len() + 32).sum::<usize>();
    assert_eq!((fields.size(), again.size()), (size, size));
    fields.coded().to_vec()
}

#[test]
fn whatever_its_representation_a_field_is_written_without_a_table() {
    let mut decoder = decoder();
    // New name, then that name by its index with another value, then both by index.
    assert_eq!(written(&mut decoder, &hex("4003 785f 6101 31")), hex("0003 785f 6101 31"));
    assert_eq!(written(&mut decoder, &hex("7e01 32")), hex("0003 785f 6101 32"));
    assert_eq!(written(&mut decoder, &hex("1f2f 0133")), hex("1003 785f 6101 33"));
    assert_eq!(written(&mut decoder, &hex("bebf")), hex("0003 785f 6101 32 0003 785f 6101 31"));
    // A static name, and a whole static entry that came as a literal and went into the table.
    assert_eq!(written(&mut decoder, &hex("5f01 61")), hex("0f10 0161"));
    assert_eq!(written(&mut decoder, &hex("4203 4745 54be 82 93")), hex("82 82 82 93"));
    // A static name with a value of its own, by the index of the table.
    assert_eq!(written(&mut decoder, &hex("7f00 0162")), hex("0f10 0162"));
}

#[test]
fn huffman_texts_of_any_length_are_written_plainly() {
    for length in [0_usize, 1, 5, 8, 125, 126, 127, 128, 200, 254, 255, 300, 20_000] {
        // Five bits of 0 each stand for "0"; a whole number of them fits into whole bytes, or ones fill the last.
        let mut bits = vec![false; 5 * length];
        while !bits.len().is_multiple_of(8) {
            bits.push(true);
        }
        let coded: Vec<u8> =
            bits.chunks(8).map(|byte| byte.iter().fold(0, |all, bit| all << 1 | u8::from(*bit))).collect();
        let (mut block, mut plain) = (vec![0x0f, 0x10], vec![0x0f, 0x10]);
        super::integer::encode(coded.len(), 7, 0x80, &mut block);
        block.extend(coded);
        super::integer::encode(length, 7, 0, &mut plain);
        plain.extend(vec![b'0'; length]);
        assert_eq!(written(&mut decoder(), &block), plain, "{length}");
    }
}
