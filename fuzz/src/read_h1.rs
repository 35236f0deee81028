//! What the app gets of HTTP/1, read by httparse and by the plain rules for bodies.

use crate::play::{Played, Seen};

/// A body in chunks, as RFC 9112, section 7.1, has it, without extensions.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunks {
    /// It ends behind so many bytes.
    Ends(usize),
    /// More may come.
    Goes,
    /// It is none.
    Broken,
    /// Its trailers are none, which may be seen only at their end.
    BrokenTrailers,
}

/// Reads a body in chunks, byte by byte.
pub fn chunks(bytes: &[u8]) -> Chunks {
    let mut at = 0;
    loop {
        let size = match line(bytes, at) {
            Line::Broken => return Chunks::Broken,
            Line::Goes => {
                let begun = &bytes[at..];
                let digits = begun.strip_suffix(b"\r").unwrap_or(begun);
                let good = digits.len() <= 15 && digits.iter().all(u8::is_ascii_hexdigit);
                let alone = digits.len() < begun.len() && digits.is_empty();
                return if good && !alone { Chunks::Goes } else { Chunks::Broken };
            }
            Line::Is(text, next) => {
                let good = (1..=15).contains(&text.len()) && text.iter().all(u8::is_ascii_hexdigit);
                if !good {
                    return Chunks::Broken;
                }
                at = next;
                let digits = std::str::from_utf8(text).unwrap();
                u64::from_str_radix(digits, 16).unwrap()
            }
        };
        if size == 0 {
            return trailers(bytes, at);
        }
        let Some(end) = usize::try_from(size).ok().and_then(|size| at.checked_add(size)) else {
            return Chunks::Goes;
        };
        match bytes.get(end..) {
            None | Some([] | [b'\r']) => return Chunks::Goes,
            Some([b'\r', b'\n', ..]) => at = end + 2,
            Some(_) => return Chunks::Broken,
        }
    }
}

enum Line<'a> {
    Is(&'a [u8], usize),
    Goes,
    Broken,
}

/// The line that begins at `at`, without its end, and where the next one begins.
fn line(bytes: &[u8], at: usize) -> Line<'_> {
    let rest = &bytes[at..];
    let Some(end) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else { return Line::Goes };
    match &rest[end..] {
        [b'\r', b'\n', ..] => Line::Is(&rest[..end], at + end + 2),
        [b'\r'] => Line::Goes,
        _ => Line::Broken,
    }
}

/// Trailers are for httparse to read.
fn trailers(bytes: &[u8], at: usize) -> Chunks {
    let rest = &bytes[at..];
    if rest.starts_with(b"\r\n") {
        return Chunks::Ends(at + 2);
    }
    let mut fields = [httparse::EMPTY_HEADER; 256];
    match httparse::parse_headers(rest, &mut fields) {
        Ok(httparse::Status::Complete((length, _))) => Chunks::Ends(at + length),
        Ok(httparse::Status::Partial) => Chunks::Goes,
        Err(_) => Chunks::BrokenTrailers,
    }
}

/// Panics unless the app got exactly the requests that were authorised, in their order, as far as bytes have come.
pub fn assert_authorised(played: &Played) {
    let mut rest = &played.to_app[..];
    for seen in played.judge.seen.iter().filter(|seen| seen.allowed) {
        let Some(after) = request(rest, seen) else { return };
        rest = after;
    }
    assert!(rest.is_empty(), "nobody has authorised {:?}", String::from_utf8_lossy(rest));
}

/// Reads one request and compares it; what follows it, or `None` when it has not ended yet or nobody can tell.
fn request<'b>(bytes: &'b [u8], seen: &Seen) -> Option<&'b [u8]> {
    let mut fields = [httparse::EMPTY_HEADER; 300];
    let mut request = httparse::Request::new(&mut fields);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        other => panic!("{seen:?} was forwarded as no request: {other:?}"),
    };
    assert_eq!((request.method, request.path), (Some(&*seen.method), Some(seen.forwarded())), "{seen:?}");
    let read = request.headers.iter().map(|field| (field.name.to_owned(), field.value.to_vec()));
    let mut wanted = seen.headers.clone();
    if seen.is_patched() {
        wanted.retain(|(name, _)| {
            !name.eq_ignore_ascii_case("authorization") && !name.eq_ignore_ascii_case("x-user")
        });
        wanted.push(("x-user".to_owned(), b"ann".to_vec()));
    }
    assert_eq!(plain(read), plain(wanted.into_iter()), "{seen:?}");
    let of = |name: &str| {
        let mut found = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        let first = found.next().map(|field| String::from_utf8_lossy(field.value).into_owned());
        assert!(found.next().is_none(), "{name} twice");
        first
    };
    assert_eq!(of("upgrade").is_some(), seen.upgrade, "{seen:?}");
    let body = &bytes[head..];
    match (of("transfer-encoding"), of("content-length")) {
        // What follows depends on the app's answer.
        _ if seen.upgrade => None,
        (Some(coding), length) => {
            assert_eq!((coding.as_str(), length), ("chunked", None));
            match chunks(body) {
                Chunks::Ends(length) => Some(&body[length..]),
                Chunks::Goes => None,
                Chunks::Broken | Chunks::BrokenTrailers => {
                    panic!("a body that is none passed: {:?}", String::from_utf8_lossy(body))
                }
            }
        }
        (None, length) => body.get(length.map_or(0, |length| length.parse().unwrap())..),
    }
}

/// Fields in their order, without those of the hop, and without `host`, which an HTTP/1.0 request may get.
fn plain(fields: impl Iterator<Item = (String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let fields = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim_ascii().to_vec()));
    fields.filter(|(name, _)| name != "connection" && name != "host").collect()
}
