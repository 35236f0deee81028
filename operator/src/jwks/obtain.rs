//! Gets the key set of one source: straight from its URI, or by way of the issuer's discovery document. What
//! comes out has been read by the same parser as the proxies use.

use super::fault::{Fault, quoted};
use super::fetch::{Bounds, Fetched, Fetcher, LARGEST};
use super::url::Url;
use cinch_policy::jwt::{Jwks, JwksError};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Longest detail of a key set's fault: a hundred bad keys need not all be named.
const DETAIL: usize = 300;

/// Where keys come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// `jwksUri`.
    Uri(String),
    /// The issuer, by discovery.
    Issuer(String),
}

/// A key set that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeySet {
    /// The document as it was fetched.
    pub(super) document: Arc<[u8]>,
    /// The `kid`s in it.
    pub(super) ids: BTreeSet<String>,
    /// How long the issuer says it may be kept.
    pub(super) max_age: Option<Duration>,
}

/// What is needed of a discovery document (OpenID Connect Discovery 1.0, section 3).
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// Fetches and checks; all of it within `timeout`.
pub(super) async fn obtain(
    fetcher: &Fetcher,
    origin: &Origin,
    cluster: &[IpNet],
    timeout: Duration,
) -> Result<KeySet, Fault> {
    let bounds = Bounds { cluster, deadline: Instant::now() + timeout, timeout };
    let url = match origin {
        Origin::Uri(uri) => Url::parse(uri, fetcher.plain)?,
        Origin::Issuer(issuer) => discover(fetcher, issuer, bounds).await?,
    };
    read(&url, fetcher.get(&url, bounds).await?)
}

/// The `jwks_uri` that the issuer names.
async fn discover(fetcher: &Fetcher, issuer: &str, bounds: Bounds<'_>) -> Result<Url, Fault> {
    if !issuer.contains("://") {
        return Err(Fault::url(
            issuer,
            "the issuer is no URL, so its keys can not be discovered: give jwksUri or jwks",
        ));
    }
    // OpenID Connect Discovery 1.0, section 4: a slash at the end goes first.
    let base = issuer.strip_suffix('/').unwrap_or(issuer);
    let url = Url::parse(&format!("{base}/.well-known/openid-configuration"), fetcher.plain)?;
    let fetched = fetcher.get(&url, bounds).await?;
    let document: Discovery =
        serde_json::from_slice(&fetched.body).map_err(|_| Fault::Discovery(quoted(url.host())))?;
    // RFC 8414, section 3.3: another issuer's keys must not stand in for this one's.
    if document.issuer != issuer {
        return Err(Fault::Issuer { expected: quoted(issuer), found: quoted(&document.issuer) });
    }
    Url::parse(&document.jwks_uri, fetcher.plain)
}

fn read(url: &Url, fetched: Fetched) -> Result<KeySet, Fault> {
    let unusable = |problem: String| Fault::KeySet { host: quoted(url.host()), problem };
    let text = std::str::from_utf8(&fetched.body).map_err(|_| unusable("it is not UTF-8".to_owned()))?;
    match Jwks::parse(text) {
        Ok(_) => {}
        Err(JwksError::TooLong) => {
            return Err(Fault::TooLarge { host: quoted(url.host()), limit: LARGEST });
        }
        // The parser's words would quote the document.
        Err(JwksError::NotAKeySet(_)) => {
            return Err(unusable("it is no JSON object with a list `keys`".to_owned()));
        }
        Err(error) => return Err(unusable(error.to_string().chars().take(DETAIL).collect())),
    }
    let document: Arc<[u8]> = Arc::from(&*fetched.body);
    Ok(KeySet { ids: key_ids(text), document, max_age: fetched.max_age })
}

fn key_ids(text: &str) -> BTreeSet<String> {
    let document: Value = serde_json::from_str(text).unwrap_or_default();
    let keys = document.get("keys").and_then(Value::as_array).into_iter().flatten();
    keys.filter_map(|key| key.get("kid")?.as_str().map(str::to_owned)).collect()
}
