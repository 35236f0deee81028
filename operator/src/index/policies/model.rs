//! What the rest of the operator sees of policies: their keys and what is known of each.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Istio's kinds that we enforce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// Modes of ports.
    PeerAuthentication,
    /// Who may do what.
    AuthorizationPolicy,
    /// Which tokens are accepted.
    RequestAuthentication,
}

impl PolicyKind {
    /// Every kind.
    pub const ALL: [PolicyKind; 3] =
        [PolicyKind::PeerAuthentication, PolicyKind::AuthorizationPolicy, PolicyKind::RequestAuthentication];

    /// The kind's name, as objects carry it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            PolicyKind::PeerAuthentication => "PeerAuthentication",
            PolicyKind::AuthorizationPolicy => "AuthorizationPolicy",
            PolicyKind::RequestAuthentication => "RequestAuthentication",
        }
    }

    /// The resource's name in the API.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            PolicyKind::PeerAuthentication => "peerauthentications",
            PolicyKind::AuthorizationPolicy => "authorizationpolicies",
            PolicyKind::RequestAuthentication => "requestauthentications",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What identifies a policy object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// Its kind.
    pub kind: PolicyKind,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl PolicyKey {
    /// `namespace/name`, as proxies, logs and reasons name a policy.
    #[must_use]
    pub fn object(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// What the index knows of a policy object.
#[derive(Debug, Clone)]
pub struct PolicyInfo {
    /// Which object.
    pub key: PolicyKey,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.generation`.
    pub generation: i64,
    /// Why it can't be used, if so. It closes what it selects then, unless it is a dry run.
    pub fault: Option<String>,
    /// The fault is a field or value that this version does not know, rather than one that nobody could mean.
    pub unsupported: bool,
    /// Only a proxy that reads HTTP can decide by it; others close what it may decide on.
    pub needs_http: bool,
    /// `ALLOW`, `DENY`, `AUDIT` or `CUSTOM`; empty for other kinds, and where it can't be told.
    pub action: &'static str,
    /// Evaluated and reported, never enforced.
    pub dry_run: bool,
    /// The sources of keys that it asks for ([`JwksSource::name`]), each once.
    pub key_sources: Vec<Arc<str>>,
    /// When this state of the object came.
    pub seen: Instant,
}

/// A key set that RequestAuthentications ask for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JwksSource {
    /// The rule's issuer; empty where it names none.
    pub issuer: String,
    /// The rule's `jwksUri`; without it the issuer's discovery document leads to the keys.
    pub uri: Option<String>,
    /// How long the rule lets a fetch take.
    pub timeout: Option<Duration>,
}

impl JwksSource {
    /// As proxies and [`crate::index::Index::set_jwks`] name it: the URI, or the issuer where there is none.
    #[must_use]
    pub fn name(&self) -> &str {
        self.uri.as_deref().unwrap_or(&self.issuer)
    }
}

/// Whose policies name a source of keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Asker {
    /// The root namespace's, for the whole mesh.
    Mesh,
    /// A namespace's.
    Namespace(Arc<str>),
}

/// A proxy's word that a token names a key which the document of a source does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKey {
    /// [`JwksSource::name`] of a source that a policy of the pod asks for.
    pub source: String,
    /// The token's `kid`: whatever its sender wrote.
    pub kid: String,
}
