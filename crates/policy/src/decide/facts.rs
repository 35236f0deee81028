//! What is known of a connection, and of a request on it.

use crate::lookup::Scattered;
use crate::path::{Reading, Readings};
use crate::text::split_once;
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
    pub(crate) path: Option<(&'a str, Reading)>,
    /// As sent.
    pub(crate) authority: Option<&'a str>,
    /// The same in lower case.
    pub(crate) host: Option<Host<'a>>,
    pub(crate) headers: &'a [Header<'a>],
    pub(crate) token: Option<Token<'a>>,
}

#[cfg(test)]
impl<'a> Http<'a> {
    /// A request of which nothing else is known.
    pub(crate) fn of_method(method: &'a str) -> Self {
        Http { method, path: None, authority: None, host: None, headers: &[], token: None }
    }
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
        self.principal.map(|id| split_once(id, b'/').map_or(id, |(domain, _)| domain))
    }
}

/// The `/ns/<v>/` part of an ID, and what follows `/ns/` when that is `<v>/sa/<account>`.
fn namespace_and_account(id: &str) -> (Option<&str>, Option<&str>) {
    let Some((_, path)) = split_once(id, b'/') else { return (None, None) };
    // Nearly always it comes first.
    let rest = match path.strip_prefix("ns/") {
        Some(rest) => rest,
        None => match path.split_once("/ns/") {
            Some((_, rest)) => rest,
            None => return (None, None),
        },
    };
    let Some((namespace, after)) = split_once(rest, b'/') else { return (None, None) };
    let account = after.strip_prefix("sa/").filter(|account| !account.is_empty());
    let account = account.filter(|account| !account.bytes().any(|byte| byte == b'/'));
    (Some(namespace), account.map(|_| rest))
}

/// A host without regard to case.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Host<'a> {
    /// In lower case.
    Lower(&'a [u8]),
    /// In mixed case, and longer than DNS could hold.
    Long(IgnoringCase<'a>),
}

/// A text that is compared with others in lower case.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IgnoringCase<'a>(&'a [u8]);

impl Scattered for IgnoringCase<'_> {
    fn is(&self, text: &[u8]) -> bool {
        self.0.eq_ignore_ascii_case(text)
    }

    fn begins_with(&self, text: &[u8]) -> bool {
        self.0.get(..text.len()).is_some_and(|head| head.eq_ignore_ascii_case(text))
    }

    fn ends_with(&self, text: &[u8]) -> bool {
        let skip = self.0.len().checked_sub(text.len());
        skip.and_then(|skip| self.0.get(skip..)).is_some_and(|tail| tail.eq_ignore_ascii_case(text))
    }
}

/// Room for a host in lower case: a DNS name has at most 253 bytes, a port six more.
pub(crate) type HostRoom = [u8; 260];

impl<'a> Host<'a> {
    /// `room` is used where the host is sent in mixed case.
    pub(crate) fn new(text: &'a str, room: &'a mut Option<HostRoom>) -> Self {
        let bytes = text.as_bytes();
        if !bytes.iter().fold(false, |found, byte| found | byte.is_ascii_uppercase()) {
            return Host::Lower(bytes);
        }
        match room.insert([0; 260]).get_mut(..bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                room.make_ascii_lowercase();
                Host::Lower(room)
            }
            None => Host::Long(IgnoringCase(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lookup::TextSet;
    use crate::text::Text;

    #[test]
    fn identities_are_taken_apart() {
        let cases = [
            ("td/ns/shop/sa/web", Some("shop"), Some("shop/sa/web")),
            ("td/ns/shop/sa/web/x", Some("shop"), None),
            ("td/ns/shop/pod/web", Some("shop"), None),
            ("td/ns/shop", None, None),
            ("td/x/ns/shop/sa/web", Some("shop"), Some("shop/sa/web")),
            ("td", None, None),
            ("td/ns/ns/ns/ns/sa/web", Some("ns"), None),
        ];
        for (id, namespace, account) in cases {
            assert_eq!(namespace_and_account(id), (namespace, account), "{id}");
        }
    }

    #[test]
    fn hosts_are_compared_without_regard_to_case_however_long() {
        let lower = |text: &str| match Host::new(text, &mut None) {
            Host::Lower(bytes) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
            Host::Long(_) => None,
        };
        assert_eq!(lower("Shop.Example:80").as_deref(), Some("shop.example:80"));
        assert_eq!(lower("shop.example").as_deref(), Some("shop.example"));
        assert_eq!(lower("").as_deref(), Some(""));
        let long = "a".repeat(1000);
        assert_eq!(lower(&long), Some(long.clone()));
        let mixed = format!("Shop.{long}.Example");
        let mut room = None;
        let Host::Long(host) = Host::new(&mixed, &mut room) else { panic!("it fits") };
        for (rule, expected) in [
            (mixed.to_lowercase(), true),
            ("shop.a*".to_owned(), true),
            ("*a.example".to_owned(), true),
            ("*".to_owned(), true),
            ("shop.example".to_owned(), false),
            ("*b.example".to_owned(), false),
            (format!("*{}", mixed.to_lowercase().repeat(2)), false),
        ] {
            assert_eq!(TextSet::new([Text::parse(&rule)]).matches_scattered(&host), expected, "{rule}");
        }
    }
}
