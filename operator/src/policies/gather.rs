//! Looks through pods, sessions and key sets once and judges every policy that counts.

use super::verdict::{Facts, Proxy, Selected, Verdict};
use crate::control::{Acked, Sessions};
use crate::index::{Index, PodInfo, PolicyInfo, PolicyKey};
use crate::jwks::KeySets;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A policy and how it stands with it.
#[derive(Debug, Clone)]
pub(super) struct Judged {
    pub(super) info: Arc<PolicyInfo>,
    pub(super) verdict: Verdict,
    /// Namespaces of the pods that it selects, and its own.
    pub(super) concerns: BTreeSet<Arc<str>>,
}

/// Where to look.
pub(super) struct Sources<'a> {
    pub(super) index: &'a Index,
    pub(super) sessions: &'a Sessions,
    pub(super) keys: &'a KeySets,
    /// The namespace whose policies apply everywhere.
    pub(super) root: &'a str,
}

/// Every policy of an enrolled namespace or of the root namespace.
pub(super) fn judge(sources: &Sources<'_>) -> BTreeMap<PolicyKey, Judged> {
    let mut pods = pods_by_policy(sources);
    let enrolled: BTreeSet<String> = sources.index.enrolled().into_iter().collect();
    let counts = |namespace: &str| *namespace == *sources.root || enrolled.contains(namespace);
    let policies = sources.index.policies().into_iter().filter(|info| counts(&info.key.namespace));
    policies
        .map(|info| {
            let (pods, mut concerns) = pods.remove(&info.key).unwrap_or_default();
            let keys: Vec<_> =
                info.key_sources.iter().map(|name| (name.to_string(), sources.keys.state(name))).collect();
            let verdict = Verdict::of(&Facts { info: &info, pods: &pods, keys: &keys });
            concerns.insert(Arc::clone(&info.key.namespace));
            (info.key.clone(), Judged { info, verdict, concerns })
        })
        .collect()
}

type Pods = (Vec<Selected>, BTreeSet<Arc<str>>);

/// One look at each pod: what selects it, and what its proxy says of that.
fn pods_by_policy(sources: &Sources<'_>) -> BTreeMap<PolicyKey, Pods> {
    let index = sources.index;
    let mut all: BTreeMap<PolicyKey, Pods> = BTreeMap::new();
    let namespaces = index.namespaces();
    let pods = namespaces.iter().flat_map(|namespace| index.pods_in(&namespace.name));
    for pod in pods.filter(|pod| is_live(pod)) {
        let policies = index.policies_of(&pod.uid);
        if policies.is_empty() {
            continue;
        }
        let current = index.workload_policy(&pod.uid).map(|policy| policy.version);
        let acked = sources.sessions.acked(&pod.uid).filter(|acked| Some(acked.version) == current);
        let name: Arc<str> = format!("{}/{}", pod.namespace, pod.name).into();
        for info in policies {
            let proxy = word_of(acked.as_ref(), &info.key.object());
            let (selected, concerns) = all.entry(info.key.clone()).or_default();
            selected.push(Selected { pod: Arc::clone(&name), proxy });
            if !concerns.contains(&pod.namespace) {
                concerns.insert(Arc::clone(&pod.namespace));
            }
        }
    }
    all
}

/// The same pods as [`Index::selected_by`].
fn is_live(pod: &PodInfo) -> bool {
    pod.injected && pod.owns_its_ips()
}

/// What an acknowledgement of the current version says of one policy (`namespace/name`).
fn word_of(acked: Option<&Acked>, policy: &str) -> Proxy {
    let Some(acked) = acked else { return Proxy::Waits };
    let line = acked.nack.lines().find_map(|line| line.split_once(": ").filter(|(name, _)| *name == policy));
    match line {
        Some((_, words)) => Proxy::Nacked(words.to_owned()),
        None => Proxy::Enforces,
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict::Truth;
    use super::*;
    use crate::index::{PolicyKind, sample};
    use crate::metrics::Metrics;
    use crate::settings::JwksSettings;
    use cinch_reason::Reason;
    use serde_json::json;
    use std::time::Instant;

    #[test]
    fn a_policy_counts_as_enforced_by_a_pod_once_its_proxy_has_acknowledged_all_that_is_meant_for_it() {
        let (index, sessions) = (sample::shop(), Sessions::default());
        let keys = KeySets::new(&JwksSettings::default(), &Metrics::new());
        let judged = || {
            let all =
                judge(&Sources { index: &index, sessions: &sessions, keys: &keys, root: "cinch-system" });
            all.into_values().map(|judged| judged.verdict).collect::<Vec<_>>()
        };
        let version = || index.workload_policy("web-uid").unwrap().version;
        let kind = PolicyKind::AuthorizationPolicy;
        sample::apply(&index, kind, "deny", 1, json!({}));
        assert_eq!((judged()[0].selected, judged()[0].enforcing), (1, 0), "not connected");
        let proxy = sessions.open(&sample::web(&index).uid, version());
        assert_eq!(judged()[0].enforcing, 0, "what it held before says nothing");
        proxy.acknowledge(version(), "");
        assert_eq!((judged()[0].selected, judged()[0].enforcing), (1, 1));
        sample::apply(&index, kind, "deny", 2, json!({"rules": [{}]}));
        assert_eq!((judged()[0].generation, judged()[0].enforcing), (2, 0), "the change is under way");
        proxy.acknowledge(version(), "");
        assert_eq!(judged()[0].enforcing, 1);
        proxy.acknowledge(version(), "shop/deny: no such field");
        let nacked = judged().remove(0);
        assert_eq!((nacked.enforcing, nacked.findings[0].reason), (0, Reason::PolicyNacked));
        sample::apply(&index, kind, "deny", 3, json!({"rulez": []}));
        let broken = judged().remove(0);
        assert_eq!(
            (broken.findings[0].truth, broken.findings[0].reason),
            (Truth::False, Reason::UnsupportedPolicy)
        );
    }

    #[test]
    fn an_acknowledgement_speaks_for_each_policy_that_it_does_not_name() {
        let acked =
            Acked { version: 1, nack: "shop/a: no: such field\nshop/b: other".into(), at: Instant::now() };
        let word = |policy: &str| word_of(Some(&acked), policy);
        assert_eq!(word("shop/a"), Proxy::Nacked("no: such field".to_owned()));
        assert_eq!(word("shop/b"), Proxy::Nacked("other".to_owned()));
        assert_eq!(word("shop/c"), Proxy::Enforces);
        assert_eq!(word_of(None, "shop/c"), Proxy::Waits);
    }
}
