//! The two gRPC faces of the agent: a CSI driver of ephemeral inline volumes, and the plugin that the kubelet
//! registers. Every decision is in [`Pods`]; here are conversions and error codes of the specification.

use crate::names::AGENT_DRIVER;
use crate::pods::Pods;
use std::sync::Arc;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// Messages and services of `csi.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("csi.v1");
}

/// Messages and services of the kubelet's plugin registration.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// What the kubelet writes into the context of a volume when the driver asks for it (`podInfoOnMount`).
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// The kind of plugin that a CSI driver is.
const PLUGIN_TYPE: &str = "CSIPlugin";
/// The versions of CSI that the driver speaks, as the kubelet compares them.
const CSI_VERSIONS: [&str; 1] = ["1.0.0"];

/// The CSI driver.
#[derive(Clone)]
pub struct Driver {
    pods: Arc<Pods>,
    node: String,
}

impl Driver {
    /// A driver on the node of this name.
    #[must_use]
    pub fn new(pods: Arc<Pods>, node: String) -> Self {
        Self { pods, node }
    }
}

#[tonic::async_trait]
impl v1::identity_server::Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<v1::GetPluginInfoRequest>,
    ) -> Result<Response<v1::GetPluginInfoResponse>, Status> {
        let (name, vendor_version) = (AGENT_DRIVER.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        Ok(Response::new(v1::GetPluginInfoResponse { name, vendor_version }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<v1::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<v1::GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(v1::GetPluginCapabilitiesResponse {}))
    }

    async fn probe(&self, _: Request<v1::ProbeRequest>) -> Result<Response<v1::ProbeResponse>, Status> {
        // Another agent of this node asks: it takes over from one that can do nothing but refuse.
        let value = self.pods.fault().is_none();
        Ok(Response::new(v1::ProbeResponse { ready: Some(v1::BoolValue { value }) }))
    }
}

#[tonic::async_trait]
impl v1::node_server::Node for Driver {
    async fn node_publish_volume(
        &self,
        request: Request<v1::NodePublishVolumeRequest>,
    ) -> Result<Response<v1::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let context = |key: &str| request.volume_context.get(key).map(String::as_str);
        if context(EPHEMERAL) != Some("true") {
            return Err(Status::invalid_argument("only ephemeral inline volumes are served"));
        }
        // The directory is on the node's own disk, beside what the kubelet counts: no container may write there.
        if !request.readonly {
            return Err(Status::invalid_argument("the volume must be readOnly"));
        }
        let volume = self
            .pods
            .volume(&request.target_path)
            .ok_or_else(|| Status::invalid_argument("the target is not that of a volume of a pod"))?;
        // The path alone would do; that the kubelet says the same twice costs nothing.
        if context(POD_UID) != Some(volume.pod.as_str()) {
            return Err(Status::invalid_argument(
                "the target belongs to another pod than the volume's context",
            ));
        }
        let pod = volume.pod.clone();
        self.pods.publish(volume).map_err(|error| {
            Status::internal(format!("the socket of pod {pod} could not be opened: {error}"))
        })?;
        tracing::debug!(%pod, "published");
        Ok(Response::new(v1::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<v1::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<v1::NodeUnpublishVolumeResponse>, Status> {
        let target = request.into_inner().target_path;
        let volume = self
            .pods
            .volume(&target)
            .ok_or_else(|| Status::invalid_argument("the target is not that of a volume of a pod"))?;
        self.pods.unpublish(&volume).map_err(|error| {
            Status::internal(format!("the volume of pod {} could not be removed: {error}", volume.pod))
        })?;
        tracing::debug!(pod = %volume.pod, "unpublished");
        Ok(Response::new(v1::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<v1::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<v1::NodeGetCapabilitiesResponse>, Status> {
        Ok(Response::new(v1::NodeGetCapabilitiesResponse {}))
    }

    async fn node_get_info(
        &self,
        _: Request<v1::NodeGetInfoRequest>,
    ) -> Result<Response<v1::NodeGetInfoResponse>, Status> {
        Ok(Response::new(v1::NodeGetInfoResponse { node_id: self.node.clone() }))
    }
}

/// What the kubelet said of our registration; `None` until it has spoken.
pub type Registered = Option<Result<(), String>>;

/// The plugin that the kubelet registers.
#[derive(Clone)]
pub struct Plugin {
    endpoint: String,
    registered: watch::Sender<Registered>,
}

impl Plugin {
    /// A plugin whose CSI services are at `endpoint`, a path as the kubelet sees it.
    #[must_use]
    pub fn new(endpoint: String, registered: watch::Sender<Registered>) -> Self {
        Self { endpoint, registered }
    }
}

#[tonic::async_trait]
impl registration::registration_server::Registration for Plugin {
    async fn get_info(
        &self,
        _: Request<registration::InfoRequest>,
    ) -> Result<Response<registration::PluginInfo>, Status> {
        Ok(Response::new(registration::PluginInfo {
            r#type: PLUGIN_TYPE.to_owned(),
            name: AGENT_DRIVER.to_owned(),
            endpoint: self.endpoint.clone(),
            supported_versions: CSI_VERSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<registration::RegistrationStatus>,
    ) -> Result<Response<registration::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        let said = if status.plugin_registered { Ok(()) } else { Err(status.error) };
        match &said {
            Ok(()) => tracing::info!("registered with the kubelet"),
            Err(error) => tracing::warn!(%error, "the kubelet did not register the driver"),
        }
        self.registered.send_replace(Some(said));
        Ok(Response::new(registration::RegistrationStatusResponse {}))
    }
}
