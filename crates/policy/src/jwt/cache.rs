//! Tokens that were verified lately, so that a signature is looked at once. Bounded in number and bytes; what is
//! kept is a hash and the claims, never the token.

use super::LEEWAY;
use super::fault::TokenFault;
use super::jwks::Jwks;
use super::limits::TokenLimits;
use super::token::Claims;
use aws_lc_rs::digest::{Context, SHA256};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// What parsed JSON takes beside its text, roughly: measured at two to four times.
const BYTES_PER_BYTE: usize = 4;
const BYTES_PER_ENTRY: usize = 512;

/// Names one token under one key set: when keys change, nothing old is found.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CacheKey([u8; 32]);

impl CacheKey {
    pub(super) fn new(keys: &Jwks, token: &str) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(keys.fingerprint());
        context.update(token.as_bytes());
        CacheKey(<[u8; 32]>::try_from(context.finish().as_ref()).unwrap_or_default())
    }
}

/// Verified tokens until they expire.
pub struct TokenCache {
    limits: TokenLimits,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    claims: HashMap<CacheKey, Arc<Claims>>,
    /// The oldest first; holds exactly the keys of `claims`.
    order: VecDeque<CacheKey>,
    bytes: usize,
    /// When expired tokens were last thrown out.
    swept: u64,
    /// Tokens for which signatures were looked at in vain, with what was said of them.
    refused: HashMap<CacheKey, TokenFault>,
    /// The oldest first; holds exactly the keys of `refused`.
    refused_order: VecDeque<CacheKey>,
}

impl Default for TokenCache {
    fn default() -> Self {
        TokenCache::within(TokenLimits::default())
    }
}

impl fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenCache").field("entries", &self.len()).finish_non_exhaustive()
    }
}

impl TokenCache {
    /// A cache with these bounds; what is verified with it keeps to them too.
    #[must_use]
    pub fn within(limits: TokenLimits) -> Self {
        TokenCache { limits, inner: Mutex::default() }
    }

    /// The bounds.
    #[must_use]
    pub fn limits(&self) -> &TokenLimits {
        &self.limits
    }

    /// How many tokens it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.with(|inner| inner.claims.len())
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn get(&self, key: &CacheKey, now: u64) -> Option<Arc<Claims>> {
        self.with(|inner| inner.claims.get(key).filter(|claims| !is_over(claims, now)).cloned())
    }

    /// Keeps `claims`; makes room by throwing out what has expired, then the oldest.
    pub(super) fn insert(&self, key: CacheKey, claims: &Arc<Claims>, now: u64) {
        let cost = cost(claims);
        let TokenLimits { known, known_bytes, .. } = self.limits;
        if cost > known_bytes || known == 0 || is_over(claims, now) {
            return;
        }
        self.with(|inner| {
            if inner.claims.contains_key(&key) {
                return;
            }
            let fits = |inner: &Inner| inner.claims.len() < known && inner.bytes + cost <= known_bytes;
            if !fits(inner) && inner.swept != now {
                inner.sweep(now);
            }
            while !fits(inner) && inner.drop_oldest() {}
            inner.claims.insert(key, claims.clone());
            inner.order.push_back(key);
            inner.bytes += cost;
        });
    }

    /// The token's signature holds under none of these keys that were tried: it need not be looked at again for a
    /// while.
    pub(super) fn refuse(&self, key: CacheKey, fault: TokenFault) {
        self.with(|inner| {
            if inner.refused.insert(key, fault).is_some() {
                return;
            }
            inner.refused_order.push_back(key);
            if inner.refused_order.len() > self.limits.refused
                && let Some(oldest) = inner.refused_order.pop_front()
            {
                inner.refused.remove(&oldest);
            }
        });
    }

    /// Why the token was refused lately, if it was.
    pub(super) fn refused(&self, key: &CacheKey) -> Option<TokenFault> {
        self.with(|inner| inner.refused.get(key).cloned())
    }

    /// What a panicking thread left behind is whole: no step in between can fail.
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Inner {
    fn sweep(&mut self, now: u64) {
        self.swept = now;
        self.claims.retain(|_, claims| !is_over(claims, now));
        self.order.retain(|key| self.claims.contains_key(key));
        self.bytes = self.claims.values().map(cost).sum();
    }

    /// `false` when there is nothing left to drop.
    fn drop_oldest(&mut self) -> bool {
        let Some(key) = self.order.pop_front() else { return false };
        if let Some(claims) = self.claims.remove(&key) {
            self.bytes = self.bytes.saturating_sub(cost(&claims));
        }
        true
    }
}

fn cost(claims: &Arc<Claims>) -> usize {
    BYTES_PER_ENTRY + BYTES_PER_BYTE * claims.payload.len()
}

fn is_over(claims: &Claims, now: u64) -> bool {
    claims.expires.is_some_and(|expires| now > expires.saturating_add(LEEWAY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::token::Parsed;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    fn claims(expires: u64) -> Arc<Claims> {
        let payload = URL_SAFE_NO_PAD.encode(format!("{{\"exp\":{expires}}}"));
        Parsed::read(&format!("{}.{payload}.", URL_SAFE_NO_PAD.encode("{\"alg\":\"ES256\"}"))).unwrap().claims
    }

    fn cache_of(known: usize, known_bytes: usize) -> TokenCache {
        TokenCache::within(TokenLimits { known, known_bytes, ..TokenLimits::default() })
    }

    fn key(number: u8) -> CacheKey {
        CacheKey([number; 32])
    }

    #[test]
    fn it_never_holds_more_than_it_may() {
        let cache = cache_of(3, usize::MAX);
        for number in 0..10 {
            cache.insert(key(number), &claims(1000), 0);
            assert!(cache.len() <= 3);
        }
        assert!(cache.get(&key(9), 0).is_some());
        assert!(cache.get(&key(6), 0).is_none(), "the oldest went");

        let small = cache_of(100, 3 * cost(&claims(1000)));
        for number in 0..10 {
            small.insert(key(number), &claims(1000), 0);
        }
        assert_eq!(small.len(), 3);
        let none = cache_of(100, 10);
        none.insert(key(0), &claims(1000), 0);
        assert!(none.is_empty(), "one that alone is too large is not kept");
    }

    #[test]
    fn the_expired_are_not_found_and_make_room_first() {
        let cache = cache_of(2, usize::MAX);
        cache.insert(key(0), &claims(10_000), 0);
        cache.insert(key(1), &claims(100), 0);
        assert!(cache.get(&key(1), 100 + LEEWAY).is_some());
        assert!(cache.get(&key(1), 101 + LEEWAY).is_none());
        cache.insert(key(2), &claims(10_000), 200);
        assert!(cache.get(&key(0), 200).is_some(), "the older one has not expired");
        assert!(cache.get(&key(2), 200).is_some());
        assert_eq!(cache.len(), 2);
        cache.insert(key(3), &claims(5), 200);
        assert!(cache.get(&key(3), 200).is_none(), "what has expired is not kept at all");
    }

    #[test]
    fn of_refused_tokens_the_last_are_known() {
        let cache = TokenCache::default();
        let key = |number: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            CacheKey(bytes)
        };
        let most = TokenLimits::default().refused;
        for number in 0..=most {
            cache.refuse(key(number), TokenFault::UnknownKey);
            cache.refuse(key(number), TokenFault::Signature);
        }
        assert_eq!(cache.refused(&key(0)), None, "the oldest went");
        assert!((1..=most).all(|number| cache.refused(&key(number)) == Some(TokenFault::Signature)));
        assert!(cache.is_empty(), "none of them counts");
    }

    #[test]
    fn it_shows_nothing_of_what_it_holds() {
        let cache = TokenCache::default();
        cache.insert(key(0), &claims(1000), 0);
        assert_eq!(format!("{cache:?}"), "TokenCache { entries: 1, .. }");
    }
}
