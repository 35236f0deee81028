//! The binary of the control plane: flags in, exit code out.

use anyhow::Context;
use cinch_operator::{run, settings::Settings};
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use tracing::error;
use tracing_subscriber::EnvFilter;

/// The control plane of Cinch.
#[derive(Debug, Parser)]
#[command(name = "cinch-operator", version)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs until SIGTERM; the holder of the lease leads, others stand by.
    Run {
        /// The settings file.
        #[arg(long, default_value = "/etc/cinch/settings.yaml")]
        settings: PathBuf,
    },
}

fn main() -> ExitCode {
    let Command::Run { settings } = Flags::parse().command;
    let filter = EnvFilter::try_from_env("CINCH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    match start(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "the operator ends");
            ExitCode::FAILURE
        }
    }
}

fn start(settings: &std::path::Path) -> anyhow::Result<()> {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("a cryptography provider was installed before");
    }
    let settings = Settings::load(settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime can not be built")?;
    let result = runtime.block_on(run::run(settings));
    // Whatever still runs is not waited for: after a lost lease another leads already.
    runtime.shutdown_background();
    result
}
