//! What the peers of live tunnels proved to be, kept as long as the tunnel, because a later trust bundle may not vouch
//! for it any more. In go the certificates of each handshake and the bundles, out comes the order to cut.
//!
//! Certificates are kept once: those of a peer for all its tunnels, those of an issuer for all peers.

use crate::context::Credentials;
use cinch_identity::{TrustBundle, Usage, verify_open_chain};
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, UnixTime};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;
use tokio::sync::watch;

/// The certificates that a peer showed.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Chain {
    leaf: CertificateDer<'static>,
    issuers: Arc<[CertificateDer<'static>]>,
    usage: Usage,
}

impl Chain {
    fn is_proved_by(&self, bundle: &TrustBundle) -> bool {
        let Chain { leaf, issuers, usage } = self;
        verify_open_chain(leaf, issuers, bundle, UnixTime::now(), *usage).is_ok()
    }
}

/// Each value once, for as long as somebody uses it.
#[derive(Debug)]
struct Shared<T: ?Sized>(HashMap<Arc<T>, usize>);

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Shared(HashMap::new())
    }
}

impl<T: ?Sized + Hash + Eq> Shared<T> {
    fn take(&mut self, value: Arc<T>) -> Arc<T> {
        let held = self.0.get_key_value(&*value).map_or(value, |(held, _)| held.clone());
        *self.0.entry(held.clone()).or_default() += 1;
        held
    }

    fn give_back(&mut self, value: &T) {
        let Some(uses) = self.0.get_mut(value) else { return };
        *uses = uses.saturating_sub(1);
        if *uses == 0 {
            self.0.remove(value);
        }
    }
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    tunnels: HashMap<u64, Arc<Entry>>,
    chains: Shared<Chain>,
    issuers: Shared<[CertificateDer<'static>]>,
}

#[derive(Debug)]
struct Entry {
    chain: Arc<Chain>,
    lost: AtomicBool,
    waker: AtomicWaker,
}

impl Entry {
    fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
        self.waker.wake();
    }
}

/// The proofs of all live tunnels.
#[derive(Debug)]
pub struct Proofs {
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    held: Mutex<Held>,
}

impl Proofs {
    /// None yet. Whoever makes them lets them [`Proofs::follow`].
    #[must_use]
    pub fn new(credentials: watch::Receiver<Option<Arc<Credentials>>>) -> Arc<Proofs> {
        Arc::new(Proofs { credentials, held: Mutex::default() })
    }

    /// Keeps what a peer showed, leaf first, in a handshake that `bundle` vouched for, until the returned handle is
    /// dropped. `None`: it showed nothing.
    #[must_use]
    pub fn hold(
        self: &Arc<Self>,
        chain: Vec<CertificateDer<'static>>,
        usage: Usage,
        bundle: &TrustBundle,
    ) -> Option<Proof> {
        let mut shown = chain.into_iter();
        let leaf = shown.next()?;
        let issuers: Arc<[_]> = shown.collect();
        let (id, entry) = {
            let mut held = self.held.lock();
            let issuers = held.issuers.take(issuers);
            let chain = held.chains.take(Arc::new(Chain { leaf, issuers, usage }));
            let entry = Arc::new(Entry { chain, lost: AtomicBool::new(false), waker: AtomicWaker::new() });
            let id = held.next;
            held.next += 1;
            held.tunnels.insert(id, entry.clone());
            (id, entry)
        };
        // Asked only now: what comes later is seen by the review.
        let current = self.credentials.borrow().as_ref().map(|current| current.bundle.clone());
        if current.is_some_and(|current| *current != *bundle && !entry.chain.is_proved_by(&current)) {
            entry.lose();
        }
        Some(Proof { proofs: self.clone(), id, entry })
    }

    /// Reviews all tunnels whenever the bundle loses a root, until nobody can change it any more.
    pub async fn follow(self: Arc<Self>) {
        let mut credentials = self.credentials.clone();
        let mut before: Option<Arc<TrustBundle>> = None;
        loop {
            let bundle = credentials.borrow_and_update().as_ref().map(|current| current.bundle.clone());
            if let Some(bundle) = bundle {
                let before = before.replace(bundle.clone());
                let is_kept = |root: &CertificateDer<'static>| bundle.roots().contains(root);
                if before.is_some_and(|before| !before.roots().iter().all(is_kept)) {
                    self.review(&bundle).await;
                }
            }
            if credentials.changed().await.is_err() {
                return;
            }
        }
    }

    /// Verifies every peer again. It gives way after each: signatures take their time, and the thread has other work.
    async fn review(&self, bundle: &TrustBundle) {
        let tunnels: Vec<Arc<Entry>> = self.held.lock().tunnels.values().cloned().collect();
        let (mut verified, mut lost) = (HashMap::new(), 0_usize);
        for entry in &tunnels {
            let chain = Arc::as_ptr(&entry.chain).addr();
            let is_proved = match verified.get(&chain) {
                Some(is_proved) => *is_proved,
                None => {
                    let is_proved = entry.chain.is_proved_by(bundle);
                    verified.insert(chain, is_proved);
                    tokio::task::yield_now().await;
                    is_proved
                }
            };
            if !is_proved {
                entry.lose();
                lost += 1;
            }
        }
        let reviewed = tunnels.len();
        tracing::info!(
            reviewed,
            lost,
            "the trust bundle lost a root, so the peers of tunnels were verified again"
        );
    }
}

/// What the peer of one tunnel proved.
#[derive(Debug)]
pub struct Proof {
    proofs: Arc<Proofs>,
    id: u64,
    entry: Arc<Entry>,
}

impl Proof {
    /// The trust bundle does not vouch for the peer any more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.entry.lost.load(Ordering::Relaxed)
    }

    /// As [`Proof::is_lost`]; while it is not, `cx` is woken when it is.
    pub fn poll_lost(&self, cx: &mut Context<'_>) -> bool {
        if self.is_lost() {
            return true;
        }
        self.entry.waker.register(cx.waker());
        self.is_lost()
    }
}

impl Drop for Proof {
    fn drop(&mut self) {
        let mut held = self.proofs.held.lock();
        held.tunnels.remove(&self.id);
        held.chains.give_back(&self.entry.chain);
        held.issuers.give_back(&self.entry.chain.issuers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cinch_identity::TrustDomain;

    fn certificate(name: &str) -> CertificateDer<'static> {
        CertificateDer::from(name.as_bytes().to_vec())
    }

    fn bundle() -> TrustBundle {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone();
        TrustBundle::from_roots(TrustDomain::parse("cluster.local").unwrap(), vec![root]).unwrap()
    }

    #[test]
    fn a_certificate_is_kept_once_for_all_tunnels_and_forgotten_with_the_last() {
        let (_nobody, credentials) = watch::channel(None);
        let (proofs, bundle) = (Proofs::new(credentials), bundle());
        let hold = |leaf: &str, issuer: &str| {
            let chain = vec![certificate(leaf), certificate(issuer)];
            proofs.hold(chain, Usage::Client, &bundle).unwrap()
        };
        let kept = || {
            let held = proofs.held.lock();
            (held.tunnels.len(), held.chains.0.len(), held.issuers.0.len())
        };
        let of_web = [hold("web", "old"), hold("web", "old"), hold("web", "new")];
        let of_api = hold("api", "old");
        assert_eq!(kept(), (4, 3, 2));
        let [first, second, renewed] = of_web;
        assert!(Arc::ptr_eq(&first.entry.chain, &second.entry.chain));
        assert!(Arc::ptr_eq(&first.entry.chain.issuers, &of_api.entry.chain.issuers));
        drop(first);
        assert_eq!(kept(), (3, 3, 2), "another tunnel needs it");
        drop((second, of_api));
        assert_eq!(kept(), (1, 1, 1));
        assert!(!renewed.is_lost());
        drop(renewed);
        assert_eq!(kept(), (0, 0, 0));
        assert!(proofs.hold(Vec::new(), Usage::Client, &bundle).is_none());
    }
}
