//! The sidecar proxy: the modules that `main.rs` wires. In goes an app's traffic, out go tunnels to meshed peers,
//! plaintext where that is allowed, evidence of it, and refusals with their reason.

pub mod accept;
pub mod agent;
pub mod config;
pub mod context;
pub mod control;
pub mod copy;
pub mod credentials;
pub mod discovery;
pub mod evidence;
pub mod gate;
pub mod health;
pub mod http;
pub mod http_filter;
pub mod inbound;
pub mod inbound_policy;
pub mod init;
pub mod limits;
pub mod listeners;
pub mod live;
pub mod metrics;
pub mod outbound;
pub mod path_metrics;
pub mod pool;
pub mod probes;
pub mod process;
pub mod refusal;
pub mod run;
pub mod selftest;
pub mod settings;
pub mod sniff;
pub mod socket;
pub mod standalone;
pub mod tunnel_io;
pub mod workload_policy;
