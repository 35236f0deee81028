//! The head of a request as RFC 9113, section 8, demands it: fields in, what the filter must know of them out.

use super::class::Name;
use super::hpack::{Field, Fields};
use crate::fields::{folded, is_identity};
use crate::{Authorizer, Header, Refusal, RequestHead, Status, Version, is_framing};

/// Fields of most calls, and of nearly all requests: a small table on the stack is cheaper than a large one.
const FEW: usize = 12;
const SOME: usize = 32;

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
    /// Its pseudo-fields are those that the app gets.
    pub(super) is_plain: bool,
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
        seen.field(&field, authorizer)?;
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
    let is_plain = pseudo.authority.is_some();
    let authority = authority(pseudo.authority, seen.host)?;
    Ok(Request {
        method,
        scheme,
        target,
        authority,
        is_plain,
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
        match fields.len() {
            0..FEW => self.show_in(&mut [("", &b""[..]); FEW], fields, joined, then),
            FEW..SOME => self.show_in(&mut [("", &b""[..]); SOME], fields, joined, then),
            many => self.show_in(&mut vec![("", &b""[..]); many + 1], fields, joined, then),
        }
    }

    /// As [`Request::show`], with `room` for the fields and joined cookies.
    fn show_in<'s, R>(
        &'s self,
        room: &mut [Header<'s>],
        fields: &'s Fields,
        cookies: &'s [u8],
        then: impl FnOnce(&RequestHead<'_>) -> R,
    ) -> R {
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
        for field in fields.regular().filter(|field| is_forwarded(field.class.name)) {
            if field.class.name == Name::Cookie && self.cookies > 1 {
                if !std::mem::replace(&mut cookie, true) {
                    add(field.text(), cookies);
                }
            } else {
                add(field.text(), field.value);
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

/// Whether an app may see a field of a request: not those that only we may set, nor `host`, which `:authority`
/// stands for, nor what asks HTTP/1 for an upgrade. Pseudo-fields are none.
pub(super) fn is_forwarded(name: Name) -> bool {
    !matches!(name, Name::Pseudo | Name::Identity | Name::Host | Name::Http2Settings)
}

/// Checked text.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// Cookies come in pieces (RFC 9113, section 8.2.3); a policy reads them as one.
fn join(fields: &Fields, joined: &mut Vec<u8>) {
    joined.clear();
    for field in fields.iter().filter(|field| field.class.name == Name::Cookie) {
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
        for field in fields.iter().take_while(|field| field.class.name == Name::Pseudo) {
            pseudo.count += 1;
            let value = field.value;
            // Nearly always by the place in the static table.
            let twice = match (field.hint, field.name) {
                (2 | 3, _) | (0, b":method") => pseudo.method.replace(method(value)?).is_some(),
                (6 | 7, _) | (0, b":scheme") => pseudo.scheme.replace(value).is_some(),
                (4 | 5, _) | (0, b":path") => pseudo.path.replace(value).is_some(),
                (1, _) | (0, b":authority") => pseudo.authority.replace(value).is_some(),
                (0, b":protocol") => std::mem::replace(&mut pseudo.protocol, true),
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
    match value {
        b"GET" => return Ok("GET"),
        b"POST" => return Ok("POST"),
        _ => {}
    }
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
    fn field(&mut self, field: &Field<'f>, authorizer: &dyn Authorizer) -> Result<(), Bad> {
        check(field).map_err(Bad::Malformed)?;
        match field.class.name {
            Name::Host if self.host.replace(field.value).is_some() => {
                return Err(Bad::Malformed("there are several host fields"));
            }
            Name::ContentLength if self.length.replace(length(field.value)?).is_some() => {
                return Err(Bad::Malformed("there are several content-length fields"));
            }
            Name::Odd if is_taken_for_another(field.text(), authorizer) => {
                self.odd = Some("the name of a field could be taken for another one");
            }
            Name::Cookie => self.cookies += 1,
            Name::ContentType => self.grpc = field.value.starts_with(b"application/grpc"),
            _ => {}
        }
        Ok(())
    }
}

/// Checks a field by itself (RFC 9113, sections 8.2.1 and 8.2.2).
pub(super) fn check(field: &Field<'_>) -> Result<(), &'static str> {
    match field.class.name {
        Name::Pseudo => Err("there is a pseudo-field behind others"),
        Name::Malformed => Err("the name of a field is malformed"),
        _ if !field.class.is_value => Err("the value of a field is malformed"),
        Name::OfConnection => Err("there is a field that belongs to a connection of HTTP/1"),
        Name::Te if field.value != b"trailers" => Err("the te field holds more than trailers"),
        _ => Ok(()),
    }
}

/// Checks the trailers of a request: none may frame, route, identify, or be read by a policy.
pub(super) fn trailers(fields: &Fields, authorizer: &dyn Authorizer) -> Result<(), &'static str> {
    for field in fields.iter() {
        check(&field)?;
        if is_taken_for_another(field.text(), authorizer) {
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
    if !path.iter().fold(true, |all, byte| all & byte.is_ascii_graphic()) {
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
