//! Istio's security policies as plain types, and the one evaluator of them.
//!
//! In: policy objects as parsed JSON or YAML ([`PolicyObject`]), the workload that they may select, and what is
//! known of a connection or request. Out: the mode of each port ([`PortModes`]), decisions with their reasons
//! ([`WorkloadPolicies`]), and what is wrong with an object ([`validate()`]). Pure: no I/O, no clock, and the
//! order of the objects never matters.
//!
//! A policy that holds a field or value which this version does not implement is *invalid*, never ignored: it
//! closes what it selects ([`cinch_reason::Reason::PolicyInvalid`]) until somebody mends it.

mod authorization;
mod compile;
mod decide;
mod error;
pub mod jwt;
mod lookup;
mod mesh;
mod mode;
mod object;
pub mod path;
mod peer_authentication;
mod request_authentication;
mod text;
mod validate;

pub use authorization::{
    Action, AuthorizationPolicySpec, Condition, Operation, Provider, Rule, RuleFrom, RuleTo, Source,
    TargetReference, Values,
};
pub use compile::WorkloadPolicies;
pub use decide::{
    Answer, Connection, Decision, DryRun, Header, Miss, Outcome, Partial, Providers, Report, Request, Token,
    no_providers,
};
pub use error::PolicyError;
pub use mesh::{MeshConfig, Workload};
pub use mode::{Mode, PortModes};
pub use object::{
    AuthorizationPolicy, Enforcement, ObjectName, PeerAuthentication, PolicyObject, RequestAuthentication,
    Scope, SelectingPolicy,
};
pub use path::{BadPath, PathNormalization, Readings, normalize, normalize_within};
pub use peer_authentication::{LabelSelector, MutualTls, MutualTlsMode, PeerAuthenticationSpec};
pub use request_authentication::{ClaimToHeader, JwtHeader, JwtRule, RequestAuthenticationSpec};
pub use validate::{PodFacts, PodPort, Surroundings, Validation, validate, validate_among};
