//! Why a token does not count.

use cinch_reason::Reason;
use std::sync::Arc;

/// What is wrong with a token. The caller of the workload learns only the status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// It is no token in compact form (RFC 7515), is too long, or a claim has the wrong type.
    #[error("the token can not be read: {0}")]
    Malformed(&'static str),
    /// More tokens than anybody sends in good faith.
    #[error("the request holds too many tokens")]
    TooMany,
    /// `iss` is not the rule's issuer.
    #[error("the token is of another issuer")]
    Issuer,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is still to come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// None of the rule's audiences is in `aud`.
    #[error("the token is meant for another audience")]
    Audience,
    /// There are no keys: not fetched yet, or never.
    #[error("the keys of the issuer are not there")]
    NoKeys,
    /// No key has the token's `kid`: the set may be outdated and worth fetching again.
    #[error("no key of the issuer has the key ID of the token")]
    UnknownKey,
    /// No key may be used with the token's algorithm.
    #[error("no key of the issuer is for the algorithm of the token")]
    Algorithm,
    /// The signature does not hold.
    #[error("the signature of the token does not hold")]
    Signature,
}

impl TokenFault {
    /// The stable word.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            TokenFault::Audience => Reason::AudienceMismatch,
            _ => Reason::TokenInvalid,
        }
    }

    /// Which fault is told when several rules refuse: the higher one. A wrong audience outranks all, since the
    /// issuer at least is one of ours; another issuer says the least.
    pub(super) fn rank(&self) -> u8 {
        match self {
            TokenFault::Audience => 2,
            TokenFault::Issuer => 0,
            _ => 1,
        }
    }
}

/// A request is refused because of its tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{fault} (RequestAuthentication {policy}, rule {rule})")]
pub struct TokenRefusal {
    /// What is wrong.
    pub fault: TokenFault,
    /// The RequestAuthentication (`namespace/name`) whose rule says so.
    pub policy: Arc<str>,
    /// The number of the rule in it, from 0.
    pub rule: usize,
    /// The name of the key set to fetch again, at a limited rate: set when no key has the token's `kid`, or there
    /// are no keys.
    pub refetch: Option<Arc<str>>,
    /// The token's `kid`, when it is that which no key has.
    pub key_id: Option<Box<str>>,
    /// Signatures that were looked at to find out. Each costs some ten microseconds.
    pub signatures: u32,
    /// Bytes of tokens that were taken apart to find out. Each costs some ten nanoseconds.
    pub parsed: usize,
    /// One of its tokens cost signatures of which none held, whatever fault of another rule is told. One that comes
    /// again costs none, and is not forged anew.
    pub is_forged: bool,
    /// For one of them there were more keys than a token may try.
    pub is_untried: bool,
}

impl TokenRefusal {
    /// The stable word: [`Reason::TokenInvalid`] or [`Reason::AudienceMismatch`].
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.fault.reason()
    }

    /// The status of the answer: 403 for a wrong audience, else 401.
    #[must_use]
    pub fn status(&self) -> u16 {
        if self.fault == TokenFault::Audience { 403 } else { 401 }
    }
}
