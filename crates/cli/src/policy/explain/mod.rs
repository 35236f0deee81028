//! `policy explain`: which policies select a workload, and what they add up to, in plain words. In: policies and
//! the workload, from files or from the cluster. Out: text. The evaluator says what is selected, what is invalid
//! and which mode holds; here is only the wording.

mod find;
mod story;
mod words;

use crate::arguments::Global;
use crate::inject::{Labels, labels};
use anyhow::Result;
use cinch_policy::MeshConfig;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `policy explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// The workload: a pod of the cluster, or, with files, any workload in them (`api` or `Deployment/api`). Without
    /// it, namespace, labels and service account say which.
    pub workload: Option<String>,
    /// Namespace of the workload.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Files of policies and workloads, instead of the cluster; `-` is standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Labels of the workload, as key=value pairs with commas between.
    #[arg(short, long, value_name = "K=V,…", default_value = "", value_parser = labels)]
    pub labels: Labels,
    /// Service account of the workload.
    #[arg(long, default_value = "default")]
    pub service_account: String,
    /// The namespace whose policies apply to the whole mesh; left out: the one of Cinch.
    #[arg(long)]
    pub root_namespace: Option<String>,
    /// Trust domain of the mesh.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: String,
}

/// Prints what holds for the workload.
///
/// # Errors
/// When a file or the cluster can't be read, or there is no such workload.
pub async fn run(global: &Global, options: Explain) -> Result<ExitCode> {
    let mesh = MeshConfig {
        trust_domain: options.trust_domain.clone(),
        root_namespace: options.root_namespace.clone().unwrap_or_else(|| global.cinch_namespace.clone()),
        ..MeshConfig::default()
    };
    let found = match options.files.is_empty() {
        true => find::in_cluster(global, &options, &mesh).await?,
        false => find::in_files(&options)?,
    };
    print!("{}", story::told(&mesh, &found));
    Ok(ExitCode::SUCCESS)
}
