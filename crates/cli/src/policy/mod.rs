//! `policy`: what policies decide, tested and explained, with or without a cluster. The one evaluator that proxies
//! and admission use answers.

mod cases;
mod eval;
mod explain;

use crate::arguments::Global;
use anyhow::Result;
use clap::{Args, Subcommand};
use std::process::ExitCode;

/// Options of `policy`.
#[derive(Debug, Args)]
pub struct Policy {
    #[command(subcommand)]
    verb: PolicyVerb,
}

#[derive(Debug, Subcommand)]
enum PolicyVerb {
    /// Answers cases given as JSON Lines on standard input, one JSON line each.
    Eval,
    /// Runs the cases of files: given policies and a workload, a request is expected to pass or not.
    Test(cases::Test),
    /// Says in plain words which policies select a workload, and what they add up to.
    Explain(explain::Explain),
}

/// Runs a verb of `policy`.
///
/// # Errors
/// When input can't be read, output can't be written, or a cluster that is needed can't be reached.
pub async fn run(global: &Global, options: Policy) -> Result<ExitCode> {
    match options.verb {
        PolicyVerb::Eval => eval::run(),
        PolicyVerb::Test(options) => cases::run(&options),
        PolicyVerb::Explain(options) => explain::run(global, options).await,
    }
}
