//! What becomes of headers and query on the way to the app.

use super::place::{Pair, pairs};
use std::borrow::Cow;

/// The changes to a request: which headers and parameters go, which headers come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarding<'r> {
    /// Headers that only we may set.
    pub(super) stripped: &'r [Box<str>],
    /// Headers and parameters that held a token that is not to be forwarded.
    pub(super) token_headers: Vec<&'r str>,
    pub(super) token_params: Vec<&'r str>,
    pub(super) added: Vec<(&'r str, String)>,
}

impl<'r> Forwarding<'r> {
    /// Whether a header of the client's request stays; `name` may be in any case.
    #[must_use]
    pub fn keeps(&self, name: &str) -> bool {
        let ours = self.stripped.iter().map(|name| &**name);
        !ours.chain(self.token_headers.iter().copied()).any(|gone| gone.eq_ignore_ascii_case(name))
    }

    /// The headers to add: name in lower case, and value.
    pub fn added(&self) -> impl Iterator<Item = (&'r str, &str)> {
        self.added.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// The headers to forward, and to judge conditions on headers by.
    #[must_use]
    pub fn headers<'h>(&'h self, headers: &[(&'h str, &'h [u8])]) -> Vec<(&'h str, &'h [u8])> {
        let kept = headers.iter().copied().filter(|(name, _)| self.keeps(name));
        kept.chain(self.added().map(|(name, value)| (name, value.as_bytes()))).collect()
    }

    /// The query to forward; `None` when nothing is left of it.
    #[must_use]
    pub fn query<'q>(&self, query: Option<&'q str>) -> Option<Cow<'q, str>> {
        let goes = |pair: Pair<'_>| self.token_params.iter().any(|name| pair.is(name));
        if !pairs(query).any(goes) {
            return query.map(Cow::Borrowed);
        }
        let kept: Vec<&str> = pairs(query).filter(|pair| !goes(*pair)).map(|pair| pair.raw).collect();
        (!kept.is_empty()).then(|| Cow::Owned(kept.join("&")))
    }
}
