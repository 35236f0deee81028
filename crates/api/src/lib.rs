//! The custom resource types of Cinch (`cinch.dev/v1alpha1`), Istio's security policies as an API server serves
//! them, and the names that every part shares.
//!
//! In: what users write in `spec`. Out: typed objects, the CustomResourceDefinitions made from the types, and
//! what the schema can't say. No I/O.

mod crds;
mod duration;
mod istio;
pub mod names;
mod posture;
mod status;

pub use crds::{crds, istio_crds, to_yaml};
pub use duration::{DurationError, format_duration, parse_duration};
pub use istio::ISTIO_GROUP;
pub use istio::status as policy_status;
pub use posture::{Posture, PostureSpec, PromotionPolicy, ServiceAccounts};
pub use status::{
    Blocker, BrokenPolicy, Debt, EvidenceStatus, Offender, PlaintextStatus, PodCounts, PostureMode,
    PostureState, PostureStatus,
};
