//! The head of a request: whole bytes go in, and what the filter must know of it comes out, or why it is refused.
//! Nothing is allocated; what httparse lets pass and a server could read in another way is refused here.

use super::target;
use crate::fields::{Known, folded, is_identity, is_odd, is_token_byte, known};
use crate::{Authorizer, Header, Limits, Refusal, RequestHead, Status, Version, is_framing};
use std::mem::MaybeUninit;

/// Fields of an ordinary request: a small table on the stack is cheaper than a large one.
const FEW: usize = 32;
/// The largest number that every implementation of JSON or JavaScript reads exactly.
const MAX_LENGTH: u64 = 1 << 53;

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    Empty,
    /// After so many bytes, at least one.
    Length(u64),
    Chunked,
}

/// What the filter must know of a request once its head has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) framing: Framing,
    /// It is the last of its connection: HTTP/1.0, or `Connection: close`.
    pub(super) last: bool,
    /// It has an Expect field: its body may never come.
    pub(super) expects: bool,
    pub(super) websocket: bool,
    /// Its method is HEAD: the answer has no body.
    pub(super) is_head: bool,
}

/// How the head must be changed before an app may see it, whatever the authorizer says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Edits {
    /// It has identity fields.
    pub(super) identity: bool,
    /// It asks for an upgrade that is not granted.
    pub(super) upgrade: bool,
    /// It is of HTTP/1.0 and has Connection fields: the connection closes whatever they say.
    pub(super) connection: bool,
    /// The target was in absolute form.
    pub(super) target: bool,
    /// The target names the host, and there is no Host field.
    pub(super) host: bool,
}

impl Edits {
    pub(super) fn any(self) -> bool {
        self != Edits::default()
    }

    /// Whether a field goes to the app as it is.
    pub(super) fn keeps(self, field: Known) -> bool {
        match field {
            Known::Identity => false,
            Known::Upgrade | Known::Http2Settings => !self.upgrade,
            Known::Connection => !self.upgrade && !self.connection,
            Known::KeepAlive | Known::ProxyConnection => !self.connection,
            _ => true,
        }
    }
}

/// A request that may be shown to the authorizer.
pub(super) struct Request<'r, 'b> {
    pub(super) head: RequestHead<'r>,
    pub(super) facts: Facts,
    pub(super) edits: Edits,
    /// All fields as sent.
    pub(super) fields: &'r [httparse::Header<'b>],
}

/// Reads a whole head, empty line included, and hands it to `then`.
///
/// # Errors
/// Why it is refused.
pub(super) fn read<R>(
    bytes: &[u8],
    limits: &Limits,
    authorizer: &mut dyn Authorizer,
    then: impl FnOnce(&Request<'_, '_>, &mut dyn Authorizer) -> R,
) -> Result<R, Refusal> {
    let mut few = [const { MaybeUninit::uninit() }; FEW];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut few) {
        Err(httparse::Error::TooManyHeaders) => {}
        result => {
            check_parse(bytes, result)?;
            let mut shown = [("", &b""[..]); FEW];
            return examine(&request, limits, &mut shown, authorizer, then);
        }
    }
    read_many(bytes, limits, authorizer, then)
}

/// As [`read`], for a head of many fields.
#[inline(never)]
fn read_many<R>(
    bytes: &[u8],
    limits: &Limits,
    authorizer: &mut dyn Authorizer,
    then: impl FnOnce(&Request<'_, '_>, &mut dyn Authorizer) -> R,
) -> Result<R, Refusal> {
    let mut many = [const { MaybeUninit::uninit() }; Limits::MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let result = request.parse_with_uninit_headers(bytes, &mut many);
    check_parse(bytes, result)?;
    let mut shown = [("", &b""[..]); Limits::MAX_FIELDS];
    examine(&request, limits, &mut shown, authorizer, then)
}

fn check_parse(bytes: &[u8], result: httparse::Result<usize>) -> Result<(), Refusal> {
    use httparse::Error;
    Err(match result {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => return Ok(()),
        Ok(_) => Refusal::bad_request("the head does not end where its empty line is"),
        Err(Error::TooManyHeaders) => {
            Refusal::over(Status::FieldsTooLarge, "http.head_fields", "the head has too many fields")
        }
        Err(Error::Version) if has_other_version(bytes) => {
            Refusal::of(Status::VersionNotSupported, "the version is neither HTTP/1.1 nor HTTP/1.0")
        }
        Err(Error::HeaderName) => Refusal::bad_request("the name of a field is malformed"),
        Err(Error::HeaderValue) => Refusal::bad_request("the value of a field is malformed"),
        Err(Error::NewLine) => Refusal::bad_request("a line does not end with CRLF"),
        Err(_) => Refusal::bad_request("the request line is malformed"),
    })
}

/// Whether the request line ends with a well-formed version that is not ours.
fn has_other_version(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    match version {
        b"HTTP/1.1" | b"HTTP/1.0" => false,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] => {
            major.is_ascii_digit() && minor.is_ascii_digit()
        }
        _ => false,
    }
}

fn examine<'r, 'b: 'r, R>(
    request: &'r httparse::Request<'_, 'b>,
    limits: &Limits,
    shown: &'r mut [Header<'b>],
    authorizer: &mut dyn Authorizer,
    then: impl FnOnce(&Request<'_, '_>, &mut dyn Authorizer) -> R,
) -> Result<R, Refusal> {
    let fields: &[httparse::Header<'b>] = request.headers;
    if fields.len() > limits.head_fields {
        return Err(Refusal::over(
            Status::FieldsTooLarge,
            "http.head_fields",
            "the head has too many fields",
        ));
    }
    let version = if request.version == Some(1) { Version::Http11 } else { Version::Http10 };
    let method = request.method.unwrap_or_default();
    let target = target::target(method, request.path.unwrap_or_default())?;
    let mut seen = Seen::default();
    for field in fields {
        seen.field(field, &|name| authorizer.is_guarded(name))?;
    }
    let authority = target::authority(version, seen.host, seen.hosts, target.authority)?;
    let framing = seen.framing(version)?;
    let websocket =
        seen.is_websocket() && method == "GET" && version == Version::Http11 && framing == Framing::Empty;
    let old = version == Version::Http10;
    let edits = Edits {
        identity: seen.identity,
        upgrade: (seen.upgrades > 0 || seen.upgrade_token) && !websocket,
        connection: old && seen.connection,
        target: target.authority.is_some(),
        host: seen.hosts == 0 && target.authority.is_some(),
    };
    let facts = Facts {
        framing,
        last: old || seen.close,
        expects: seen.expects,
        websocket,
        is_head: method == "HEAD",
    };
    let headers = show(fields, edits, shown);
    let path: &str = &target.path;
    let head = RequestHead { version, method, target: path, authority, headers, upgrade: websocket };
    Ok(then(&Request { head, facts, edits, fields }, authorizer))
}

/// The fields that the app will see, unless the authorizer changes them.
fn show<'r, 'b>(
    fields: &[httparse::Header<'b>],
    edits: Edits,
    shown: &'r mut [Header<'b>],
) -> &'r [Header<'b>] {
    let all = !edits.any();
    let kept = fields.iter().filter(|field| all || edits.keeps(known(field.name)));
    let mut count = 0;
    for (to, field) in shown.iter_mut().zip(kept) {
        *to = (field.name, field.value);
        count += 1;
    }
    shown.get(..count).unwrap_or_default()
}

/// What the fields say, taken together.
#[derive(Default)]
struct Seen<'b> {
    host: Option<&'b [u8]>,
    hosts: usize,
    length: Option<&'b [u8]>,
    lengths: usize,
    coding: Option<&'b [u8]>,
    codings: usize,
    upgrade: Option<&'b [u8]>,
    upgrades: usize,
    connection: bool,
    close: bool,
    upgrade_token: bool,
    expects: bool,
    identity: bool,
}

impl<'b> Seen<'b> {
    fn field(
        &mut self,
        field: &httparse::Header<'b>,
        is_guarded: &dyn Fn(&str) -> bool,
    ) -> Result<(), Refusal> {
        let value = field.value;
        match known(field.name) {
            Known::Host => (self.host, self.hosts) = (Some(value), self.hosts + 1),
            Known::ContentLength => (self.length, self.lengths) = (Some(value), self.lengths + 1),
            Known::TransferEncoding => (self.coding, self.codings) = (Some(value), self.codings + 1),
            Known::Upgrade => (self.upgrade, self.upgrades) = (Some(value), self.upgrades + 1),
            Known::Connection => return self.connection(value, is_guarded),
            Known::KeepAlive | Known::ProxyConnection => self.connection = true,
            Known::Expect => self.expects = true,
            Known::Identity => self.identity = true,
            Known::Other if is_odd(field.name) && is_taken_for_another(field.name, is_guarded) => {
                return Err(Refusal::bad_request("the name of a field could be taken for another one"));
            }
            _ => {}
        }
        Ok(())
    }

    /// The tokens of a Connection field. One that names a field which matters would make an app that is itself a
    /// proxy drop it (RFC 9110, section 7.6.1).
    fn connection(&mut self, value: &[u8], is_guarded: &dyn Fn(&str) -> bool) -> Result<(), Refusal> {
        self.connection = true;
        for token in tokens(value) {
            let Some(token) = token else {
                return Err(Refusal::bad_request("the Connection field is malformed"));
            };
            match known(token) {
                _ if token.eq_ignore_ascii_case("close") => self.close = true,
                Known::Upgrade => self.upgrade_token = true,
                Known::KeepAlive | Known::Http2Settings | Known::Te => {}
                _ if is_taken_for_another(token, is_guarded) => {
                    return Err(Refusal::bad_request("the Connection field names a field that matters"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn framing(&self, version: Version) -> Result<Framing, Refusal> {
        if let Some(coding) = self.coding {
            return match version {
                Version::Http10 => Err(Refusal::bad_request("HTTP/1.0 has no Transfer-Encoding")),
                _ if self.lengths > 0 => {
                    Err(Refusal::bad_request("there are both Transfer-Encoding and Content-Length"))
                }
                _ if self.codings > 1 || coding != b"chunked" => {
                    Err(Refusal::bad_request("Transfer-Encoding is not exactly chunked"))
                }
                _ => Ok(Framing::Chunked),
            };
        }
        let Some(length) = self.length else { return Ok(Framing::Empty) };
        if self.lengths > 1 {
            return Err(Refusal::bad_request("there are several Content-Length fields"));
        }
        match number(length) {
            Some(0) => Ok(Framing::Empty),
            Some(length) if length <= MAX_LENGTH => Ok(Framing::Length(length)),
            _ => Err(Refusal::bad_request("Content-Length is no number that all read alike")),
        }
    }

    fn is_websocket(&self) -> bool {
        self.upgrades == 1
            && self.upgrade_token
            && self.upgrade.is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"))
    }
}

/// Whether a server that reads odd bytes of names as `-` (or a proxy that is told to drop the field) would touch a
/// field that matters.
fn is_taken_for_another(name: &str, is_guarded: &dyn Fn(&str) -> bool) -> bool {
    folded(name, |name| is_framing(name) || is_identity(name) || is_guarded(name))
}

/// A number of digits alone, without sign or spaces; too large ones are the largest.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        Some(sum.saturating_mul(10).saturating_add(digit))
    })
}

/// The tokens of a list; `None` for an element that is none. Empty elements don't count.
pub(super) fn tokens(value: &[u8]) -> impl Iterator<Item = Option<&str>> {
    value
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
        .map(|token| std::str::from_utf8(token).ok().filter(|token| token.bytes().all(is_token_byte)))
}

/// Checks the trailers of a request, empty line included: none may frame, route, identify, or be read by a policy.
///
/// # Errors
/// Why the request is refused.
pub(super) fn check_trailers(
    bytes: &[u8],
    limits: &Limits,
    authorizer: &dyn Authorizer,
) -> Result<(), Refusal> {
    if bytes == b"\r\n" {
        return Ok(());
    }
    let too_many = Refusal::over(Status::FieldsTooLarge, "http.head_fields", "there are too many trailers");
    let mut fields = [httparse::EMPTY_HEADER; Limits::MAX_FIELDS];
    let parsed = match httparse::parse_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete((length, fields))) if length == bytes.len() => fields,
        Err(httparse::Error::TooManyHeaders) => return Err(too_many),
        _ => return Err(Refusal::bad_request("the trailers are malformed")),
    };
    if parsed.len() > limits.head_fields {
        return Err(too_many);
    }
    if parsed.iter().any(|field| is_taken_for_another(field.name, &|name| authorizer.is_guarded(name))) {
        return Err(Refusal::bad_request("the trailers hold a field that may not stand there"));
    }
    Ok(())
}

/// Asks again about a head that was read before.
pub(super) fn read_again<R>(
    bytes: &[u8],
    limits: &Limits,
    authorizer: &mut dyn Authorizer,
    then: impl FnOnce(&RequestHead<'_>, &mut dyn Authorizer) -> R,
) -> Option<R> {
    read(bytes, limits, authorizer, |request, authorizer| then(&request.head, authorizer)).ok()
}

/// The tokens of the Connection fields that are left when an upgrade is not granted.
pub(super) fn connection_without_upgrade<'f, 'b: 'f>(
    fields: &'f [httparse::Header<'b>],
) -> impl Iterator<Item = &'b str> + 'f {
    let values =
        fields.iter().filter(|field| known(field.name) == Known::Connection).map(|field| field.value);
    values
        .flat_map(tokens)
        .flatten()
        .filter(|token| !matches!(known(token), Known::Upgrade | Known::Http2Settings))
}
