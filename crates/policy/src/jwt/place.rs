//! Where tokens stand in a request.

use super::fault::TokenFault;
use crate::request_authentication::JwtRule;
use percent_encoding::percent_decode_str;
use std::borrow::Cow;

/// What tokens are looked for in: one request as it came.
#[derive(Debug, Clone, Copy)]
pub struct HttpView<'a> {
    /// The method, as sent.
    pub method: &'a str,
    /// The query, without `?`.
    pub query: Option<&'a str>,
    /// All headers, in their order: the name, in any case, and the value.
    pub headers: &'a [(&'a str, &'a [u8])],
}

impl<'a> HttpView<'a> {
    fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(of, _)| of.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }
}

/// Whether a request is a CORS preflight, which can't carry a token and needs none (Fetch, section 3.2.2).
#[must_use]
pub fn is_preflight(view: &HttpView<'_>) -> bool {
    let present = |name| view.values(name).any(|value| !value.is_empty());
    view.method == "OPTIONS" && present("origin") && present("access-control-request-method")
}

/// The places of one rule.
#[derive(Debug, Clone)]
pub(super) struct Places {
    headers: Vec<(Box<str>, Box<str>)>,
    params: Vec<Box<str>>,
    cookies: Vec<Box<str>>,
}

impl Places {
    /// Explicit places replace the default ones.
    pub(super) fn of(rule: &JwtRule) -> Self {
        if rule.from_headers.is_empty() && rule.from_params.is_empty() && rule.from_cookies.is_empty() {
            return Places {
                headers: vec![("authorization".into(), "Bearer ".into())],
                params: vec!["access_token".into()],
                cookies: Vec::new(),
            };
        }
        let boxed = |list: &[String]| list.iter().map(|one| one.as_str().into()).collect();
        Places {
            headers: rule
                .from_headers
                .iter()
                .map(|header| (header.name.to_ascii_lowercase().into(), header.prefix.as_str().into()))
                .collect(),
            params: boxed(&rule.from_params),
            cookies: boxed(&rule.from_cookies),
        }
    }

    /// All tokens of the request in these places: headers first, then parameters, then cookies. Headers in `stripped`
    /// are ours, not the client's. There may be `most`.
    pub(super) fn tokens<'a>(
        &self,
        view: &HttpView<'a>,
        stripped: &[Box<str>],
        most: usize,
    ) -> Result<Vec<Cow<'a, str>>, TokenFault> {
        let mut found = Vec::new();
        for (name, prefix) in &self.headers {
            if !stripped.contains(name) {
                found
                    .extend(view.values(name).filter_map(|value| after_prefix(value, prefix)).take(most + 1));
            }
        }
        for name in &self.params {
            let pairs = pairs(view.query).filter(|pair| pair.is(name));
            found.extend(pairs.map(|pair| pair.value()).filter(|value| !value.is_empty()).take(most + 1));
        }
        for name in &self.cookies {
            found.extend(cookies(view, name).take(most + 1));
        }
        if found.len() > most { Err(TokenFault::TooMany) } else { Ok(found) }
    }

    /// The names of the headers to take from a request whose token was accepted.
    pub(super) fn header_names(&self) -> impl Iterator<Item = &str> {
        self.headers.iter().map(|(name, _)| &**name)
    }

    /// The names of the parameters to take from it. Cookies stay, as in Istio.
    pub(super) fn param_names(&self) -> impl Iterator<Item = &str> {
        self.params.iter().map(|name| &**name)
    }
}

/// The token of a header's value; `None` when the value is none of this kind. Bytes that are no text become
/// U+FFFD, which no token holds.
fn after_prefix<'a>(value: &'a [u8], prefix: &str) -> Option<Cow<'a, str>> {
    let token = value.trim_ascii_start().strip_prefix(prefix.as_bytes())?.trim_ascii();
    if token.is_empty() && prefix.is_empty() {
        return None;
    }
    Some(String::from_utf8_lossy(token))
}

fn cookies<'a>(view: &HttpView<'a>, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
    let all = view.values("cookie").flat_map(|value| value.split(|byte| *byte == b';'));
    all.filter_map(move |cookie| {
        let value =
            cookie.trim_ascii().strip_prefix(name.as_bytes())?.trim_ascii_start().strip_prefix(b"=")?;
        let value = value.trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
        (!value.is_empty()).then(|| String::from_utf8_lossy(value))
    })
}

/// One `name=value` of a query, as sent.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) raw: &'a str,
}

impl<'a> Pair<'a> {
    /// Whether its decoded name is `name`.
    pub(super) fn is(self, name: &str) -> bool {
        decode(self.raw.split_once('=').map_or(self.raw, |(of, _)| of)) == name
    }

    fn value(self) -> Cow<'a, str> {
        decode(self.raw.split_once('=').map_or("", |(_, value)| value))
    }
}

pub(super) fn pairs(query: Option<&str>) -> impl Iterator<Item = Pair<'_>> {
    query.into_iter().flat_map(|query| query.split('&')).map(|raw| Pair { raw })
}

/// As forms are decoded (URL Standard, section 5.1), but for `+`, which no name or token of ours holds.
fn decode(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}
