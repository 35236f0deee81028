//! The token rules of all RequestAuthentications that select a workload, made ready.

use super::jwks::Jwks;
use super::place::Places;
use super::token::Claims;
use crate::mesh::{MeshConfig, Workload};
use crate::object::PolicyObject;
use crate::request_authentication::{JwtRule, RequestAuthenticationSpec};
use serde_json::Value;
use std::sync::Arc;

/// The rules of a workload. Their order is that of the objects' names, whatever order they came in.
#[derive(Debug, Clone, Default)]
pub struct TokenRules {
    pub(super) rules: Vec<TokenRule>,
    /// Headers that only we may set, in lower case.
    pub(super) stripped: Vec<Box<str>>,
}

/// One rule.
#[derive(Debug, Clone)]
pub(super) struct TokenRule {
    pub(super) policy: Arc<str>,
    /// Its number in the policy.
    pub(super) index: usize,
    /// `None`: any issuer that its keys vouch for.
    pub(super) issuer: Option<Box<str>>,
    pub(super) audiences: Vec<Box<str>>,
    pub(super) keys: Keys,
    pub(super) places: Places,
    pub(super) payload_header: Option<Box<str>>,
    /// Header and claim.
    pub(super) claim_headers: Vec<(Box<str>, Box<str>)>,
    pub(super) forwards_token: bool,
    pub(super) space_delimited: Arc<[String]>,
    timeout: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) enum Keys {
    Inline(Option<Arc<Jwks>>),
    /// By the URI of the key set, or by the issuer.
    Fetched {
        name: Arc<str>,
        is_uri: bool,
    },
}

/// A key set that somebody must fetch, for rules that don't hold their keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFetch {
    /// What [`super::authenticate`] asks for: `jwksUri`, or the issuer where there is none.
    pub name: Arc<str>,
    /// The issuer, where the rule names one.
    pub issuer: Option<String>,
    /// Where the key set, or the discovery document that names it, is.
    pub url: String,
    /// Whether `url` is that of an OIDC discovery document, whose `jwks_uri` leads to the keys.
    pub is_discovery: bool,
    /// How long it may take, as the rule says (`5s`); 5 seconds where it says nothing.
    pub timeout: Option<String>,
}

impl TokenRules {
    /// Joins the rules of `specs`, each with its object's name (`namespace/name`). Only objects without faults
    /// belong here: keys that can't be read verify nothing.
    #[must_use]
    pub fn compile<'a>(specs: impl IntoIterator<Item = (&'a str, &'a RequestAuthenticationSpec)>) -> Self {
        let mut specs: Vec<_> = specs.into_iter().collect();
        specs.sort_by_key(|(name, _)| *name);
        let mut compiled = TokenRules::default();
        for (name, spec) in specs {
            let policy: Arc<str> = name.into();
            for (index, rule) in spec.jwt_rules.iter().enumerate() {
                compiled.rules.push(TokenRule::compile(policy.clone(), index, rule));
            }
        }
        let outputs = compiled.rules.iter().flat_map(|rule| {
            rule.payload_header.iter().chain(rule.claim_headers.iter().map(|(header, _)| header)).cloned()
        });
        compiled.stripped = outputs.collect();
        compiled.stripped.sort_unstable();
        compiled.stripped.dedup();
        compiled
    }

    /// The rules of those `objects` that select `workload` and have no faults.
    #[must_use]
    pub fn of_workload<'a>(
        mesh: &MeshConfig,
        objects: impl IntoIterator<Item = &'a PolicyObject>,
        workload: &Workload,
    ) -> Self {
        let chosen: Vec<_> = objects
            .into_iter()
            .filter_map(|object| match object {
                PolicyObject::RequestAuthentication(object) if object.applies_to(mesh, workload) => {
                    Some((object.name().to_string(), object.spec().ok()?))
                }
                _ => None,
            })
            .collect();
        Self::compile(chosen.iter().map(|(name, spec)| (name.as_str(), *spec)))
    }

    /// Whether tokens are of no interest here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The headers that are always taken from the client's request, in lower case.
    pub fn stripped(&self) -> impl Iterator<Item = &str> {
        self.stripped.iter().map(|name| &**name)
    }

    /// Whether the header `name`, in lower case, may hold a token or is one that only we may set: nothing that an app
    /// could take for it may pass.
    #[must_use]
    pub fn minds_header(&self, name: &str) -> bool {
        let carries = |rule: &TokenRule| rule.places.header_names().any(|of| of == name);
        self.stripped().any(|of| of == name) || self.rules.iter().any(carries)
    }

    /// The claims that are split at spaces in a payload that somebody else has verified: those of all rules for its
    /// issuer.
    #[must_use]
    pub fn space_delimited(&self, claims: &Value) -> Vec<String> {
        let issuer = claims.get("iss").and_then(Value::as_str);
        let rules = self.rules.iter().filter(|rule| rule.is_for(issuer));
        let mut names: Vec<String> = rules.flat_map(|rule| rule.space_delimited.iter().cloned()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The key sets that these rules need and don't hold, each once.
    #[must_use]
    pub fn fetches(&self) -> Vec<KeyFetch> {
        let mut fetches: Vec<KeyFetch> = Vec::new();
        for rule in &self.rules {
            let Keys::Fetched { name, is_uri } = &rule.keys else { continue };
            if fetches.iter().any(|known| known.name == *name) {
                continue;
            }
            let url = if *is_uri { name.to_string() } else { discovery_url(name) };
            fetches.push(KeyFetch {
                name: name.clone(),
                issuer: rule.issuer.as_deref().map(str::to_owned),
                url,
                is_discovery: !is_uri,
                timeout: rule.timeout.clone(),
            });
        }
        fetches
    }
}

/// OpenID Connect Discovery 1.0, section 4.
fn discovery_url(issuer: &str) -> String {
    let issuer = issuer.strip_suffix('/').unwrap_or(issuer);
    format!("{issuer}/.well-known/openid-configuration")
}

impl TokenRule {
    fn compile(policy: Arc<str>, index: usize, rule: &JwtRule) -> Self {
        let filled = |text: &str| (!text.is_empty()).then(|| Box::<str>::from(text));
        let lower = |text: &str| Box::<str>::from(text.to_ascii_lowercase());
        let keys = if !rule.jwks_uri.is_empty() {
            Keys::Fetched { name: rule.jwks_uri.as_str().into(), is_uri: true }
        } else if !rule.jwks.is_empty() {
            Keys::Inline(Jwks::parse(&rule.jwks).ok().map(Arc::new))
        } else {
            Keys::Fetched { name: rule.issuer.as_str().into(), is_uri: false }
        };
        TokenRule {
            policy,
            index,
            issuer: filled(&rule.issuer),
            audiences: rule.audiences.iter().map(|one| one.as_str().into()).collect(),
            keys,
            places: Places::of(rule),
            payload_header: filled(&rule.output_payload_to_header).map(|name| lower(&name)),
            claim_headers: rule
                .output_claim_to_headers
                .iter()
                .map(|output| (lower(&output.header), output.claim.as_str().into()))
                .collect(),
            forwards_token: rule.forward_original_token,
            space_delimited: rule.space_delimited_claims.clone().into(),
            timeout: rule.timeout.clone(),
        }
    }

    /// Whether tokens of `issuer` are this rule's.
    pub(super) fn is_for(&self, issuer: Option<&str>) -> bool {
        self.issuer.as_deref().is_none_or(|own| issuer == Some(own))
    }

    /// The headers that the app gets from a verified token.
    pub(super) fn outputs<'r>(&'r self, claims: &Claims) -> Vec<(&'r str, String)> {
        let payload = self.payload_header.iter().map(|name| (&**name, claims.payload.to_string()));
        let single = self.claim_headers.iter();
        let single = single.filter_map(|(header, claim)| Some((&**header, claims.text(claim)?)));
        payload.chain(single).collect()
    }
}
