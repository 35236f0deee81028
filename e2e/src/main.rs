//! `cargo e2e …`: a real Kubernetes from nothing, and on it the demo and the tests of Cinch.

mod arguments;
mod ask;
mod bench;
mod capture;
mod closing;
mod cluster;
mod cluster_tests;
mod commands;
mod fuzz;
mod generate;
mod images;
mod install;
mod oci;
mod place;
mod policies;
mod prepare;
mod process;
mod report;
mod see;
mod signals;
mod soak;
mod story;
mod terminal;
mod tests_of_all;
mod unit_tests;
mod wait;

use anyhow::Result;
use arguments::{Arguments, Command};
use clap::Parser;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    terminal::elapsed();
    match run(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            terminal::say(format_args!("failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Whether what was asked for held.
fn run(command: Command) -> Result<bool> {
    match command {
        Command::Demo { cluster, redirect, keep } => return commands::demo(&cluster.into(), redirect, keep),
        Command::Test { only, redirect: None, .. } if only.is_empty() => return tests_of_all::run(),
        Command::Test { only, on, redirect } => {
            return tests_of_all::run_only(&only, on.as_deref(), redirect.unwrap_or_default());
        }
        Command::Up { cluster, bare } => commands::up(&cluster.into(), bare)?,
        Command::Reload { component, name } => commands::reload(&name, component.as_deref())?,
        Command::Figures { rounds, at_once, on } => commands::figures(rounds, &at_once, on.as_deref())?,
        Command::Down { name } => commands::take_down(name.as_deref())?,
        Command::Images { folder } => commands::write_images(&folder)?,
        Command::Generate { check } => generate::run(check)?,
        Command::Bench(options) => return commands::bench(&options.into()),
        Command::Soak { minutes, name } => return commands::soak(&name, minutes),
        Command::Fuzz { target, seconds } => return fuzz::run(target.as_deref(), seconds),
        Command::Init { guarded, plan } => cluster::plan::init(&plan, guarded)?,
        Command::Forward { pid, target, port_file } => cluster::forward(pid, target, &port_file)?,
        Command::Capture { seconds, words, ports } => {
            capture::run(Duration::from_secs(seconds), &words, &ports)?;
        }
        Command::Ask { operator, id, ambitious } => ask::run(operator, &id, ambitious)?,
    }
    Ok(true)
}
