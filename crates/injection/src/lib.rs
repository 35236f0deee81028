//! Sidecar injection as a pure function: a pod as the API server sends it and what is known about its
//! namespace go in; JSON Patch operations, a reason to leave the pod alone, or a refusal come out.
//!
//! The pod stays raw JSON from end to end: a typed round trip would drop fields that are newer than this
//! program, and a computed difference would rewrite what belongs to the user.

mod account;
mod compare;
mod eligible;
mod facts;
mod inject;
mod operation;
mod owner;
mod pod;
mod privileges;
mod probe;
mod quantity;
mod sidecar;
pub mod template;

pub use account::cloud_identity;
pub use facts::{DefaultAccount, Facts, Redirect, Resources, Sidecar};
pub use inject::{Outcome, inject};
pub use operation::Op;
pub use owner::{
    AccountChoice, AccountState, JobOrigin, MANAGED_BY, MANAGED_BY_LABEL, OWNER_ANNOTATION, Owner, OwnerKind,
    choose_account, fallback_account_name, service_account_name,
};
pub use privileges::privileges;
pub use probe::{HttpProbe, Probe, ProbeKey, ProbeKeyTooShort, TcpProbe};
pub use sidecar::{
    AGENT_DIRECTORY, AGENT_DRIVER, AGENT_SOCKET, AGENT_VOLUME, INIT_CONTAINER, INJECTED_ANNOTATION,
    OPT_OUT_LABEL, PROXY_CONTAINER, PROXY_UID, REDIRECT_BY_AGENT, REDIRECT_VARIABLE, SETTINGS_VARIABLE,
    TOKEN_VOLUME, TRUST_VOLUME,
};
