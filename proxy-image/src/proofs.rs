//! What the peers of live tunnels proved to be, kept as long as the tunnel, because a later trust bundle may not vouch
//! for it any more. In go the certificates of each handshake and the bundles, out comes the order to cut.
//!
//! Certificates are kept once: those of a peer for all its tunnels, those of an issuer for all peers. Of what a peer
//! shows only what vouches for it is kept: the rest may be anything, and another thing on each connection.

use crate::context::Credentials;
use cinch_identity::{TrustBundle, Usage, verified_issuers, verify_open_chain};
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, UnixTime};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;
use tokio::sync::watch;

/// The certificates that a peer showed, as far as they vouch for it.
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
        let issuers = self.issuers(&leaf, shown.collect(), usage, bundle);
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

    /// Those of the certificates `shown` that vouch for `leaf`. Where they are exactly those of another peer, that is
    /// known; only of others signatures are verified a second time.
    fn issuers(
        &self,
        leaf: &CertificateDer<'_>,
        shown: Vec<CertificateDer<'static>>,
        usage: Usage,
        bundle: &TrustBundle,
    ) -> Arc<[CertificateDer<'static>]> {
        if shown.is_empty() || self.held.lock().issuers.0.contains_key(shown.as_slice()) {
            return shown.into();
        }
        // An error only where a certificate has run out since the handshake: the next review ends the tunnel.
        verified_issuers(leaf, &shown, bundle, UnixTime::now(), usage).unwrap_or_default().into()
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
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, SanType,
    };

    type Ca = CertifiedIssuer<'static, rcgen::KeyPair>;

    fn named(name: &str, is_ca: IsCa) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = is_ca;
        params
    }

    fn root() -> (Ca, TrustBundle) {
        let params = named("root", IsCa::Ca(BasicConstraints::Unconstrained));
        let root = CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        let roots = vec![root.der().clone()];
        let bundle = TrustBundle::from_roots(TrustDomain::parse("cluster.local").unwrap(), roots).unwrap();
        (root, bundle)
    }

    fn issuer(name: &str, root: &Ca) -> Ca {
        let params = named(name, IsCa::Ca(BasicConstraints::Constrained(0)));
        CertifiedIssuer::signed_by(params, rcgen::KeyPair::generate().unwrap(), root).unwrap()
    }

    fn leaf(account: &str, issuer: &Ca) -> CertificateDer<'static> {
        let mut params = named(account, IsCa::ExplicitNoCa);
        let uri = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(&rcgen::KeyPair::generate().unwrap(), issuer).unwrap().into()
    }

    fn proofs() -> Arc<Proofs> {
        let (_nobody, credentials) = watch::channel(None);
        Proofs::new(credentials)
    }

    fn kept(proofs: &Proofs) -> (usize, usize, usize) {
        let held = proofs.held.lock();
        (held.tunnels.len(), held.chains.0.len(), held.issuers.0.len())
    }

    #[test]
    fn a_certificate_is_kept_once_for_all_tunnels_and_forgotten_with_the_last() {
        let (root, bundle) = root();
        let (proofs, old, new) = (proofs(), issuer("old", &root), issuer("new", &root));
        let (web, later, api) = (leaf("web", &old), leaf("web", &new), leaf("api", &old));
        let hold = |leaf: &CertificateDer<'static>, issuer: &Ca| {
            let chain = vec![leaf.clone(), issuer.der().clone()];
            proofs.hold(chain, Usage::Client, &bundle).unwrap()
        };
        let of_web = [hold(&web, &old), hold(&web, &old), hold(&later, &new)];
        let of_api = hold(&api, &old);
        assert_eq!(kept(&proofs), (4, 3, 2));
        let [first, second, renewed] = of_web;
        assert!(Arc::ptr_eq(&first.entry.chain, &second.entry.chain));
        assert!(Arc::ptr_eq(&first.entry.chain.issuers, &of_api.entry.chain.issuers));
        drop(first);
        assert_eq!(kept(&proofs), (3, 3, 2), "another tunnel needs it");
        drop((second, of_api));
        assert_eq!(kept(&proofs), (1, 1, 1));
        assert!(!renewed.is_lost() && renewed.entry.chain.is_proved_by(&bundle));
        drop(renewed);
        assert_eq!(kept(&proofs), (0, 0, 0));
        assert!(proofs.hold(Vec::new(), Usage::Client, &bundle).is_none());
    }

    #[test]
    fn what_else_a_peer_shows_is_not_kept_however_much_and_however_often() {
        let (root, bundle) = root();
        let (proofs, issuer) = (proofs(), issuer("issuer", &root));
        let (by_issuer, by_root) = (leaf("bad", &issuer), leaf("worse", &root));
        let junk = |number: u32| CertificateDer::from(number.to_be_bytes().repeat(3000));
        let held: Vec<Proof> = (0..200)
            .map(|number| {
                let first = if number % 2 == 0 { &by_issuer } else { &by_root };
                let chain = vec![first.clone(), junk(number), issuer.der().clone()];
                proofs.hold(chain, Usage::Client, &bundle).unwrap()
            })
            .collect();
        assert_eq!(kept(&proofs), (200, 2, 2), "two leaves, one with its issuer and one without any");
        let chains = || held.iter().map(|proof| &proof.entry.chain);
        let bytes = |chain: &Arc<Chain>| chain.issuers.iter().map(|issuer| issuer.len()).sum::<usize>();
        assert!(chains().all(|chain| bytes(chain) <= issuer.der().len() && chain.is_proved_by(&bundle)));
    }
}
