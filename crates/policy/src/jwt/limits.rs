//! The bounds of tokens.

/// What tokens may cost one proxy, each with its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenLimits {
    /// Verified tokens that are remembered; enough for one workload's callers.
    pub known: usize,
    /// And bytes of them, as they are estimated.
    pub known_bytes: usize,
    /// Refused tokens that are remembered.
    pub refused: usize,
    /// Tokens that one rule may find in one request.
    pub in_request: usize,
    /// Signatures that one token may cost: keys of its `kid`, and keys without one. For a token without `kid` a quarter of
    /// them may be tried with keys that have one: it fits every key, but is meant for those without; who names keys names
    /// them in tokens.
    pub tries: u32,
}

impl Default for TokenLimits {
    fn default() -> Self {
        TokenLimits { known: 1024, known_bytes: 2 * 1024 * 1024, refused: 256, in_request: 8, tries: 16 }
    }
}
