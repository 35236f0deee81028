//! A request against token rules written as YAML.

use crate::issuer::NOW;
use cinch_policy::RequestAuthenticationSpec;
use cinch_policy::jwt::{HttpView, Jwks, TokenCache, TokenFault, TokenRefusal, TokenRules, authenticate};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// What came of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Passed {
    /// The claims of the token that counts.
    pub claims: Option<Value>,
    pub policy: Option<String>,
    pub headers: Vec<(String, String)>,
    pub query: Option<String>,
}

impl Passed {
    pub fn subject(&self) -> Option<&str> {
        self.claims.as_ref()?.get("sub")?.as_str()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str())
    }
}

pub struct Scene {
    pub rules: TokenRules,
    pub keys: HashMap<String, Arc<Jwks>>,
    pub cache: TokenCache,
    pub now: u64,
}

impl Scene {
    /// `specs`: name and `jwtRules` in YAML.
    pub fn new(specs: &[(&str, &str)]) -> Self {
        let parsed: Vec<(&str, RequestAuthenticationSpec)> = specs
            .iter()
            .map(|(name, rules)| (*name, serde_saphyr::from_str(&format!("jwtRules:\n{rules}")).unwrap()))
            .collect();
        let rules = TokenRules::compile(parsed.iter().map(|(name, spec)| (*name, spec)));
        Scene { rules, keys: HashMap::new(), cache: TokenCache::default(), now: NOW }
    }

    pub fn keys(mut self, name: &str, keys: Arc<Jwks>) -> Self {
        self.keys.insert(name.to_owned(), keys);
        self
    }

    pub fn ask(&self, headers: &[(&str, &str)], query: Option<&str>) -> Result<Passed, TokenFault> {
        self.ask_with("GET", headers, query)
    }

    pub fn ask_with(
        &self,
        method: &str,
        headers: &[(&str, &str)],
        query: Option<&str>,
    ) -> Result<Passed, TokenFault> {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        let view = HttpView { method, query, headers: &headers };
        let find = |name: &str| self.keys.get(name).cloned();
        let passed = authenticate(&self.rules, &find, &self.cache, &view, self.now);
        let passed = passed.map_err(|refusal| refusal.fault)?;
        let forwarded = passed.forwarding.headers(&headers);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Passed {
            claims: passed.token.as_ref().map(|token| token.claims().clone()),
            policy: passed.token.as_ref().map(|token| token.policy().to_owned()),
            headers: forwarded.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect(),
            query: passed.forwarding.query(query).map(|query| query.into_owned()),
        })
    }

    /// What a request with these tokens in its query cost in signatures, or why it was refused.
    pub fn judge(&self, tokens: &[&str]) -> Result<u32, TokenRefusal> {
        let query: Vec<_> = tokens.iter().map(|token| format!("access_token={token}")).collect();
        let query = query.join("&");
        let view = HttpView { method: "GET", query: Some(&query), headers: &[] };
        let find = |name: &str| self.keys.get(name).cloned();
        authenticate(&self.rules, &find, &self.cache, &view, self.now).map(|passed| passed.signatures)
    }

    /// The signatures that were looked at for it.
    pub fn signatures(&self, tokens: &[String]) -> u32 {
        let tokens: Vec<_> = tokens.iter().map(String::as_str).collect();
        self.judge(&tokens).unwrap_or_else(|refusal| refusal.signatures)
    }

    /// With a bearer token.
    pub fn bearer(&self, token: &str) -> Result<Passed, TokenFault> {
        self.ask(&[("authorization", &format!("Bearer {token}"))], None)
    }
}
