//! Agents that follow each other on one node: who serves the kubelet, and what happens when the later one does not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod kubelet;

use cinch_node::csi::registration::InfoRequest;
use cinch_node::csi::registration::registration_client::RegistrationClient;
use cinch_node::csi::v1;
use cinch_node::csi::v1::identity_client::IdentityClient;
use cinch_node::csi::v1::identity_server::{Identity, IdentityServer};
use cinch_node::serve::REGISTRATION_SOCKET;
use cinch_node::socket::{file_at, stage};
use futures::stream;
use kubelet::{Kubelet, PACE, POD, Running, host, reason_at, until};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::net::{UnixListener, UnixStream};
use tonic::{Request, Response, Status};

/// Has the place of an agent and says of itself what it is told to say.
#[derive(Clone, Default)]
struct Another {
    works: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Identity for Another {
    async fn get_plugin_info(
        &self,
        _: Request<v1::GetPluginInfoRequest>,
    ) -> Result<Response<v1::GetPluginInfoResponse>, Status> {
        Err(Status::unimplemented("nobody asks this"))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<v1::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<v1::GetPluginCapabilitiesResponse>, Status> {
        Err(Status::unimplemented("nobody asks this"))
    }

    async fn probe(&self, _: Request<v1::ProbeRequest>) -> Result<Response<v1::ProbeResponse>, Status> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let value = self.works.load(Ordering::Relaxed);
        Ok(Response::new(v1::ProbeResponse { ready: Some(v1::BoolValue { value }) }))
    }
}

impl Another {
    /// Takes the kubelet's way to itself.
    fn take_over(kubelet: &Kubelet) -> Self {
        let another = Self { works: Arc::new(AtomicBool::new(true)), asked: Arc::default() };
        let listener = UnixListener::from_std(take(kubelet)).unwrap();
        let incoming = stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _): (UnixStream, _)| stream);
            Some((accepted, listener))
        });
        let service = IdentityServer::new(another.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        another
    }

    /// Waits until it was asked some more times.
    async fn is_asked_again(&self) {
        let before = self.asked.load(Ordering::Relaxed);
        until(|| self.asked.load(Ordering::Relaxed) >= before + 3).await;
    }
}

fn csi_socket(kubelet: &Kubelet) -> PathBuf {
    kubelet.paths().driver.join("csi.sock")
}

/// A socket in the place of whatever the kubelet speaks to.
fn take(kubelet: &Kubelet) -> std::os::unix::net::UnixListener {
    fs::create_dir_all(kubelet.paths().driver).unwrap();
    stage(&kubelet.paths().driver, "csi.sock", 0o600).unwrap().put_in_place().unwrap()
}

/// The kubelet is served again in everything it asks for: by one agent.
async fn serves(kubelet: &Kubelet, running: &Running) {
    kubelet.publish(POD).await.unwrap();
    assert!(running.pods.count() > 0, "another one was asked");
    assert_eq!(reason_at(&kubelet.target(POD)).await.unwrap(), "NotTheSidecar");
    kubelet.unpublish(POD).await.unwrap();
    RegistrationClient::new(kubelet.registration().await).get_info(InfoRequest {}).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_could_only_refuse_leaves_the_place_to_one_that_works() {
    let kubelet = Kubelet::new();
    let before = Another::take_over(&kubelet);
    let place = file_at(&csi_socket(&kubelet));
    let later = Running::begin(&kubelet, Err("a fault".into()));
    before.is_asked_again().await;
    before.works.store(false, Ordering::Relaxed);
    before.is_asked_again().await;
    assert_eq!(file_at(&csi_socket(&kubelet)), place, "it would only refuse, as the one that is there");
    before.works.store(true, Ordering::Relaxed);
    later.agent.found(Err("another fault".into()));
    before.is_asked_again().await;
    assert_eq!(file_at(&csi_socket(&kubelet)), place);
    later.agent.found(Ok(host()));
    until(|| file_at(&csi_socket(&kubelet)) != place).await;
    serves(&kubelet, &later).await;
}

#[tokio::test]
async fn an_agent_with_a_fault_serves_where_nobody_else_does() {
    let kubelet = Kubelet::new();
    // As an agent leaves it that was killed.
    drop(take(&kubelet));
    let place = file_at(&csi_socket(&kubelet));
    let running = Running::begin(&kubelet, Err("a fault".into()));
    until(|| file_at(&csi_socket(&kubelet)) != place).await;
    serves(&kubelet, &running).await;
    let mut identity = IdentityClient::new(kubelet.csi().await);
    let mut ready = async || identity.probe(v1::ProbeRequest {}).await.unwrap().into_inner().ready;
    assert_eq!(ready().await, Some(v1::BoolValue { value: false }));
    running.agent.found(Ok(host()));
    assert_eq!(ready().await, Some(v1::BoolValue { value: true }), "found by a later look");
}

#[tokio::test]
async fn an_agent_takes_its_place_back_from_a_later_one_that_does_not_work() {
    let kubelet = Kubelet::new();
    let first = Running::start(&kubelet).await;
    let later = Another::take_over(&kubelet);
    let place = file_at(&csi_socket(&kubelet));
    later.is_asked_again().await;
    assert_eq!(file_at(&csi_socket(&kubelet)), place, "who works is left");
    later.works.store(false, Ordering::Relaxed);
    until(|| file_at(&csi_socket(&kubelet)) != place).await;
    serves(&kubelet, &first).await;
}

#[tokio::test]
async fn an_agent_takes_its_place_back_from_a_later_one_that_ended() {
    let kubelet = Kubelet::new();
    let first = Running::start(&kubelet).await;
    kubelet.publish("pod-2").await.unwrap();
    let later = Running::start(&kubelet).await;
    kubelet.publish("pod-3").await.unwrap();
    let place = file_at(&csi_socket(&kubelet));
    later.kill();
    until(|| file_at(&csi_socket(&kubelet)) != place).await;
    // Those that the later one took, and those that it made.
    until(|| first.pods.count() == 2).await;
    for pod in ["pod-2", "pod-3"] {
        assert_eq!(reason_at(&kubelet.target(pod)).await.unwrap(), "NotTheSidecar", "{pod}");
    }
    serves(&kubelet, &first).await;
}

#[tokio::test]
async fn a_socket_that_another_agent_put_into_a_volume_is_replaced() {
    let kubelet = Kubelet::new();
    let first = Running::start(&kubelet).await;
    let second = Running::start(&kubelet).await;
    kubelet.publish(POD).await.unwrap();
    let target = kubelet.target(POD);
    let own = file_at(&target.join("agent.sock"));
    // As one does that has looked where the kubelet's way leads a moment before it led elsewhere.
    let volume = first.pods.volume(target.to_str().unwrap()).unwrap();
    first.pods.publish(volume).unwrap();
    let foreign = file_at(&target.join("agent.sock"));
    assert_ne!(foreign, own);
    until(|| file_at(&target.join("agent.sock")) != foreign).await;
    assert_eq!(second.pods.adopt(), 0, "it is its own again");
    assert_eq!(reason_at(&target).await.unwrap(), "NotTheSidecar");
}

#[tokio::test]
async fn of_two_agents_that_came_at_once_the_one_that_serves_has_the_registration_too() {
    let kubelet = Kubelet::new();
    let first = Running::start(&kubelet).await;
    let registry = kubelet.paths().registry;
    let registration = registry.join(REGISTRATION_SOCKET);
    // As one leaves it whose services were taken before it had opened its registration.
    drop(stage(&registry, REGISTRATION_SOCKET, 0o600).unwrap().put_in_place().unwrap());
    let foreign = file_at(&registration);
    until(|| file_at(&registration) != foreign).await;
    serves(&kubelet, &first).await;
}

#[tokio::test]
async fn an_agent_that_has_served_does_not_end_when_it_can_not_take_its_place_back() {
    let kubelet = Kubelet::new();
    let first = Running::start(&kubelet).await;
    let registry = kubelet.paths().registry;
    let moved = registry.with_file_name("moved");
    fs::rename(&registry, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &registry).unwrap();
    let place = file_at(&csi_socket(&kubelet));
    fs::remove_file(csi_socket(&kubelet)).unwrap();
    tokio::time::sleep(PACE * 20).await;
    assert!(!first.has_ended() && file_at(&csi_socket(&kubelet)).is_none(), "{place:?}");
    fs::remove_file(&registry).unwrap();
    fs::rename(&moved, &registry).unwrap();
    until(|| file_at(&csi_socket(&kubelet)).is_some()).await;
    serves(&kubelet, &first).await;
}

#[tokio::test]
async fn an_agent_whose_registration_was_taken_serves_on_while_it_can_not_take_it_back() {
    let kubelet = Kubelet::new();
    let first = Running::start(&kubelet).await;
    let paths = kubelet.paths();
    // No socket is made behind a link, though one is found there.
    let moved = paths.registry.with_file_name("moved");
    fs::rename(&paths.registry, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &paths.registry).unwrap();
    let changed = || fs::metadata(&paths.driver).unwrap().modified().unwrap();
    let before = changed();
    drop(stage(&moved, REGISTRATION_SOCKET, 0o600).unwrap().put_in_place().unwrap());
    let foreign = file_at(&moved.join(REGISTRATION_SOCKET));
    // It stages the socket of the services first, and gives that up again.
    until(|| changed() != before).await;
    kubelet.publish(POD).await.unwrap();
    kubelet.unpublish(POD).await.unwrap();
    assert_eq!(file_at(&moved.join(REGISTRATION_SOCKET)), foreign, "it is not taken back yet");
    fs::remove_file(&paths.registry).unwrap();
    fs::rename(&moved, &paths.registry).unwrap();
    until(|| file_at(&paths.registry.join(REGISTRATION_SOCKET)) != foreign).await;
    serves(&kubelet, &first).await;
}

#[tokio::test]
async fn an_agent_that_can_not_open_all_its_sockets_replaces_none() {
    let kubelet = Kubelet::new();
    let first = Running::start(&kubelet).await;
    kubelet.publish(POD).await.unwrap();
    let place = (file_at(&csi_socket(&kubelet)), file_at(&kubelet.target(POD).join("agent.sock")));
    // No socket is made behind a link.
    let registry = kubelet.paths().registry;
    let moved = registry.with_file_name("moved");
    fs::rename(&registry, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &registry).unwrap();
    let later = Running::begin(&kubelet, Ok(host()));
    until(|| later.has_ended()).await;
    assert_eq!((file_at(&csi_socket(&kubelet)), file_at(&kubelet.target(POD).join("agent.sock"))), place);
    serves(&kubelet, &first).await;
}
