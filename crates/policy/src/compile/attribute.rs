//! What a field or a `when` key is about.

use crate::error::PolicyError;

/// An attribute of a connection or request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Attribute {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    RequestPrincipal,
    SourceIp,
    RemoteIp,
    DestinationIp,
    Port,
    Sni,
    Host,
    Method,
    Path,
    Header(String),
    Claim(Vec<String>),
}

impl Attribute {
    /// The attribute of a `when` key.
    ///
    /// # Errors
    /// When no policy may ask for it; `field` is where the key stands.
    pub(crate) fn of_key(key: &str, field: &str) -> Result<Self, PolicyError> {
        let plain = match key {
            "source.principal" => Some(Attribute::Principal),
            "source.namespace" => Some(Attribute::Namespace),
            "source.serviceAccount" => Some(Attribute::ServiceAccount),
            "source.trustDomain" => Some(Attribute::TrustDomain),
            "source.ip" => Some(Attribute::SourceIp),
            "remote.ip" => Some(Attribute::RemoteIp),
            "destination.ip" => Some(Attribute::DestinationIp),
            "destination.port" => Some(Attribute::Port),
            "connection.sni" => Some(Attribute::Sni),
            "request.auth.principal" => Some(Attribute::RequestPrincipal),
            "request.auth.audiences" => Some(Attribute::Claim(vec!["aud".to_owned()])),
            "request.auth.presenter" => Some(Attribute::Claim(vec!["azp".to_owned()])),
            _ => None,
        };
        if let Some(plain) = plain {
            return Ok(plain);
        }
        if let Some(rest) = key.strip_prefix("request.headers[") {
            return header(rest, key, field);
        }
        if let Some(rest) = key.strip_prefix("request.auth.claims") {
            let path = brackets(rest).ok_or_else(|| {
                let problem = format!("{key:?} names no claim; write request.auth.claims[name] or, nested, request.auth.claims[outer][inner]");
                PolicyError::value(field, problem)
            })?;
            return Ok(Attribute::Claim(path));
        }
        Err(unknown(key, field))
    }

    /// Whether only a request can answer it.
    pub(crate) fn is_http(&self) -> bool {
        use Attribute::{Claim, Header, Host, Method, Path, RequestPrincipal};
        matches!(self, Host | Method | Path | RequestPrincipal | Header(_) | Claim(_))
    }

    /// Whether it says who the peer or the token's owner is: known too late, or to the wrong side, for CUSTOM.
    pub(crate) fn is_identity(&self) -> bool {
        use Attribute::{Claim, Namespace, Principal, RequestPrincipal, ServiceAccount, TrustDomain};
        matches!(self, Principal | Namespace | ServiceAccount | TrustDomain | RequestPrincipal | Claim(_))
    }
}

fn header(rest: &str, key: &str, field: &str) -> Result<Attribute, PolicyError> {
    let name = rest.strip_suffix(']').unwrap_or_default();
    if name.starts_with(':') {
        let problem =
            format!("{key:?}: pseudo-headers can not be read; use hosts, methods or paths of to.operation");
        return Err(PolicyError::value(field, problem));
    }
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        let problem = format!("{key:?} names no header; write request.headers[name]");
        return Err(PolicyError::value(field, problem));
    }
    Ok(Attribute::Header(name.to_ascii_lowercase()))
}

/// `[a][b]` to its parts.
fn brackets(text: &str) -> Option<Vec<String>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let parts: Vec<String> = inner.split("][").map(str::to_owned).collect();
    let good = |part: &String| !part.is_empty() && !part.contains(['[', ']']);
    parts.iter().all(good).then_some(parts)
}

fn unknown(key: &str, field: &str) -> PolicyError {
    let known_elsewhere = ["experimental.envoy.filters.", "destination.labels", "destination.name"]
        .into_iter()
        .chain(["destination.user", "destination.namespace", "source.labels", "source.user", "source.name"]);
    if known_elsewhere.into_iter().any(|prefix| key.starts_with(prefix)) {
        return PolicyError::NotImplemented { field: format!("{field}: {key:?}") };
    }
    let problem = format!(
        "{key:?} is no attribute that a policy can ask for; write one of source.ip, source.principal, \
         source.namespace, source.serviceAccount, source.trustDomain, remote.ip, destination.ip, \
         destination.port, connection.sni, request.headers[name], request.auth.principal, \
         request.auth.audiences, request.auth.presenter, request.auth.claims[name]"
    );
    PolicyError::value(field, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_or_refused_with_their_name() {
        let claim = |path: &[&str]| Some(Attribute::Claim(path.iter().map(|part| (*part).into()).collect()));
        let cases = [
            ("source.ip", Some(Attribute::SourceIp)),
            ("request.headers[X-Token]", Some(Attribute::Header("x-token".into()))),
            ("request.headers[]", None),
            ("request.headers[:path]", None),
            ("request.headers[a b]", None),
            ("request.headers[a", None),
            ("request.auth.audiences", claim(&["aud"])),
            ("request.auth.claims[a]", claim(&["a"])),
            ("request.auth.claims[a][b.c]", claim(&["a", "b.c"])),
            ("request.auth.claims", None),
            ("request.auth.claims[]", None),
            ("request.auth.claims[a][]", None),
            ("request.auth.claims[a]b]", None),
            ("experimental.envoy.filters.x", None),
            ("destination.labels[app]", None),
            ("weather", None),
        ];
        for (key, expected) in cases {
            let read = Attribute::of_key(key, "spec.rules[0].when[0].key");
            if let Err(error) = &read {
                assert!(error.to_string().contains(&format!("{key:?}")), "{error}");
            }
            assert_eq!(read.ok(), expected, "{key}");
        }
    }
}
