//! The trust ConfigMap as the kubelet mounts it: the bundle that vouches for the operator, and where it is.
//!
//! The kubelet replaces the files through symbolic links, which file notifications miss; so they are read once
//! a second and compared.

use cinch_identity::{TrustBundle, TrustDomain};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const POLL: Duration = Duration::from_secs(1);
/// A bundle of 32 roots is far below.
const MAX_FILE: u64 = 256 * 1024;

/// What the control stream begins with.
#[derive(Debug, Clone, PartialEq)]
pub struct Trust {
    /// Roots that may vouch for the operator.
    pub bundle: TrustBundle,
    /// Where the operator is.
    pub operator: SocketAddr,
}

/// Reads the directory.
///
/// # Errors
/// A sentence that names the file.
pub fn read(directory: &Path, trust_domain: &TrustDomain) -> Result<Trust, String> {
    let file = |name: &str| {
        let path = directory.join(name);
        let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let size = std::fs::metadata(&path).map_err(|error| told(&error))?.len();
        if size > MAX_FILE {
            return Err(told(&format!("{size} bytes are over the limit of {MAX_FILE}")));
        }
        std::fs::read_to_string(&path).map_err(|error| told(&error))
    };
    let told =
        |name: &str, error: &dyn std::fmt::Display| format!("{}: {error}", directory.join(name).display());
    let bundle = TrustBundle::from_pem(trust_domain.clone(), &file("bundle.pem")?)
        .map_err(|error| told("bundle.pem", &error))?;
    let operator = file("operator")?;
    let operator = operator
        .trim()
        .parse()
        .map_err(|_| told("operator", &format!("{:?} is no address with a port", operator.trim())))?;
    Ok(Trust { bundle, operator })
}

/// Watches the directory for as long as somebody receives; `problem` is told why there is nothing to send.
pub async fn watch(
    directory: PathBuf,
    trust_domain: TrustDomain,
    sender: watch::Sender<Option<Arc<Trust>>>,
    problem: impl Fn(String),
) {
    let mut told = String::new();
    while !sender.is_closed() {
        match read(&directory, &trust_domain) {
            Ok(trust) => {
                told.clear();
                sender.send_if_modified(|held| {
                    let new = held.as_deref() != Some(&trust);
                    if new {
                        tracing::info!(operator = %trust.operator, roots = trust.bundle.roots().len(), "trust");
                        *held = Some(Arc::new(trust));
                    }
                    new
                });
            }
            Err(error) if error != told => {
                tracing::warn!(%error, "the trust files can not be used; what was read before stays");
                if sender.borrow().is_none() {
                    problem(error.clone());
                }
                told = error;
            }
            Err(_) => {}
        }
        tokio::time::sleep(POLL).await;
    }
}
