//! Connections between meshed pods.

use crate::mesh::*;
use cinch_policy::{
    AuthorizationPolicy, Enforcement, MeshConfig, Mode, ObjectName, PolicyObject, Workload, WorkloadPolicies,
};
use cinch_proxy::context::InboundPolicy;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const HANDSHAKES: &str = "tunnel_handshakes_total{direction=\"outbound\",outcome=\"ok\"}";

#[tokio::test]
async fn many_connections_share_one_tunnel() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    for round in 0..20u8 {
        let mut stream = mesh.dial().await;
        assert_eq!(exchange(&mut stream, &[round; 100]).await.unwrap(), [round; 100]);
        stream.shutdown().await.unwrap();
        assert_eq!(to_end(&mut stream).await, (vec![], None));
        eventually("the tunnel is idle", || mesh.web.metric("tunnels_idle ") == Some(1)).await;
    }
    assert_eq!(mesh.web.metric(HANDSHAKES), Some(1));
    assert_eq!(mesh.web.metric("tunnels_reused_total"), Some(19));
    let received = "received_bytes_total{direction=\"inbound\",transport=\"tunnel\"}";
    assert_eq!(mesh.api.metric(received), Some(2000));
    assert_eq!(mesh.api.totals().served, 0, "a tunnel is no plaintext");
}

#[tokio::test]
async fn connections_at_once_have_a_tunnel_each() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    let mut streams = Vec::new();
    for _ in 0..30 {
        streams.push(mesh.dial().await);
    }
    for (stream, tag) in streams.iter_mut().zip(0u8..) {
        assert_eq!(exchange(stream, &[tag; 10]).await.unwrap(), [tag; 10]);
    }
    assert_eq!(mesh.web.metric(HANDSHAKES), Some(30));
    drop(streams);
    eventually("all are idle", || mesh.web.metric("tunnels_idle ") == Some(30)).await;
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let mesh = Mesh::start(Mode::Strict).await;
    // Reads to the end, then answers: needs the client's half-close.
    let counting = app(API_IP, |mut stream| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(all.len().to_string().as_bytes()).await.unwrap();
    });
    mesh.api.set_app(counting.await);
    let mut stream = mesh.dial().await;
    stream.write_all(&[7; 70_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(to_end(&mut stream).await, (b"70000".to_vec(), None));
    // Ends its own direction first and goes on reading.
    let (told, mut heard) = mpsc::unbounded_channel();
    let server_first = app(API_IP, move |mut stream| {
        let told = told.clone();
        async move {
            stream.write_all(b"bye").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            told.send(all).unwrap();
        }
    });
    let mesh = Mesh::start(Mode::Strict).await;
    mesh.api.set_app(server_first.await);
    let mut stream = mesh.dial().await;
    assert_eq!(to_end(&mut stream).await, (b"bye".to_vec(), None));
    stream.write_all(b"still here").await.unwrap();
    drop(stream);
    assert_eq!(within(heard.recv()).await.unwrap(), b"still here");
    eventually("the tunnel is clean", || mesh.web.metric("tunnels_idle ") == Some(1)).await;
    assert_eq!(mesh.web.metric(HANDSHAKES), Some(1));
}

#[tokio::test]
async fn a_reset_on_one_side_is_a_reset_on_the_other_and_the_tunnel_stays() {
    let mesh = Mesh::start(Mode::Strict).await;
    let (told, mut heard) = mpsc::unbounded_channel();
    let half_answer = app(API_IP, move |mut stream| {
        let told = told.clone();
        async move {
            let mut word = [0; 4];
            stream.read_exact(&mut word).await.unwrap();
            if &word == b"half" {
                stream.write_all(b"the first half").await.unwrap();
                pass(Duration::from_millis(50)).await;
                return reset(stream);
            }
            told.send(stream.read(&mut word).await.map_err(|error| error.kind())).unwrap();
        }
    });
    mesh.api.set_app(half_answer.await);
    let mut stream = mesh.dial().await;
    stream.write_all(b"half").await.unwrap();
    let (bytes, end) = to_end(&mut stream).await;
    assert_eq!((bytes, end), (b"the first half".to_vec(), Some(ErrorKind::ConnectionReset)));
    eventually("the tunnel is kept", || mesh.web.metric("tunnels_idle ") == Some(1)).await;

    let mut stream = mesh.dial().await;
    stream.write_all(b"wait").await.unwrap();
    pass(Duration::from_millis(50)).await;
    reset(stream);
    assert_eq!(within(heard.recv()).await.unwrap(), Err(ErrorKind::ConnectionReset));
    eventually("the tunnel is kept", || mesh.web.metric("tunnels_idle ") == Some(1)).await;
    assert_eq!(mesh.web.metric(HANDSHAKES), Some(1));
}

#[tokio::test]
async fn a_broken_tunnel_is_a_reset_on_both_sides() {
    let mesh = Mesh::start(Mode::Strict).await;
    let (told, mut heard) = mpsc::unbounded_channel();
    let waiting = app(API_IP, move |mut stream| {
        let told = told.clone();
        async move {
            let mut bytes = Vec::new();
            let result = stream.read_to_end(&mut bytes).await.map_err(|error| error.kind());
            told.send((bytes, result)).unwrap();
        }
    });
    mesh.api.set_app(waiting.await);
    // The network between them: forwards for a while, then is gone.
    let listener = TcpListener::bind((API_IP, 0)).await.unwrap();
    mesh.web.told.say(SERVICE, one_of(vec![endpoint(listener.local_addr().unwrap(), API)]));
    let target = mesh.api.inbound;
    tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = TcpStream::connect(target).await.unwrap();
        let forward = tokio::io::copy_bidirectional(&mut near, &mut far);
        let _ = tokio::time::timeout(Duration::from_millis(300), forward).await;
    });
    let mut stream = mesh.dial().await;
    assert_refuses(&mut stream, b"words").await;
    let (bytes, end) = within(heard.recv()).await.unwrap();
    assert_eq!((bytes, end), (b"words".to_vec(), Err(ErrorKind::ConnectionReset)));
}

#[tokio::test]
async fn ten_megabytes_both_ways_at_once_arrive_whole() {
    const SIZE: usize = 10 << 20;
    let mesh = Mesh::start(Mode::Strict).await;
    let both = app(API_IP, |stream| async move {
        let (mut read, mut write) = stream.into_split();
        let sending = tokio::spawn(async move {
            write.write_all(&pattern(SIZE, 3)).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut all = Vec::new();
        read.read_to_end(&mut all).await.unwrap();
        assert!(all == pattern(SIZE, 5), "the app got other bytes");
        sending.await.unwrap();
    });
    mesh.api.set_app(both.await);
    let (mut read, mut write) = mesh.dial().await.into_split();
    let sending = tokio::spawn(async move {
        write.write_all(&pattern(SIZE, 5)).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut all = Vec::new();
    tokio::time::timeout(Duration::from_secs(60), read.read_to_end(&mut all)).await.unwrap().unwrap();
    assert!(all == pattern(SIZE, 3), "the client got {} other bytes", all.len());
    sending.await.unwrap();
}

fn pattern(size: usize, step: u32) -> Vec<u8> {
    (0u32..).map(|at| (at.wrapping_mul(step).wrapping_add(at >> 11)) as u8).take(size).collect()
}

#[tokio::test]
async fn an_app_that_speaks_first_is_heard() {
    let mesh = Mesh::start(Mode::Strict).await;
    let greeting = app(API_IP, |mut stream| async move {
        stream.write_all(b"220 ready").await.unwrap();
        let _ = stream.read(&mut [0; 1]).await;
    });
    mesh.api.set_app(greeting.await);
    let mut stream = mesh.dial().await;
    let mut words = [0; 9];
    within(stream.read_exact(&mut words)).await.unwrap();
    assert_eq!(&words, b"220 ready");
}

#[tokio::test]
async fn without_a_listener_the_client_is_reset_and_the_tunnel_stays() {
    let mesh = Mesh::start(Mode::Strict).await;
    let nobody = TcpListener::bind((API_IP, 0)).await.unwrap().local_addr().unwrap();
    mesh.api.set_app(nobody);
    let mut stream = mesh.dial().await;
    assert_refuses(&mut stream, b"anybody?").await;
    eventually("the tunnel is kept", || mesh.web.metric("tunnels_idle ") == Some(1)).await;
    let listener = TcpListener::bind(nobody).await.unwrap();
    let mut now = mesh.dial().await;
    now.write_all(b"now").await.unwrap();
    let (mut app, _) = within(listener.accept()).await.unwrap();
    let mut words = [0; 3];
    within(app.read_exact(&mut words)).await.unwrap();
    assert_eq!(&words, b"now");
    assert_eq!(mesh.web.metric(HANDSHAKES), Some(1));
    assert_eq!(mesh.api.totals().no_listener, 0, "evidence speaks of plaintext only");
}

fn only(principal: &str) -> InboundPolicy {
    let spec = serde_json::json!({
        "action": "ALLOW",
        "rules": [{"from": [{"source": {"principals": [principal]}}]}],
    });
    let name = ObjectName { namespace: "shop".to_owned(), name: "only".to_owned() };
    let object = AuthorizationPolicy::new(name, Enforcement::Enforced, &spec);
    let workload = Workload { namespace: "shop".to_owned(), ..Workload::default() };
    let object = PolicyObject::AuthorizationPolicy(object);
    let policies = WorkloadPolicies::compile(&MeshConfig::default(), [&object], &workload);
    InboundPolicy { policies: Some(Arc::new(policies)), version: 2, ..policy(Mode::Strict) }
}

#[tokio::test]
async fn policy_decides_at_the_open_and_again_when_it_changes() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    mesh.api.policy.send_replace(Some(Arc::new(only("cluster.local/ns/shop/sa/web"))));
    let mut open = mesh.dial().await;
    assert_eq!(exchange(&mut open, b"allowed").await.unwrap(), b"allowed");
    mesh.api.policy.send_replace(Some(Arc::new(only("cluster.local/ns/shop/sa/other"))));
    assert_reset(&mut open).await;
    assert_eq!(
        mesh.api.metric("connections_cut_total{direction=\"inbound\",reason=\"NoAllowMatched\"}"),
        Some(1)
    );
    let mut denied = mesh.dial().await;
    assert_refuses(&mut denied, b"denied").await;
    assert_eq!(
        mesh.api.metric("connections_refused_total{direction=\"inbound\",reason=\"NoAllowMatched\"}"),
        Some(1)
    );
}

#[tokio::test]
async fn a_tunnel_outlives_a_change_of_mode() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    let mut open = mesh.dial().await;
    for mode in [Mode::Permissive, Mode::Disable, Mode::Strict] {
        mesh.api.policy.send_replace(Some(Arc::new(policy(mode))));
        pass(Duration::from_millis(20)).await;
        assert_eq!(exchange(&mut open, b"still").await.unwrap(), b"still", "{mode}");
    }
}

#[tokio::test]
async fn new_credentials_have_tunnels_of_their_own() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    let say = async |words: &[u8]| {
        let mut stream = mesh.dial().await;
        assert_eq!(exchange(&mut stream, words).await.unwrap(), words);
        drop(stream);
        eventually("a tunnel is idle", || mesh.web.metric("tunnels_idle ") >= Some(1)).await;
    };
    say(b"first").await;
    let renewed = cinch_proxy::context::Credentials { generation: 2, ..mesh.authority.good(WEB) };
    mesh.web.credentials.send_replace(Some(Arc::new(renewed)));
    say(b"second").await;
    assert_eq!(mesh.web.metric(HANDSHAKES), Some(2));
    eventually("the old one is closed", || mesh.web.metric("tunnels_idle ") == Some(1)).await;
    // Another bundle on the server's side: it asks clients to come again.
    let rotated = cinch_proxy::context::Credentials { bundle_version: 2, ..mesh.authority.good(API) };
    mesh.api.credentials.send_replace(Some(Arc::new(rotated)));
    eventually("the server has drained it", || mesh.web.metric("tunnels_idle ") == Some(0)).await;
    say(b"third").await;
    assert_eq!(mesh.web.metric(HANDSHAKES), Some(3));
}

#[tokio::test]
async fn a_draining_server_finishes_what_is_open_and_then_ends() {
    let mut mesh = Mesh::with_echo(Mode::Strict).await;
    let mut open = mesh.dial().await;
    assert_eq!(exchange(&mut open, b"before").await.unwrap(), b"before");
    mesh.api.ctx.drain.cancel();
    pass(Duration::from_millis(50)).await;
    assert_eq!(exchange(&mut open, b"after").await.unwrap(), b"after");
    assert!(!mesh.api.serving[0].is_finished());
    drop(open);
    for serving in mesh.api.serving.drain(..) {
        within(serving).await.unwrap();
    }
    assert_eq!(mesh.web.metric("tunnels_idle "), Some(0));
}

#[tokio::test]
async fn the_pod_reaches_itself_in_process_under_its_own_identity() {
    let mesh = Mesh::start(Mode::Strict).await;
    let own = echo(WEB_IP).await;
    mesh.web.told.say(SERVICE, one_of(vec![endpoint(own, WEB)]));
    mesh.web.policy.send_replace(Some(Arc::new(only("cluster.local/ns/shop/sa/web"))));
    let mut stream = mesh.dial().await;
    assert_eq!(exchange(&mut stream, b"me").await.unwrap(), b"me");
    assert_eq!(mesh.web.metric("connections_total{direction=\"inbound\",transport=\"local\"}"), Some(1));
    assert_eq!(mesh.web.totals().served, 0, "it is no plaintext");
    mesh.web.policy.send_replace(Some(Arc::new(only("cluster.local/ns/shop/sa/api"))));
    assert_reset(&mut stream).await;
    assert_reset(&mut mesh.dial().await).await;
}
