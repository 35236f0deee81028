//! How it stands with one policy: what is known of the object, its pods and its keys goes in, what status says comes
//! out. Pure.

use crate::index::PolicyInfo;
use crate::jwks::KeyState;
use cinch_api::policy_status::{ACCEPTED, ENFORCED, KEYS_FETCHED};
use cinch_reason::Reason;
use std::fmt::Write;
use std::sync::Arc;

/// Pods and sources that a message names; the others are counted.
const NAMED: usize = 3;
/// Longest detail of a message. Proxies' words are among it.
const DETAIL: usize = 1000;

/// A pod that the policy selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selected {
    /// `namespace/name`.
    pub(super) pod: Arc<str>,
    /// What its proxy says.
    pub(super) proxy: Proxy,
}

/// What a selected pod's proxy says of the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Proxy {
    /// It is in force.
    Enforces,
    /// It has not acknowledged what is sent now, or is not connected.
    Waits,
    /// It could not use the policy, in its words, and closed what the policy may decide on.
    Nacked(String),
}

/// What is known of a policy.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) info: &'a PolicyInfo,
    /// Pods with the sidecar that it selects.
    pub(super) pods: &'a [Selected],
    /// How it stands with the sources of keys that it needs.
    pub(super) keys: &'a [(String, Option<KeyState>)],
}

/// A condition's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    /// As the API writes it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Truth::True => "True",
            Truth::False => "False",
            Truth::Unknown => "Unknown",
        }
    }
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// Its type.
    pub(super) kind: &'static str,
    pub(super) truth: Truth,
    pub(super) reason: Reason,
    /// What was seen; may be empty.
    pub(super) detail: String,
}

impl Finding {
    /// Word, sentence, what was seen, hint.
    pub(super) fn message(&self) -> String {
        if self.detail.is_empty() { self.reason.message() } else { self.reason.message_with(&self.detail) }
    }
}

/// How it stands with a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) generation: i64,
    pub(super) selected: u32,
    pub(super) enforcing: u32,
    /// In the order of their weight: the first that is not true is the worst.
    pub(super) findings: Vec<Finding>,
}

impl Verdict {
    /// Judges.
    pub(super) fn of(facts: &Facts<'_>) -> Self {
        let enforcing = facts.pods.iter().filter(|pod| pod.proxy == Proxy::Enforces).count();
        let mut findings = vec![accepted(facts)];
        findings.extend(keys(facts));
        findings.push(enforced(facts, enforcing));
        Verdict {
            generation: facts.info.generation,
            selected: u32::try_from(facts.pods.len()).unwrap_or(u32::MAX),
            enforcing: u32::try_from(enforcing).unwrap_or(u32::MAX),
            findings,
        }
    }

    /// The worst that is the case; when all is well, that it is enforced.
    pub(super) fn summary(&self) -> Option<&Finding> {
        let worst = self.findings.iter().find(|finding| finding.truth != Truth::True);
        worst.or_else(|| self.findings.last())
    }

    /// What a namespace's people must know: the policy is not what its author meant. That proxies have yet to
    /// acknowledge it is not that.
    pub(super) fn broken(&self) -> Option<&Finding> {
        let of_author = |reason: Reason| {
            matches!(
                reason,
                Reason::PolicyInvalid
                    | Reason::UnsupportedPolicy
                    | Reason::PolicyNacked
                    | Reason::HttpPolicyClosed
                    | Reason::KeysUnavailable
                    | Reason::KeySourceRefused
            )
        };
        self.findings.iter().find(|finding| finding.truth == Truth::False && of_author(finding.reason))
    }
}

/// What a proxy that does not read HTTP says of each policy that needs it; that is not the policy's fault.
const LACKS_HTTP: &str = "lacks the feature \"http\"";

/// Proxies that said no, with the words of the first.
fn nacks(facts: &Facts<'_>) -> Option<String> {
    let mut nacks = facts.pods.iter().filter_map(|pod| match &pod.proxy {
        Proxy::Nacked(words) => Some((pod, words)),
        Proxy::Enforces | Proxy::Waits => None,
    });
    let (first, words) = nacks.next()?;
    let mut detail = format!("{}: {words}", first.pod);
    match nacks.count() {
        0 => {}
        more => {
            let _ = write!(detail, "; and {more} more");
        }
    }
    Some(detail)
}

fn accepted(facts: &Facts<'_>) -> Finding {
    let no = |reason, detail: &str| Finding {
        kind: ACCEPTED,
        truth: Truth::False,
        reason,
        detail: detail.chars().take(DETAIL).collect(),
    };
    match (&facts.info.fault, nacks(facts)) {
        (Some(fault), _) if facts.info.unsupported => no(Reason::UnsupportedPolicy, fault),
        (Some(fault), _) => no(Reason::PolicyInvalid, fault),
        (None, Some(words)) if !words.contains(LACKS_HTTP) => no(Reason::PolicyNacked, &words),
        (None, _) => Finding {
            kind: ACCEPTED,
            truth: Truth::True,
            reason: Reason::PolicyAccepted,
            detail: String::new(),
        },
    }
}

fn keys(facts: &Facts<'_>) -> Option<Finding> {
    if facts.keys.is_empty() || facts.info.fault.is_some() {
        return None;
    }
    let finding = |truth, reason, detail: String| Some(Finding { kind: KEYS_FETCHED, truth, reason, detail });
    let failed: Vec<_> = facts
        .keys
        .iter()
        .filter_map(|(name, state)| match state {
            Some(KeyState::Failed { fault, keeps_old }) => Some((name, fault, keeps_old)),
            _ => None,
        })
        .collect();
    if let Some((_, first, _)) = failed.first() {
        let told = failed.iter().take(NAMED).map(|(name, fault, keeps_old)| {
            let now = if **keeps_old {
                "keys of an earlier fetch stay in use"
            } else {
                "tokens that need them are refused"
            };
            format!("{name}: {fault}; {now}")
        });
        let detail: String = told.collect::<Vec<_>>().join("; ");
        return finding(Truth::False, first.reason(), detail.chars().take(DETAIL).collect());
    }
    let pending = facts.keys.iter().filter(|(_, state)| *state != Some(KeyState::Held));
    let names: Vec<&str> = pending.map(|(name, _)| name.as_str()).take(NAMED).collect();
    match names.is_empty() {
        true => finding(Truth::True, Reason::KeysFetched, String::new()),
        false => finding(
            Truth::Unknown,
            Reason::KeysUnavailable,
            format!("the first fetch of {} is under way", names.join(", ")),
        ),
    }
}

fn enforced(facts: &Facts<'_>, enforcing: usize) -> Finding {
    let finding = |truth, reason, detail| Finding { kind: ENFORCED, truth, reason, detail };
    let total = facts.pods.len();
    if total == 0 {
        return finding(Truth::Unknown, Reason::NoPodSelected, String::new());
    }
    if enforcing == total {
        return finding(Truth::True, Reason::PolicyEnforced, format!("{enforcing} of {total}"));
    }
    let lacks_http = nacks(facts).is_some_and(|words| words.contains(LACKS_HTTP));
    if facts.info.fault.is_none() && lacks_http {
        return finding(
            Truth::False,
            Reason::HttpPolicyClosed,
            format!("{enforcing} of {total} proxies enforce it"),
        );
    }
    let others = || facts.pods.iter().filter(|pod| pod.proxy != Proxy::Enforces);
    let mut names: Vec<&str> = others().take(NAMED).map(|pod| &*pod.pod).collect();
    let more = others().count() - names.len();
    let rest = format!("{more} more");
    if more > 0 {
        names.push(&rest);
    }
    let detail = format!("{enforcing} of {total}; not {}", names.join(", "));
    finding(Truth::False, Reason::EnforcementPending, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{PolicyKey, PolicyKind};
    use crate::jwks::Fault;

    fn info(change: impl FnOnce(&mut PolicyInfo)) -> PolicyInfo {
        let key = PolicyKey {
            kind: PolicyKind::AuthorizationPolicy,
            namespace: "shop".into(),
            name: "allow-web".into(),
        };
        let mut info = PolicyInfo {
            key,
            uid: "u".into(),
            generation: 4,
            fault: None,
            needs_http: false,
            action: "ALLOW",
            dry_run: false,
            unsupported: false,
            key_sources: Vec::new(),
            seen: std::time::Instant::now(),
        };
        change(&mut info);
        info
    }

    fn pods(of: &[Proxy]) -> Vec<Selected> {
        let named = |(number, proxy): (usize, &Proxy)| Selected {
            pod: format!("shop/web-{number}").into(),
            proxy: proxy.clone(),
        };
        of.iter().enumerate().map(named).collect()
    }

    fn nack() -> Proxy {
        Proxy::Nacked("no such field".to_owned())
    }

    fn judge(info: &PolicyInfo, of: &[Proxy], keys: &[(String, Option<KeyState>)]) -> Verdict {
        Verdict::of(&Facts { info, pods: &pods(of), keys })
    }

    fn shown(verdict: &Verdict) -> Vec<(&'static str, Truth, Reason)> {
        verdict.findings.iter().map(|finding| (finding.kind, finding.truth, finding.reason)).collect()
    }

    #[test]
    fn a_policy_is_enforced_when_every_selected_proxy_says_so() {
        use Proxy::{Enforces, Waits};
        use Truth::{False, True, Unknown};
        let plain = info(|_| ());
        for (name, of, truth, reason, enforcing) in [
            ("all", vec![Enforces, Enforces], True, Reason::PolicyEnforced, 2),
            ("one waits", vec![Enforces, Waits], False, Reason::EnforcementPending, 1),
            ("nobody", vec![], Unknown, Reason::NoPodSelected, 0),
        ] {
            let verdict = judge(&plain, &of, &[]);
            let accepted = (ACCEPTED, True, Reason::PolicyAccepted);
            assert_eq!(shown(&verdict), [accepted, (ENFORCED, truth, reason)], "{name}");
            assert_eq!((verdict.selected as usize, verdict.enforcing), (of.len(), enforcing), "{name}");
            assert_eq!(verdict.generation, 4);
            assert_eq!(verdict.summary().map(|finding| finding.reason), Some(reason), "{name}");
            assert_eq!(verdict.broken(), None, "{name}");
        }
    }

    #[test]
    fn pods_that_wait_are_named_and_the_many_are_counted() {
        let verdict = judge(&info(|_| ()), &vec![Proxy::Waits; 5], &[]);
        let detail = &verdict.findings[1].detail;
        assert_eq!(detail, "0 of 5; not shop/web-0, shop/web-1, shop/web-2, 2 more");
    }

    #[test]
    fn a_broken_policy_is_not_accepted_and_says_why() {
        let fault = || Some("spec.rulez: unknown".to_owned());
        let unsupported = info(|info| (info.fault, info.unsupported) = (fault(), true));
        let invalid = info(|info| info.fault = fault());
        let plain = info(|_| ());
        for (info, of, reason, word) in [
            (&unsupported, vec![Proxy::Enforces], Reason::UnsupportedPolicy, "spec.rulez"),
            (&unsupported, vec![nack()], Reason::UnsupportedPolicy, "spec.rulez"),
            (&invalid, vec![], Reason::PolicyInvalid, "spec.rulez"),
            (
                &plain,
                vec![Proxy::Enforces, nack(), nack()],
                Reason::PolicyNacked,
                "shop/web-1: no such field; and 1 more",
            ),
        ] {
            let verdict = judge(info, &of, &[]);
            let broken = verdict.broken().unwrap();
            assert_eq!((broken.kind, broken.reason), (ACCEPTED, reason));
            assert!(broken.message().contains(word), "{}", broken.message());
            assert_eq!(verdict.summary(), Some(broken));
        }
    }

    #[test]
    fn a_policy_that_needs_http_is_accepted_and_shown_as_closed_where_proxies_do_not_read_it() {
        let lacks = Proxy::Nacked("it can not be read: this proxy lacks the feature \"http\"".into());
        let verdict = judge(&info(|info| info.needs_http = true), &[lacks], &[]);
        assert_eq!(
            shown(&verdict),
            [
                (ACCEPTED, Truth::True, Reason::PolicyAccepted),
                (ENFORCED, Truth::False, Reason::HttpPolicyClosed)
            ]
        );
        assert_eq!(verdict.broken().map(|finding| finding.reason), Some(Reason::HttpPolicyClosed));
    }

    #[test]
    fn keys_that_could_not_be_fetched_are_told_with_what_becomes_of_tokens() {
        let url = || "https://issuer.example/keys".to_owned();
        let failed = |keeps_old| {
            let fault = Fault::Unresolved("issuer.example".to_owned());
            Some(KeyState::Failed { fault, keeps_old })
        };
        let plain = info(|_| ());
        for (state, truth, reason, word) in [
            (Some(KeyState::Held), Truth::True, Reason::KeysFetched, "all issuers"),
            (Some(KeyState::Pending), Truth::Unknown, Reason::KeysUnavailable, "under way"),
            (None, Truth::Unknown, Reason::KeysUnavailable, "under way"),
            (failed(false), Truth::False, Reason::KeysUnavailable, "tokens that need them are refused"),
            (failed(true), Truth::False, Reason::KeysUnavailable, "earlier fetch stay in use"),
        ] {
            let keys = [(url(), state), ("https://other/k".to_owned(), Some(KeyState::Held))];
            let verdict = judge(&plain, &[Proxy::Enforces], &keys);
            let finding = &verdict.findings[1];
            assert_eq!((finding.kind, finding.truth, finding.reason), (KEYS_FETCHED, truth, reason));
            assert!(finding.message().contains(word), "{}", finding.message());
            assert_eq!(verdict.broken().is_some(), truth == Truth::False);
        }
        let refused = Fault::Refused { host: "h".to_owned(), address: [10, 0, 0, 1].into(), word: "private" };
        let keys = [(url(), Some(KeyState::Failed { fault: refused, keeps_old: false }))];
        let verdict = judge(&plain, &[Proxy::Enforces], &keys);
        assert_eq!(verdict.broken().map(|finding| finding.reason), Some(Reason::KeySourceRefused));
    }
}
