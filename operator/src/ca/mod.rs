//! The certificate authority: a root in `cinch-root-ca`, an intermediate in `cinch-issuer-ca`, both made by
//! the leader when absent. Out come the [`Issuer`] for workloads and the trust bundle, each on a watch.
//!
//! The root's key is read only to make an intermediate; daily work needs `cinch-issuer-ca` alone, which holds
//! the roots in `ca.crt`. A user's own intermediate may stand there: it is used and never replaced unless
//! `cinch-root-ca` holds the key of one of its roots.

pub mod secret;
pub mod sign;

use crate::settings::{CertificateSettings, Settings};
use anyhow::{Context, bail};
use cinch_identity::{SpiffeId, TrustBundle, TrustDomain, VerifiedCsr};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use secret::{Secrets, Stored, Write};
use sign::{Authority, Validity, unix_now};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Secret of the root: `tls.crt` (the newest root first, older ones after it), `tls.key`.
pub const ROOT_SECRET: &str = "cinch-root-ca";
/// Secret of the intermediate: `tls.crt` (its chain without the root), `tls.key`, `ca.crt` (the roots).
pub const ISSUER_SECRET: &str = "cinch-issuer-ca";

const CHECK_EVERY: Duration = Duration::from_secs(30);
/// Two leaders may meet at the first start; the second try finds what the first wrote.
const ATTEMPTS: usize = 5;

/// A signed chain, ready to be sent.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Of the leaf.
    pub validity: Validity,
    /// For the audit line: the leaf's serial number in hex.
    pub serial: String,
}

/// What signs workloads' certificates.
#[derive(Debug)]
pub struct Issuer {
    authority: Authority,
    /// The authority's certificate and those between it and the root.
    chain: Vec<CertificateDer<'static>>,
    lifetime: Duration,
}

impl Issuer {
    /// An issuer whose leaves live for `lifetime`, with the chain above them (its own certificate first).
    ///
    /// # Errors
    /// When the chain is empty.
    pub fn new(
        authority: Authority,
        chain: Vec<CertificateDer<'static>>,
        lifetime: Duration,
    ) -> anyhow::Result<Self> {
        if chain.first() != Some(authority.certificate()) {
            bail!("the chain does not begin with the issuer");
        }
        Ok(Self { authority, chain, lifetime })
    }

    /// Issues a certificate for `id` around the request's public key.
    ///
    /// # Errors
    /// When the issuer itself has expired.
    pub fn issue(&self, csr: &VerifiedCsr, id: &SpiffeId) -> anyhow::Result<Issued> {
        self.issue_at(csr, id, unix_now())
    }

    /// As [`Issuer::issue`], at a given time (seconds since 1970).
    ///
    /// # Errors
    /// When the issuer has expired at that time.
    pub fn issue_at(&self, csr: &VerifiedCsr, id: &SpiffeId, now: u64) -> anyhow::Result<Issued> {
        let (leaf, validity) = self.authority.workload(csr, id, now, self.lifetime)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf)
            .map_err(|error| anyhow::anyhow!("the new certificate can not be read: {error}"))?;
        let serial = parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
        let chain = std::iter::once(leaf.clone()).chain(self.chain.iter().cloned()).collect();
        Ok(Issued { chain, validity, serial })
    }
}

/// Issuer and trust bundle as they are now; both change when a Secret changes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CertificateAuthority {
    issuer: watch::Receiver<Arc<Issuer>>,
    bundle: watch::Receiver<Arc<TrustBundle>>,
}

impl CertificateAuthority {
    /// One that never changes, for tests and for the moment after loading.
    #[must_use]
    pub fn fixed(issuer: Issuer, bundle: TrustBundle) -> Self {
        let (_, issuer) = watch::channel(Arc::new(issuer));
        let (_, bundle) = watch::channel(Arc::new(bundle));
        Self { issuer, bundle }
    }

    /// The issuer in use.
    #[must_use]
    pub fn issuer(&self) -> Arc<Issuer> {
        Arc::clone(&self.issuer.borrow())
    }

    /// Follows the issuer.
    #[must_use]
    pub fn watch_issuer(&self) -> watch::Receiver<Arc<Issuer>> {
        self.issuer.clone()
    }

    /// The trust bundle in force.
    #[must_use]
    pub fn bundle(&self) -> Arc<TrustBundle> {
        Arc::clone(&self.bundle.borrow())
    }

    /// Follows the trust bundle.
    #[must_use]
    pub fn watch_bundle(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.bundle.clone()
    }
}

/// Keeps the Secrets in order. Only the leader may have one.
pub struct Keeper {
    secrets: Secrets,
    trust_domain: TrustDomain,
    lifetimes: CertificateSettings,
    seen: Stored,
    issuer: watch::Sender<Arc<Issuer>>,
    bundle: watch::Sender<Arc<TrustBundle>>,
}

/// What the issuer's Secret says.
struct Loaded {
    issuer: Issuer,
    bundle: TrustBundle,
}

impl Keeper {
    /// Loads the authority, or makes it where there is none.
    ///
    /// # Errors
    /// When the API server can't be asked, or a Secret holds something unusable: that is never overwritten.
    pub async fn start(
        client: kube::Client,
        settings: &Settings,
    ) -> anyhow::Result<(Self, CertificateAuthority)> {
        let secrets = Secrets::new(client, &settings.namespace);
        let trust_domain = settings.trust_domain()?;
        let lifetimes = settings.certificates.clone();
        let (seen, loaded) = ensure(&secrets, &trust_domain, &lifetimes).await?;
        let (issuer, issuer_watch) = watch::channel(Arc::new(loaded.issuer));
        let (bundle, bundle_watch) = watch::channel(Arc::new(loaded.bundle));
        let authority = CertificateAuthority { issuer: issuer_watch, bundle: bundle_watch };
        Ok((Self { secrets, trust_domain, lifetimes, seen, issuer, bundle }, authority))
    }

    /// Follows the Secret and replaces the intermediate in time, until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(CHECK_EVERY) => {}
            }
            if let Err(error) = self.check().await {
                warn!(
                    error = format!("{error:#}"),
                    "the certificate authority could not be checked; the old one stays in use"
                );
            }
        }
    }

    async fn check(&mut self) -> anyhow::Result<()> {
        let (seen, loaded) = ensure(&self.secrets, &self.trust_domain, &self.lifetimes).await?;
        if seen == self.seen {
            return Ok(());
        }
        self.seen = seen;
        // Roots first: whoever gets a new chain must be able to find its root.
        self.bundle.send_if_modified(|bundle| {
            let changed = **bundle != loaded.bundle;
            *bundle = Arc::new(loaded.bundle);
            changed
        });
        self.issuer.send_replace(Arc::new(loaded.issuer));
        Ok(())
    }
}

/// Reads the issuer's Secret and makes what is missing or due.
async fn ensure(
    secrets: &Secrets,
    trust_domain: &TrustDomain,
    lifetimes: &CertificateSettings,
) -> anyhow::Result<(Stored, Loaded)> {
    let mut made = false;
    for _ in 0..ATTEMPTS {
        let stored = secrets.read(ISSUER_SECRET).await?;
        if stored.resource_version.is_some() {
            let loaded = load(&stored, trust_domain, lifetimes.leaf)
                .with_context(|| format!("the Secret {ISSUER_SECRET} can not be used"))?;
            // One that was just made is good enough, however short the root still lives.
            if made || !replaceable(secrets, &loaded).await? {
                return Ok((stored, loaded));
            }
        }
        let Some((root, roots)) = root(secrets, trust_domain, lifetimes).await? else { continue };
        let entries = new_intermediate(&root, &roots, trust_domain, lifetimes.issuer)?;
        if secrets.write(ISSUER_SECRET, &stored, entries).await? == Write::Done {
            made = true;
            info!(secret = ISSUER_SECRET, "made a new intermediate CA");
        }
    }
    bail!("the Secret {ISSUER_SECRET} changes all the time")
}

/// Whether the intermediate is due for a successor, and ours to replace.
async fn replaceable(secrets: &Secrets, loaded: &Loaded) -> anyhow::Result<bool> {
    let validity = loaded.issuer.authority.validity();
    if !validity.is_due(unix_now()) {
        return Ok(false);
    }
    if may_replace(secrets, loaded).await? {
        return Ok(true);
    }
    let not_after = validity.not_after;
    warn!(
        secret = ISSUER_SECRET,
        not_after, "the intermediate CA ends soon and the key of its root is not here: replace it"
    );
    Ok(false)
}

/// A user's own intermediate has roots of which we hold no key: it is his to renew.
async fn may_replace(secrets: &Secrets, loaded: &Loaded) -> anyhow::Result<bool> {
    let stored = secrets.read(ROOT_SECRET).await?;
    let (Ok(certificate), Some(_)) = (stored.text("tls.crt"), stored.bytes("tls.key")) else {
        return Ok(false);
    };
    let root = CertificateDer::from_pem_slice(certificate.as_bytes()).ok();
    Ok(root.is_some_and(|root| loaded.bundle.roots().contains(&root)))
}

/// Reads or makes the root; `None` after a conflict.
async fn root(
    secrets: &Secrets,
    trust_domain: &TrustDomain,
    lifetimes: &CertificateSettings,
) -> anyhow::Result<Option<(Authority, String)>> {
    let stored = secrets.read(ROOT_SECRET).await?;
    if stored.resource_version.is_some() {
        let (certificates, key) = (stored.text("tls.crt")?, stored.text("tls.key")?);
        let root = Authority::from_pem(certificates, key)
            .with_context(|| format!("the Secret {ROOT_SECRET} can not be used"))?;
        return Ok(Some((root, certificates.to_owned())));
    }
    let (root, key) = Authority::root(&format!("{trust_domain} root"), unix_now(), lifetimes.root)?;
    let roots = cinch_identity::to_pem(std::slice::from_ref(root.certificate()));
    let entries = BTreeMap::from([
        ("tls.crt".to_owned(), roots.clone().into_bytes()),
        ("tls.key".to_owned(), key.into_bytes()),
    ]);
    match secrets.write(ROOT_SECRET, &stored, entries).await? {
        Write::Done => {
            info!(secret = ROOT_SECRET, "made a new root CA");
            Ok(Some((root, roots)))
        }
        Write::Conflict => Ok(None),
    }
}

fn new_intermediate(
    root: &Authority,
    roots: &str,
    trust_domain: &TrustDomain,
    lifetime: Duration,
) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let (authority, key) = root.intermediate(&format!("{trust_domain} issuer"), unix_now(), lifetime)?;
    let certificate = cinch_identity::to_pem(std::slice::from_ref(authority.certificate()));
    Ok(BTreeMap::from([
        ("tls.crt".to_owned(), certificate.into_bytes()),
        ("tls.key".to_owned(), key.into_bytes()),
        ("ca.crt".to_owned(), roots.as_bytes().to_vec()),
    ]))
}

fn load(stored: &Stored, trust_domain: &TrustDomain, lifetime: Duration) -> anyhow::Result<Loaded> {
    let certificates = stored.text("tls.crt")?;
    let authority = Authority::from_pem(certificates, stored.text("tls.key")?)?;
    let chain = CertificateDer::pem_slice_iter(certificates.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("tls.crt can not be read")?;
    let bundle = TrustBundle::from_pem(trust_domain.clone(), stored.text("ca.crt")?)?;
    Ok(Loaded { issuer: Issuer::new(authority, chain, lifetime)?, bundle })
}

#[cfg(test)]
pub(crate) mod tests;
