//! From the moment at which the operator sees a change of a policy to the moment at which every selected proxy says
//! that it is in force: a histogram, and a line in the log for each change.
//!
//! What counts are the proxies that are connected when the change comes. One that connects later gets the policy
//! with its first message, and one that goes enforces nothing any more.

use crate::control::Sessions;
use crate::index::{Index, PolicyInfo, PolicyKey};
use crate::metrics::Metrics;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Seconds.
const BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// A change that is not in force everywhere after so long is told and no longer waited for.
const GIVE_UP: Duration = Duration::from_secs(30);
/// How often acknowledgements are looked at while some are missing. They carry their own time.
const LOOK: Duration = Duration::from_millis(20);
/// After a look it rests for so many times what it took: where thousands of proxies are missing, the threads are theirs.
const REST: u32 = 19;
/// But for no longer than this.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// A change that is under way.
#[derive(Debug)]
struct Pending {
    generation: i64,
    seen: Instant,
    proxies: usize,
    /// Pods whose proxies have not acknowledged it.
    waiting: Vec<Arc<str>>,
    /// The newest acknowledgement.
    last: Instant,
}

/// A change that is in force, or was given up.
#[derive(Debug, Clone, PartialEq)]
struct Settled {
    key: PolicyKey,
    generation: i64,
    proxies: usize,
    /// Proxies that have not acknowledged it; 0 unless it was given up.
    missing: usize,
    took: Duration,
}

/// Follows changes. Pure but for its metrics.
struct Tracker {
    /// UID and generation of what is known.
    known: BTreeMap<PolicyKey, (Arc<str>, i64)>,
    pending: BTreeMap<PolicyKey, Pending>,
}

/// What the tracker asks of the mesh.
trait Mesh {
    /// Pods with a connected proxy that the policy selects.
    fn connected(&self, key: &PolicyKey) -> Vec<Arc<str>>;
    /// How it stands with a pod.
    fn progress(&self, pod: &str) -> Progress;
}

/// How it stands with a pod's proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// All that is meant for it is in force, since it said so.
    Since(Instant),
    /// Not yet.
    Behind,
    /// It is gone.
    Gone,
}

impl Tracker {
    /// Begins with what is there: it was in force, or not, before we looked.
    fn new(policies: &[Arc<PolicyInfo>]) -> Self {
        let known = policies.iter().map(|info| (info.key.clone(), mark(info))).collect();
        Tracker { known, pending: BTreeMap::new() }
    }

    /// The objects as they are now.
    fn changed(&mut self, policies: &[Arc<PolicyInfo>], mesh: &impl Mesh) {
        let mut known = BTreeMap::new();
        for info in policies {
            let new = self.known.get(&info.key).is_none_or(|known| *known != mark(info));
            if new {
                let waiting = mesh.connected(&info.key);
                // A newer change takes the place of one that is still under way.
                let pending = Pending {
                    generation: info.generation,
                    seen: info.seen,
                    proxies: waiting.len(),
                    waiting,
                    last: info.seen,
                };
                self.pending.insert(info.key.clone(), pending);
            }
            known.insert(info.key.clone(), mark(info));
        }
        self.pending.retain(|key, _| known.contains_key(key));
        self.known = known;
    }

    /// Takes out what is in force everywhere, or too late.
    fn settled(&mut self, mesh: &impl Mesh, now: Instant) -> Vec<Settled> {
        let mut settled = Vec::new();
        self.pending.retain(|key, pending| {
            let last = &mut pending.last;
            pending.waiting.retain(|pod| match mesh.progress(pod) {
                Progress::Since(at) => {
                    *last = at.max(*last);
                    false
                }
                Progress::Behind => true,
                Progress::Gone => false,
            });
            let late = now.duration_since(pending.seen) >= GIVE_UP;
            let done = pending.waiting.is_empty() || late;
            if done {
                settled.push(Settled {
                    key: key.clone(),
                    generation: pending.generation,
                    proxies: pending.proxies,
                    missing: pending.waiting.len(),
                    took: pending.last.duration_since(pending.seen),
                });
            }
            !done
        });
        settled
    }
}

fn mark(info: &PolicyInfo) -> (Arc<str>, i64) {
    (Arc::clone(&info.uid), info.generation)
}

/// The real mesh.
struct Live<'a> {
    index: &'a Index,
    sessions: &'a Sessions,
}

impl Mesh for Live<'_> {
    fn connected(&self, key: &PolicyKey) -> Vec<Arc<str>> {
        let pods = self.index.selected_by(key).into_iter();
        pods.filter(|pod| self.sessions.connected(&pod.uid)).map(|pod| Arc::clone(&pod.uid)).collect()
    }

    fn progress(&self, pod: &str) -> Progress {
        match (self.index.workload_policy(pod), self.sessions.acked(pod)) {
            (Some(policy), Some(acked)) if policy.version == acked.version => Progress::Since(acked.at),
            _ if !self.sessions.connected(pod) => Progress::Gone,
            _ => Progress::Behind,
        }
    }
}

/// Follows changes; ends only with the process.
pub(super) async fn run(index: Index, sessions: Sessions, metrics: Metrics) {
    let took = Histogram::new(BUCKETS);
    let late = Counter::default();
    metrics.register(|registry| {
        registry.register(
            "policy_enforced_seconds",
            "From a change of a policy to its enforcement by all selected proxies",
            took.clone(),
        );
        registry.register(
            "policy_enforced_late",
            "Changes of policies that were not enforced everywhere in time",
            late.clone(),
        );
    });
    let mut changes = index.changes();
    let mut revision = index.policies_revision();
    let mut tracker = Tracker::new(&index.policies());
    let mut look_at = Instant::now();
    loop {
        let idle = tracker.pending.is_empty();
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(look_at.into()), if !idle => {}
        }
        let (mesh, now) = (Live { index: &index, sessions: &sessions }, Instant::now());
        let newest = index.policies_revision();
        if newest != revision {
            revision = newest;
            tracker.changed(&index.policies(), &mesh);
        }
        if now < look_at {
            continue;
        }
        for settled in tracker.settled(&mesh, now) {
            tell(&settled, &took, &late);
        }
        look_at = Instant::now() + rest(now.elapsed());
    }
}

/// How long to rest after a look that took so long.
fn rest(took: Duration) -> Duration {
    took.saturating_mul(REST).clamp(LOOK, LONGEST_REST)
}

fn tell(settled: &Settled, took: &Histogram, late: &Counter) {
    let Settled { key, generation, proxies, missing, .. } = settled;
    let milliseconds = settled.took.as_secs_f64() * 1000.0;
    if *missing > 0 {
        late.inc();
        warn!(policy = %key, generation, proxies, missing, "a changed policy is not yet enforced by every selected proxy");
    } else if *proxies > 0 {
        took.observe(settled.took.as_secs_f64());
        info!(policy = %key, generation, proxies, milliseconds, "a changed policy is enforced by every selected proxy");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_at_many_proxies_is_rarer_than_one_at_few() {
        for (took, want) in [(0, 20), (1, 20), (10, 190), (500, 1000)] {
            assert_eq!(rest(Duration::from_millis(took)), Duration::from_millis(want), "{took}");
        }
    }
    use crate::index::{PolicyKind, sample};
    use std::collections::HashMap;

    #[derive(Default)]
    struct Table {
        pods: HashMap<&'static str, Progress>,
    }

    impl Mesh for Table {
        fn connected(&self, _: &PolicyKey) -> Vec<Arc<str>> {
            self.pods.keys().map(|pod| Arc::from(*pod)).collect()
        }

        fn progress(&self, pod: &str) -> Progress {
            self.pods.get(pod).copied().unwrap_or(Progress::Gone)
        }
    }

    fn policy(uid: &str, generation: i64, seen: Instant) -> Arc<PolicyInfo> {
        let key =
            PolicyKey { kind: PolicyKind::AuthorizationPolicy, namespace: "shop".into(), name: "a".into() };
        Arc::new(PolicyInfo {
            key,
            uid: uid.into(),
            generation,
            fault: None,
            needs_http: false,
            action: "ALLOW",
            dry_run: false,
            unsupported: false,
            key_sources: Vec::new(),
            seen,
        })
    }

    #[test]
    fn in_the_real_mesh_a_pod_is_behind_until_it_acknowledges_the_newest_version() {
        let (index, sessions) = (sample::shop(), Sessions::default());
        let mesh = Live { index: &index, sessions: &sessions };
        let mut tracker = Tracker::new(&index.policies());
        let proxy = sessions.open("web-uid", index.workload_policy("web-uid").unwrap().version);
        assert_eq!(mesh.progress("web-uid"), Progress::Behind);
        proxy.acknowledge(index.workload_policy("web-uid").unwrap().version, "");
        assert!(matches!(mesh.progress("web-uid"), Progress::Since(_)));
        let before = index.policies_revision();
        sample::apply(&index, PolicyKind::AuthorizationPolicy, "deny", 1, serde_json::json!({}));
        assert_ne!(index.policies_revision(), before);
        tracker.changed(&index.policies(), &mesh);
        assert!(tracker.settled(&mesh, Instant::now()).is_empty());
        proxy.acknowledge(index.workload_policy("web-uid").unwrap().version, "");
        let settled = tracker.settled(&mesh, Instant::now());
        assert_eq!((settled[0].proxies, settled[0].missing), (1, 0));
        drop(proxy);
        assert_eq!(mesh.progress("web-uid"), Progress::Gone);
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_change_is_in_force_when_the_last_proxy_says_so() {
        let now = Instant::now();
        let mut mesh = Table { pods: [("x", Progress::Behind), ("y", Progress::Behind)].into() };
        let mut tracker = Tracker::new(&[policy("u", 1, now)]);
        tracker.changed(&[policy("u", 1, now)], &mesh);
        assert!(tracker.settled(&mesh, now).is_empty() && tracker.pending.is_empty(), "nothing has changed");
        tracker.changed(&[policy("u", 2, now)], &mesh);
        assert!(tracker.settled(&mesh, now).is_empty());
        mesh.pods.insert("x", Progress::Since(now + 3 * SECOND));
        assert!(tracker.settled(&mesh, now + 4 * SECOND).is_empty());
        mesh.pods.insert("y", Progress::Since(now + 2 * SECOND));
        let settled = tracker.settled(&mesh, now + 9 * SECOND);
        assert_eq!(settled.len(), 1);
        assert_eq!((settled[0].generation, settled[0].proxies, settled[0].missing), (2, 2, 0));
        assert_eq!(settled[0].took, 3 * SECOND, "until the acknowledgement, not until somebody looked");
    }

    #[test]
    fn an_object_made_anew_is_a_change_and_a_deleted_one_is_waited_for_no_longer() {
        let now = Instant::now();
        let mesh = Table { pods: [("x", Progress::Behind)].into() };
        let mut tracker = Tracker::new(&[policy("u", 1, now)]);
        tracker.changed(&[policy("v", 1, now)], &mesh);
        assert_eq!(tracker.pending.len(), 1);
        tracker.changed(&[], &mesh);
        assert!(tracker.pending.is_empty());
    }

    #[test]
    fn what_said_so_before_the_change_took_no_time_and_pods_that_go_are_not_waited_for() {
        let now = Instant::now();
        let mut mesh = Table { pods: [("x", Progress::Since(now)), ("y", Progress::Behind)].into() };
        let mut tracker = Tracker::new(&[]);
        tracker.changed(&[policy("u", 1, now + SECOND)], &mesh);
        mesh.pods.remove("y");
        let settled = tracker.settled(&mesh, now + 2 * SECOND);
        assert_eq!((settled[0].took, settled[0].missing), (Duration::ZERO, 0));
    }

    #[test]
    fn a_proxy_that_never_says_so_is_counted_and_given_up() {
        let now = Instant::now();
        let mesh = Table { pods: [("x", Progress::Behind)].into() };
        let mut tracker = Tracker::new(&[]);
        tracker.changed(&[policy("u", 1, now)], &mesh);
        assert!(tracker.settled(&mesh, now + GIVE_UP / 2).is_empty());
        assert_eq!(tracker.settled(&mesh, now + GIVE_UP)[0].missing, 1);
        assert!(tracker.pending.is_empty());
    }
}
