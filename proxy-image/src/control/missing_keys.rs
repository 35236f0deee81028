//! Keys of tokens that come with no policy any more. In goes each policy that was received; out go lines of the log,
//! the age on the metrics page, and, once such keys have had their time, the order to judge open requests again
//! without them. New requests need no order: whoever verifies a token looks at the time.

use crate::http_filter::MissingKeys;
use crate::inbound_policy::InboundPolicy;
use crate::metrics::ControlMetrics;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Open requests are judged again so long after keys have had their time: who judges may have looked at the clock a
/// little before.
const LATER: Duration = Duration::from_millis(100);

/// Tells of the key sets that did not come with `received`.
pub(super) fn tell(received: &InboundPolicy, metrics: &ControlMetrics) {
    let (missing, now) = (received.missing_keys(), Instant::now());
    for MissingKeys { source, since, until } in &missing {
        let (age, left) = (now.saturating_duration_since(*since), until.saturating_duration_since(now));
        if left.is_zero() {
            tracing::error!(%source, ?age, "no key set came with the policy; its tokens are refused");
        } else {
            tracing::warn!(%source, ?age, ?left, "no key set came with the policy; the last one stays in use");
        }
    }
    *metrics.keys_missing_since.lock() = missing.iter().map(|keys| keys.since).min();
}

/// Has open requests judged again whenever keys have had their time. Never returns.
pub(super) async fn give_up(policy: &watch::Sender<Option<Arc<InboundPolicy>>>) {
    let mut current = policy.subscribe();
    loop {
        let now = Instant::now();
        let missing = current.borrow_and_update().as_ref().map_or_else(Vec::new, |held| held.missing_keys());
        let next = missing.into_iter().filter(|keys| now < keys.until).min_by_key(|keys| keys.until);
        let until = next.as_ref().map(|keys| tokio::time::Instant::from_std(keys.until + LATER));
        let over = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The sender is there as long as we are.
            _ = current.changed() => {}
            () = over => {
                let source = next.map(|keys| keys.source).unwrap_or_default();
                tracing::error!(%source, "its keys have come with no policy for too long; its tokens are refused");
                policy.send_modify(|_| ());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload_policy::{Target, receive};
    use cinch_control::v1;

    const KEYS: &str =
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    /// A policy that names the keys of two issuers, with those of `sources`.
    fn policy(sources: &[&str]) -> InboundPolicy {
        let keys =
            |source: &&str| v1::Jwks { source: (*source).into(), document: KEYS.as_bytes().to_vec().into() };
        let body = r#"{"jwtRules":[{"issuer":"https://a.example"},{"issuer":"https://b.example"}]}"#;
        let tokens = v1::Policy {
            name: "shop/tokens".into(),
            kind: "RequestAuthentication".into(),
            body: body.as_bytes().to_vec().into(),
            required_features: vec!["http".into()],
            jwks: sources.iter().map(keys).collect(),
            ..v1::Policy::default()
        };
        let message = v1::WorkloadPolicy { policies: vec![tokens], ..v1::WorkloadPolicy::default() };
        receive(message, &Target { namespace: "shop".into(), trust_domain: "cluster.local".into() })
    }

    #[tokio::test]
    async fn open_requests_are_judged_again_once_for_each_key_set_that_has_had_its_time() {
        let start = Instant::now();
        let both = policy(&["https://a.example", "https://b.example"]);
        let mut one = policy(&["https://b.example"]);
        let [first, second] = [500, 1500].map(Duration::from_millis);
        one.keep_keys_of(&both, start, first);
        let mut none = policy(&[]);
        none.keep_keys_of(&one, start, second);
        let policy = watch::Sender::new(Some(Arc::new(none)));
        let mut told = policy.subscribe();
        let hearing = async {
            for due in [first, second] {
                tokio::time::timeout(Duration::from_secs(60), told.changed()).await.unwrap().unwrap();
                assert!(start.elapsed() > due);
            }
            let more = tokio::time::timeout(Duration::from_millis(300), told.changed()).await;
            assert!(more.is_err(), "once for each");
        };
        tokio::select! {
            () = give_up(&policy) => unreachable!(),
            () = hearing => {}
        }
    }

    #[test]
    fn the_age_is_that_of_the_longest_missing_and_gone_when_all_have_come() {
        let metrics = ControlMetrics::default();
        let (start, day) = (Instant::now(), Duration::from_secs(24 * 3600));
        let both = policy(&["https://a.example", "https://b.example"]);
        tell(&both, &metrics);
        assert_eq!(*metrics.keys_missing_since.lock(), None);
        let mut one = policy(&["https://a.example"]);
        one.keep_keys_of(&both, start, day);
        let mut none = policy(&[]);
        none.keep_keys_of(&one, start + day * 2, day);
        tell(&none, &metrics);
        assert_eq!(*metrics.keys_missing_since.lock(), Some(start), "also once they are refused");
        tell(&both, &metrics);
        assert_eq!(*metrics.keys_missing_since.lock(), None);
    }
}
