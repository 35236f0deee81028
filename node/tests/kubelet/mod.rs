//! A kubelet for tests: its directories, its calls, and agents that serve it.

#![allow(dead_code)]

use cinch_node::agent::Agent;
use cinch_node::csi::Registered;
use cinch_node::csi::v1::node_client::NodeClient;
use cinch_node::csi::v1::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest};
use cinch_node::host::Host;
use cinch_node::metrics::Metrics;
use cinch_node::mounts::PodsDirectory;
use cinch_node::pods::Pods;
use cinch_node::serve::{KubeletPaths, REGISTRATION_SOCKET, serve};
use cinch_node::socket::file_at;
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
use tonic::body::Body;

/// How often agents of tests look who serves.
pub const PACE: Duration = Duration::from_millis(5);
pub const POD: &str = "0b1f7c52-6f0e-4a7e-9d43-5a3c2f7a9e11";
const NOTES: &str = r#"{"attachmentID":"csi-1","driverName":"node.cinch.dev","nodeName":"node-1","specVolID":"cinch-agent","volumeHandle":"csi-2","volumeLifecycleMode":"Ephemeral"}"#;

/// A kubelet's directories.
pub struct Kubelet {
    pub root: tempfile::TempDir,
}

impl Kubelet {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("pods")).unwrap();
        Self { root }
    }

    pub fn paths(&self) -> KubeletPaths {
        KubeletPaths::below(self.root.path())
    }

    pub fn target(&self, pod: &str) -> PathBuf {
        self.root.path().join("pods").join(pod).join("volumes/kubernetes.io~csi/cinch-agent/mount")
    }

    /// What a kubelet does before it calls the driver.
    pub fn prepare(&self, pod: &str) -> PathBuf {
        let target = self.target(pod);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target.with_file_name("vol_data.json"), NOTES).unwrap();
        target
    }

    pub async fn publish(&self, pod: &str) -> Result<(), tonic::Status> {
        let target = self.prepare(pod);
        let request = publication(&target, pod);
        NodeClient::new(self.csi().await).node_publish_volume(request).await.map(|_| ())
    }

    pub async fn unpublish(&self, pod: &str) -> Result<(), tonic::Status> {
        let target_path = self.target(pod).display().to_string();
        let request = NodeUnpublishVolumeRequest { volume_id: "csi-2".into(), target_path };
        NodeClient::new(self.csi().await).node_unpublish_volume(request).await.map(|_| ())
    }

    pub async fn csi(&self) -> Channel {
        channel_to("localhost", self.paths().driver.join("csi.sock")).await
    }

    pub async fn registration(&self) -> Channel {
        let path = self.paths().registry.join(REGISTRATION_SOCKET);
        // The kubelet dials it without a word about the authority, so its gRPC makes one of the path.
        channel_to(&path.to_str().unwrap().replace('/', "%2F"), path).await
    }
}

pub fn publication(target: &Path, pod: &str) -> NodePublishVolumeRequest {
    let context = [("csi.storage.k8s.io/pod.uid", pod), ("csi.storage.k8s.io/ephemeral", "true")];
    NodePublishVolumeRequest {
        volume_id: "csi-2".into(),
        target_path: target.display().to_string(),
        readonly: true,
        volume_context: context.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
    }
}

pub async fn channel_to(authority: &str, path: PathBuf) -> Channel {
    let stream = TokioIo::new(UnixStream::connect(path).await.unwrap());
    let (requests, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    Channel { authority: authority.to_owned(), requests }
}

/// A gRPC client's one connection: tonic's own would also dial again, and be compiled for this test alone.
pub struct Channel {
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

/// An agent. Nobody here is its pods' sidecar, so it refuses all of them, each in its words.
pub struct Running {
    pub agent: Arc<Agent>,
    pub pods: Arc<Pods>,
    pub registered: watch::Receiver<Registered>,
    task: JoinHandle<()>,
}

impl Running {
    /// One that works, when it serves.
    pub async fn start(kubelet: &Kubelet) -> Self {
        let registration = kubelet.paths().registry.join(REGISTRATION_SOCKET);
        let before = file_at(&registration);
        let running = Self::begin(kubelet, Ok(host()));
        // The registration is the last to be opened.
        until(|| file_at(&registration) != before).await;
        running
    }

    /// One on a node that was found so. It may wait for another.
    pub fn begin(kubelet: &Kubelet, host: Result<Host, String>) -> Self {
        let agent = Arc::new(Agent::new(host, Metrics::default()));
        let paths = kubelet.paths();
        let pods = Arc::new(Pods::new(paths.pods.clone(), agent.clone()));
        let (sender, registered) = watch::channel(None);
        let serving = pods.clone();
        let task = tokio::spawn(async move {
            serve(&paths, "node-1", serving, sender, PACE, CancellationToken::new()).await.unwrap();
        });
        Self { agent, pods, registered, task }
    }

    /// As a SIGKILL would: nothing is tidied up.
    pub fn kill(self) {
        self.task.abort();
    }

    /// It could not go on.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}

/// A node that can do what is asked of it, as far as nobody looks closely.
pub fn host() -> Host {
    let mount = format!(
        "1 1 254:0 /k/pods/{POD}/containers/cinch-node/ab12 /dev/termination-log rw - ext4 /dev/vda rw\n"
    );
    Host {
        proc: "/proc".into(),
        cgroup_root: "/sys/fs/cgroup".into(),
        pods_directory: PodsDirectory::learn(&mount).unwrap(),
        network_namespace: fs::metadata("/proc/self/ns/net").unwrap(),
    }
}

/// Waits for what must come; so long that only what never comes fails.
pub async fn until(mut seen: impl FnMut() -> bool) {
    let seen = async {
        while !seen() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), seen).await.expect("it never came");
}

/// The reason of whoever answers in the volume.
pub async fn reason_at(target: &Path) -> std::io::Result<String> {
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
