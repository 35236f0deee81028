//! The values of one field, checked and made ready for matching.

use super::attribute::Attribute;
use crate::authorization::Action;
use crate::decide::RequestPrincipals;
use crate::decide::rules::Sense;
use crate::decide::test::{HttpTest, Test};
use crate::error::PolicyError;
use crate::lookup::{Blocks, TextSet};
use crate::mesh::MeshConfig;
use crate::path::{Charset, Patterns, Template};
use crate::text::Text;
use ipnet::{IpNet, Ipv4Net};
use std::net::IpAddr;

/// Istio's limits of `serviceAccounts`.
const MAX_ACCOUNTS: usize = 16;
const MAX_ACCOUNT_LENGTH: usize = 320;

/// What values are read against, and the faults found on the way.
pub(super) struct Values<'a> {
    pub(super) mesh: &'a MeshConfig,
    /// The policy's own namespace.
    pub(super) namespace: &'a str,
    pub(super) action: Action,
    pub(super) faults: Vec<PolicyError>,
}

impl Values<'_> {
    pub(super) fn fault(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        self.faults.push(PolicyError::value(field, problem));
    }

    /// Compiles the values of the field at `path`. Values with a fault are left out and noted; nobody uses a
    /// policy with faults.
    pub(super) fn test(
        &mut self,
        attribute: &Attribute,
        sense: Sense,
        values: &[String],
        path: &str,
    ) -> Test {
        for (index, _) in values.iter().enumerate().filter(|(_, value)| value.is_empty()) {
            self.fault(format!("{path}[{index}]"), "is an empty string; write a value, or \"*\" for any");
        }
        if self.action == Action::Custom && attribute.is_identity() {
            self.fault(
                path,
                "can not be used with action CUSTOM, which is judged before identities are known",
            );
        }
        match attribute {
            Attribute::Principal => Test::Principal(self.principals(values, path)),
            Attribute::Namespace => namespaces(values),
            Attribute::ServiceAccount => self.accounts(values, path),
            Attribute::TrustDomain => Test::TrustDomain(self.trust_domains(values, path)),
            Attribute::SourceIp => Test::Source(self.blocks(values, path)),
            Attribute::RemoteIp => Test::Remote(self.blocks(values, path)),
            Attribute::DestinationIp => Test::Destination(self.blocks(values, path)),
            Attribute::Port => self.ports(values, path),
            Attribute::Sni => Test::Sni(texts(values)),
            Attribute::RequestPrincipal => {
                Test::Http(HttpTest::RequestPrincipal(RequestPrincipals::new(values)))
            }
            Attribute::Host => {
                let lower = values.iter().map(|value| Text::parse(&value.to_ascii_lowercase()));
                Test::Http(HttpTest::Host(TextSet::new(lower)))
            }
            Attribute::Method => Test::Http(HttpTest::Method(texts(values))),
            Attribute::Path => Test::Http(self.paths(sense, values, path)),
            Attribute::Header(name) => {
                Test::Http(HttpTest::Header { name: name.as_str().into(), texts: texts(values) })
            }
            Attribute::Claim(parts) => {
                let path = parts.iter().map(|part| part.as_str().into()).collect();
                Test::Http(HttpTest::Claim { path, texts: texts(values) })
            }
        }
    }

    /// A complete principal of one of our trust domains means all of them.
    fn principals(&mut self, values: &[String], path: &str) -> TextSet {
        let mut rules = Vec::with_capacity(values.len());
        for (index, value) in values.iter().enumerate() {
            if let Some(rest) = value.strip_prefix("spiffe://") {
                let problem = format!("{value:?} begins with spiffe://; leave the scheme off: {rest:?}");
                self.fault(format!("{path}[{index}]"), problem);
            }
            match value.split_once('/') {
                Some((domain, rest)) if value.split('/').count() == 5 && self.mesh.is_ours(domain) => {
                    let ours = self.mesh.trust_domains().into_iter();
                    rules.extend(ours.map(|domain| Text::parse(&format!("{domain}/{rest}"))));
                }
                _ => rules.push(Text::parse(value)),
            }
        }
        TextSet::new(rules)
    }

    fn trust_domains(&mut self, values: &[String], path: &str) -> TextSet {
        let mut rules = Vec::with_capacity(values.len());
        for (index, value) in values.iter().enumerate() {
            if value.contains('/') {
                let problem = format!(
                    "{value:?} is no trust domain: it holds a slash; write only what stands before the first one"
                );
                self.fault(format!("{path}[{index}]"), problem);
            }
            if self.mesh.is_ours(value) {
                rules.extend(self.mesh.trust_domains().into_iter().map(Text::parse));
            } else {
                rules.push(Text::parse(value));
            }
        }
        TextSet::new(rules)
    }

    fn accounts(&mut self, values: &[String], path: &str) -> Test {
        if values.len() > MAX_ACCOUNTS {
            let problem = format!("has {} entries; at most {MAX_ACCOUNTS} are possible", values.len());
            self.fault(path, problem);
        }
        let mut keys = Vec::with_capacity(values.len());
        for (index, value) in values.iter().enumerate() {
            let (namespace, name) = value.split_once('/').unwrap_or((self.namespace, value));
            let problem = if value.chars().count() > MAX_ACCOUNT_LENGTH {
                Some(format!("has more than {MAX_ACCOUNT_LENGTH} characters"))
            } else if namespace.is_empty() || name.is_empty() || name.contains('/') || value.contains('*') {
                Some(format!("{value:?} is no account; write name or namespace/name, without wildcards"))
            } else {
                None
            };
            match problem {
                Some(_) if value.is_empty() => {}
                Some(problem) => self.fault(format!("{path}[{index}]"), problem),
                None => keys.push(format!("{namespace}/sa/{name}").into_bytes().into_boxed_slice()),
            }
        }
        Test::ServiceAccount(keys.into_iter().map(|key| (key, ())).collect())
    }

    fn blocks(&mut self, values: &[String], path: &str) -> Blocks<IpNet> {
        let mut blocks = Vec::with_capacity(values.len());
        for (index, value) in values.iter().enumerate().filter(|(_, value)| !value.is_empty()) {
            match block(value) {
                Some(block) => blocks.push((block, block)),
                None => {
                    let problem =
                        format!("{value:?} is neither an address nor a CIDR; write 10.1.2.3 or 10.1.0.0/16");
                    self.fault(format!("{path}[{index}]"), problem);
                }
            }
        }
        Blocks::new(blocks)
    }

    fn ports(&mut self, values: &[String], path: &str) -> Test {
        let mut ports = Vec::with_capacity(values.len());
        for (index, value) in values.iter().enumerate().filter(|(_, value)| !value.is_empty()) {
            match port(value) {
                Some(port) => ports.push((port, ())),
                None => {
                    let problem = format!(
                        "{value:?} is not a port between 1 and 65535; names and ranges are not possible"
                    );
                    self.fault(format!("{path}[{index}]"), problem);
                }
            }
        }
        Test::Port(ports.into_iter().collect())
    }

    /// Templates are read narrowly where they allow and widely where they refuse.
    fn paths(&mut self, sense: Sense, values: &[String], path: &str) -> HttpTest {
        let (mut rules, mut templates) = (Vec::new(), Vec::new());
        for (index, value) in values.iter().enumerate() {
            match Template::parse(value) {
                Ok(Some(template)) => templates.push(template),
                Ok(None) => rules.push(Text::parse(value)),
                Err(problem) => self.fault(format!("{path}[{index}]"), problem.to_string()),
            }
        }
        let charset = match (self.action, sense) {
            (Action::Allow, Sense::Is) | (Action::Deny | Action::Audit | Action::Custom, Sense::IsNot) => {
                Charset::Strict
            }
            _ => Charset::Any,
        };
        HttpTest::Path(Patterns::new(rules, templates, charset))
    }
}

fn texts(values: &[String]) -> TextSet {
    TextSet::new(values.iter().map(|value| Text::parse(value)))
}

/// A `*` may stand anywhere and spans any characters; most stand at an end.
fn namespaces(values: &[String]) -> Test {
    let (mut texts, mut globs) = (Vec::new(), Vec::new());
    for value in values {
        match value.split_once('*') {
            None => texts.push(Text::Exact(value.clone())),
            Some((head, "")) => texts.push(Text::Prefix(head.to_owned())),
            Some(("", tail)) if !tail.contains('*') => texts.push(Text::Suffix(tail.to_owned())),
            Some(_) => globs.push(value.as_str().into()),
        }
    }
    Test::Namespace { texts: TextSet::new(texts), globs }
}

/// An address or a CIDR; an IPv4 block in IPv6 clothes is the IPv4 block.
pub(crate) fn block(value: &str) -> Option<IpNet> {
    if let Ok(address) = value.parse::<IpAddr>() {
        return Some(IpNet::from(address.to_canonical()));
    }
    let block: IpNet = value.parse().ok()?;
    match block.network().to_canonical() {
        IpAddr::V4(address) if block.prefix_len() >= 96 && block.addr().is_ipv6() => {
            Ipv4Net::new(address, block.prefix_len() - 96).ok().map(IpNet::V4)
        }
        _ => Some(block.trunc()),
    }
}

pub(crate) fn port(value: &str) -> Option<u16> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|port| digits && *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_ports_are_read_or_refused() {
        let blocks = [
            ("10.1.2.3", Some("10.1.2.3/32")),
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
            ("2001:db8::/32", Some("2001:db8::/32")),
            ("::/0", Some("::/0")),
            ("10.0.0.300", None),
            ("10.0.0.0/33", None),
            ("*", None),
        ];
        for (text, expected) in blocks {
            assert_eq!(block(text).map(|block| block.to_string()).as_deref(), expected, "{text}");
        }
        let ports = [
            ("80", Some(80)),
            ("65535", Some(65535)),
            ("0", None),
            ("+80", None),
            ("http", None),
            ("", None),
        ];
        for (text, expected) in ports {
            assert_eq!(port(text), expected, "{text}");
        }
    }
}
