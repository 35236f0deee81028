//! When a namespace goes from PERMISSIVE to STRICT, and when it goes back.
//!
//! In: [`Facts`] (the clock, the spec, the namespace's labels, its pods, what proxies reported) and the
//! [`Memory`] that the last step left. Out: an [`Outcome`] with the state, what blocks, the next memory and at
//! most one action on the namespace. Pure: no I/O and no clock of its own, so that a story of months runs in a
//! test within a millisecond.
//!
//! The memory is all that survives a change of leader besides the namespace's labels and annotations. A caller
//! persists it *before* it acts.

mod bypass;
mod clock;
mod coverage;
mod facts;
mod gates;
mod gone;
mod machine;
mod memory;
mod outcome;
mod probation;
mod report;

pub use facts::{
    Bypass, Counts, Departure, Facts, Finding, Millis, Namespace, Plaintext, Pod, PodClass, Policy,
    RedirectGone, Report, Slot, Source, SourceName, Spec, Transport, Word,
};
pub use machine::step;
pub use memory::{Memory, Notice, Phase, short};
pub use outcome::{
    Action, Blocker, Condition, ConditionKind, Event, EventKind, Evidence, Injection, Outcome, PodTally,
    State,
};
