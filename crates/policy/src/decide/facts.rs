//! What is known of a connection, and of a request on it.

use crate::path::Readings;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};

/// What is known of a connection when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection<'a> {
    /// The verified SPIFFE ID of the peer, with or without `spiffe://`; `None` for plaintext.
    pub peer: Option<&'a str>,
    /// The address of the direct connection.
    pub source: IpAddr,
    /// The client's address where trusted proxies stand before the workload; `None`: the same as `source`.
    pub remote: Option<IpAddr>,
    /// The workload's address and port.
    pub destination: SocketAddr,
    /// The server name of the TLS handshake, where there was one.
    pub sni: Option<&'a str>,
}

impl<'a> Connection<'a> {
    /// A connection without a server name, whose client is the direct peer.
    #[must_use]
    pub fn new(peer: Option<&'a str>, source: IpAddr, destination: SocketAddr) -> Self {
        Connection { peer, source, remote: None, destination, sni: None }
    }
}

/// A header's name, in any case, and its value.
pub type Header<'a> = (&'a str, &'a [u8]);

/// One request, its path already normalised.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The connection that it came over.
    pub connection: Connection<'a>,
    /// The method, as sent.
    pub method: &'a str,
    /// Its path, normalised ([`crate::normalize`]). The request passes only if it passes under every reading.
    pub paths: &'a Readings<'a>,
    /// `Host` or `:authority`, as sent.
    pub host: Option<&'a str>,
    /// All headers, in their order.
    pub headers: &'a [Header<'a>],
    /// The verified token, if one came.
    pub token: Option<Token<'a>>,
}

/// A verified token.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    /// Its payload.
    pub claims: &'a Value,
    /// Claims that are split at spaces, besides `scope` and `permission`
    /// ([`crate::jwt::TokenRules::space_delimited`]).
    pub space_delimited: &'a [String],
}

impl<'a> Token<'a> {
    /// `iss` and `sub`, where both are strings: the request principal.
    #[must_use]
    pub fn principal(&self) -> Option<(&'a str, &'a str)> {
        Some((self.claims.get("iss")?.as_str()?, self.claims.get("sub")?.as_str()?))
    }
}

/// A connection, or one reading of a request on it, taken apart for matching.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// The peer's ID without its scheme.
    pub(crate) principal: Option<&'a str>,
    pub(crate) namespace: Option<&'a str>,
    /// `<namespace>/sa/<account>`, as it stands in the ID.
    pub(crate) account: Option<&'a str>,
    pub(crate) source: IpAddr,
    pub(crate) remote: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) port: u16,
    pub(crate) sni: Option<&'a str>,
    /// `None` as long as no request is known.
    pub(crate) http: Option<Http<'a>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Http<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: Option<&'a str>,
    /// As sent.
    pub(crate) authority: Option<&'a str>,
    /// The same in lower case.
    pub(crate) host: Option<&'a [u8]>,
    pub(crate) headers: &'a [Header<'a>],
    pub(crate) token: Option<Token<'a>>,
}

impl<'a> Facts<'a> {
    pub(crate) fn of_connection(connection: &Connection<'a>) -> Self {
        let principal = connection.peer.map(|peer| peer.strip_prefix("spiffe://").unwrap_or(peer));
        let principal = principal.filter(|id| !id.is_empty());
        let (namespace, account) = principal.map_or((None, None), namespace_and_account);
        Facts {
            principal,
            namespace,
            account,
            source: connection.source.to_canonical(),
            remote: connection.remote.unwrap_or(connection.source).to_canonical(),
            destination: connection.destination.ip().to_canonical(),
            port: connection.destination.port(),
            sni: connection.sni,
            http: None,
        }
    }

    /// The peer's trust domain.
    pub(crate) fn trust_domain(&self) -> Option<&'a str> {
        self.principal.map(|id| id.split_once('/').map_or(id, |(domain, _)| domain))
    }
}

/// The `/ns/<v>/` part of an ID, and what follows `/ns/` when that is `<v>/sa/<account>`.
fn namespace_and_account(id: &str) -> (Option<&str>, Option<&str>) {
    let Some((_, rest)) = id.split_once("/ns/") else { return (None, None) };
    let Some((namespace, after)) = rest.split_once('/') else { return (None, None) };
    let account = after.strip_prefix("sa/").filter(|account| !account.is_empty() && !account.contains('/'));
    (Some(namespace), account.map(|_| rest))
}

/// Bytes of a host in lower case, without an allocation for those that DNS could hold.
pub(crate) struct LowerCase {
    inline: [u8; LowerCase::INLINE],
    length: usize,
    heap: Vec<u8>,
}

impl LowerCase {
    /// A DNS name has at most 253 bytes, a port six more.
    const INLINE: usize = 260;

    pub(crate) fn new(text: &str) -> Self {
        let mut lower = LowerCase { inline: [0; Self::INLINE], length: text.len(), heap: Vec::new() };
        match lower.inline.get_mut(..text.len()) {
            Some(room) => {
                room.copy_from_slice(text.as_bytes());
                room.make_ascii_lowercase();
            }
            None => lower.heap = text.to_ascii_lowercase().into_bytes(),
        }
        lower
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.inline.get(..self.length).unwrap_or(&self.heap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_taken_apart() {
        let cases = [
            ("td/ns/shop/sa/web", Some("shop"), Some("shop/sa/web")),
            ("td/ns/shop/sa/web/x", Some("shop"), None),
            ("td/ns/shop/pod/web", Some("shop"), None),
            ("td/ns/shop", None, None),
            ("td/x/ns/shop/sa/web", Some("shop"), Some("shop/sa/web")),
            ("td", None, None),
        ];
        for (id, namespace, account) in cases {
            assert_eq!(namespace_and_account(id), (namespace, account), "{id}");
        }
    }

    #[test]
    fn lower_case_of_short_and_overlong_hosts() {
        assert_eq!(LowerCase::new("Shop.Example:80").as_bytes(), b"shop.example:80");
        let long = "A".repeat(1000);
        assert_eq!(LowerCase::new(&long).as_bytes(), "a".repeat(1000).as_bytes());
        assert_eq!(LowerCase::new("").as_bytes(), b"");
    }
}
