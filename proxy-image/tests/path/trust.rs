//! A trust bundle that loses a root: whom it does not vouch for any more is cut, on either side, and nobody else.

use crate::mesh::*;
use crate::web::*;
use cinch_identity::{TrustBundle, TrustDomain, Usage};
use cinch_policy::Mode;
use cinch_proxy::context::Credentials;
use cinch_proxy::proofs::Proofs;
use serde_json::json;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::sync::watch;

const OTHER: &str = "spiffe://cluster.local/ns/shop/sa/other";
const OTHER_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 3, 1);
const CUT_INBOUND: &str = "connections_cut_total{direction=\"inbound\",reason=\"CertificateUntrusted\"}";
const CUT_OUTBOUND: &str = "connections_cut_total{direction=\"outbound\",reason=\"CertificateUntrusted\"}";

/// Two authorities of one trust domain, as in the middle of a rotation.
struct Rotation {
    old: Authority,
    new: Authority,
}

impl Rotation {
    fn begin() -> Rotation {
        Rotation { old: Authority::new(), new: Authority::new() }
    }

    fn both(&self) -> TrustBundle {
        let roots = [&self.old, &self.new].map(|authority| authority.bundle().roots()[0].clone());
        TrustBundle::from_roots(TrustDomain::parse("cluster.local").unwrap(), roots.to_vec()).unwrap()
    }
}

fn replace(pod: &Pod, credentials: Credentials, bundle_version: u64) {
    pod.credentials.send_replace(Some(Arc::new(Credentials { bundle_version, ..credentials })));
}

async fn talks(stream: &mut TcpStream, words: &[u8]) {
    assert_eq!(exchange(stream, words).await.unwrap(), words);
}

/// Web under the old root and another client under the new one; both trust api, and api trusts both.
async fn two_clients(rotation: &Rotation) -> (Pod, Pod, Pod) {
    let web = Pod::start(WEB_IP, rotation.old.credentials(WEB, 3600, rotation.both()), Mode::Strict).await;
    let other =
        Pod::start(OTHER_IP, rotation.new.credentials(OTHER, 3600, rotation.both()), Mode::Strict).await;
    let api = Pod::start(API_IP, rotation.new.credentials(API, 3600, rotation.both()), Mode::Strict).await;
    for client in [&web, &other] {
        client.told.say(SERVICE, one_of(vec![endpoint(api.inbound, API)]));
    }
    (web, other, api)
}

#[tokio::test]
async fn a_server_cuts_the_clients_under_a_root_that_is_gone_and_no_others() {
    let rotation = Rotation::begin();
    let (web, other, api) = two_clients(&rotation).await;
    api.set_app(echo(API_IP).await);
    let (mut of_web, mut of_other) = (web.dial(SERVICE).await, other.dial(SERVICE).await);
    talks(&mut of_web, b"old").await;
    talks(&mut of_other, b"new").await;
    replace(&api, rotation.new.good(API), 2);
    assert_reset(&mut of_web).await;
    assert_eq!(api.metric(CUT_INBOUND), Some(1));
    eventually("the access log tells of it", || api.log.text().contains("CertificateUntrusted")).await;
    let told = api.log.lines().into_iter().find(|line| line["reason"] == "CertificateUntrusted").unwrap();
    assert_eq!(told["response_flags"], "LR", "{told}");
    talks(&mut of_other, b"still").await;
    assert_refuses(&mut web.dial(SERVICE).await, b"again").await;
    // With a certificate of the new root it may come again.
    replace(&web, Credentials { generation: 2, ..rotation.new.credentials(WEB, 3600, rotation.both()) }, 1);
    talks(&mut web.dial(SERVICE).await, b"renewed").await;
}

#[tokio::test]
async fn a_client_cuts_its_connections_to_servers_under_a_root_that_is_gone_and_no_others() {
    let rotation = Rotation::begin();
    let client = rotation.new.credentials(WEB, 3600, rotation.both());
    let web = Pod::start(WEB_IP, client, Mode::Strict).await;
    let old = Pod::start(API_IP, rotation.old.credentials(API, 3600, rotation.both()), Mode::Strict).await;
    let new = Pod::start(OTHER_IP, rotation.new.credentials(API, 3600, rotation.both()), Mode::Strict).await;
    let mut open = Vec::new();
    for (api, ip) in [(&old, API_IP), (&new, OTHER_IP)] {
        api.set_app(echo(ip).await);
        web.told.say(SERVICE, one_of(vec![endpoint(api.inbound, API)]));
        open.push(web.dial(SERVICE).await);
        talks(open.last_mut().unwrap(), b"words").await;
    }
    replace(&web, rotation.new.good(WEB), 2);
    assert_reset(&mut open[0]).await;
    assert_eq!(web.metric(CUT_OUTBOUND), Some(1));
    talks(&mut open[1], b"still").await;
    assert_eq!((old.metric(CUT_INBOUND), new.metric(CUT_INBOUND)), (None, None), "they trust both roots");
    eventually("its tunnel is closed", || web.metric("tunnels_open{direction=\"outbound\"}") == Some(1))
        .await;
}

#[tokio::test]
async fn a_connection_that_is_read_as_http_is_cut_too_between_requests_and_within_one() {
    let rotation = Rotation::begin();
    let (web, other, api) = two_clients(&rotation).await;
    let heard = crate::web::web(&api).await;
    let rule = json!({"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["PUT"]}}]}]});
    put(&api, 2, &[("shop/http", rule)]).await;
    let client = async |pod: &Pod| Client(BufReader::new(pod.dial(SERVICE).await));
    let (mut idle, mut busy, mut trusted) = (client(&web).await, client(&web).await, client(&other).await);
    assert_eq!(idle.ask("GET /idle").await.status, 200);
    assert_eq!(trusted.ask("GET /trusted").await.status, 200);
    busy.send("GET /poll HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    eventually("all are on their way", || heard.lock().unwrap().len() == 3).await;
    replace(&api, rotation.new.good(API), 2);
    for mut cut in [idle, busy] {
        assert_eq!(cut.rest().await, (Vec::new(), Some(ErrorKind::ConnectionReset)));
    }
    assert_eq!(api.metric(CUT_INBOUND), Some(2));
    assert_eq!(trusted.ask("GET /still").await.status, 200);
}

#[tokio::test]
async fn a_root_that_comes_and_a_renewal_cut_nobody() {
    let rotation = Rotation::begin();
    let (old, both) = (&rotation.old, rotation.both());
    let web = Pod::start(WEB_IP, old.good(WEB), Mode::Strict).await;
    let api = Pod::start(API_IP, old.good(API), Mode::Strict).await;
    web.told.say(SERVICE, one_of(vec![endpoint(api.inbound, API)]));
    api.set_app(echo(API_IP).await);
    let mut open = web.dial(SERVICE).await;
    talks(&mut open, b"before").await;
    for (pod, id) in [(&web, WEB), (&api, API)] {
        replace(pod, old.credentials(id, 3600, both.clone()), 2);
        talks(&mut open, b"both roots").await;
        replace(pod, Credentials { generation: 2, ..rotation.new.credentials(id, 3600, both.clone()) }, 2);
        talks(&mut open, b"renewed").await;
    }
    // Only once the old root goes does the old tunnel.
    replace(&web, Credentials { generation: 2, ..rotation.new.good(WEB) }, 3);
    assert_reset(&mut open).await;
}

#[tokio::test]
async fn an_idle_tunnel_of_an_untrusted_peer_takes_no_further_stream() {
    let rotation = Rotation::begin();
    let (web, other, api) = two_clients(&rotation).await;
    api.set_app(echo(API_IP).await);
    for client in [&web, &other] {
        talks(&mut client.dial(SERVICE).await, b"first").await;
        eventually("it is idle", || client.metric("tunnels_idle ") == Some(1)).await;
    }
    // Under the same version, so that nothing but the proof stands against the next stream.
    replace(&api, rotation.new.good(API), 1);
    pass(Duration::from_millis(100)).await;
    assert_refuses(&mut web.dial(SERVICE).await, b"second").await;
    talks(&mut other.dial(SERVICE).await, b"second").await;
    assert_eq!(other.metric("tunnels_reused_total"), Some(1));
}

#[tokio::test]
async fn a_handshake_that_was_under_way_is_judged_by_the_bundle_that_came_meanwhile() {
    let rotation = Rotation::begin();
    let chain = rotation.old.svid(WEB, 3600).chain().to_vec();
    for (bundle, is_lost) in
        [(rotation.old.bundle(), false), (rotation.both(), false), (rotation.new.bundle(), true)]
    {
        let current = rotation.new.credentials(API, 3600, bundle);
        let (_sender, credentials) = watch::channel(Some(Arc::new(current)));
        let proof = Proofs::new(credentials).hold(chain.clone(), Usage::Client, &rotation.old.bundle());
        assert_eq!(proof.unwrap().is_lost(), is_lost);
    }
}
