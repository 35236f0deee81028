//! One request against the token rules of its workload.

use super::cache::{CacheKey, TokenCache};
use super::fault::{TokenFault, TokenRefusal};
use super::forward::Forwarding;
use super::jwks::{Cost, Jwks};
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
    /// Signatures that were looked at; 0 where the token was known.
    pub signatures: u32,
    /// Bytes of tokens that were taken apart; 0 where they were known.
    pub parsed: usize,
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
        return Ok(Authenticated { token: None, forwarding, signatures: 0, parsed: 0 });
    }
    let mut examination = Examination {
        keys,
        cache,
        now,
        read: Vec::new(),
        unknown_key: None,
        cost: Cost { tries: cache.limits().tries, ..Cost::default() },
        parsed: 0,
        is_forged: false,
    };
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
                let Examination { cost: Cost { signatures, .. }, parsed, .. } = examination;
                return Ok(Authenticated { token: Some(token), forwarding, signatures, parsed });
            }
            Verdict::Refused(fault) => {
                if refusal.as_ref().is_none_or(|(_, known)| fault.rank() > known.rank()) {
                    refusal = Some((rule, fault));
                }
            }
        }
    }
    let Examination { cost, parsed, unknown_key, is_forged, .. } = examination;
    let Cost { signatures, is_untried, .. } = cost;
    match refusal {
        None => Ok(Authenticated { token: None, forwarding, signatures, parsed }),
        Some((rule, fault)) => {
            let refusal = rule.refuse(fault, unknown_key);
            Err(TokenRefusal { signatures, parsed, is_forged, is_untried, ..refusal })
        }
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
    cost: Cost,
    /// Bytes of tokens that were taken apart.
    parsed: usize,
    /// A token cost signatures, and none of them held.
    is_forged: bool,
}

/// A token whose claims fit its rule.
enum Fitting {
    /// Its signature was verified lately.
    Known(Arc<Claims>),
    /// It is still to be verified.
    New(Arc<Parsed>),
}

impl Examination<'_> {
    fn judge(&mut self, rule: &TokenRule, view: &HttpView<'_>, stripped: &[Box<str>]) -> Verdict {
        let tokens = match rule.places.tokens(view, stripped, self.cache.limits().in_request) {
            Ok(tokens) => tokens,
            Err(fault) => return Verdict::Refused(fault),
        };
        if tokens.is_empty() {
            return Verdict::Missing;
        }
        let keys = rule.keys(self.keys);
        // What costs nothing comes first, for all of them: nobody gets a signature verified with a token for somebody
        // else, or beside one.
        let mut worst: Option<TokenFault> = None;
        let mut fitting = Vec::with_capacity(tokens.len());
        for token in &tokens {
            let key = keys.as_deref().map(|keys| CacheKey::new(keys, token));
            match self.fit(rule, key, token) {
                Ok(one) => fitting.push((key, one)),
                Err(fault) if worst.as_ref().is_some_and(|known| known.rank() >= fault.rank()) => {}
                Err(fault) => worst = Some(fault),
            }
        }
        if let Some(fault) = worst {
            return Verdict::Refused(fault);
        }
        let mut verdict = Verdict::Missing;
        for (key, one) in fitting {
            // The first fault is as good as any: none of what is found out here outranks another.
            match (self.verify(keys.as_deref(), key, one), &verdict) {
                (Ok(claims), Verdict::Missing) => verdict = Verdict::Valid(claims),
                (Ok(_), _) => {}
                (Err(fault), _) => return Verdict::Refused(fault),
            }
        }
        verdict
    }

    /// What a token says, if its rule can take it.
    fn fit(&mut self, rule: &TokenRule, key: Option<CacheKey>, token: &str) -> Result<Fitting, TokenFault> {
        if let Some(claims) = key.and_then(|key| self.cache.get(&key, self.now)) {
            rule.check(&claims, self.now)?;
            return Ok(Fitting::Known(claims));
        }
        let parsed = self.read(token)?;
        rule.check(&parsed.claims, self.now)?;
        Ok(Fitting::New(parsed))
    }

    fn verify(
        &mut self,
        keys: Option<&Jwks>,
        key: Option<CacheKey>,
        token: Fitting,
    ) -> Result<Arc<Claims>, TokenFault> {
        let parsed = match token {
            Fitting::Known(claims) => return Ok(claims),
            Fitting::New(parsed) => parsed,
        };
        let (Some(keys), Some(key)) = (keys, key) else { return Err(TokenFault::NoKeys) };
        // The same token may stand in several places.
        if let Some(claims) = self.cache.get(&key, self.now) {
            return Ok(claims);
        }
        let fault = match self.cache.refused(&key) {
            Some(known) => known,
            None => match self.try_keys(keys, key, &parsed) {
                Ok(()) => {
                    self.cache.insert(key, &parsed.claims, self.now);
                    return Ok(parsed.claims.clone());
                }
                Err(fault) => fault,
            },
        };
        if fault == TokenFault::UnknownKey {
            self.unknown_key = parsed.key_id.as_deref().map(Into::into);
        }
        Err(fault)
    }

    /// Looks at the signature. That it holds under none of the keys that were tried is remembered, also where there are
    /// more keys than may be tried: the token would cost as much again. With another key set it is another `key`.
    fn try_keys(&mut self, keys: &Jwks, key: CacheKey, parsed: &Parsed) -> Result<(), TokenFault> {
        let before = self.cost.signatures;
        let tried = keys.verify(parsed, &mut self.cost);
        if let Err(fault) = &tried
            && self.cost.signatures > before
        {
            self.is_forged = true;
            self.cache.refuse(key, fault.clone());
        }
        tried
    }

    fn read(&mut self, token: &str) -> Result<Arc<Parsed>, TokenFault> {
        if let Some((_, known)) = self.read.iter().find(|(of, _)| of == token) {
            return known.clone();
        }
        self.parsed += token.len();
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
        let key_id = key_id.filter(|_| fault == TokenFault::UnknownKey);
        // A token that names no key asks for none.
        let refetch = match (&self.keys, &fault) {
            (Keys::Fetched { name, .. }, TokenFault::NoKeys) => Some(name.clone()),
            (Keys::Fetched { name, .. }, _) if key_id.is_some() => Some(name.clone()),
            _ => None,
        };
        let (policy, rule) = (self.policy.clone(), self.index);
        TokenRefusal {
            fault,
            policy,
            rule,
            refetch,
            key_id,
            signatures: 0,
            parsed: 0,
            is_forged: false,
            is_untried: false,
        }
    }
}
