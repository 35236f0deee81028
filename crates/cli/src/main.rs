//! `kubectl cinch`: checks the installation and its nodes, enrols namespaces, shows where they stand and, for those
//! who may, relaxes them; and, without a cluster, says what the webhook and the policies would do.

mod arguments;
mod check;
mod cluster;
mod documents;
mod enroll;
mod inject;
mod leftover;
mod policy;
mod preflight;
mod refusal;
mod relax;
mod restart;
mod status;
mod survey;
mod unenroll;
mod version;

use arguments::{Arguments, Verb};
use clap::Parser;
use cluster::Cluster;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Fails only when a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", refusal::words(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { global, verb } = arguments;
    match verb {
        Verb::Inject(options) => return inject::run(&global.cinch_namespace, &options),
        Verb::Policy(options) => return policy::run(&global, options).await,
        _ => {}
    }
    let cluster = Cluster::connect(&global).await?;
    match verb {
        Verb::Enroll(options) => enroll::run(&cluster, options).await,
        Verb::Unenroll(options) => unenroll::run(&cluster, options).await,
        Verb::Check => check::run(&cluster).await,
        Verb::Status(options) => status::run(&cluster, options).await,
        Verb::Relax(options) => relax::run(&cluster, options).await,
        Verb::Version => version::run(&cluster).await,
        Verb::Inject(_) | Verb::Policy(_) => Ok(()),
    }?;
    Ok(ExitCode::SUCCESS)
}
