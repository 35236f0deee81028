//! A token in compact form (RFC 7515, section 7.1), taken apart but not yet believed, and what its claims say.

use super::LEEWAY;
use super::fault::TokenFault;
use super::jwks::algorithm;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde_json::Value;
use std::fmt;
use std::sync::Arc;

/// HTTP servers refuse longer headers anyway.
const MAX_TOKEN: usize = 32 * 1024;

/// A token whose signature nobody has looked at yet.
pub(super) struct Parsed {
    /// What the token says; `None` for algorithms that are never accepted.
    pub(super) algorithm: Option<Algorithm>,
    pub(super) key_id: Option<String>,
    /// What is signed.
    pub(super) message: String,
    pub(super) signature: Vec<u8>,
    pub(super) claims: Arc<Claims>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<Value>,
}

/// The claims of a token.
pub(super) struct Claims {
    pub(super) value: Value,
    /// As they stand in the token.
    pub(super) payload: Box<str>,
    pub(super) expires: Option<u64>,
    not_before: Option<u64>,
}

/// Claims are somebody's data and stay out of logs.
impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims").field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl Parsed {
    pub(super) fn read(token: &str) -> Result<Self, TokenFault> {
        if token.len() > MAX_TOKEN {
            return Err(TokenFault::Malformed("it is too long"));
        }
        let parts: Vec<&str> = token.splitn(4, '.').collect();
        let [header, payload, signature] = parts.as_slice() else {
            return Err(TokenFault::Malformed("it has not three parts"));
        };
        let header: Header = serde_json::from_slice(&decode(header)?)
            .map_err(|_| TokenFault::Malformed("its header is no JSON object with `alg`"))?;
        if header.crit.is_some() {
            return Err(TokenFault::Malformed("its header demands an extension (`crit`)"));
        }
        let (message, _) = token.rsplit_once('.').unwrap_or_default();
        Ok(Parsed {
            algorithm: algorithm(&header.alg),
            key_id: header.kid,
            message: message.to_owned(),
            signature: decode(signature)?,
            claims: Arc::new(Claims::read(payload)?),
        })
    }
}

fn decode(part: &str) -> Result<Vec<u8>, TokenFault> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenFault::Malformed("a part is not base64url"))
}

impl Claims {
    fn read(payload: &str) -> Result<Self, TokenFault> {
        let value: Value = serde_json::from_slice(&decode(payload)?)
            .map_err(|_| TokenFault::Malformed("its payload is not JSON"))?;
        if !value.is_object() {
            return Err(TokenFault::Malformed("its payload is no JSON object"));
        }
        // A fraction of a second is cut so that the window only gets smaller.
        let expires = date(&value, "exp", f64::floor)?;
        let not_before = date(&value, "nbf", f64::ceil)?;
        Ok(Claims { value, payload: payload.into(), expires, not_before })
    }

    pub(super) fn issuer(&self) -> Option<&str> {
        self.value.get("iss")?.as_str()
    }

    /// Whether the token is valid at `now`, within the leeway.
    pub(super) fn check_time(&self, now: u64) -> Result<(), TokenFault> {
        if self.expires.is_some_and(|expires| now > expires.saturating_add(LEEWAY)) {
            return Err(TokenFault::Expired);
        }
        if self.not_before.is_some_and(|begins| begins > now.saturating_add(LEEWAY)) {
            return Err(TokenFault::NotYetValid);
        }
        Ok(())
    }

    /// Whether `aud`, a string or a list, holds any of `audiences`.
    pub(super) fn is_for_any(&self, audiences: &[Box<str>]) -> bool {
        let wanted = |one: &Value| one.as_str().is_some_and(|one| audiences.iter().any(|of| **of == *one));
        match self.value.get("aud") {
            Some(Value::Array(list)) => list.iter().any(wanted),
            Some(one) => wanted(one),
            None => false,
        }
    }

    /// A single claim for a header: a string, an integer or a boolean; `name` is a whole claim's name, or leads
    /// through objects with dots. Text that would break a header gives none.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        let nested = || name.split('.').try_fold(&self.value, |value, part| value.get(part));
        match self.value.get(name).or_else(nested)? {
            Value::String(text) => {
                text.bytes().all(|byte| byte >= b' ' && byte != 0x7f).then(|| text.clone())
            }
            Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
            Value::Bool(truth) => Some(truth.to_string()),
            _ => None,
        }
    }
}

/// A NumericDate (RFC 7519, section 2): seconds, perhaps with a fraction.
fn date(claims: &Value, name: &str, round: fn(f64) -> f64) -> Result<Option<u64>, TokenFault> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let fault = TokenFault::Malformed("`exp` or `nbf` is no date");
    if let Some(seconds) = value.as_u64() {
        return Ok(Some(seconds));
    }
    let seconds = round(value.as_f64().ok_or(fault.clone())?);
    // The conversion saturates: dates before 1970 are 1970.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let seconds = if seconds.is_finite() { seconds.max(0.0) as u64 } else { return Err(fault) };
    Ok(Some(seconds))
}
