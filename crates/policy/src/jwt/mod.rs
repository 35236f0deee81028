//! Tokens: the rules of the RequestAuthentications that select a workload go in ([`TokenRules`]), with key sets
//! ([`Jwks`]) and a request ([`HttpView`]); the verified token, what becomes of headers and query, or a refusal
//! comes out ([`authenticate`]).
//!
//! Without a token a request passes and has no request principal; requiring one is AuthorizationPolicy's job.
//! Algorithms come from keys, never from tokens: RS256-512, PS256-512, ES256, ES384 and EdDSA, each only with a key
//! of its kind; `none` and HMAC never. Clocks may differ by [`LEEWAY`].

mod authenticate;
mod cache;
mod check;
mod fault;
mod forward;
mod jwks;
mod limits;
mod place;
mod rules;
mod token;

pub use authenticate::{Authenticated, VerifiedToken, authenticate};
pub use cache::TokenCache;
pub(crate) use check::{check_rule, rule_warnings};
pub use fault::{TokenFault, TokenRefusal};
pub use forward::Forwarding;
pub use jwks::{Jwks, JwksError, UnusableKey};
pub use limits::TokenLimits;
pub use place::{HttpView, is_preflight};
pub use rules::{KeyFetch, TokenRules};

/// Seconds by which `exp` and `nbf` may be missed, since clocks differ; Istio's figure.
pub const LEEWAY: u64 = 60;
