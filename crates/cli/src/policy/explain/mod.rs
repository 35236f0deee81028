//! `policy explain`: which policies select a workload, and what they add up to, in plain words. In: policies and
//! the workload, from files or from the cluster. Out: text. The evaluator says what is selected, what is invalid
//! and which mode holds; here is only the wording.

mod find;
mod live;
mod standing;
mod story;
mod words;

use crate::arguments::Global;
use crate::cluster::Cluster;
use crate::inject::{Labels, labels};
use anyhow::Result;
use cinch_policy::MeshConfig;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `policy explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// The workload: a pod, or what makes pods (`api`, `pod/api-0`, `deployment/api`). Without it, namespace, labels
    /// and service account say which.
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
    /// The namespace whose policies apply to the whole mesh; left out: as installed in the cluster, and with files
    /// the one of Cinch.
    #[arg(long)]
    pub root_namespace: Option<String>,
    /// Trust domain of the mesh; left out: as installed in the cluster, and with files cluster.local.
    #[arg(long)]
    pub trust_domain: Option<String>,
}

impl Explain {
    /// The mesh with what the options say of it.
    fn over(&self, mesh: MeshConfig) -> MeshConfig {
        MeshConfig {
            trust_domain: self.trust_domain.clone().unwrap_or(mesh.trust_domain),
            root_namespace: self.root_namespace.clone().unwrap_or(mesh.root_namespace),
            ..mesh
        }
    }
}

/// Prints what holds for the workload.
///
/// # Errors
/// When a file or the cluster can't be read, or there is no such workload.
pub async fn run(global: &Global, options: Explain) -> Result<ExitCode> {
    let found = match options.files.is_empty() {
        true => live::found(&Cluster::connect(global).await?, &options).await?,
        false => find::in_files(&options, &global.cinch_namespace)?,
    };
    print!("{}", story::told(&found));
    Ok(ExitCode::SUCCESS)
}
