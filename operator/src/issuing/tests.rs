//! Issuing against a cluster of constants.

use super::*;
use crate::ca::tests::authority;
use crate::index::PodInfo;
use cinch_identity::{KeyPair, TrustDomain, peer_id};
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use k8s_openapi::api::core::v1::Namespace;
use rustls_pki_types::CertificateDer;
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};

const IMAGE: &str = "example.test/cinch-proxy:0.1.0";
pub(crate) const POD_IP: &str = "127.0.0.1";

/// Accepts tokens with the seal `good` for the pod `shop/api-1` (UID `u1`).
#[derive(Default)]
pub(crate) struct FakeCluster {
    pub(crate) warnings: AtomicUsize,
    pub(crate) reviews: AtomicUsize,
    pub(crate) unenrolled: bool,
    pub(crate) down: bool,
}

impl Cluster for FakeCluster {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, anyhow::Result<TokenReviewStatus>> {
        let status = json!({"authenticated": token.ends_with(".good"), "audiences": ["cinch.dev"], "user": {
            "username": "system:serviceaccount:shop:api",
            "extra": {"authentication.kubernetes.io/pod-name": ["api-1"],
                      "authentication.kubernetes.io/pod-uid": ["u1"],
                      "authentication.kubernetes.io/node-name": ["n1"]}}});
        let down = self.down;
        self.reviews.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if down {
                anyhow::bail!("down");
            }
            Ok(serde_json::from_value(status).unwrap())
        })
    }

    fn pod<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, anyhow::Result<Option<Pod>>> {
        let pod = json!({"metadata": {"name": "api-1", "namespace": "shop", "uid": "u1"},
            "spec": {"serviceAccountName": "api", "nodeName": "n1", "containers": [],
                "initContainers": crate::index::sidecar::containers(IMAGE)},
            "status": {"podIPs": [{"ip": POD_IP}]}});
        Box::pin(async move { Ok(Some(serde_json::from_value(pod).unwrap())) })
    }

    fn namespace<'a>(&'a self, name: &'a str) -> BoxFuture<'a, anyhow::Result<Option<Namespace>>> {
        let value = if self.unenrolled { "no" } else { "enabled" };
        let namespace = json!({"metadata": {"name": name, "labels": {"cinch.dev/mesh": value}}});
        Box::pin(async move { Ok(Some(serde_json::from_value(namespace).unwrap())) })
    }

    fn warn<'a>(&'a self, _: &'a Pod, _: &'a str, _: String) -> BoxFuture<'a, ()> {
        self.warnings.fetch_add(1, Ordering::SeqCst);
        Box::pin(async {})
    }
}

pub(crate) fn issuing(cluster: Arc<FakeCluster>, authority: CertificateAuthority) -> Issuing {
    let rules = Rules {
        trust_domain: TrustDomain::parse("cluster.local").unwrap(),
        operator: SpiffeId::parse("spiffe://cluster.local/ns/cinch-system/sa/cinch-operator").unwrap(),
        sidecar: crate::index::sidecar::ours(IMAGE),
    };
    Issuing::new(cluster, authority, rules, Metrics::new())
}

fn fresh(cluster: FakeCluster) -> (Arc<FakeCluster>, Issuing) {
    let cluster = Arc::new(cluster);
    (Arc::clone(&cluster), issuing(cluster, authority(Duration::from_secs(3600))))
}

/// A token of pod `uid`; the cluster accepts those with the seal `good`.
pub(crate) fn token(uid: &str, seal: &str) -> String {
    let bound = json!({"namespace": "shop", "pod": {"name": "api-1", "uid": uid}});
    unproved::token(&json!({"aud": ["cinch.dev"], "exp": 4_000_000_000u64, "kubernetes.io": bound}), seal)
}

fn request(seal: &str) -> v1::FirstCertificate {
    let csr = KeyPair::generate().unwrap().csr().unwrap();
    v1::FirstCertificate { token: token("u1", seal), csr: csr.into() }
}

fn pods(uid: &str) -> Option<Arc<PodInfo>> {
    (uid == "u1").then(|| Arc::new(crate::control::pod("u1", "api", &[POD_IP])))
}

fn source() -> Source {
    Source { ip: POD_IP.parse().unwrap(), pod_uid: None }
}

#[tokio::test]
async fn a_good_token_gets_a_certificate_of_its_account_to_be_renewed_at_half_life() {
    let (_, issuing) = fresh(FakeCluster::default());
    let certificate = issuing.first(&request("good"), &source(), &pods).await.unwrap();
    let chain: Vec<_> = certificate.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    assert_eq!(peer_id(Some(&chain)).unwrap().as_str(), "spiffe://cluster.local/ns/shop/sa/api");
    assert!((3_590_000..=3_600_000).contains(&certificate.expires_in_ms), "{}", certificate.expires_in_ms);
    assert!((1_600_000..=2_000_000).contains(&certificate.renew_in_ms), "{}", certificate.renew_in_ms);
    assert_eq!(certificate.trust_bundle.unwrap().roots.len(), 1);
}

/// A request for the right to sign, in the name of somebody else.
fn ambitious() -> Vec<u8> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let uri = "spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

#[tokio::test]
async fn refusals_carry_their_reason_and_one_event() {
    let (cluster, issuing) = fresh(FakeCluster { unenrolled: true, ..FakeCluster::default() });
    for _ in 0..3 {
        let refusal = issuing.first(&request("good"), &source(), &pods).await.unwrap_err();
        assert_eq!(refusal.reason, Reason::PodNotMeshed);
    }
    assert_eq!(cluster.warnings.load(Ordering::SeqCst), 1);
    let refusal = issuing.first(&request("bad"), &source(), &pods).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::TokenRejected);
    for csr in [vec![1, 2, 3], ambitious()] {
        let garbage = v1::FirstCertificate { token: token("u1", "good"), csr: csr.into() };
        assert_eq!(issuing.first(&garbage, &source(), &pods).await.unwrap_err().reason, Reason::CsrInvalid);
    }
    assert_eq!(cluster.warnings.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_pod_that_asks_too_often_is_told_when_to_come_back() {
    let (_, issuing) = fresh(FakeCluster::default());
    for _ in 0..5 {
        issuing.first(&request("good"), &source(), &pods).await.unwrap();
    }
    let refusal = issuing.first(&request("good"), &source(), &pods).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::IssueRateLimited);
    assert!(refusal.message().retry_after_ms > 1000);
}

#[tokio::test]
async fn an_api_server_that_is_down_is_no_verdict_on_the_pod() {
    let (_, issuing) = fresh(FakeCluster { down: true, ..FakeCluster::default() });
    let refusal = issuing.first(&request("good"), &source(), &pods).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::Overloaded);
    assert!(!refusal.detail.contains("down"));
}

#[tokio::test]
async fn who_can_only_be_refused_costs_no_question_to_the_api_server() {
    let (cluster, issuing) = fresh(FakeCluster::default());
    let csr = KeyPair::generate().unwrap().csr().unwrap();
    let foreign = Source { ip: "10.0.0.9".parse().unwrap(), pod_uid: Some("u9".to_owned()) };
    for (token, source, want) in [
        ("garbage".to_owned(), source(), Reason::TokenRejected),
        (token("nobody", "good"), source(), Reason::PodMismatch),
        (token("u1", "good"), foreign, Reason::PodMismatch),
    ] {
        let request = v1::FirstCertificate { token, csr: csr.clone().into() };
        assert_eq!(issuing.first(&request, &source, &pods).await.unwrap_err().reason, want);
    }
    assert_eq!(cluster.reviews.load(Ordering::SeqCst), 0);
    issuing.first(&request("good"), &source(), &pods).await.unwrap();
    assert_eq!(cluster.reviews.load(Ordering::SeqCst), 1);
}
