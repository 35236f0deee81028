//! The tokens that a workload accepts: in go the rules of its RequestAuthentications and the key sets that came with
//! them, out comes who a request's token speaks for, or why the token does not count. Key sets that come no more are
//! kept for a bounded time.

use cinch_policy::PolicyObject;
use cinch_policy::jwt::{Authenticated, HttpView, Jwks, TokenCache, TokenRefusal, TokenRules, authenticate};
use cinch_policy::{MeshConfig, Workload};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rules for tokens with the keys to verify them, as one version. A key set that is not there verifies nothing.
#[derive(Debug, Default)]
pub struct Tokens {
    rules: TokenRules,
    keys: HashMap<Arc<str>, KeySet>,
}

#[derive(Debug, Clone)]
struct KeySet {
    keys: Arc<Jwks>,
    /// `None`: it came with this version.
    missing: Option<Missing>,
}

/// How long a key set has not come that the rules name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Missing {
    /// When the first policy came without it.
    since: Instant,
    /// Then it verifies nothing any more.
    until: Instant,
}

impl KeySet {
    fn counts(&self, now: Instant) -> bool {
        self.missing.is_none_or(|missing| now < missing.until)
    }
}

/// A key set that the rules name and that came with an earlier policy only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingKeys {
    /// Its `jwksUri`, or the issuer.
    pub source: Arc<str>,
    /// When the first policy came without it.
    pub since: Instant,
    /// Until when it verifies tokens all the same.
    pub until: Instant,
}

impl Tokens {
    /// The rules of those `objects` that select `workload`; `documents` are key sets by their source (`jwksUri`, or
    /// the issuer). `None` when there are no rules.
    #[must_use]
    pub fn of_workload<'a>(
        mesh: &MeshConfig,
        objects: impl IntoIterator<Item = &'a PolicyObject>,
        workload: &Workload,
        documents: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Option<Tokens> {
        let rules = TokenRules::of_workload(mesh, objects, workload);
        if rules.is_empty() {
            return None;
        }
        let mut keys = HashMap::new();
        for (source, document) in documents {
            let parsed = std::str::from_utf8(document).ok().map(Jwks::parse);
            match parsed {
                Some(Ok(jwks)) => {
                    keys.insert(source.into(), KeySet { keys: Arc::new(jwks), missing: None });
                }
                Some(Err(error)) => tracing::error!(source, %error, "the key set can not be used"),
                None => tracing::error!(source, "the key set is no text"),
            }
        }
        Some(Tokens { rules, keys })
    }

    /// Takes key sets over from `former` that the rules still name and that did not come: who sends the rules may not
    /// have reached the issuer yet, and good tokens must not fail for it. But not for ever, because the issuer may have
    /// withdrawn them: they verify for `within` after the first policy that came without them, whatever comes then.
    pub(crate) fn keep_keys_of(&mut self, former: &Tokens, now: Instant, within: Duration) {
        for fetch in self.rules.fetches() {
            if !self.keys.contains_key(&fetch.name)
                && let Some(KeySet { keys, missing }) = former.keys.get(&fetch.name)
            {
                let missing = missing.unwrap_or(Missing { since: now, until: now + within });
                self.keys.insert(fetch.name, KeySet { keys: keys.clone(), missing: Some(missing) });
            }
        }
    }

    /// The key sets that did not come with this version, those that verify nothing any more too; ordered by source.
    #[must_use]
    pub fn missing(&self) -> Vec<MissingKeys> {
        let missing = self.keys.iter().filter_map(|(source, set)| {
            let Missing { since, until } = set.missing?;
            Some(MissingKeys { source: source.clone(), since, until })
        });
        let mut missing: Vec<_> = missing.collect();
        missing.sort_unstable_by(|one, other| one.source.cmp(&other.source));
        missing
    }

    /// Looks for tokens in a request and verifies them; it comes at `now`, and for tokens that is `date` in seconds
    /// since 1970.
    ///
    /// # Errors
    /// Why the request is refused.
    pub(super) fn authenticate(
        &self,
        cache: &TokenCache,
        view: &HttpView<'_>,
        (now, date): (Instant, u64),
    ) -> Result<Authenticated<'_>, TokenRefusal> {
        let keys = |name: &str| {
            let set = self.keys.get(name).filter(|set| set.counts(now))?;
            Some(set.keys.clone())
        };
        authenticate(&self.rules, &keys, cache, view, date)
    }

    /// Whether the header `name`, in lower case, may hold a token or is one that only we may set.
    pub(super) fn minds_header(&self, name: &str) -> bool {
        self.rules.minds_header(name)
    }
}
