//! SPIFFE IDs and trust domains, parsed from bytes by the SPIFFE-ID standard; deliberately without a URL
//! library, whose normalisation would make two spellings of one identity.

use crate::IdentityError;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Bound of the SPIFFE-ID standard, section 2.3.
const MAX_ID: usize = 2048;
/// Bound of the SPIFFE-ID standard, section 2.1.
const MAX_TRUST_DOMAIN: usize = 255;
const SCHEME: &str = "spiffe://";

fn refuse(id: &str, why: &'static str) -> IdentityError {
    IdentityError::SpiffeId { id: id.chars().take(120).collect(), why }
}

/// A trust domain: lower-case letters, digits, dots, dashes and underscores, at most 255 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// Checks a trust domain's name, as it stands between `spiffe://` and the path.
    ///
    /// # Errors
    /// [`IdentityError::SpiffeId`] names the rule that it breaks.
    pub fn parse(name: &str) -> Result<Self, IdentityError> {
        check_trust_domain(name).map_err(|why| refuse(name, why))?;
        Ok(Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::parse(name)
    }
}

/// A SPIFFE ID, in the one spelling that the standard allows.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    /// Shared: every connection and stream of a peer holds it.
    text: Arc<str>,
    /// Where the path begins in `text`.
    path: usize,
}

impl SpiffeId {
    /// Parses a SPIFFE ID. Nothing is normalised: what is not in canonical form is refused.
    ///
    /// # Errors
    /// [`IdentityError::SpiffeId`] names the rule that it breaks.
    pub fn parse(id: &str) -> Result<Self, IdentityError> {
        let path = check_id(id).map_err(|why| refuse(id, why))?;
        Ok(Self { text: id.into(), path })
    }

    /// The ID of a Kubernetes workload: `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.
    ///
    /// # Errors
    /// [`IdentityError::SpiffeId`] when a name can't be a path segment.
    pub fn workload(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        // A slash inside a name would make other segments of it.
        for name in [namespace, service_account] {
            check_segment(name.as_bytes()).map_err(|why| refuse(name, why))?;
        }
        Self::parse(&format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}"))
    }

    /// The whole ID.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_str().to_owned())
    }

    /// Its trust domain as text.
    #[must_use]
    pub fn trust_domain_str(&self) -> &str {
        self.text.get(SCHEME.len()..self.path).unwrap_or_default()
    }

    /// The namespace, when the ID has the form of a Kubernetes workload.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.workload_names().map(|(namespace, _)| namespace)
    }

    /// The service account, when the ID has the form of a Kubernetes workload.
    #[must_use]
    pub fn service_account(&self) -> Option<&str> {
        self.workload_names().map(|(_, account)| account)
    }

    fn workload_names(&self) -> Option<(&str, &str)> {
        let names = self.text.get(self.path..)?.strip_prefix("/ns/")?;
        let (namespace, rest) = names.split_once('/')?;
        let account = rest.strip_prefix("sa/")?;
        (!account.contains('/')).then_some((namespace, account))
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.text)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(id: &str) -> Result<Self, Self::Err> {
        Self::parse(id)
    }
}

fn check_trust_domain(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("the trust domain is empty");
    }
    if name.len() > MAX_TRUST_DOMAIN {
        return Err("the trust domain is over 255 bytes");
    }
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    if !name.bytes().all(allowed) {
        return Err("a trust domain has lower-case letters, digits, dots, dashes and underscores only");
    }
    Ok(())
}

fn check_segment(segment: &[u8]) -> Result<(), &'static str> {
    match segment {
        b"" => return Err("a path segment is empty"),
        b"." | b".." => return Err("a path segment is a dot segment"),
        _ => {}
    }
    let allowed = |b: &u8| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    if !segment.iter().all(allowed) {
        return Err("a path segment has letters, digits, dots, dashes and underscores only");
    }
    Ok(())
}

/// Returns where the path begins.
fn check_id(id: &str) -> Result<usize, &'static str> {
    if id.len() > MAX_ID {
        return Err("it is over 2048 bytes");
    }
    let rest = id.strip_prefix(SCHEME).ok_or("it does not begin with spiffe://")?;
    let (trust_domain, path) = match rest.split_once('/') {
        Some((trust_domain, path)) => (trust_domain, Some(path)),
        None => (rest, None),
    };
    check_trust_domain(trust_domain)?;
    for segment in path.into_iter().flat_map(|path| path.split('/')) {
        check_segment(segment.as_bytes())?;
    }
    Ok(SCHEME.len() + trust_domain.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_of_the_standard_are_accepted() {
        for id in [
            "spiffe://cluster.local/ns/shop/sa/api",
            "spiffe://td",
            "spiffe://a_b-c.1/x",
            "spiffe://td/Upper/lower.-_0",
            "spiffe://td/...",
        ] {
            assert_eq!(SpiffeId::parse(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let long = format!("spiffe://td/{}", "a".repeat(2048));
        let long_domain = format!("spiffe://{}/a", "a".repeat(256));
        for id in [
            "",
            "spiffe",
            "spiffe:/td/a",
            "SPIFFE://td/a",
            "Spiffe://td/a",
            "https://td/a",
            "spiffe://",
            "spiffe:///a",
            "spiffe://td/",
            "spiffe://td//a",
            "spiffe://td/a/",
            "spiffe://td/./a",
            "spiffe://td/../a",
            "spiffe://td/a/..",
            "spiffe://TD/a",
            "spiffe://td:80/a",
            "spiffe://user@td/a",
            "spiffe://td/a?b",
            "spiffe://td/a#b",
            "spiffe://td/%61",
            "spiffe://t%64/a",
            "spiffe://td/a b",
            "spiffe://td/ä",
            "spiffe://tä/a",
            "spiffe://td/a\0",
            "spiffe://td/a\n",
            "spiffe://[::1]/a",
            " spiffe://td/a",
            long.as_str(),
            long_domain.as_str(),
        ] {
            assert!(SpiffeId::parse(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn the_workload_form_gives_namespace_and_account() {
        let trust_domain = TrustDomain::parse("cluster.local").unwrap();
        let id = SpiffeId::workload(&trust_domain, "shop", "api").unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/api");
        assert_eq!((id.namespace(), id.service_account()), (Some("shop"), Some("api")));
        assert_eq!(id.trust_domain(), trust_domain);
        for other in [
            "spiffe://td",
            "spiffe://td/ns/a",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sb/c",
            "spiffe://td/ns/a/sa/b/c",
        ] {
            let id = SpiffeId::parse(other).unwrap();
            assert_eq!((id.namespace(), id.service_account()), (None, None), "{other}");
        }
        for (namespace, account) in [("a/sa/b", "c"), ("", "c"), ("a", ""), ("..", "c"), ("a", "b/c")] {
            assert!(SpiffeId::workload(&trust_domain, namespace, account).is_err(), "{namespace} {account}");
        }
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics_and_what_parses_is_unchanged(text in "(spiffe://)?[ -~ä]{0,64}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.as_str(), &text);
                prop_assert!(!text.contains(['?', '#', '%', '@']));
                prop_assert_eq!(SpiffeId::parse(id.as_str()).unwrap(), id);
            }
        }
    }
}
