//! Keys that tokens are verified with: the sources that RequestAuthentications name go in, key sets come out into
//! the index, which sends them to proxies with the policies. Every replica fetches, so that a new leader has them.
//!
//! `obtain` fetches one set (`fetch`, `url`, `address`, `trust` are its parts), `schedule` and `held` decide when
//! and what stays in force; here is the loop. A set that was good stays until a better one comes: an issuer that
//! does not answer refuses nobody.

mod address;
mod fault;
mod fetch;
mod held;
mod obtain;
mod schedule;
mod shares;
#[cfg(test)]
mod tests;
mod trust;
mod url;

pub use fault::Fault;
pub use held::KeyState;
pub use url::Plain;

use crate::index::{Asker, Index, JwksSource, UnknownKey};
use crate::metrics::Metrics;
use crate::settings::JwksSettings;
use fetch::Fetcher;
use held::{Fetch, Held, Outcome, Wanted};
use ipnet::IpNet;
use obtain::{KeySet, Origin, obtain};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use schedule::Timing;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use trust::Trust;

/// Fetches at a time.
const MOST_FETCHES: usize = 8;
/// Changes of one moment are looked at together.
const GATHER: Duration = Duration::from_millis(100);
/// A rule may ask for a longer fetch than the default, but not for any.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);
/// A new leader waits so long for keys before it speaks to proxies, which keep theirs meanwhile.
const SETTLE: Duration = Duration::from_secs(8);

type Label = [(&'static str, &'static str); 1];

/// A cheap handle to the key sets of this process.
#[derive(Clone)]
pub struct KeySets {
    shared: Arc<Shared>,
}

struct Shared {
    held: Mutex<Held>,
    timing: Timing,
    /// A fetch ended.
    changes: watch::Sender<u64>,
    fetches: Family<Label, Counter>,
    sources: Gauge,
    failing: Gauge,
}

impl KeySets {
    /// None yet.
    #[must_use]
    pub fn new(settings: &JwksSettings, metrics: &Metrics) -> Self {
        let shared = Shared {
            held: Mutex::default(),
            timing: Timing { refresh: settings.refresh_interval, retry: settings.retry_interval },
            changes: watch::Sender::new(0),
            fetches: Family::default(),
            sources: Gauge::default(),
            failing: Gauge::default(),
        };
        metrics.register(|registry| {
            registry.register("jwks_fetches", "Fetches of key sets, by result", shared.fetches.clone());
            registry.register(
                "jwks_sources",
                "Sources of key sets that policies name",
                shared.sources.clone(),
            );
            registry.register("jwks_failing", "Sources whose last fetch failed", shared.failing.clone());
        });
        KeySets { shared: Arc::new(shared) }
    }

    /// How it stands with a source (`jwksUri`, or the issuer where there is none); `None` for one that no policy
    /// names, or not known yet.
    #[must_use]
    pub fn state(&self, source: &str) -> Option<KeyState> {
        self.shared.held.lock().state(source)
    }

    /// A number that grows when a fetch ended.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Resolves when every source has been tried once, or after a while.
    pub async fn settled(&self, index: &Index) {
        let mut changes = self.changes();
        let tried = async {
            loop {
                let known = index.jwks_sources().keys().all(|source| self.state(source.name()).is_some());
                if known && self.shared.held.lock().all_tried() {
                    return;
                }
                let _ = tokio::time::timeout(GATHER, changes.changed()).await;
            }
        };
        if tokio::time::timeout(SETTLE, tried).await.is_err() {
            warn!("not all keys were fetched in time; tokens of their issuers are refused until they are");
        }
    }

    /// Fetches until `shutdown`.
    pub async fn run(self, index: Index, settings: Arc<JwksSettings>, shutdown: CancellationToken) {
        let fetcher = Fetcher {
            trust: Trust::new(settings.ca_file.clone()),
            allowed: settings.allowed_cidrs.clone(),
            plain: if settings.allow_http { Plain::Allowed } else { Plain::Refused },
            resolve: fetch::system_resolver(),
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.run_with(fetcher, index, settings) => {}
        }
    }

    async fn run_with(self, fetcher: Fetcher, index: Index, settings: Arc<JwksSettings>) {
        Room { sets: self, index, settings, fetcher: Arc::new(fetcher) }.rounds().await;
    }
}

/// A fetch that ended.
type Ended = (Fetch, Result<KeySet, Fault>);

struct Room {
    sets: KeySets,
    index: Index,
    settings: Arc<JwksSettings>,
    fetcher: Arc<Fetcher>,
}

impl Room {
    async fn rounds(self) {
        let mut changes = self.index.changes();
        let mut unknown = self.index.unknown_keys();
        // Before, it is not known which addresses are the cluster's own.
        while !self.index.synced() {
            tokio::time::sleep(GATHER).await;
        }
        let mut running: JoinSet<Ended> = JoinSet::new();
        loop {
            self.want();
            self.begin(&mut running);
            let next = self.sets.shared.held.lock().next().filter(|_| running.len() < MOST_FETCHES);
            let due = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    tokio::time::sleep(GATHER).await;
                }
                Some(ended) = running.join_next(), if !running.is_empty() => if let Ok(ended) = ended {
                    self.end(ended);
                },
                asked = unknown.recv() => match asked {
                    // A key that is not in the set: it is fetched again soon, however many such tokens come.
                    Ok(key) => self.asked(&key),
                    // Whoever was passed over asks again with its next token.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                () = due => {}
            }
        }
    }

    /// Follows which sources policies name.
    fn want(&self) {
        let wanted = wanted(&self.index.jwks_sources(), self.settings.timeout);
        let gone = self.sets.shared.held.lock().want(wanted, Instant::now());
        for name in gone {
            info!(source = &*name, "this source of keys is not fetched any more");
            self.index.set_jwks(&name, None);
        }
        self.count();
    }

    fn asked(&self, key: &UnknownKey) {
        let shared = &self.sets.shared;
        if shared.held.lock().asked(&key.source, &key.kid, Instant::now(), &shared.timing) {
            info!(source = key.source, "a token names a key that is not held; the keys are fetched again");
        }
    }

    fn begin(&self, running: &mut JoinSet<Ended>) {
        let room = MOST_FETCHES.saturating_sub(running.len());
        let timing = &self.sets.shared.timing;
        let due = self.sets.shared.held.lock().begin(Instant::now(), room, timing);
        if due.is_empty() {
            return;
        }
        let cluster: Arc<[IpNet]> = cluster_ranges(&self.index).into();
        for fetch in due {
            let (fetcher, cluster) = (Arc::clone(&self.fetcher), Arc::clone(&cluster));
            running.spawn(async move {
                let result = obtain(&fetcher, &fetch.wanted.origin, &cluster, fetch.wanted.timeout).await;
                (fetch, result)
            });
        }
    }

    fn end(&self, (fetch, result): Ended) {
        let name = &*fetch.name;
        let shared = &self.sets.shared;
        let word = if result.is_ok() { "ok" } else { "failed" };
        shared.fetches.get_or_create(&[("result", word)]).inc();
        match &result {
            Ok(keys) => info!(source = name, keys = keys.ids.len(), "keys were fetched"),
            Err(fault) => {
                warn!(source = name, reason = %fault.reason(), %fault, "keys could not be fetched")
            }
        }
        let chance = f64::from(rand::random::<u16>()) / f64::from(u16::MAX);
        let outcome = shared.held.lock().end(&fetch, result, &shared.timing, (Instant::now(), chance));
        if let Outcome::Changed(document) = outcome {
            self.index.set_jwks(name, Some(document));
        }
        self.count();
        shared.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    fn count(&self) {
        let (sources, failing) = self.sets.shared.held.lock().count();
        self.sets.shared.sources.set(i64::try_from(sources).unwrap_or(i64::MAX));
        self.sets.shared.failing.set(i64::try_from(failing).unwrap_or(i64::MAX));
    }
}

/// One entry for each name, with all who ask for it. Policies of several namespaces may share one, and none may do another harm: the most
/// patient one sets the time, and where one takes an issuer for the URI of its keys, the issuer it is.
fn wanted(sources: &BTreeMap<JwksSource, BTreeSet<Asker>>, default: Duration) -> BTreeMap<Arc<str>, Wanted> {
    let mut all: BTreeMap<Arc<str>, Wanted> = BTreeMap::new();
    for (source, askers) in sources {
        let origin = match &source.uri {
            Some(uri) => Origin::Uri(uri.clone()),
            None => Origin::Issuer(source.issuer.clone()),
        };
        let timeout = source.timeout.unwrap_or(default).clamp(SHORTEST_TIMEOUT, LONGEST_TIMEOUT);
        let new = || Wanted { origin: origin.clone(), timeout, askers: BTreeSet::new() };
        let entry = all.entry(source.name().into()).or_insert_with(new);
        entry.askers.extend(askers.iter().cloned());
        entry.timeout = entry.timeout.max(timeout);
        entry.origin = entry.origin.clone().max(origin);
    }
    all
}

/// The ranges of pods, Services and nodes.
fn cluster_ranges(index: &Index) -> Vec<IpNet> {
    let range = |cidr: &cinch_control::v1::Cidr| {
        let ip = match <[u8; 4]>::try_from(&*cidr.address) {
            Ok(v4) => IpAddr::from(v4),
            Err(_) => IpAddr::from(<[u8; 16]>::try_from(&*cidr.address).ok()?),
        };
        IpNet::new(ip, u8::try_from(cidr.prefix_length).ok()?).ok()
    };
    index.mesh().cidrs.iter().filter_map(range).collect()
}
