//! The tokens that a workload accepts: in go the rules of its RequestAuthentications and the key sets that came with
//! them, out comes who a request's token speaks for, or why the token does not count.

use cinch_policy::PolicyObject;
use cinch_policy::jwt::{Authenticated, HttpView, Jwks, TokenCache, TokenRefusal, TokenRules, authenticate};
use cinch_policy::{MeshConfig, Workload};
use std::collections::HashMap;
use std::sync::Arc;

/// Rules for tokens with the keys to verify them, as one version. A key set that is not there verifies nothing.
#[derive(Debug, Default)]
pub struct Tokens {
    rules: TokenRules,
    keys: HashMap<Arc<str>, Arc<Jwks>>,
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
                Some(Ok(jwks)) => drop(keys.insert(source.into(), Arc::new(jwks))),
                Some(Err(error)) => tracing::error!(source, %error, "the key set can not be used"),
                None => tracing::error!(source, "the key set is no text"),
            }
        }
        Some(Tokens { rules, keys })
    }

    /// Takes key sets over from `former` that the rules still name and that did not come: who sends the rules may not
    /// have reached the issuer yet, and good tokens must not fail for it. Says which.
    pub(crate) fn keep_keys_of(&mut self, former: &Tokens) -> Vec<Arc<str>> {
        let mut kept = Vec::new();
        for fetch in self.rules.fetches() {
            if !self.keys.contains_key(&fetch.name)
                && let Some(keys) = former.keys.get(&fetch.name)
            {
                self.keys.insert(fetch.name.clone(), keys.clone());
                kept.push(fetch.name);
            }
        }
        kept
    }

    /// Looks for tokens in a request and verifies them; `now` is in seconds since 1970.
    ///
    /// # Errors
    /// Why the request is refused.
    pub(super) fn authenticate(
        &self,
        cache: &TokenCache,
        view: &HttpView<'_>,
        now: u64,
    ) -> Result<Authenticated<'_>, TokenRefusal> {
        authenticate(&self.rules, &|name| self.keys.get(name).cloned(), cache, view, now)
    }

    /// Whether the header `name`, in lower case, may hold a token or is one that only we may set.
    pub(super) fn minds_header(&self, name: &str) -> bool {
        self.rules.minds_header(name)
    }
}
