//! URLs that keys are fetched from, as far as they are needed here: text in, scheme, host, port and path out.

use super::fault::Fault;
use hyper::Uri;
use hyper::http::uri::Scheme;
use std::net::{IpAddr, Ipv6Addr};

/// Istio's bound of `jwksUri`; what redirects name is kept to it too.
const LONGEST: usize = 2048;

/// Whether plain HTTP will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    /// HTTPS only.
    Refused,
    /// HTTP is allowed by the installation.
    Allowed,
}

/// A URL that may be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    uri: Uri,
    host: String,
    /// `https`.
    pub(super) encrypted: bool,
    /// The port, that of the scheme where none is written.
    pub(super) port: u16,
}

impl Url {
    /// Reads an absolute URL.
    pub(super) fn parse(text: &str, plain: Plain) -> Result<Self, Fault> {
        if text.len() > LONGEST {
            return Err(Fault::url(text, "it is longer than 2048 bytes"));
        }
        let uri: Uri = text.parse().map_err(|_| Fault::url(text, "it is no URL"))?;
        let encrypted = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(Fault::url(text, "it does not begin with https://")),
        };
        if !encrypted && plain == Plain::Refused {
            return Err(Fault::url(text, "it is not https, and jwks.allowHTTP is not set"));
        }
        let authority = uri.authority().ok_or_else(|| Fault::url(text, "it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(Fault::url(text, "it holds a user or password"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(Fault::url(text, "it has no host"));
        }
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if encrypted => 443,
            None => 80,
        };
        if port == 0 {
            return Err(Fault::url(text, "it has the port 0"));
        }
        Ok(Url { host, encrypted, port, uri })
    }

    /// Where a `Location` leads (RFC 9110, section 10.2.2). From https to http is refused, whatever is allowed.
    pub(super) fn join(&self, location: &str, plain: Plain) -> Result<Self, Fault> {
        let plain = if self.encrypted { Plain::Refused } else { plain };
        let scheme = if self.encrypted { "https" } else { "http" };
        let base = self.authority();
        // A query may hold "://" too; a scheme stands before any of these.
        let head = location.split(['/', '?', '#']).next().unwrap_or_default();
        if head.ends_with(':') {
            Self::parse(location, plain)
        } else if let Some(rest) = location.strip_prefix("//") {
            Self::parse(&format!("{scheme}://{rest}"), plain)
        } else if location.starts_with('/') {
            Self::parse(&format!("{scheme}://{base}{location}"), plain)
        } else {
            let folder = self.uri.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            Self::parse(&format!("{scheme}://{base}{folder}/{location}"), plain)
        }
    }

    /// The host, without the brackets of an IPv6 address.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The address, where the host is one.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// For the header `host`: the port too where it is written.
    pub(super) fn authority(&self) -> String {
        let host = match self.host.parse::<Ipv6Addr>() {
            Ok(ip) => format!("[{ip}]"),
            Err(_) => self.host.clone(),
        };
        match self.uri.port_u16() {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    }

    /// Path and query.
    pub(super) fn target(&self) -> &str {
        self.uri.path_and_query().map_or("/", |target| target.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (text, host, port, target, authority) in [
            ("https://a.example", "a.example", 443, "/", "a.example"),
            ("https://a.example:8443/k?x=1", "a.example", 8443, "/k?x=1", "a.example:8443"),
            ("HTTPS://[2001:db8::1]:1/k", "2001:db8::1", 1, "/k", "[2001:db8::1]:1"),
        ] {
            let url = Url::parse(text, Plain::Refused).unwrap();
            assert_eq!((url.host(), url.port, url.target()), (host, port, target), "{text}");
            assert_eq!((url.authority().as_str(), url.encrypted), (authority, true), "{text}");
        }
        let plain = Url::parse("http://a.example/k", Plain::Allowed).unwrap();
        assert_eq!((plain.port, plain.encrypted), (80, false));
    }

    #[test]
    fn what_can_not_be_fetched_is_refused_with_its_fault() {
        let long = format!("https://a.example/{}", "x".repeat(2048));
        for (text, word) in [
            ("http://a.example/", "allowHTTP"),
            ("ftp://a.example/", "https://"),
            ("testing@secure.example.io", "https://"),
            ("/keys", "https://"),
            ("", "no URL"),
            ("https://", "no URL"),
            ("https://user:pw@a.example/", "user"),
            ("https://a.example:0/", "port 0"),
            ("https://a b/", "no URL"),
            (long.as_str(), "longer"),
        ] {
            let fault = Url::parse(text, Plain::Refused).unwrap_err().to_string();
            assert!(fault.contains(word), "{text}: {fault}");
        }
    }

    #[test]
    fn redirects_lead_where_browsers_would_go_but_never_back_to_plain_text() {
        let base = Url::parse("https://a.example:1/x/keys?q", Plain::Allowed).unwrap();
        for (location, want) in [
            ("https://b.example/k", Some("https://b.example/k")),
            ("//b.example/k", Some("https://b.example/k")),
            ("/k?u=http://c.example", Some("https://a.example:1/k?u=http://c.example")),
            ("k?u=https://c.example", Some("https://a.example:1/x/k?u=https://c.example")),
            ("http://a.example:1/k", None),
            ("file:///etc/passwd", None),
        ] {
            let got = base.join(location, Plain::Allowed).ok().map(|url| url.uri.to_string());
            assert_eq!(got.as_deref(), want, "{location}");
        }
        let plain = Url::parse("http://a.example/", Plain::Allowed).unwrap();
        assert!(plain.join("http://b.example/", Plain::Allowed).is_ok());
    }
}
