//! The driver as a kubelet meets it: gRPC over Unix sockets, against trees like a kubelet's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use cinch_node::agent::Agent;
use cinch_node::csi::registration::registration_client::RegistrationClient;
use cinch_node::csi::registration::{InfoRequest, RegistrationStatus};
use cinch_node::csi::v1::identity_client::IdentityClient;
use cinch_node::csi::v1::node_client::NodeClient;
use cinch_node::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginInfoRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest,
    NodePublishVolumeRequest, NodeUnpublishVolumeRequest, ProbeRequest,
};
use cinch_node::csi::{Registered, v1};
use cinch_node::metrics::Metrics;
use cinch_node::pods::Pods;
use cinch_node::serve::{KubeletPaths, REGISTRATION_SOCKET, serve};
use cinch_redirect::request::{Answer, Request};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::body::Body;

const DRIVER: &str = "node.cinch.dev";
const POD: &str = "0b1f7c52-6f0e-4a7e-9d43-5a3c2f7a9e11";
const NOTES: &str = r#"{"attachmentID":"csi-1","driverName":"node.cinch.dev","nodeName":"node-1","specVolID":"cinch-agent","volumeHandle":"csi-2","volumeLifecycleMode":"Ephemeral"}"#;

/// A kubelet's directories.
struct Kubelet {
    root: tempfile::TempDir,
}

impl Kubelet {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("pods")).unwrap();
        Self { root }
    }

    fn paths(&self) -> KubeletPaths {
        KubeletPaths::below(self.root.path())
    }

    fn target(&self, pod: &str) -> PathBuf {
        self.root.path().join("pods").join(pod).join("volumes/kubernetes.io~csi/cinch-agent/mount")
    }

    /// What a kubelet does before it calls the driver.
    fn prepare(&self, pod: &str) -> PathBuf {
        let target = self.target(pod);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target.with_file_name("vol_data.json"), NOTES).unwrap();
        target
    }

    async fn publish(&self, pod: &str) -> Result<(), tonic::Status> {
        let target = self.prepare(pod);
        let request = publication(&target, pod);
        NodeClient::new(self.csi().await).node_publish_volume(request).await.map(|_| ())
    }

    async fn unpublish(&self, pod: &str) -> Result<(), tonic::Status> {
        let target_path = self.target(pod).display().to_string();
        let request = NodeUnpublishVolumeRequest { volume_id: "csi-2".into(), target_path };
        NodeClient::new(self.csi().await).node_unpublish_volume(request).await.map(|_| ())
    }

    async fn csi(&self) -> Channel {
        channel_to("localhost", self.paths().driver.join("csi.sock")).await
    }

    async fn registration(&self) -> Channel {
        let path = self.paths().registry.join(REGISTRATION_SOCKET);
        // The kubelet dials it without a word about the authority, so its gRPC makes one of the path.
        channel_to(&path.to_str().unwrap().replace('/', "%2F"), path).await
    }
}

fn publication(target: &Path, pod: &str) -> NodePublishVolumeRequest {
    let context = [("csi.storage.k8s.io/pod.uid", pod), ("csi.storage.k8s.io/ephemeral", "true")];
    NodePublishVolumeRequest {
        volume_id: "csi-2".into(),
        target_path: target.display().to_string(),
        readonly: true,
        volume_context: context.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
    }
}

async fn channel_to(authority: &str, path: PathBuf) -> Channel {
    let stream = TokioIo::new(UnixStream::connect(path).await.unwrap());
    let (requests, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    Channel { authority: authority.to_owned(), requests }
}

/// A gRPC client's one connection: tonic's own would also dial again, and be compiled for this test alone.
struct Channel {
    authority: String,
    requests: http2::SendRequest<Body>,
}

impl tower_service::Service<hyper::Request<Body>> for Channel {
    type Response = hyper::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.requests.poll_ready(context)
    }

    fn call(&mut self, mut request: hyper::Request<Body>) -> Self::Future {
        let target = format!("http://{}{}", self.authority, request.uri().path());
        *request.uri_mut() = target.parse().unwrap();
        Box::pin(self.requests.send_request(request))
    }
}

/// An agent on a node that can't do what is asked of it: who is answered is told apart by the reason.
struct Running {
    pods: Arc<Pods>,
    registered: watch::Receiver<Registered>,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(kubelet: &Kubelet) -> Self {
        let agent = Agent::new(Err("a node of the test".into()), Metrics::default());
        let paths = kubelet.paths();
        let pods = Arc::new(Pods::new(paths.pods.clone(), Arc::new(agent)));
        let (sender, registered) = watch::channel(None);
        let registration = paths.registry.join(REGISTRATION_SOCKET);
        let before = fs::symlink_metadata(&registration).ok().map(|found| inode(&found));
        let serving = pods.clone();
        let task = tokio::spawn(async move {
            serve(&paths, "node-1", serving, sender, CancellationToken::new()).await.unwrap();
        });
        // The registration is the last to be opened.
        while fs::symlink_metadata(&registration).ok().map(|found| inode(&found)) == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self { pods, registered, task }
    }

    /// As a SIGKILL would: nothing is tidied up.
    fn kill(self) {
        self.task.abort();
    }
}

fn inode(found: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(found)
}

/// The reason of whoever answers in the volume.
async fn reason_at(target: &Path) -> std::io::Result<String> {
    let directory = fs::File::open(target)?;
    let mut stream =
        UnixStream::connect(format!("/proc/self/fd/{}/agent.sock", directory.as_raw_fd())).await?;
    stream.write_all(&Request { nonce: 7, look: false }.encode()).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    match Answer::decode(&bytes) {
        Ok(Some(Answer::Refused { reason, .. })) => Ok(reason),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_kubelet_learns_the_driver_and_its_services() {
    let kubelet = Kubelet::new();
    let mut running = Running::start(&kubelet).await;
    let mut registration = RegistrationClient::new(kubelet.registration().await);
    let info = registration.get_info(InfoRequest {}).await.unwrap().into_inner();
    let endpoint = kubelet.paths().driver.join("csi.sock").display().to_string();
    assert_eq!((info.r#type.as_str(), info.name.as_str(), info.endpoint), ("CSIPlugin", DRIVER, endpoint));
    assert_eq!(info.supported_versions, ["1.0.0"]);
    assert_eq!(*running.registered.borrow(), None);
    for (plugin_registered, error, want) in
        [(false, "no", Some(Err("no".to_owned()))), (true, "", Some(Ok(())))]
    {
        let status = RegistrationStatus { plugin_registered, error: error.into() };
        registration.notify_registration_status(status).await.unwrap();
        assert_eq!(*running.registered.borrow_and_update(), want);
    }

    let mut identity = IdentityClient::new(kubelet.csi().await);
    let info = identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.name, DRIVER);
    identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
    let ready = identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready;
    assert_eq!(ready, Some(v1::BoolValue { value: true }));
    let mut node = NodeClient::new(kubelet.csi().await);
    node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await.unwrap();
    let info = node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.node_id, "node-1");
}

#[tokio::test]
async fn a_volume_is_a_directory_with_a_socket_until_it_is_unpublished() {
    let kubelet = Kubelet::new();
    let running = Running::start(&kubelet).await;
    kubelet.publish(POD).await.unwrap();
    let target = kubelet.target(POD);
    let socket = target.join("agent.sock");
    assert!(socket.as_os_str().len() > 107, "longer than the address of a socket can be");
    // Whoever runs this test is not the sidecar's user.
    assert_eq!(reason_at(&target).await.unwrap(), "NotTheSidecar");
    kubelet.publish(POD).await.unwrap();
    assert_eq!(reason_at(&target).await.unwrap(), "NotTheSidecar", "published twice");
    assert_eq!(running.pods.count(), 1);
    kubelet.unpublish(POD).await.unwrap();
    assert!(!target.exists() && target.with_file_name("vol_data.json").exists());
    assert_eq!(running.pods.count(), 0);
    kubelet.unpublish(POD).await.unwrap();
}

#[tokio::test]
async fn what_is_not_a_pods_own_volume_is_refused() {
    let kubelet = Kubelet::new();
    let _running = Running::start(&kubelet).await;
    let target = kubelet.prepare(POD);
    let mut node = NodeClient::new(kubelet.csi().await);
    let good = publication(&target, POD);
    let outside = kubelet.root.path().join("outside");
    let without = |key: &str| {
        let mut context = good.volume_context.clone();
        context.remove(key);
        NodePublishVolumeRequest { volume_context: context, ..good.clone() }
    };
    for (case, request) in [
        ("another pod", publication(&target, "another")),
        ("no pod", without("csi.storage.k8s.io/pod.uid")),
        ("persistent", without("csi.storage.k8s.io/ephemeral")),
        ("not readOnly", NodePublishVolumeRequest { readonly: false, ..good.clone() }),
        ("elsewhere", publication(&outside, POD)),
        ("back out", publication(&target.join("../../../../.."), POD)),
        ("nothing", NodePublishVolumeRequest::default()),
    ] {
        let status = node.node_publish_volume(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{case}: {status}");
    }
    assert!(!outside.exists() && !target.exists());
    let away = NodeUnpublishVolumeRequest {
        volume_id: "x".into(),
        target_path: kubelet.root.path().join("pods").display().to_string(),
    };
    assert_eq!(node.node_unpublish_volume(away).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(kubelet.root.path().join("pods").exists());
}

#[tokio::test]
async fn running_pods_are_served_again_after_a_restart() {
    let kubelet = Kubelet::new();
    let first = Running::start(&kubelet).await;
    for pod in [POD, "pod-2", "pod-3"] {
        kubelet.publish(pod).await.unwrap();
    }
    first.kill();
    // Pods that end while nobody is there are tidied up by the kubelet's next attempt.
    fs::remove_dir_all(kubelet.target("pod-3")).unwrap();
    let second = Running::start(&kubelet).await;
    assert_eq!(second.pods.count(), 2);
    assert_eq!(reason_at(&kubelet.target(POD)).await.unwrap(), "NotTheSidecar");
    kubelet.unpublish(POD).await.unwrap();
    kubelet.unpublish("pod-3").await.unwrap();
    assert!(!kubelet.target(POD).exists());
    assert_eq!(second.pods.count(), 1);
}

#[tokio::test]
async fn a_later_agent_takes_over_while_the_earlier_still_runs_and_keeps_all_when_it_ends() {
    let kubelet = Kubelet::new();
    let first = Running::start(&kubelet).await;
    kubelet.publish(POD).await.unwrap();
    let earlier = kubelet.csi().await;
    let second = Running::start(&kubelet).await;
    assert_eq!(second.pods.count(), 1, "taken over");
    kubelet.publish("pod-2").await.unwrap();
    assert_eq!((first.pods.count(), second.pods.count()), (1, 2), "new pods go to the later");
    // What was on its way to the earlier is still done by it.
    IdentityClient::new(earlier).probe(ProbeRequest {}).await.unwrap();
    first.kill();
    for pod in [POD, "pod-2"] {
        assert_eq!(reason_at(&kubelet.target(pod)).await.unwrap(), "NotTheSidecar", "{pod}");
        kubelet.unpublish(pod).await.unwrap();
    }
    let mut registration = RegistrationClient::new(kubelet.registration().await);
    registration.get_info(InfoRequest {}).await.unwrap();
}
