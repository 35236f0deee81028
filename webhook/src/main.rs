//! `cinch-webhook run --settings FILE`: flags in, the running webhook out.

use anyhow::Context;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use tracing_subscriber::EnvFilter;

/// Admission webhook of Cinch.
#[derive(Parser)]
#[command(version)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve admission reviews until SIGTERM.
    Run {
        /// The installation's settings.
        #[arg(long, default_value = "/etc/cinch/settings.yaml")]
        settings: PathBuf,
    },
    /// Print the version.
    Version,
}

fn main() -> anyhow::Result<()> {
    match Flags::parse().command {
        Command::Version => println!("cinch-webhook {}", env!("CARGO_PKG_VERSION")),
        Command::Run { settings } => {
            // The client library logs each failed request as an error; we say what fails ourselves, once.
            let quiet = "info,kube_client::client::builder=off";
            let filter = EnvFilter::try_from_env("CINCH_LOG").unwrap_or_else(|_| EnvFilter::new(quiet));
            tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_ansi(false)
                .with_writer(std::io::stderr)
                .init();
            if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
                anyhow::bail!("another TLS provider is installed already");
            }
            let settings = cinch_webhook::settings::Settings::read(&settings)?;
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .context("no runtime")?
                .block_on(cinch_webhook::run::run(settings))?;
        }
    }
    Ok(())
}
