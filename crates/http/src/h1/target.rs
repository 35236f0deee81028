//! The target of a request and the host that it is for (RFC 9112, section 3.2).

use crate::fields::is_authority;
use crate::{Refusal, Status, Version};
use std::borrow::Cow;

/// A target, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target<'b> {
    /// What the app gets: path and query, or `*`.
    pub(super) path: Cow<'b, str>,
    /// The authority of an absolute form.
    pub(super) authority: Option<&'b str>,
}

/// Reads the target of a request line.
pub(super) fn target<'b>(method: &str, text: &'b str) -> Result<Target<'b>, Refusal> {
    if method == "CONNECT" {
        return Err(Refusal::of(Status::MethodNotAllowed, "the method is CONNECT"));
    }
    if !text.is_ascii() {
        return Err(Refusal::bad_request("the target holds bytes beyond ASCII"));
    }
    if text.starts_with('/') {
        return Ok(Target { path: Cow::Borrowed(text), authority: None });
    }
    if text == "*" {
        return match method {
            "OPTIONS" => Ok(Target { path: Cow::Borrowed(text), authority: None }),
            _ => Err(Refusal::bad_request("the target * is for OPTIONS only")),
        };
    }
    let after = |scheme: &str| {
        let (start, rest) = text.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let Some(rest) = after("http://").or_else(|| after("https://")) else {
        return Err(Refusal::bad_request("the target is neither a path nor an absolute URI of HTTP"));
    };
    let (authority, path) =
        rest.split_at_checked(rest.find(['/', '?', '#']).unwrap_or(rest.len())).unwrap_or((rest, ""));
    let path = match path.as_bytes().first() {
        Some(b'/') => Cow::Borrowed(path),
        Some(b'?') => Cow::Owned(format!("/{path}")),
        Some(_) => return Err(Refusal::bad_request("the target has a fragment")),
        None if method == "OPTIONS" => Cow::Borrowed("*"),
        None => Cow::Borrowed("/"),
    };
    if authority.is_empty() {
        return Err(Refusal::bad_request("the target has no host"));
    }
    Ok(Target { path, authority: Some(authority) })
}

/// The authority of a request from its Host fields (the first one, and how many there are) and its target.
pub(super) fn authority<'b>(
    version: Version,
    host: Option<&'b [u8]>,
    count: usize,
    absolute: Option<&'b str>,
) -> Result<Option<&'b str>, Refusal> {
    if count > 1 {
        return Err(Refusal::bad_request("there are several Host fields"));
    }
    if count == 0 && version == Version::Http11 {
        return Err(Refusal::bad_request("there is no Host field"));
    }
    let host = match host {
        None => None,
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(host) if is_authority(host) => Some(host),
            _ => return Err(Refusal::bad_request("the Host field is no host")),
        },
    };
    let Some(absolute) = absolute else { return Ok(host) };
    if !is_authority(absolute) {
        return Err(Refusal::bad_request("the host of the target is none"));
    }
    match host {
        Some(host) if !host.eq_ignore_ascii_case(absolute) => {
            Err(Refusal::bad_request("Host and the target name different hosts"))
        }
        _ => Ok(host.or(Some(absolute))),
    }
}
