//! The attributes that a connection has at L4, and compiled values of each.

use crate::compile::Connection;
use crate::error::PolicyError;
use crate::text::Text;
use ipnet::IpNet;
use std::net::IpAddr;

/// Istio's limits of `serviceAccounts`.
const MAX_ACCOUNTS: usize = 16;
const MAX_ACCOUNT_LENGTH: usize = 320;

/// What a field or a `when` key is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attribute {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    Ip,
    DestinationIp,
    Port,
    /// Known only once a request was read.
    Http,
}

impl Attribute {
    /// The attribute of a `when` key.
    pub(crate) fn of_key(key: &str, path: &str) -> Result<Self, PolicyError> {
        match key {
            "source.principal" => Ok(Attribute::Principal),
            "source.namespace" => Ok(Attribute::Namespace),
            "source.serviceAccount" => Ok(Attribute::ServiceAccount),
            "source.trustDomain" => Ok(Attribute::TrustDomain),
            "source.ip" | "remote.ip" => Ok(Attribute::Ip),
            "destination.ip" => Ok(Attribute::DestinationIp),
            "destination.port" => Ok(Attribute::Port),
            "connection.sni" => Err(PolicyError::NotImplemented { field: format!("{path}: connection.sni") }),
            _ if is_http_key(key) => Ok(Attribute::Http),
            _ => Err(PolicyError::value(path, format!("{key:?} is no attribute that a policy can ask for"))),
        }
    }
}

fn is_http_key(key: &str) -> bool {
    let plain = ["request.auth.principal", "request.auth.audiences", "request.auth.presenter"];
    let bracketed = ["request.headers[", "request.auth.claims["];
    plain.contains(&key) || (key.ends_with(']') && bracketed.iter().any(|prefix| key.starts_with(prefix)))
}

/// One compiled value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Test {
    Principal(Text),
    /// `*` inside spans characters.
    Namespace(String),
    ServiceAccount {
        namespace: String,
        name: String,
    },
    TrustDomain(Text),
    Source(IpNet),
    Destination(IpNet),
    Port(u16),
}

impl Test {
    /// Whether it holds of the connection. Without a peer certificate nothing about identity holds.
    pub(crate) fn holds(&self, connection: &Connection<'_>) -> bool {
        let peer = connection.principal();
        match self {
            Test::Principal(text) => peer.is_some_and(|id| text.matches(id)),
            Test::Namespace(glob) => {
                parts(peer).is_some_and(|(_, namespace, _)| glob_matches(glob, namespace))
            }
            Test::ServiceAccount { namespace, name } => {
                parts(peer).is_some_and(|(_, of, account)| of == namespace && account == name)
            }
            Test::TrustDomain(text) => {
                peer.and_then(|id| id.split('/').next()).is_some_and(|domain| text.matches(domain))
            }
            Test::Source(block) => block.contains(&connection.source.to_canonical()),
            Test::Destination(block) => block.contains(&connection.destination.ip().to_canonical()),
            Test::Port(port) => *port == connection.destination.port(),
        }
    }
}

/// Trust domain, namespace and account of `<td>/ns/<ns>/sa/<sa>`.
fn parts(principal: Option<&str>) -> Option<(&str, &str, &str)> {
    let mut parts = principal?.split('/');
    let domain = parts.next()?;
    let ("ns", namespace) = (parts.next()?, parts.next()?) else { return None };
    let ("sa", account) = (parts.next()?, parts.next()?) else { return None };
    parts.next().is_none().then_some((domain, namespace, account))
}

/// What values are read against.
pub(crate) struct Attributes<'a> {
    pub(crate) trust_domain: &'a str,
    pub(crate) policy_namespace: &'a str,
}

impl Attributes<'_> {
    /// Compiles the values of a field; `None` when only HTTP could tell.
    pub(crate) fn tests(
        &self,
        attribute: Attribute,
        values: &[String],
        path: &str,
    ) -> Result<Option<Vec<Test>>, PolicyError> {
        if values.iter().any(String::is_empty) {
            return Err(PolicyError::value(path, "holds an empty string"));
        }
        if attribute == Attribute::ServiceAccount && values.len() > MAX_ACCOUNTS {
            return Err(PolicyError::value(path, format!("at most {MAX_ACCOUNTS} accounts are possible")));
        }
        if attribute == Attribute::Http {
            return Ok(None);
        }
        values.iter().map(|value| self.test(attribute, value, path)).collect::<Result<_, _>>().map(Some)
    }

    fn test(&self, attribute: Attribute, value: &str, path: &str) -> Result<Test, PolicyError> {
        match attribute {
            Attribute::Principal => self.principal(value, path),
            Attribute::Namespace => Ok(Test::Namespace(value.to_owned())),
            Attribute::ServiceAccount => self.service_account(value, path),
            Attribute::TrustDomain if value.contains('/') => {
                Err(PolicyError::value(path, format!("{value:?} holds a slash and is no trust domain")))
            }
            Attribute::TrustDomain => Ok(Test::TrustDomain(Text::parse(self.own_domain(value)))),
            Attribute::Ip => Ok(Test::Source(block(value, path)?)),
            Attribute::DestinationIp => Ok(Test::Destination(block(value, path)?)),
            Attribute::Port | Attribute::Http => match value.parse() {
                Ok(port @ 1..) => Ok(Test::Port(port)),
                _ => Err(PolicyError::value(path, format!("{value:?} is not a port between 1 and 65535"))),
            },
        }
    }

    fn principal(&self, value: &str, path: &str) -> Result<Test, PolicyError> {
        if value.starts_with("spiffe://") {
            let problem = format!("{value:?} begins with spiffe://; leave the scheme off");
            return Err(PolicyError::value(path, problem));
        }
        // The customary domain stands for ours in a complete identity, so that pasted policies work.
        match value.split_once('/') {
            Some((domain, rest)) if value.split('/').count() == 5 => {
                Ok(Test::Principal(Text::parse(&format!("{}/{rest}", self.own_domain(domain)))))
            }
            _ => Ok(Test::Principal(Text::parse(value))),
        }
    }

    fn own_domain<'v>(&'v self, domain: &'v str) -> &'v str {
        if domain == "cluster.local" { self.trust_domain } else { domain }
    }

    fn service_account(&self, value: &str, path: &str) -> Result<Test, PolicyError> {
        if value.len() > MAX_ACCOUNT_LENGTH {
            return Err(PolicyError::value(
                path,
                format!("an account has at most {MAX_ACCOUNT_LENGTH} characters"),
            ));
        }
        let (namespace, name) = value.split_once('/').unwrap_or((self.policy_namespace, value));
        if namespace.is_empty() || name.is_empty() || name.contains('/') || value.contains('*') {
            let problem = format!("{value:?} is no account; write name or namespace/name, without wildcards");
            return Err(PolicyError::value(path, problem));
        }
        Ok(Test::ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

fn block(value: &str, path: &str) -> Result<IpNet, PolicyError> {
    let parsed = match value.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address.to_canonical())),
        Err(_) => value.parse::<IpNet>().ok(),
    };
    parsed.ok_or_else(|| PolicyError::value(path, format!("{value:?} is neither an address nor a CIDR")))
}

/// `*` spans any characters, none included; everything else is literal.
fn glob_matches(glob: &str, value: &str) -> bool {
    let Some((head, rest)) = glob.split_once('*') else { return glob == value };
    let Some(mut value) = value.strip_prefix(head) else { return false };
    let mut rest = rest;
    while let Some((part, after)) = rest.split_once('*') {
        let Some(at) = value.find(part) else { return false };
        value = value.get(at + part.len()..).unwrap_or_default();
        rest = after;
    }
    value.ends_with(rest)
}

#[cfg(test)]
mod tests {
    use super::glob_matches;

    #[test]
    fn stars_in_a_namespace_span_characters() {
        let cases = [
            ("prod", "prod", true),
            ("prod", "prod2", false),
            ("prod-*", "prod-eu", true),
            ("*-eu", "prod-eu", true),
            ("p*d-*u", "prod-eu", true),
            ("p*d", "prod-eu", false),
            ("*", "x", true),
            ("a*a", "a", false),
        ];
        for (glob, value, expected) in cases {
            assert_eq!(glob_matches(glob, value), expected, "{glob} on {value}");
        }
    }
}
