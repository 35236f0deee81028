//! The broken policies of each namespace, for its Posture. The room writes, postures read.

use super::gather::Judged;
use crate::index::PolicyKey;
use cinch_api::BrokenPolicy;
use parking_lot::RwLock;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// As many as a status shows; further ones are in the status of the objects.
const SHOWN: usize = 20;

type ByNamespace = HashMap<Arc<str>, Vec<BrokenPolicy>>;

/// A cheap handle to what is broken where.
#[derive(Debug, Clone, Default)]
pub struct BrokenPolicies {
    /// `None` until they have been looked through once.
    by_namespace: Arc<RwLock<Option<ByNamespace>>>,
}

impl BrokenPolicies {
    /// The broken policies that select pods of a namespace, or live in it; `None` while that is not known.
    #[must_use]
    pub fn of(&self, namespace: &str) -> Option<Vec<BrokenPolicy>> {
        let by_namespace = self.by_namespace.read();
        Some(by_namespace.as_ref()?.get(namespace).cloned().unwrap_or_default())
    }

    pub(super) fn take(&self, judged: &BTreeMap<PolicyKey, Judged>) {
        let mut by_namespace = ByNamespace::new();
        for (key, judged) in judged {
            let Some(finding) = judged.verdict.broken() else { continue };
            let kind = key.kind.as_str().to_ascii_lowercase();
            let broken = BrokenPolicy {
                reference: format!("{kind}/{}", key.object()),
                reason: finding.reason.to_string(),
                message: finding.message(),
            };
            for namespace in &judged.concerns {
                let list = by_namespace.entry(Arc::clone(namespace)).or_default();
                if list.len() < SHOWN {
                    list.push(broken.clone());
                }
            }
        }
        *self.by_namespace.write() = Some(by_namespace);
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict::{Finding, Truth, Verdict};
    use super::*;
    use crate::index::{PolicyInfo, PolicyKind};
    use cinch_api::policy_status::ACCEPTED;
    use cinch_reason::Reason;

    fn judged(namespace: &str, name: &str, reason: Reason, concerns: &[&str]) -> (PolicyKey, Judged) {
        let kind = PolicyKind::AuthorizationPolicy;
        let key = PolicyKey { kind, namespace: namespace.into(), name: name.into() };
        let truth = if reason == Reason::PolicyAccepted { Truth::True } else { Truth::False };
        let finding = Finding { kind: ACCEPTED, truth, reason, detail: "spec.x".to_owned() };
        let verdict = Verdict { generation: 1, selected: 0, enforcing: 0, findings: vec![finding] };
        let info = PolicyInfo {
            key: key.clone(),
            uid: "u".into(),
            generation: 1,
            fault: None,
            needs_http: false,
            action: "ALLOW",
            dry_run: false,
            unsupported: false,
            key_sources: Vec::new(),
            seen: std::time::Instant::now(),
        };
        let concerns = concerns.iter().map(|namespace| Arc::from(*namespace)).collect();
        (key, Judged { info: Arc::new(info), verdict, concerns })
    }

    #[test]
    fn a_namespace_is_told_of_what_is_broken_for_its_pods_wherever_the_policy_lives() {
        let broken = BrokenPolicies::default();
        assert_eq!(broken.of("shop"), None, "not known yet");
        broken.take(&BTreeMap::from([
            judged("cinch-system", "all", Reason::UnsupportedPolicy, &["cinch-system", "shop", "billing"]),
            judged("shop", "own", Reason::PolicyInvalid, &["shop"]),
            judged("shop", "good", Reason::PolicyAccepted, &["shop"]),
        ]));
        let of = |namespace: &str| -> Vec<String> {
            broken.of(namespace).unwrap().into_iter().map(|policy| policy.reference).collect()
        };
        let all = "authorizationpolicy/cinch-system/all";
        assert_eq!(of("shop"), [all, "authorizationpolicy/shop/own"]);
        assert_eq!(of("billing"), [all]);
        assert!(of("other").is_empty());
        let told = broken.of("billing").unwrap().remove(0);
        assert_eq!(told.reason, "UnsupportedPolicy");
        assert!(told.message.contains("spec.x"), "{}", told.message);
        broken.take(&BTreeMap::new());
        assert_eq!(broken.of("shop"), Some(Vec::new()));
    }
}
