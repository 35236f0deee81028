//! What must be there before a cluster can start: the machine's programs (found, or unpacked from Debian's
//! packages into the cache) and the programs that are built from Go modules (cached by what they are made
//! from). Nothing is installed and no daemon is started.

mod cache;
mod debian;
mod go;
mod programs_image;

pub use cache::{cache_directory, repository};
pub use programs_image::{PROGRAMS_IMAGE, PROGRAMS_USER, programs_image};

use crate::terminal;
use anyhow::Result;
use std::ffi::OsString;
use std::path::PathBuf;

/// The programs of a cluster, each as a path.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Every Kubernetes program in one binary, named by its first argument.
    pub cluster: PathBuf,
    /// The same binary under the name `kubectl`.
    pub kubectl: PathBuf,
    /// Helm.
    pub helm: PathBuf,
    /// CoreDNS.
    pub dns: PathBuf,
    /// The folder with the CNI plugins.
    pub cni: PathBuf,
    /// The search path under which containerd, runc, nft, ip and util-linux's tools are found.
    pub path: OsString,
}

/// Finds, unpacks and builds everything; says what it does. Waits while another run prepares.
///
/// # Errors
/// When a package can't be fetched or a build fails: with the end of its log.
pub fn prepare() -> Result<Prepared> {
    let cache = cache_directory()?;
    let _lock = cache::lock(&cache)?;
    let tools = debian::tools(&cache)?;
    terminal::say(format_args!("prepare: {}", tools.summary));
    let modules = repository()?.join("e2e/cluster");
    let built = go::programs(&cache, &modules)?;
    Ok(Prepared {
        cluster: built.cluster,
        kubectl: built.kubectl,
        helm: built.helm,
        dns: built.dns,
        cni: tools.cni,
        path: tools.path,
    })
}
