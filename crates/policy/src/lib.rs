//! Istio's security policies as plain types, and the one evaluator of them.
//!
//! In: policy objects as parsed JSON or YAML, the workload they may select, and what is known of a connection.
//! Out: the mode of each port ([`PortModes`]) and a [`Decision`] with its reason. Pure: no I/O, no clock, and
//! the order of the objects never matters.
//!
//! A policy that holds a field or value which this version does not implement is *invalid*, never ignored: it
//! closes what it selects ([`cinch_reason::Reason::PolicyInvalid`]) until somebody mends it.

mod authorization;
mod compile;
mod error;
mod mode;
mod object;
mod peer_authentication;
mod rule;
mod text;
mod value;

pub use authorization::{
    Action, AuthorizationPolicySpec, Condition, Operation, Provider, Rule, RuleFrom, RuleTo, Source,
    TargetReference, Values,
};
pub use compile::{CompiledPolicies, Connection, Decision};
pub use error::PolicyError;
pub use mode::{Mode, PortModes};
pub use object::{
    AuthorizationPolicy, Enforcement, ObjectName, PeerAuthentication, PolicyObject, Scope, WorkloadRef,
};
pub use peer_authentication::{LabelSelector, MutualTls, MutualTlsMode, PeerAuthenticationSpec};
