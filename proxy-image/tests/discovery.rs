//! The record cache: bounded, patient for one second, and steady while the operator is away.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use cinch_control::v1;
use cinch_identity::SpiffeId;
use cinch_policy::Mode;
use cinch_proxy::context::{Destination, Discovery, Endpoint};
use cinch_proxy::discovery::{Change, DiscoveryMetrics, RecordCache, ip_bytes};
use cinch_proxy::limits::Limits;
use cinch_reason::Reason;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const REFUSED: Destination = Destination::Refuse(Reason::DestinationUnknown);

fn cache(capacity: usize) -> (Arc<RecordCache>, DiscoveryMetrics) {
    let metrics = DiscoveryMetrics::default();
    let limits = Limits { destinations: capacity, ..Limits::default() };
    let cache = RecordCache::new(&limits, metrics.clone());
    cache.set_mesh(&["10.0.0.0/8".parse().unwrap(), "fd00::/16".parse().unwrap()]);
    (Arc::new(cache), metrics)
}

fn at(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

fn address(of: SocketAddr) -> Option<v1::Address> {
    Some(v1::Address { ip: ip_bytes(of.ip()), port: of.port().into() })
}

fn record(of: SocketAddr, identity: &str) -> v1::Record {
    let endpoint = v1::Endpoint {
        address: address(of),
        meshed: true,
        identity: identity.to_owned(),
        mode: v1::Mode::Strict as i32,
        ready: true,
        zone: String::new(),
    };
    v1::Record {
        address: address(of),
        version: 1,
        kind: v1::record::Kind::Endpoints as i32,
        endpoints: vec![endpoint],
        affinity_seconds: 0,
    }
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

#[tokio::test]
async fn outside_the_mesh_everything_passes_without_a_question() {
    let (cache, _) = cache(8);
    let _ = cache.begin_stream();
    for to in ["192.0.2.7:80", "11.0.0.0:80", "9.255.255.255:80", "[2001:db8::1]:80"] {
        assert_eq!(cache.resolve(to.parse().unwrap()).await, Destination::PassThrough, "{to}");
    }
    assert!(tokio::time::timeout(Duration::from_millis(1), cache.changes()).await.is_err());
}

#[tokio::test]
async fn without_an_answer_a_connection_is_refused_after_a_second() {
    let (cache, metrics) = cache(8);
    let mut took = Vec::new();
    // A machine that has much to do may be late; who waits for too long always is.
    while took.len() < 3 && !took.iter().any(|millis| *millis < 1500) {
        let start = Instant::now();
        assert_eq!(cache.resolve(at(took.len() as u8 + 1)).await, REFUSED);
        took.push(start.elapsed().as_millis());
    }
    assert!(
        took.iter().all(|millis| *millis >= 1000) && took.iter().any(|millis| *millis < 1500),
        "{took:?}"
    );
    let times = took.len() as u64;
    assert_eq!((metrics.unanswered.get(), metrics.limits.of("discovery_timeout")), (times, times));
}

#[tokio::test]
async fn before_the_mesh_is_known_even_foreign_addresses_wait() {
    let cache = Arc::new(RecordCache::new(&Limits::default(), DiscoveryMetrics::default()));
    let to: SocketAddr = "192.0.2.7:80".parse().unwrap();
    assert_eq!(cache.resolve(to).await, REFUSED);
    let waiting = tokio::spawn({
        let cache = cache.clone();
        async move { cache.resolve(to).await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    cache.set_mesh(&[]);
    assert!(!waiting.is_finished(), "an empty mesh says nothing");
    cache.set_mesh(&["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(waiting.await.unwrap(), Destination::PassThrough);
}

#[tokio::test]
async fn an_answer_wakes_all_who_wait_and_stays_without_a_stream() {
    let (cache, metrics) = cache(8);
    let _ = cache.begin_stream();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.resolve(at(1)).await })
        })
        .collect();
    assert_eq!(cache.changes().await.unwrap(), [Change::Subscribe(at(1))]);
    cache.set_record(record(at(1), WEB));
    for one in waiting {
        let Destination::Endpoints(endpoints) = one.await.unwrap() else { panic!("no endpoints") };
        assert_eq!(endpoints[0].identity.as_ref().unwrap().as_str(), WEB);
    }
    cache.end_stream();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(matches!(cache.resolve(at(1)).await, Destination::Endpoints(_)));
    assert_eq!(cache.begin_stream(), [at(1)]);
    assert_eq!((metrics.records.get(), metrics.unanswered.get()), (1, 0));
}

#[tokio::test]
async fn the_longest_unused_record_goes_for_a_new_one() {
    let (cache, metrics) = cache(2);
    let _ = cache.begin_stream();
    for last in [1, 2, 1, 3] {
        let asked = cache.resolve(at(last));
        tokio::pin!(asked);
        if futures::poll!(asked.as_mut()).is_pending() {
            cache.set_record(record(at(last), WEB));
            asked.await;
        }
    }
    let expected = [1, 2].map(|last| Change::Subscribe(at(last))).into_iter();
    let expected: Vec<_> = expected.chain([Change::Unsubscribe(at(2)), Change::Subscribe(at(3))]).collect();
    assert_eq!(cache.changes().await.unwrap(), expected);
    assert_eq!((metrics.evictions.get(), metrics.records.get()), (1, 2));
    assert_eq!(metrics.limits.of("destinations"), 1);
}

#[tokio::test]
async fn a_forgotten_record_is_asked_for_again() {
    let (cache, _) = cache(8);
    let _ = cache.begin_stream();
    assert_eq!(cache.resolve(at(1)).await, REFUSED);
    cache.set_record(record(at(1), WEB));
    let _ = cache.changes().await;
    cache.forget(at(1), &web(1));
    assert_eq!(cache.changes().await.unwrap(), [Change::Unsubscribe(at(1)), Change::Subscribe(at(1))]);
    assert_eq!(cache.resolve(at(1)).await, REFUSED);
}

/// What [`record`] says of `at(last)`.
fn web(last: u8) -> Endpoint {
    let identity = SpiffeId::parse(WEB).ok();
    Endpoint { address: at(last), meshed: true, identity, mode: Mode::Strict, ready: true }
}

/// Where the next connection to `to` may go.
async fn goes_to(cache: &RecordCache, to: SocketAddr) -> Vec<SocketAddr> {
    match cache.resolve(to).await {
        Destination::Endpoints(endpoints) => endpoints.iter().map(|endpoint| endpoint.address).collect(),
        Destination::Refuse(Reason::PeerIdentityMismatch) => Vec::new(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn one_endpoint_that_was_wrong_leaves_the_others_in_force() {
    let (cache, _) = cache(8);
    let _ = cache.begin_stream();
    assert_eq!(cache.resolve(at(1)).await, REFUSED);
    cache.set_record(behind(at(1), &[5, 6, 7]));
    let _ = cache.changes().await;
    cache.forget(at(1), &web(6));
    assert_eq!(cache.changes().await.unwrap(), [Change::Unsubscribe(at(1)), Change::Subscribe(at(1))]);
    assert_eq!(goes_to(&cache, at(1)).await, [at(5), at(7)]);
    assert_eq!(leads_to(&cache), [5, 7]);
    // Others who found the same out meanwhile ask no more for it.
    cache.forget(at(1), &web(6));
    assert!(tokio::time::timeout(Duration::from_millis(1), cache.changes()).await.is_err());
}

#[tokio::test]
async fn an_answer_that_says_the_same_of_an_endpoint_that_was_wrong_is_not_believed() {
    let (cache, _) = cache(8);
    assert_eq!(cache.resolve(at(1)).await, REFUSED);
    cache.set_record(behind(at(1), &[5, 6]));
    cache.forget(at(1), &web(6));
    cache.set_record(behind(at(1), &[5, 6, 7]));
    assert_eq!(goes_to(&cache, at(1)).await, [at(5), at(7)]);
    // Nothing else is left: nobody waits for what has been answered.
    cache.set_record(behind(at(1), &[6]));
    assert_eq!(goes_to(&cache, at(1)).await, []);
    assert!(leads_to(&cache).is_empty());
}

#[tokio::test]
async fn an_endpoint_that_was_wrong_counts_again_once_the_operator_has_said_otherwise() {
    let (cache, _) = cache(8);
    for to in [1, 2] {
        assert_eq!(cache.resolve(at(to)).await, REFUSED);
    }
    let mut other = behind(at(1), &[5, 6]);
    other.endpoints[1].identity = WEB.replace("web", "other");
    for between in [other, behind(at(1), &[5])] {
        cache.set_record(behind(at(1), &[5, 6]));
        cache.set_record(behind(at(2), &[6, 7]));
        cache.forget(at(1), &web(6));
        cache.forget(at(2), &web(6));
        assert_eq!(goes_to(&cache, at(2)).await, [at(7)], "each address finds it out for itself");
        let all = between.endpoints.iter().filter_map(|endpoint| endpoint.address.clone()).count();
        cache.set_record(between);
        assert_eq!(goes_to(&cache, at(1)).await.len(), all, "another identity is another peer");
        cache.set_record(behind(at(1), &[5, 6]));
        assert_eq!(goes_to(&cache, at(1)).await, [at(5), at(6)]);
    }
}

#[tokio::test]
async fn endpoints_outside_of_the_mesh_alone_are_not_left_over() {
    let (cache, _) = cache(8);
    let _ = cache.begin_stream();
    assert_eq!(cache.resolve(at(1)).await, REFUSED);
    let mut mixed = behind(at(1), &[5, 6]);
    mixed.endpoints[1].meshed = false;
    cache.set_record(mixed);
    cache.forget(at(1), &web(5));
    assert_eq!(cache.resolve(at(1)).await, REFUSED);
    assert!(leads_to(&cache).is_empty());
}

fn leads_to(cache: &RecordCache) -> Vec<u8> {
    (0..=9).filter(|last| cache.leads_to(at(*last))).collect()
}

/// A record of `of` with endpoints at these addresses.
fn behind(of: SocketAddr, endpoints: &[u8]) -> v1::Record {
    let endpoint = |last: &u8| record(at(*last), WEB).endpoints.remove(0);
    v1::Record { endpoints: endpoints.iter().map(endpoint).collect(), ..record(of, WEB) }
}

#[tokio::test]
async fn an_endpoint_is_of_use_while_any_record_leads_to_it() {
    let (cache, _) = cache(2);
    let _ = cache.begin_stream();
    for last in [1, 2] {
        assert_eq!(cache.resolve(at(last)).await, REFUSED);
    }
    assert!(leads_to(&cache).is_empty());
    cache.set_record(behind(at(1), &[5, 6]));
    cache.set_record(behind(at(2), &[6, 7]));
    assert_eq!(leads_to(&cache), [5, 6, 7]);
    cache.set_record(behind(at(1), &[5]));
    assert_eq!(leads_to(&cache), [5, 6, 7], "the other record leads to it still");
    cache.set_record(behind(at(2), &[7]));
    assert_eq!(leads_to(&cache), [5, 7]);
    // The operator is away: what was said holds.
    cache.end_stream();
    assert_eq!(leads_to(&cache), [5, 7]);
    cache.forget(at(1), &web(5));
    assert_eq!(leads_to(&cache), [7]);
    cache.set_record(v1::Record { kind: v1::record::Kind::Unknown as i32, ..behind(at(2), &[7]) });
    assert!(leads_to(&cache).is_empty());
    cache.set_record(behind(at(2), &[7]));
    // Others take the places of both.
    for last in [3, 4] {
        let asked = cache.resolve(at(last));
        tokio::pin!(asked);
        let _ = futures::poll!(asked.as_mut());
    }
    assert!(leads_to(&cache).is_empty());
}

#[tokio::test]
async fn affinity_travels_with_the_record() {
    let (cache, _) = cache(8);
    assert_eq!(cache.resolve(at(1)).await, REFUSED);
    cache.set_record(v1::Record { affinity_seconds: 60, ..record(at(1), WEB) });
    let Destination::Sticky(endpoints, within) = cache.resolve(at(1)).await else { panic!("no affinity") };
    assert_eq!((endpoints.len(), within), (1, Duration::from_secs(60)));
    cache.set_record(v1::Record { affinity_seconds: 60, endpoints: Vec::new(), ..record(at(1), WEB) });
    assert!(matches!(cache.resolve(at(1)).await, Destination::Sticky(endpoints, _) if endpoints.is_empty()));
}

#[tokio::test]
async fn a_stream_that_does_not_fetch_must_begin_anew() {
    let (cache, _) = cache(2);
    let _ = cache.begin_stream();
    for last in 0..20 {
        let asked = cache.resolve(at(last));
        tokio::pin!(asked);
        let _ = futures::poll!(asked.as_mut());
    }
    assert_eq!(cache.changes().await, None);
    assert_eq!(cache.begin_stream().len(), 2);
}

#[tokio::test]
async fn endpoints_that_cannot_be_dialled_safely_are_left_out() {
    let (cache, _) = cache(8);
    assert_eq!(cache.resolve(at(1)).await, REFUSED);
    cache.set_record(record(at(1), "not an identity"));
    assert_eq!(cache.resolve(at(1)).await, REFUSED);
    cache.set_record(record(at(1), ""));
    assert_eq!(cache.resolve(at(1)).await, REFUSED);
    let unknown = v1::Record { kind: v1::record::Kind::Unknown as i32, ..record(at(1), WEB) };
    cache.set_record(unknown);
    assert_eq!(cache.resolve(at(1)).await, Destination::PassThrough);
}
