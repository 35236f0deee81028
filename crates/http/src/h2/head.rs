//! The head of a request as RFC 9113, section 8, demands it: fields in, what the filter must know of them out.

use super::hpack::{Field, Fields};
use crate::fields::{Known, folded, is_identity, is_odd, known};
use crate::{Authorizer, Header, Refusal, RequestHead, Status, Version, is_field_value, is_framing};

/// The most fields of an ordinary request: a small table on the stack is cheaper than a large one.
const FEW: usize = 32;

/// The largest number that every implementation of JSON or JavaScript reads exactly.
const MAX_LENGTH: u64 = 1 << 53;

/// Why a request is not forwarded, before anybody decides about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    /// It is malformed (RFC 9113, section 8.1.1): its stream is reset.
    Malformed(&'static str),
    /// It is well-formed, and answered by us.
    Refused(Refusal),
}

/// A request whose head is as it must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'f> {
    pub(super) method: &'f str,
    pub(super) scheme: &'f str,
    pub(super) target: &'f str,
    /// What the app gets as `:authority`.
    pub(super) authority: &'f str,
    pub(super) length: Option<u64>,
    /// It is a call of gRPC, and so must be its answer.
    pub(super) grpc: bool,
    cookies: usize,
}

/// Checks the fields of a request.
///
/// # Errors
/// Why it is not forwarded.
pub(super) fn request<'f>(fields: &'f Fields, authorizer: &dyn Authorizer) -> Result<Request<'f>, Bad> {
    let pseudo = Pseudo::read(fields)?;
    let mut seen = Seen::default();
    for field in fields.iter().skip(pseudo.count) {
        seen.field(field, authorizer)?;
    }
    if let Some(odd) = seen.odd {
        return Err(Bad::Refused(Refusal::bad_request(odd)));
    }
    let method = pseudo.method.ok_or(Bad::Malformed("there is no :method"))?;
    if method == "CONNECT" {
        return Err(Bad::Refused(Refusal::of(Status::MethodNotAllowed, "the method is CONNECT")));
    }
    if pseudo.protocol {
        return Err(Bad::Malformed("there is a :protocol without CONNECT"));
    }
    let scheme = match pseudo.scheme {
        Some(b"http") => "http",
        Some(b"https") => "https",
        _ => return Err(Bad::Malformed("the :scheme is not that of HTTP")),
    };
    let target = target(method, pseudo.path.ok_or(Bad::Malformed("there is no :path"))?)?;
    let authority = authority(pseudo.authority, seen.host)?;
    Ok(Request {
        method,
        scheme,
        target,
        authority,
        length: seen.length,
        grpc: seen.grpc,
        cookies: seen.cookies,
    })
}

impl Request<'_> {
    /// Shows the head to `then`; `joined` is room for its cookies.
    pub(super) fn show<R>(
        &self,
        fields: &Fields,
        joined: &mut Vec<u8>,
        then: impl FnOnce(&RequestHead<'_>) -> R,
    ) -> R {
        if self.cookies > 1 {
            join(fields, joined);
        }
        let mut few = [("", &b""[..]); FEW];
        let mut many = Vec::new();
        let room: &mut [Header<'_>] = if fields.len() < FEW {
            &mut few
        } else {
            many.resize(fields.len() + 1, ("", &b""[..]));
            &mut many
        };
        let mut count = 0;
        let mut cookie = false;
        let mut add = |name, value| {
            if let Some(place) = room.get_mut(count) {
                *place = (name, value);
                count += 1;
            }
        };
        // Policies may read it as a field, as they do in HTTP/1; it stands in the room of :authority.
        add("host", self.authority.as_bytes());
        for field in regular(fields).filter(|field| is_forwarded(*field)) {
            let name = text(field.name);
            if name == "cookie" && self.cookies > 1 {
                if !std::mem::replace(&mut cookie, true) {
                    add(name, joined.as_slice());
                }
            } else {
                add(name, field.value);
            }
        }
        then(&RequestHead {
            version: Version::Http2,
            method: self.method,
            target: self.target,
            authority: Some(self.authority),
            headers: room.get(..count).unwrap_or_default(),
            upgrade: false,
        })
    }
}

/// The fields behind the pseudo-fields.
pub(super) fn regular(fields: &Fields) -> impl Iterator<Item = Field<'_>> {
    fields.iter().filter(|field| field.name.first() != Some(&b':'))
}

/// Whether an app may see a field of a request: not those that only we may set, nor `host`, which `:authority`
/// stands for, nor what asks HTTP/1 for an upgrade.
pub(super) fn is_forwarded(field: Field<'_>) -> bool {
    // All names of them begin with these letters; most others are told by them.
    !matches!(field.name.first(), Some(b'c' | b'h' | b'x'))
        || !matches!(known(text(field.name)), Known::Identity | Known::Host | Known::Http2Settings)
}

/// A checked name as text.
pub(super) fn text(name: &[u8]) -> &str {
    std::str::from_utf8(name).unwrap_or_default()
}

/// Cookies come in pieces (RFC 9113, section 8.2.3); a policy reads them as one.
fn join(fields: &Fields, joined: &mut Vec<u8>) {
    joined.clear();
    for field in fields.iter().filter(|field| field.name == b"cookie") {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(field.value);
    }
}

/// The pseudo-fields of a request.
#[derive(Default)]
struct Pseudo<'f> {
    count: usize,
    method: Option<&'f str>,
    scheme: Option<&'f [u8]>,
    path: Option<&'f [u8]>,
    authority: Option<&'f [u8]>,
    protocol: bool,
}

impl<'f> Pseudo<'f> {
    fn read(fields: &'f Fields) -> Result<Pseudo<'f>, Bad> {
        let mut pseudo = Pseudo::default();
        for field in fields.iter().take_while(|field| field.name.first() == Some(&b':')) {
            pseudo.count += 1;
            let value = field.value;
            let twice = match field.name {
                b":method" => pseudo.method.replace(method(value)?).is_some(),
                b":scheme" => pseudo.scheme.replace(value).is_some(),
                b":path" => pseudo.path.replace(value).is_some(),
                b":authority" => pseudo.authority.replace(value).is_some(),
                b":protocol" => std::mem::replace(&mut pseudo.protocol, true),
                _ => return Err(Bad::Malformed("there is an unknown pseudo-field")),
            };
            if twice {
                return Err(Bad::Malformed("there is a pseudo-field twice"));
            }
        }
        Ok(pseudo)
    }
}

fn method(value: &[u8]) -> Result<&str, Bad> {
    let method = std::str::from_utf8(value).ok().filter(|method| crate::is_field_name(method));
    method.ok_or(Bad::Malformed("the :method is no token"))
}

/// What the other fields say, taken together.
#[derive(Default)]
struct Seen<'f> {
    host: Option<&'f [u8]>,
    length: Option<u64>,
    grpc: bool,
    cookies: usize,
    odd: Option<&'static str>,
}

impl<'f> Seen<'f> {
    fn field(&mut self, field: Field<'f>, authorizer: &dyn Authorizer) -> Result<(), Bad> {
        let name = check(field).map_err(Bad::Malformed)?;
        match known(name) {
            Known::Host if self.host.replace(field.value).is_some() => {
                return Err(Bad::Malformed("there are several host fields"));
            }
            Known::ContentLength if self.length.replace(length(field.value)?).is_some() => {
                return Err(Bad::Malformed("there are several content-length fields"));
            }
            Known::Other if is_odd(name) && is_taken_for_another(name, authorizer) => {
                self.odd = Some("the name of a field could be taken for another one");
            }
            Known::Other if name == "cookie" => self.cookies += 1,
            Known::Other if name == "content-type" => {
                self.grpc = field.value.starts_with(b"application/grpc")
            }
            _ => {}
        }
        Ok(())
    }
}

/// Checks a field by itself (RFC 9113, sections 8.2.1 and 8.2.2); returns its name.
pub(super) fn check(field: Field<'_>) -> Result<&str, &'static str> {
    let name = text(field.name);
    if name.is_empty() || !field.name.iter().all(|byte| is_name_byte(*byte)) {
        return Err(match field.name.first() {
            Some(b':') => "there is a pseudo-field behind others",
            _ => "the name of a field is malformed",
        });
    }
    if !is_field_value(field.value) {
        return Err("the value of a field is malformed");
    }
    match known(name) {
        Known::Connection
        | Known::KeepAlive
        | Known::ProxyConnection
        | Known::TransferEncoding
        | Known::Upgrade => Err("there is a field that belongs to a connection of HTTP/1"),
        Known::Te if field.value != b"trailers" => Err("the te field holds more than trailers"),
        _ => Ok(name),
    }
}

/// A token without capitals.
fn is_name_byte(byte: u8) -> bool {
    const NAME: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0_u8;
        while byte < 128 {
            let mark = matches!(
                byte,
                b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~'
            );
            #[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
            {
                table[byte as usize] = byte.is_ascii_lowercase() || byte.is_ascii_digit() || mark;
            }
            byte += 1;
        }
        table
    };
    NAME.get(usize::from(byte)).copied().unwrap_or_default()
}

/// Checks the trailers of a request: none may frame, route, identify, or be read by a policy.
pub(super) fn trailers(fields: &Fields, authorizer: &dyn Authorizer) -> Result<(), &'static str> {
    for field in fields.iter() {
        let name = check(field)?;
        if is_taken_for_another(name, authorizer) {
            return Err("the trailers hold a field that may not stand there");
        }
    }
    Ok(())
}

fn is_taken_for_another(name: &str, authorizer: &dyn Authorizer) -> bool {
    folded(name, |name| is_framing(name) || is_identity(name) || authorizer.is_guarded(name))
}

/// A number of digits alone, that every server reads alike.
pub(super) fn length(value: &[u8]) -> Result<u64, Bad> {
    let number = value.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        Some(sum.saturating_mul(10).saturating_add(digit))
    });
    let number = number.filter(|number| !value.is_empty() && *number <= MAX_LENGTH);
    number.ok_or(Bad::Malformed("the content-length is no number that all read alike"))
}

fn target<'f>(method: &str, path: &'f [u8]) -> Result<&'f str, Bad> {
    if path == b"*" && method != "OPTIONS" {
        return Err(Bad::Malformed("the :path * is for OPTIONS only"));
    }
    if path != b"*" && path.first() != Some(&b'/') {
        return Err(Bad::Malformed("the :path does not begin with a slash"));
    }
    if !path.iter().all(u8::is_ascii_graphic) {
        return Err(Bad::Malformed("the :path holds spaces, controls, or bytes beyond ASCII"));
    }
    Ok(text(path))
}

fn authority<'f>(authority: Option<&'f [u8]>, host: Option<&'f [u8]>) -> Result<&'f str, Bad> {
    if let (Some(authority), Some(host)) = (authority, host)
        && !authority.eq_ignore_ascii_case(host)
    {
        return Err(Bad::Malformed(":authority and host name different hosts"));
    }
    let authority = authority.or(host).ok_or(Bad::Malformed("there is neither :authority nor host"))?;
    let authority = text(authority);
    if authority.is_empty() || !crate::fields::is_authority(authority) {
        return Err(Bad::Malformed("the :authority is no host"));
    }
    Ok(authority)
}
