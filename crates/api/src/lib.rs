//! The custom resource types of Cinch (`cinch.dev/v1alpha1`), and the names that every part shares.
//!
//! In: what users write in `spec`. Out: typed objects, the CustomResourceDefinitions made from the types, and
//! what the schema can't say. No I/O.

mod crds;
mod duration;
pub mod names;
mod posture;
mod status;

pub use crds::{crds, to_yaml};
pub use duration::{DurationError, format_duration, parse_duration};
pub use posture::{Posture, PostureSpec, PromotionPolicy, ServiceAccounts};
pub use status::{
    Blocker, Debt, EvidenceStatus, Offender, PlaintextStatus, PodCounts, PostureMode, PostureState,
    PostureStatus,
};
