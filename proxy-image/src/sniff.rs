//! What the first bytes of a connection are. In go the bytes that have come so far, out comes whether they are
//! the beginning of a tunnel. Pure; never fails: what can't be read is something else.

use cinch_tunnel::ALPN;

/// The payload of the longest record (RFC 8446, section 5.1).
const MAX_RECORD: usize = 1 << 14;
const RECORD_HANDSHAKE: u8 = 0x16;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_ALPN: u16 = 16;

/// What the bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// Perhaps a ClientHello; the rest of it has not come yet.
    Undecided,
    /// A TLS ClientHello that offers our protocol.
    Tunnel,
    /// Anything else, the app's own TLS included.
    Other,
    /// A ClientHello that is longer than ours may be: something else, as far as anybody cares to read.
    TooLong,
}

/// Says what `bytes`, from the connection's first byte on, are. A ClientHello of more than `most` bytes is none of ours,
/// which has some 1.8 KiB with its post-quantum key share.
#[must_use]
pub fn classify(bytes: &[u8], most: usize) -> First {
    match hello(bytes, most) {
        Ok(true) => First::Tunnel,
        Ok(false) | Err(Stop::Wrong) => First::Other,
        Err(Stop::TooLong) => First::TooLong,
        Err(Stop::More) if bytes.len() >= most => First::TooLong,
        Err(Stop::More) => First::Undecided,
    }
}

enum Stop {
    /// The bytes so far don't say.
    More,
    /// This is no ClientHello.
    Wrong,
    /// It is longer than one of ours.
    TooLong,
}

/// Whether the ClientHello offers [`ALPN`]. It may be spread over several records (RFC 8446, 5.1).
fn hello(bytes: &[u8], most: usize) -> Result<bool, Stop> {
    let mut records = Cursor(bytes);
    let mut message = Vec::new();
    loop {
        let record = record(&mut records, most)?;
        message.extend_from_slice(record.payload);
        match message_offers_tunnel(&message, most) {
            Err(Stop::More) if record.complete => {}
            result => return result,
        }
    }
}

struct Record<'a> {
    payload: &'a [u8],
    complete: bool,
}

fn record<'a>(bytes: &mut Cursor<'a>, most: usize) -> Result<Record<'a>, Stop> {
    if bytes.u8()? != RECORD_HANDSHAKE || bytes.u8()? != 3 || bytes.u8()? > 4 {
        return Err(Stop::Wrong);
    }
    let length = usize::from(bytes.u16()?);
    if length == 0 || length > MAX_RECORD {
        return Err(Stop::Wrong);
    }
    if length > most {
        return Err(Stop::TooLong);
    }
    let complete = bytes.0.len() >= length;
    let payload = bytes.take(length.min(bytes.0.len()))?;
    Ok(Record { payload, complete })
}

fn message_offers_tunnel(message: &[u8], most: usize) -> Result<bool, Stop> {
    let mut message = Cursor(message);
    if message.u8()? != CLIENT_HELLO {
        return Err(Stop::Wrong);
    }
    let length = (usize::from(message.u8()?) << 16) | usize::from(message.u16()?);
    if length > most {
        return Err(Stop::TooLong);
    }
    let body = message.take(length)?;
    // From here on everything is there: what does not fit is wrong, not late.
    body_offers_tunnel(Cursor(body)).map_err(|_| Stop::Wrong)
}

fn body_offers_tunnel(mut body: Cursor<'_>) -> Result<bool, Stop> {
    body.take(2 + 32)?; // legacy version and random
    let session = usize::from(body.u8()?);
    body.take(session)?;
    let suites = usize::from(body.u16()?);
    body.take(suites)?;
    let compression = usize::from(body.u8()?);
    body.take(compression)?;
    if body.0.is_empty() {
        return Ok(false);
    }
    let length = usize::from(body.u16()?);
    let mut extensions = Cursor(body.take(length)?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let length = usize::from(extensions.u16()?);
        let value = extensions.take(length)?;
        if kind == EXTENSION_ALPN {
            return offers(Cursor(value));
        }
    }
    Ok(false)
}

fn offers(mut value: Cursor<'_>) -> Result<bool, Stop> {
    let length = usize::from(value.u16()?);
    let mut names = Cursor(value.take(length)?);
    while !names.0.is_empty() {
        let length = usize::from(names.u8()?);
        if names.take(length)? == ALPN {
            return Ok(true);
        }
    }
    Ok(false)
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(Stop::More)?;
        self.0 = tail;
        Ok(head)
    }

    fn u8(&mut self) -> Result<u8, Stop> {
        let (byte, rest) = self.0.split_first().ok_or(Stop::More)?;
        self.0 = rest;
        Ok(*byte)
    }

    fn u16(&mut self) -> Result<u16, Stop> {
        Ok(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const MAX_HELLO: usize = 4 * 1024;

    /// The ClientHello that rustls makes, with these protocols.
    fn client_hello(alpn: &[&[u8]]) -> Vec<u8> {
        let provider = cinch_identity::provider().clone();
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = rustls_pki_types::ServerName::try_from("app.example").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_protocol_decides() {
        let cases: [(&str, Vec<&[u8]>, First); 5] = [
            ("ours", vec![ALPN], First::Tunnel),
            ("ours among others", vec![b"h2", ALPN], First::Tunnel),
            ("another", vec![b"h2"], First::Other),
            ("none", vec![], First::Other),
            ("a longer name", vec![b"cinch/10"], First::Other),
        ];
        for (name, alpn, expected) in cases {
            assert_eq!(classify(&client_hello(&alpn), MAX_HELLO), expected, "{name}");
        }
    }

    #[test]
    fn every_beginning_of_a_hello_is_undecided() {
        let hello = client_hello(&[ALPN]);
        for end in 0..hello.len() {
            assert_eq!(classify(&hello[..end], MAX_HELLO), First::Undecided, "{end} bytes");
        }
    }

    #[test]
    fn a_hello_in_several_records_is_read() {
        let hello = client_hello(&[ALPN]);
        let mut split = Vec::new();
        for piece in hello[5..].chunks(100) {
            split.extend_from_slice(&[0x16, 3, 1]);
            split.extend_from_slice(&u16::try_from(piece.len()).unwrap().to_be_bytes());
            split.extend_from_slice(piece);
        }
        assert_eq!(classify(&split, MAX_HELLO), First::Tunnel);
        assert_eq!(classify(&split[..split.len() - 1], MAX_HELLO), First::Undecided);
    }

    #[test]
    fn anything_else_is_known_by_its_first_bytes() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\0",
            b"\x16G",
            b"\x16\x03\x07",
            b"\x16\x03\x01\0\0",
            b"\x16\x03\x01\xff\xff",
            b"\x16\x03\x01\0\x05\x02",
            b"\x16\x03\x01\0\x05\x01\0\0\x01\0",
        ] {
            assert_eq!(classify(bytes, MAX_HELLO), First::Other, "{bytes:?}");
        }
        assert_eq!(classify(b"", MAX_HELLO), First::Undecided);
    }

    #[test]
    fn a_hello_that_is_longer_than_ours_is_known_before_it_has_come() {
        let long = u16::try_from(MAX_HELLO + 1).unwrap().to_be_bytes();
        let (record, message) =
            ([0x16, 3, 1, long[0], long[1], 1], [0x16, 3, 1, 0, 100, 1, 0, long[0], long[1]]);
        for bytes in [&record[..], &message] {
            assert_eq!(classify(bytes, MAX_HELLO), First::TooLong);
            assert_eq!(classify(bytes, MAX_HELLO + 1), First::Undecided, "it is a setting");
        }
        assert!(client_hello(&[ALPN]).len() < MAX_HELLO / 2, "ours has room to grow");
    }

    #[test]
    fn damaged_hellos_never_panic_and_never_wait_for_ever() {
        let hello = client_hello(&[ALPN]);
        for at in 0..hello.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = hello.clone();
                damaged[at] = value;
                damaged.resize(MAX_HELLO, 0);
                assert_ne!(classify(&damaged, MAX_HELLO), First::Undecided, "byte {at} = {value}");
            }
        }
    }
}
