//! One request against the token rules of its workload.

use super::cache::{CacheKey, TokenCache};
use super::fault::{TokenFault, TokenRefusal};
use super::forward::Forwarding;
use super::jwks::Jwks;
use super::place::{HttpView, is_preflight};
use super::rules::{Keys, TokenRule, TokenRules};
use super::token::{Claims, Parsed};
use crate::decide::Token;
use serde_json::Value;
use std::sync::Arc;

/// A token that counts.
#[derive(Debug, Clone)]
pub struct VerifiedToken {
    claims: Arc<Claims>,
    space_delimited: Arc<[String]>,
    policy: Arc<str>,
}

impl VerifiedToken {
    /// Its payload.
    #[must_use]
    pub fn claims(&self) -> &Value {
        &self.claims.value
    }

    /// `iss`, where it is a string.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.claims.issuer()
    }

    /// `sub`, where it is a string.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.claims.value.get("sub")?.as_str()
    }

    /// Claims that the rule splits at spaces, besides `scope` and `permission`.
    #[must_use]
    pub fn space_delimited(&self) -> &[String] {
        &self.space_delimited
    }

    /// As decisions take it.
    #[must_use]
    pub fn token(&self) -> Token<'_> {
        Token { claims: &self.claims.value, space_delimited: &self.space_delimited }
    }

    /// The RequestAuthentication (`namespace/name`) that accepted it.
    #[must_use]
    pub fn policy(&self) -> &str {
        &self.policy
    }
}

/// A request that its tokens don't stop.
#[derive(Debug, Clone)]
pub struct Authenticated<'r> {
    /// The verified token; `None` when none came.
    pub token: Option<VerifiedToken>,
    /// What becomes of headers and query.
    pub forwarding: Forwarding<'r>,
}

/// What one rule says of a request.
enum Verdict {
    Missing,
    Valid(Arc<Claims>),
    Refused(TokenFault),
}

/// Looks for tokens and verifies them. `keys` gives the key set of a name ([`super::KeyFetch`]), if it is there;
/// `now` is in seconds since 1970.
///
/// A rule holds when all tokens in its places are valid, and there is one. The first rule that holds decides; when
/// none does, the request passes only if no rule found any token. A CORS preflight is not looked at.
///
/// # Errors
/// [`TokenRefusal`], with the fault that outranks the others.
pub fn authenticate<'r>(
    rules: &'r TokenRules,
    keys: &dyn Fn(&str) -> Option<Arc<Jwks>>,
    cache: &TokenCache,
    view: &HttpView<'_>,
    now: u64,
) -> Result<Authenticated<'r>, TokenRefusal> {
    let mut forwarding = Forwarding { stripped: &rules.stripped, ..Forwarding::default() };
    if is_preflight(view) {
        return Ok(Authenticated { token: None, forwarding });
    }
    let mut examination = Examination { keys, cache, now, read: Vec::new(), unknown_key: None };
    let mut refusal: Option<(&TokenRule, TokenFault)> = None;
    for rule in &rules.rules {
        match examination.judge(rule, view, &rules.stripped) {
            Verdict::Missing => {}
            Verdict::Valid(claims) => {
                forwarding.added = rule.outputs(&claims);
                if !rule.forwards_token {
                    forwarding.token_headers = rule.places.header_names().collect();
                    forwarding.token_params = rule.places.param_names().collect();
                }
                let token = VerifiedToken {
                    claims,
                    space_delimited: rule.space_delimited.clone(),
                    policy: rule.policy.clone(),
                };
                return Ok(Authenticated { token: Some(token), forwarding });
            }
            Verdict::Refused(fault) => {
                if refusal.as_ref().is_none_or(|(_, known)| fault.rank() > known.rank()) {
                    refusal = Some((rule, fault));
                }
            }
        }
    }
    match refusal {
        None => Ok(Authenticated { token: None, forwarding }),
        Some((rule, fault)) => Err(rule.refuse(fault, examination.unknown_key)),
    }
}

struct Examination<'e> {
    keys: &'e dyn Fn(&str) -> Option<Arc<Jwks>>,
    cache: &'e TokenCache,
    now: u64,
    /// Tokens of this request that were already taken apart: rules often share a place.
    read: Vec<(String, Result<Arc<Parsed>, TokenFault>)>,
    /// The last key ID that no key set held.
    unknown_key: Option<Box<str>>,
}

impl Examination<'_> {
    fn judge(&mut self, rule: &TokenRule, view: &HttpView<'_>, stripped: &[Box<str>]) -> Verdict {
        let tokens = match rule.places.tokens(view, stripped) {
            Ok(tokens) => tokens,
            Err(fault) => return Verdict::Refused(fault),
        };
        if tokens.is_empty() {
            return Verdict::Missing;
        }
        let keys = rule.keys(self.keys);
        let mut verdict = Verdict::Missing;
        for token in &tokens {
            match (self.verify(rule, keys.as_deref(), token), &verdict) {
                (Ok(claims), Verdict::Missing) => verdict = Verdict::Valid(claims),
                (Ok(_), _) => {}
                (Err(fault), Verdict::Refused(known)) if fault.rank() <= known.rank() => {}
                (Err(fault), _) => verdict = Verdict::Refused(fault),
            }
        }
        verdict
    }

    fn verify(
        &mut self,
        rule: &TokenRule,
        keys: Option<&Jwks>,
        token: &str,
    ) -> Result<Arc<Claims>, TokenFault> {
        let key = keys.map(|keys| CacheKey::new(keys, token));
        if let Some(claims) = key.and_then(|key| self.cache.get(&key, self.now)) {
            rule.check(&claims, self.now)?;
            return Ok(claims);
        }
        let parsed = self.read(token)?;
        // What costs nothing comes first: nobody gets a signature verified with a token for somebody else.
        rule.check(&parsed.claims, self.now)?;
        let (Some(keys), Some(key)) = (keys, key) else { return Err(TokenFault::NoKeys) };
        let verified = keys.verify(&parsed);
        if verified == Err(TokenFault::UnknownKey) {
            self.unknown_key = parsed.key_id.as_deref().map(Into::into);
        }
        verified?;
        self.cache.insert(key, &parsed.claims, self.now);
        Ok(parsed.claims.clone())
    }

    fn read(&mut self, token: &str) -> Result<Arc<Parsed>, TokenFault> {
        if let Some((_, known)) = self.read.iter().find(|(of, _)| of == token) {
            return known.clone();
        }
        let parsed = Parsed::read(token).map(Arc::new);
        self.read.push((token.to_owned(), parsed.clone()));
        parsed
    }
}

impl TokenRule {
    fn keys(&self, fetched: &dyn Fn(&str) -> Option<Arc<Jwks>>) -> Option<Arc<Jwks>> {
        match &self.keys {
            Keys::Inline(keys) => keys.clone(),
            Keys::Fetched { name, .. } => fetched(name),
        }
    }

    /// What the claims say: issuer, then dates, then audience.
    fn check(&self, claims: &Claims, now: u64) -> Result<(), TokenFault> {
        if !self.is_for(claims.issuer()) {
            return Err(TokenFault::Issuer);
        }
        claims.check_time(now)?;
        if !self.audiences.is_empty() && !claims.is_for_any(&self.audiences) {
            return Err(TokenFault::Audience);
        }
        Ok(())
    }

    fn refuse(&self, fault: TokenFault, key_id: Option<Box<str>>) -> TokenRefusal {
        let refetch = match (&self.keys, &fault) {
            (Keys::Fetched { name, .. }, TokenFault::UnknownKey | TokenFault::NoKeys) => Some(name.clone()),
            _ => None,
        };
        let key_id = key_id.filter(|_| fault == TokenFault::UnknownKey);
        TokenRefusal { fault, policy: self.policy.clone(), rule: self.index, refetch, key_id }
    }
}
