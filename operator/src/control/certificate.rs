//! The operator's own certificate: issued to itself in memory, and again at half of its life or whenever
//! issuer or roots change.

use crate::ca::CertificateAuthority;
use crate::ca::sign::unix_now;
use anyhow::Context;
use cinch_identity::{ClientCertificate, KeyPair, SpiffeId, Svid, VerifiedCsr, server_config};
use rustls::ServerConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// A failed issue is tried again so much later.
const RETRY: Duration = Duration::from_secs(5);

/// Issues to ourselves; returns the configuration of the control port and when to do it again.
///
/// # Errors
/// When the issuer can't sign.
pub fn issue(
    authority: &CertificateAuthority,
    id: &SpiffeId,
) -> anyhow::Result<(Arc<ServerConfig>, Duration)> {
    let key = KeyPair::generate()?;
    let csr = VerifiedCsr::verify(&key.csr()?)?;
    let issued = authority.issuer().issue(&csr, id).context("the operator's own certificate")?;
    let left = issued.validity.not_after.saturating_sub(unix_now());
    let svid = Svid::new(issued.chain, key)?;
    let alpn = [cinch_control::ALPN];
    let config = server_config(&svid, &authority.bundle(), ClientCertificate::Optional, &alpn)?;
    Ok((config, Duration::from_secs(left / 2)))
}

/// Keeps the configuration fresh until `shutdown`.
pub async fn keep(
    authority: CertificateAuthority,
    id: SpiffeId,
    config: watch::Sender<Arc<ServerConfig>>,
    mut next: Duration,
    shutdown: CancellationToken,
) {
    let (mut issuer, mut bundle) = (authority.watch_issuer(), authority.watch_bundle());
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(next) => {}
            Ok(()) = issuer.changed() => {}
            Ok(()) = bundle.changed() => {}
        }
        match issue(&authority, &id) {
            Ok((fresh, again)) => {
                config.send_replace(fresh);
                next = again;
                info!(%id, "renewed the operator's own certificate");
            }
            Err(error) => {
                warn!(error = format!("{error:#}"), "the operator's own certificate could not be renewed");
                next = RETRY;
            }
        }
    }
}
