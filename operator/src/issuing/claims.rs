//! Who asks: the answer of a TokenReview and the live objects go in, the identity or a reason comes out. Pure.

use super::Refusal;
use crate::index::sidecar::{Ours, is_injected};
use cinch_identity::{SpiffeId, TrustDomain};
use cinch_reason::Reason;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The audience of the sidecar's token, and of nothing else.
pub const AUDIENCE: &str = "cinch.dev";

/// What the API server says about a token that is bound to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Of the service account and the pod.
    pub namespace: String,
    /// Name of the service account.
    pub service_account: String,
    /// Name of the pod that the token is bound to.
    pub pod_name: String,
    /// Its UID.
    pub pod_uid: String,
    /// The node that the kubelet asked from.
    pub node: String,
}

impl Claims {
    /// Reads the answer of a TokenReview for [`AUDIENCE`] (KEP-3257, KEP-4193 for the node).
    ///
    /// # Errors
    /// [`Reason::TokenRejected`] when the token is not accepted, not for our audience, or not bound to a pod
    /// on a node.
    pub fn of(status: &TokenReviewStatus) -> Result<Self, Refusal> {
        let reject = |detail: &str| Refusal::new(Reason::TokenRejected, detail);
        if status.authenticated != Some(true) {
            return Err(reject(status.error.as_deref().unwrap_or("not authenticated")));
        }
        // An API server that does not know audiences answers without any: that is no consent.
        if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
            return Err(reject("the token is not for the audience cinch.dev"));
        }
        let user = status.user.as_ref().ok_or_else(|| reject("the review names no user"))?;
        let account = user.username.as_deref().and_then(|name| name.strip_prefix("system:serviceaccount:"));
        let (namespace, service_account) =
            account.and_then(|names| names.split_once(':')).ok_or_else(|| reject("no service account"))?;
        let extra = user.extra.as_ref().ok_or_else(|| reject("the token is not bound to a pod"))?;
        let claim = |name: &str| {
            single(extra, &format!("authentication.kubernetes.io/{name}"))
                .ok_or_else(|| reject(&format!("the token does not name exactly one {name}")))
        };
        Ok(Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod_name: claim("pod-name")?,
            pod_uid: claim("pod-uid")?,
            node: claim("node-name")?,
        })
    }
}

fn single(extra: &BTreeMap<String, Vec<String>>, key: &str) -> Option<String> {
    match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.clone()),
        _ => None,
    }
}

/// What an installation allows.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The trust domain of identities.
    pub trust_domain: TrustDomain,
    /// The operator's own identity, and by its namespace all of Cinch's own.
    pub operator: SpiffeId,
    /// By which our sidecar is known.
    pub sidecar: Ours,
}

/// Where a request came from, as far as it can be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The peer's address.
    pub ip: IpAddr,
    /// UID of the pod that holds the address by the index, if any: behind a translated address there is none.
    pub pod_uid: Option<String>,
}

impl Rules {
    /// The identity of the pod that `claims` speak of, if the live objects agree with them.
    ///
    /// # Errors
    /// [`Reason::PodMismatch`], [`Reason::PodNotMeshed`] or [`Reason::OperatorIdentity`].
    pub fn identity(
        &self,
        claims: &Claims,
        source: &Source,
        pod: &Pod,
        namespace: &Namespace,
    ) -> Result<SpiffeId, Refusal> {
        agree(claims, source, pod).map_err(|detail| Refusal::new(Reason::PodMismatch, detail))?;
        let labels = namespace.metadata.labels.as_ref();
        if labels.and_then(|labels| labels.get("cinch.dev/mesh")).map(String::as_str) != Some("enabled") {
            return Err(Refusal::new(Reason::PodNotMeshed, "the namespace is not enrolled"));
        }
        if !pod.spec.as_ref().is_some_and(|spec| is_injected(spec, &self.sidecar)) {
            return Err(Refusal::new(
                Reason::PodNotMeshed,
                "the pod does not have the sidecar in first place",
            ));
        }
        let id = SpiffeId::workload(&self.trust_domain, &claims.namespace, &claims.service_account)
            .map_err(|error| Refusal::new(Reason::PodMismatch, &error.to_string()))?;
        if id == self.operator || Some(claims.namespace.as_str()) == self.operator.namespace() {
            return Err(Refusal::new(Reason::OperatorIdentity, "the namespace is Cinch's own"));
        }
        Ok(id)
    }
}

/// Whether the live pod is the one that the token was made for, and the source its own.
fn agree(claims: &Claims, source: &Source, pod: &Pod) -> Result<(), &'static str> {
    let spec = pod.spec.as_ref().ok_or("the pod has no spec")?;
    let status = pod.status.as_ref();
    if pod.metadata.uid.as_deref() != Some(claims.pod_uid.as_str()) {
        return Err("another pod has that name now");
    }
    if pod.metadata.namespace.as_deref() != Some(claims.namespace.as_str()) {
        return Err("the pod is in another namespace");
    }
    if spec.service_account_name.as_deref() != Some(claims.service_account.as_str()) {
        return Err("the pod has another service account");
    }
    if spec.node_name.as_deref() != Some(claims.node.as_str()) {
        return Err("the pod is on another node");
    }
    let phase = status.and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return Err("the pod has ended");
    }
    let ip = source.ip.to_canonical();
    let mut own = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
    let is_own = own.any(|own| own.ip.parse::<IpAddr>().is_ok_and(|own| own.to_canonical() == ip));
    let foreign = source.pod_uid.as_ref().is_some_and(|uid| *uid != claims.pod_uid);
    if !is_own && foreign {
        return Err("the request came from another pod");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const IMAGE: &str = "example.test/cinch-proxy:0.1.0";

    fn review() -> Value {
        json!({"authenticated": true, "audiences": ["cinch.dev"], "user": {
            "username": "system:serviceaccount:shop:api",
            "extra": {"authentication.kubernetes.io/pod-name": ["api-1"],
                      "authentication.kubernetes.io/pod-uid": ["u1"],
                      "authentication.kubernetes.io/node-name": ["n1"]}}})
    }

    fn claims() -> Claims {
        Claims::of(&serde_json::from_value(review()).unwrap()).unwrap()
    }

    fn pod() -> Value {
        json!({"metadata": {"name": "api-1", "namespace": "shop", "uid": "u1"},
            "spec": {"serviceAccountName": "api", "nodeName": "n1", "containers": [],
                "initContainers": crate::index::sidecar::containers(IMAGE)},
            "status": {"phase": "Pending", "podIPs": [{"ip": "10.0.0.7"}]}})
    }

    fn rules() -> Rules {
        Rules {
            trust_domain: TrustDomain::parse("cluster.local").unwrap(),
            operator: SpiffeId::parse("spiffe://cluster.local/ns/cinch-system/sa/cinch-operator").unwrap(),
            sidecar: crate::index::sidecar::ours(IMAGE),
        }
    }

    fn judge(
        claims: &Claims,
        source: (&str, Option<&str>),
        pod: Value,
        labels: Value,
    ) -> Result<SpiffeId, Reason> {
        let source = Source { ip: source.0.parse().unwrap(), pod_uid: source.1.map(str::to_owned) };
        let namespace = json!({"metadata": {"name": "shop", "labels": labels}});
        let (pod, namespace) =
            (serde_json::from_value(pod).unwrap(), serde_json::from_value(namespace).unwrap());
        rules().identity(claims, &source, &pod, &namespace).map_err(|refusal| refusal.reason)
    }

    fn changed(mut value: Value, pointer: &str, to: Value) -> Value {
        *value.pointer_mut(pointer).unwrap() = to;
        value
    }

    #[test]
    fn a_review_without_everything_is_rejected() {
        let bound = "/user/extra/authentication.kubernetes.io~1";
        let cases = [
            ("/authenticated", json!(false)),
            ("/audiences", json!([])),
            ("/audiences", Value::Null),
            ("/audiences", json!(["https://kubernetes.default.svc"])),
            ("/user/username", json!("system:node:n1")),
            ("/user/username", json!("system:serviceaccount:shop")),
            ("/user/extra", json!({})),
            (&format!("{bound}pod-uid"), json!([])),
            (&format!("{bound}pod-uid"), json!(["u1", "u2"])),
            (&format!("{bound}pod-name"), json!([""])),
            (&format!("{bound}node-name"), json!([])),
        ];
        for (pointer, to) in cases {
            let status = serde_json::from_value(changed(review(), pointer, to.clone())).unwrap();
            assert_eq!(Claims::of(&status).unwrap_err().reason, Reason::TokenRejected, "{pointer} {to}");
        }
    }

    #[test]
    fn a_live_pod_that_agrees_gets_its_identity() {
        let enrolled = json!({"cinch.dev/mesh": "enabled"});
        for source in
            [("10.0.0.7", Some("u1")), ("10.0.0.7", None), ("192.168.0.1", None), ("10.0.0.7", Some("gone"))]
        {
            let id = judge(&claims(), source, pod(), enrolled.clone()).unwrap();
            assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/api");
        }
    }

    #[test]
    fn a_proxy_of_an_earlier_version_that_restarts_gets_its_identity() {
        let earlier = changed(pod(), "/spec/initContainers/1/image", json!("example.test/cinch-proxy:0.0.9"));
        let id = judge(&claims(), ("10.0.0.7", None), earlier, json!({"cinch.dev/mesh": "enabled"})).unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/api");
    }

    #[test]
    fn a_live_pod_that_does_not_agree_gets_nothing() {
        let enrolled = json!({"cinch.dev/mesh": "enabled"});
        let cases = [
            ("/metadata/uid", json!("u2"), Reason::PodMismatch),
            ("/metadata/namespace", json!("other"), Reason::PodMismatch),
            ("/spec/serviceAccountName", json!("web"), Reason::PodMismatch),
            ("/spec/nodeName", json!("n2"), Reason::PodMismatch),
            ("/status/phase", json!("Failed"), Reason::PodMismatch),
            ("/spec/initContainers", json!([]), Reason::PodNotMeshed),
            ("/spec/initContainers/1/image", json!("evil/cinch-proxy:1"), Reason::PodNotMeshed),
            ("/spec/initContainers/1/image", json!("example.test/x:0.1.0"), Reason::PodNotMeshed),
            ("/spec/initContainers/0/name", json!("first"), Reason::PodNotMeshed),
            ("/spec/initContainers/0/args", json!(["version"]), Reason::PodNotMeshed),
        ];
        for (pointer, to, reason) in cases {
            let pod = changed(pod(), pointer, to.clone());
            assert_eq!(
                judge(&claims(), ("10.0.0.7", None), pod, enrolled.clone()),
                Err(reason),
                "{pointer} {to}"
            );
        }
        let foreign = judge(&claims(), ("10.0.0.9", Some("u9")), pod(), enrolled);
        assert_eq!(foreign, Err(Reason::PodMismatch));
        for labels in [json!({}), json!({"cinch.dev/mesh": "disabled"})] {
            let outside = judge(&claims(), ("10.0.0.7", None), pod(), labels);
            assert_eq!(outside, Err(Reason::PodNotMeshed));
        }
    }

    #[test]
    fn the_namespace_of_cinch_itself_gets_nothing() {
        let claims = Claims {
            namespace: "cinch-system".to_owned(),
            service_account: "cinch-operator".to_owned(),
            ..claims()
        };
        let pod = changed(pod(), "/metadata/namespace", json!("cinch-system"));
        let pod = changed(pod, "/spec/serviceAccountName", json!("cinch-operator"));
        let enrolled = json!({"cinch.dev/mesh": "enabled"});
        assert_eq!(judge(&claims, ("10.0.0.7", None), pod, enrolled), Err(Reason::OperatorIdentity));
    }
}
