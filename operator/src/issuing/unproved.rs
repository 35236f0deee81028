//! What a token says of itself before anybody has vouched for it: enough to refuse it without asking the API server,
//! and never enough to accept it. Any pod of the cluster may ask for a first certificate as often as it likes, so
//! what can be told from memory comes first. The words are those that the review would have led to.

use super::Refusal;
use super::claims::{AUDIENCE, Source};
use crate::index::PodInfo;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cinch_reason::Reason;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// How far our clock may be ahead of the API server's.
const LEEWAY: u64 = 60;
/// The watch is seldom further behind.
const SOON: Duration = Duration::from_secs(1);

/// How pods are looked up by their UID.
pub type Pods<'a> = &'a (dyn Fn(&str) -> Option<Arc<PodInfo>> + Sync);

/// The claims of a service account's token (RFC 7519, KEP-1205) that matter here.
#[derive(Debug, Deserialize)]
struct Said {
    #[serde(default)]
    aud: Audiences,
    exp: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Bound>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audiences {
    Many(Vec<String>),
    One(String),
}

impl Default for Audiences {
    fn default() -> Self {
        Audiences::Many(Vec::new())
    }
}

#[derive(Debug, Deserialize)]
struct Bound {
    pod: Option<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    uid: String,
}

/// Refuses what the review, or the live pod, could only refuse: at `now` (Unix seconds), for a request from `source`.
///
/// # Errors
/// [`Reason::TokenRejected`], [`Reason::PodMismatch`] or [`Reason::PodNotMeshed`].
pub fn judge(token: &str, source: &Source, now: u64, pods: Pods<'_>) -> Result<(), Refusal> {
    let said = read(token).ok_or_else(|| reject("it is no token of a service account"))?;
    let ours = match &said.aud {
        Audiences::Many(audiences) => audiences.iter().any(|audience| audience == AUDIENCE),
        Audiences::One(audience) => audience == AUDIENCE,
    };
    if !ours {
        return Err(reject("the token is not for the audience cinch.dev"));
    }
    if said.exp < now.saturating_sub(LEEWAY) {
        return Err(reject("the token has expired"));
    }
    let uid = said.kubernetes.and_then(|bound| bound.pod).map(|pod| pod.uid);
    let uid = uid.ok_or_else(|| reject("the token is not bound to a pod"))?;
    let pod = pods(&uid).ok_or_else(|| Refusal {
        retry_after: SOON,
        ..Refusal::new(Reason::PodMismatch, "the operator does not know the pod")
    })?;
    let ip = source.ip.to_canonical();
    let foreign = source.pod_uid.as_ref().is_some_and(|holder| *holder != uid);
    // A pod without an address may have got one that the watch still gives to another.
    if foreign && !pod.ips.is_empty() && !pod.ips.contains(&ip) {
        return Err(Refusal::new(Reason::PodMismatch, "the request came from another pod"));
    }
    if !pod.injected {
        return Err(Refusal::new(Reason::PodNotMeshed, "the pod does not have the sidecar in first place"));
    }
    Ok(())
}

fn read(token: &str) -> Option<Said> {
    let mut parts = token.trim().split('.');
    let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

fn reject(detail: &str) -> Refusal {
    Refusal::new(Reason::TokenRejected, detail)
}

/// A token that says `payload`, signed by nobody with the word `seal`.
#[cfg(test)]
pub(crate) fn token(payload: &serde_json::Value, seal: &str) -> String {
    format!("e30.{}.{seal}", URL_SAFE_NO_PAD.encode(payload.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::pod;
    use serde_json::{Value, json};

    const NOW: u64 = 1_000_000;

    fn judged(payload: &Value, source: (&str, Option<&str>)) -> Result<(), (Reason, String)> {
        let source = Source { ip: source.0.parse().unwrap(), pod_uid: source.1.map(str::to_owned) };
        let pods = |uid: &str| -> Option<Arc<PodInfo>> {
            let known = match uid {
                "u1" => pod("u1", "api", &["10.0.0.7"]),
                "new" => pod("new", "api", &[]),
                "bare" => PodInfo { injected: false, ..pod("bare", "api", &["10.0.0.7"]) },
                _ => return None,
            };
            Some(Arc::new(known))
        };
        judge(&token(payload, "x"), &source, NOW, &pods).map_err(|refusal| (refusal.reason, refusal.detail))
    }

    fn said(uid: &str) -> Value {
        json!({"aud": ["cinch.dev"], "exp": NOW + 600, "sub": "system:serviceaccount:shop:api",
            "kubernetes.io": {"namespace": "shop", "pod": {"name": "api-1", "uid": uid}}})
    }

    #[test]
    fn what_may_be_a_sidecars_goes_on_to_the_api_server() {
        let cases = [
            ("u1", ("10.0.0.7", Some("u1"))),
            ("u1", ("192.0.2.1", None)),
            // The watch has not told yet that the address has changed hands.
            ("u1", ("10.0.0.7", Some("gone"))),
            ("new", ("10.0.0.8", Some("gone"))),
        ];
        for (uid, source) in cases {
            assert_eq!(judged(&said(uid), source), Ok(()), "{uid} {source:?}");
        }
        let one = json!({"aud": "cinch.dev", "exp": NOW - 59, "kubernetes.io": {"pod": {"uid": "u1"}}});
        assert_eq!(judged(&one, ("10.0.0.7", None)), Ok(()));
    }

    #[test]
    fn what_can_only_be_refused_is_refused_from_memory() {
        let changed = |key: &str, value: Value| {
            let mut payload = said("u1");
            payload[key] = value;
            payload
        };
        let own = ("10.0.0.7", Some("u1"));
        let cases = [
            (changed("aud", json!(["https://kubernetes.default.svc"])), own, Reason::TokenRejected),
            (changed("aud", json!([])), own, Reason::TokenRejected),
            (changed("exp", json!(NOW - 61)), own, Reason::TokenRejected),
            (changed("exp", Value::Null), own, Reason::TokenRejected),
            (changed("kubernetes.io", json!({"namespace": "shop"})), own, Reason::TokenRejected),
            (json!("text"), own, Reason::TokenRejected),
            (said("unknown"), own, Reason::PodMismatch),
            (said("u1"), ("10.0.0.9", Some("u9")), Reason::PodMismatch),
            (said("bare"), own, Reason::PodNotMeshed),
        ];
        for (payload, source, want) in cases {
            let refused = judged(&payload, source).unwrap_err();
            assert_eq!(refused.0, want, "{payload}: {}", refused.1);
        }
        let source = Source { ip: "10.0.0.7".parse().unwrap(), pod_uid: None };
        for garbage in ["garbage", "", "a.b.c", "a.b", "e30.e30.x.y", "e30.é.x"] {
            let refused = judge(garbage, &source, NOW, &|_| None).unwrap_err();
            assert_eq!(refused.reason, Reason::TokenRejected, "{garbage}");
        }
    }
}
