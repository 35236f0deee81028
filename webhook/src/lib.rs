//! The admission webhook of Cinch: mutating reviews of pods and validating reviews of policies come in over TLS,
//! patches and refusals go out. What to do with a pod is decided by `cinch-injection`, and what a policy may say by
//! `cinch-policy`; here are the facts it needs, the server, and the limits. Nothing is ever written to the API, so every replica is as good as another.

pub mod budget;
pub mod certificate;
pub mod facts;
pub mod health;
pub mod intake;
pub mod lane;
pub mod metrics;
pub mod mutate;
pub mod review;
pub mod run;
pub mod server;
pub mod settings;
pub mod state;
pub mod validate;
